"""Every published checkpoint layout is recognized, and no file is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from small_model import GENES, POSITIONS, tiny_network

from mclst.export.inputs.checkpoint import open_checkpoint
from mclst.export.settings import resolve_settings
from mclst.models.mclstexp import MclSTExp
from mclst.runtime.bundle.manifest import CHECKPOINT_FORMAT, Normalization, Settings
from mclst.runtime.errors import CheckpointError

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return tiny_network().state_dict()


def wrap(state: State, layout: str) -> object:
    if layout == "module.":
        return {f"module.{name}": tensor for name, tensor in state.items()}
    if layout == "well":
        return {name.replace("spot_", "well_"): tensor for name, tensor in state.items()}
    if layout == "model":
        return {"model": state, "optim": {"step": 3}, "epoch": 4}
    if layout == "state_dict":
        return {"state_dict": state, "epoch": 2, "pytorch-lightning_version": "2.0.6", "callbacks": {}}
    if layout == "half":
        return {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    return state


@pytest.mark.parametrize(
    "layout", ["plain", "module.", "well", "model", "state_dict", "half", "legacy", "safetensors"]
)
def test_every_layout_gives_the_same_embeddings(tmp_path: Path, state: State, layout: str) -> None:
    path = tmp_path / "model.pt"
    if layout == "safetensors":
        safetensors.torch.save_file({name: t.contiguous() for name, t in state.items()}, path)
    else:
        torch.save(wrap(state, layout), path, _use_new_zipfile_serialization=layout != "legacy")
    checkpoint = open_checkpoint(path)
    assert (checkpoint.system.name, checkpoint.encoder) == ("mclstexp", "resnet18")
    traits = checkpoint.traits
    assert (traits.genes, traits.width, traits.depth) == (GENES, 16, 2)
    assert (traits.attention_width, traits.positions) == (32, POSITIONS)
    every = torch.arange(POSITIONS)
    network = checkpoint.network(heads=8, x_rows=every, y_rows=every)
    tiles = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expression = torch.rand(5, GENES, generator=torch.Generator().manual_seed(1))
    position = torch.tensor([[1, 2], [3, 4], [0, 19], [7, 7], [5, 0]])
    tolerance = 2e-2 if layout == "half" else 0
    expected = tiny_network()
    with torch.no_grad():
        assert torch.allclose(
            network.encode_tiles(tiles), expected.encode_tiles(tiles), atol=tolerance, rtol=0
        )
        embedding = network.encode_spots(expression, position)
        assert torch.allclose(embedding, expected.encode_spots(expression, position), atol=tolerance, rtol=0)


@pytest.mark.parametrize("encoder", ["densenet121", "resnet50", "resnet101", "vit_base_patch32_224"])
def test_image_encoders_are_recognized(tmp_path: Path, encoder: str) -> None:
    torch.save(tiny_network(encoder).state_dict(), tmp_path / "model.pt")
    assert open_checkpoint(tmp_path / "model.pt").encoder == encoder


def test_older_timm_norm_of_the_vit_is_kept(tmp_path: Path) -> None:
    network = MclSTExp("vit_base_patch32_224", 5, positions=2, vit_norm="norm").eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    rebuilt = open_checkpoint(tmp_path / "model.pt").network(heads=8)
    tiles = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(rebuilt.encode_tiles(tiles), network.encode_tiles(tiles))


def test_position_tables_are_cut_to_the_rows_used(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "model.pt")
    rows = torch.tensor([3, 17])
    network = open_checkpoint(tmp_path / "model.pt").network(heads=8, x_rows=rows, y_rows=rows[:1])
    assert torch.equal(network.x_embed.weight, state["x_embed.weight"][rows])
    assert torch.equal(network.y_embed.weight, state["y_embed.weight"][3:4])


def _peak_mb(path: Path) -> float:
    """Peak memory of opening a checkpoint and rebuilding its network, without the imports."""
    script = (
        "import resource, sys, torch; from mclst.export.inputs.checkpoint import open_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "c = open_checkpoint(sys.argv[1]); rows = torch.tensor([5, 65535])\n"
        "n = c.network(heads=8, x_rows=rows, y_rows=rows)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    return float(process.stdout)


def test_a_full_size_checkpoint_is_never_in_memory_twice(tmp_path: Path) -> None:
    # The published tables: 65,536 rows of 785 genes, twice: 412 of 465 MB.
    with torch.device("meta"):
        network = MclSTExp("densenet121", 785)
    state = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in network.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    size = (tmp_path / "model.pt").stat().st_size / 1e6
    assert size > 450
    del state
    assert _peak_mb(tmp_path / "model.pt") < 0.5 * size


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def refuse(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path).network(heads=8)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_a_program_is_refused_unexecuted(
    tmp_path: Path, state: State, zipped: bool
) -> None:
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"model": state, "x": _Payload(canary)}, path, _use_new_zipfile_serialization=zipped)
    refuse(path, "arbitrary unpickling")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(_Payload(canary)))
    refuse(tmp_path / "evil.pkl")
    assert not canary.exists()


@pytest.mark.parametrize("as_instance", [False, True])
def test_classes_of_lightning_are_neither_needed_nor_run(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, as_instance: bool
) -> None:
    """Lightning 1.4 keys its callbacks by class and stores their state."""
    package, module = ModuleType("pytorch_lightning"), ModuleType("pytorch_lightning.callbacks")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = {"state_dict": state, "callbacks": {callback: {"best": callback() if as_instance else 0.5}}}
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.delitem(sys.modules, package.__name__)
    assert open_checkpoint(tmp_path / "last.ckpt").genes == GENES
    canary = tmp_path / "canary"
    torch.save({**content, "callbacks": {}, "x": _Payload(canary)}, tmp_path / "evil.ckpt")
    refuse(tmp_path / "evil.ckpt", "arbitrary unpickling")
    assert not canary.exists()


def test_files_that_are_no_checkpoint_are_named(tmp_path: Path, state: State) -> None:
    path = tmp_path / "model.pt"
    refuse(path, "not a file")
    refuse(tmp_path, "not a file")
    for content, word in [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "not a"),
        (os.urandom(500), "not a"),
    ]:
        path.write_bytes(content)
        refuse(path, word)
    torch.save(state, path)
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2])
    refuse(path, "not a")
    safetensors.torch.save_file({name: t.contiguous() for name, t in state.items()}, path)
    path.write_bytes(path.read_bytes()[:-100])
    refuse(path, "damaged safetensors")


def test_other_contents_are_named(tmp_path: Path, state: State) -> None:
    path = tmp_path / "model.pt"
    for content, words in [
        ([1, 2], ("list",)),
        ({}, ("no tensors",)),
        ({"a": 1}, ("'a' is no tensor",)),
        ({"conv.weight": torch.zeros(2)}, ("no system", "BLEEP, ", "mclSTExp", "conv.weight", "--system")),
        (
            {k: v for k, v in state.items() if k != "image_projection.fc.bias"},
            ("1 tensors missing", "image_projection.fc.bias"),
        ),
        ({**state, "mean.0.weight": torch.zeros(2)}, ("do not belong", "mean.0.weight")),
        (
            {**state, "spot_projection.fc.weight": torch.zeros(3, 3)},
            ("another shape", "spot_projection.fc.weight"),
        ),
        (
            {**state, "spot_projection.fc.bias": torch.full((16,), torch.nan)},
            ("spot_projection.fc.bias", "not finite"),
        ),
        ({"format": "mclst-checkpoint/9", "model": state}, ("mclst-checkpoint/9", "upgrade")),
    ]:
        torch.save(content, path)
        refuse(path, *words)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(100 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse(path, "unpack to more")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_changed_weight_is_refused(tmp_path: Path, state: State, share: float) -> None:
    """torch itself loads it without verifying the archive's checksums."""
    path = tmp_path / "model.pt"
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    refuse(path, "does not have its checksum")


def test_damaged_safetensors_are_refused(tmp_path: Path, state: State) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({name: t.contiguous() for name, t in state.items()}, path)
    intact = path.read_bytes()
    size = int.from_bytes(intact[:8], "little")
    duplicated = (
        intact[8 : 8 + size].rstrip()[:-1]
        + b',"spot_projection.fc.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    for content in (
        intact[:-100],
        (2**60).to_bytes(8, "little") + intact[8:],
        len(duplicated).to_bytes(8, "little") + duplicated + intact[8 + size :],
    ):
        path.write_bytes(content)
        refuse(path)


@pytest.mark.parametrize("part", ["input", "expression"])
def test_a_checkpoint_in_units_of_an_earlier_version_is_refused(
    tmp_path: Path, state: State, part: str
) -> None:
    """The units of a checkpoint of mclst are stored; those of another are what the export makes."""
    names = {"input": "none", "expression": "none", part: "log-share"}
    settings = Settings(normalization=Normalization.of(**names))
    config = settings.model_dump(mode="json")
    content = {"format": CHECKPOINT_FORMAT, "model": state, "config": config}
    torch.save(content, tmp_path / "new.pt")
    kept = resolve_settings(open_checkpoint(tmp_path / "new.pt"), {}).normalization
    assert kept == settings.normalization and kept.log_share_of == "measured genes"
    del config["normalization"]["log_share_of"]
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(
        CheckpointError, match=r"old\.pt: the log-share of an earlier version .* train it again"
    ):
        resolve_settings(open_checkpoint(tmp_path / "old.pt"), {})
    del config["normalization"]
    torch.save(content, tmp_path / "silent.pt")
    for overrides in ({"normalization": {part: "log-share"}}, {}):
        made = resolve_settings(open_checkpoint(tmp_path / "silent.pt"), overrides).normalization
        assert made.log_share_of == ("measured genes" if overrides else None)


def test_heads_must_divide_the_width(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="5 heads do not divide"):
        open_checkpoint(tmp_path / "model.pt").network(heads=5)


def test_network_equals_plain_numpy(state: State) -> None:
    """The spot encoder equals the published formulas in float64 numpy."""
    network = tiny_network()
    p = {name: tensor.double().numpy() for name, tensor in state.items()}
    rng = np.random.default_rng(0)
    x, rows = rng.random((7, GENES)).astype(np.float32), rng.integers(0, POSITIONS, (7, 2))

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        centered = v - v.mean(-1, keepdims=True)
        return (
            centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"]
            + p[f"{name}.bias"]
        )

    def gelu(v: np.ndarray) -> np.ndarray:
        from scipy.special import erf

        return 0.5 * v * (1 + erf(v / np.sqrt(2)))

    h = x.astype(np.float64) + p["x_embed.weight"][rows[:, 0]] + p["y_embed.weight"][rows[:, 1]]
    for i in range(2):
        b = f"spot_encoder.{i}"
        qkv = norm(h, f"{b}.attn.norm") @ p[f"{b}.attn.fn.to_qkv.weight"].T
        heads = []
        for head in range(8):
            q, k, v = (qkv[:, 32 * part + 4 * head : 32 * part + 4 * head + 4] for part in range(3))
            score = np.exp(q @ k.T / 2)  # head_dim 4
            heads.append(score / score.sum(-1, keepdims=True) @ v)
        h = (
            h
            + np.concatenate(heads, 1) @ p[f"{b}.attn.fn.to_out.0.weight"].T
            + p[f"{b}.attn.fn.to_out.0.bias"]
        )
        inner = gelu(norm(h, f"{b}.ff.norm") @ p[f"{b}.ff.fn.net.0.weight"].T + p[f"{b}.ff.fn.net.0.bias"])
        h = h + inner @ p[f"{b}.ff.fn.net.3.weight"].T + p[f"{b}.ff.fn.net.3.bias"]
    projected = h @ p["spot_projection.projection.weight"].T + p["spot_projection.projection.bias"]
    mixed = gelu(projected) @ p["spot_projection.fc.weight"].T + p["spot_projection.fc.bias"] + projected
    expected = norm(mixed, "spot_projection.layer_norm")
    with torch.no_grad():
        embedding = network.encode_spots(torch.from_numpy(x), torch.from_numpy(rows))
    assert np.abs(embedding.numpy() - expected).max() < 1e-5


def test_the_real_checkpoint_is_recognized(her2st: Path) -> None:
    checkpoint = open_checkpoint(her2st / "model.pt")
    assert (checkpoint.encoder, checkpoint.genes, checkpoint.traits.width) == ("densenet121", 785, 256)
    traits = checkpoint.traits
    assert (traits.depth, traits.attention_width, traits.positions) == (2, 512, 64)
    assert json.dumps(checkpoint.metadata) == "{}"
