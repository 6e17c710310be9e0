"""`mclst-bench end-to-end`: the notebook gives the same map, and the figures follow from the times."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import anndata
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from fake_cuda import FakeDriver
from small_model import TILE_PX, Small

from mclst.benchmarks.cli import main
from mclst.benchmarks.contenders.cold_start import first_result
from mclst.benchmarks.contenders.inputs import open_notebook
from mclst.benchmarks.end_to_end import measure as end_to_end
from mclst.benchmarks.end_to_end.chart import stages_png
from mclst.benchmarks.end_to_end.command import add_share_of_peak
from mclst.benchmarks.harness import stages
from mclst.benchmarks.harness.measure import PeerUnavailable
from mclst.benchmarks.harness.options import parse_settings
from mclst.benchmarks.roofline import peaks
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main as infer
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.session import DeviceSession
from mclst.runtime.encoder.onnxruntime_cpu import OnnxSession
from mclst.runtime.inference import loaded_model as opened_module
from mclst.sections.tables.spots import read_spots


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        peaks,
        "measure_peaks",
        lambda threads, gpu: {
            "host": {"operations_per_s": {"fp32": 1e12, "bf16": None, "int8": None}, "bytes_per_s": 1e10},
            "cuda": None,
        },
    )


def bench(small: Small, bundle: Path, *words: str) -> Result:
    fixed = ["end-to-end", str(small.slide), "--spots", str(small.spots), "--bundle", str(bundle)]
    return CliRunner().invoke(main, [*fixed, *words])


def test_the_notebook_gives_the_map_of_mclst_infer(
    small: Small, exported_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "map.h5ad"
    words = [small.slide, "--spots", small.spots, "--bundle", exported_bundle, "--out", out, "--no-picture"]
    assert CliRunner().invoke(infer, list(map(str, words))).exit_code == 0
    spots = read_spots(small.spots)
    notebook = open_notebook(open_bundle(exported_bundle), small.ckpt, small.slide, threads=1)
    expression, clock = notebook.run(small.slide, spots.xy_px)
    np.testing.assert_allclose(expression, anndata.read_h5ad(out).X, atol=1e-4)
    assert clock["total"] >= clock["decode"] + clock["encode"] + clock["retrieve"]


def test_a_run_is_reported_with_its_samples(small: Small, exported_bundle: Path, tmp_path: Path) -> None:
    saved, picture = tmp_path / "e.json", tmp_path / "e.png"
    words = ["--ckpt", str(small.ckpt), "--truth", str(small.folder), "--section", "B1", "--repeats", "2"]
    done = bench(
        small, exported_bundle, *words, "--settings", "cpu:fp32", "--json", str(saved), "--plot", str(picture)
    )
    assert done.exit_code == 0, done.output
    report = json.loads(saved.read_text())
    ours, theirs = report["result"]["contenders"]
    assert (ours["name"], theirs["name"]) == ("mclst cpu fp32", "published notebook")
    assert ours["wall_to_first"] == 1 and ours["equal_to_first"]["max_abs"] == 0
    assert theirs["equal_to_first"]["max_abs"] < 1e-4 and theirs["equal_to_first"]["spots"] == 24
    assert theirs["against_truth"]["mse"] == pytest.approx(ours["against_truth"]["mse"], abs=1e-4)
    for entry in (ours, theirs):
        walls = entry["samples"]["wall_s"]
        assert len(walls) == len(entry["samples"]["stream_s"]) == 2
        assert entry["tiles_per_s"]["median"] == pytest.approx(np.median([24 / s for s in walls]))
        encode = entry["stages"]["stages"]["encode"]
        assert encode["share"] == pytest.approx(encode["busy_s"] / entry["stages"]["wall_s"])
        rate = 24 * report["result"]["encoder_operations_per_tile"] / encode["busy_s"]
        assert entry["encoder_of_peak"] == pytest.approx(rate / 1e12)
    assert ours["stages"]["stages"]["read"]["busy_s"] > 0 and theirs["stages"]["stages"]["write"] is None
    (fresh,) = report["cold_start"]
    assert next(iter(fresh["steps_s"])) == "python" and list(fresh["steps_s"])[-1] == "first expression"
    assert fresh["first_result_s"] == pytest.approx(sum(fresh["steps_s"].values()), abs=0.05)
    assert fresh["peak_rss_bytes"] > 50e6
    memory = {entry["name"]: entry for entry in report["memory"]}
    assert list(memory) == ["mclst cpu fp32", "published notebook"]
    own = {name: entry["peak_rss_bytes"] - entry["before_bytes"] for name, entry in memory.items()}
    # The notebook brings torch with it, which mclst does without.
    assert 0 < own["mclst cpu fp32"] < own["published notebook"] > 100e6
    assert picture.read_bytes().startswith(b"\x89PNG") and len(stages_png(report)) > 10_000
    for word in ("published notebook", "bound by", "cold start", "memory of published", "PCC"):
        assert word in done.stderr


def test_without_a_checkpoint_the_notebook_is_unavailable(small: Small, exported_bundle: Path) -> None:
    done = bench(small, exported_bundle, "--repeats", "1", "--no-cold", "--json", "-", "-q")
    assert done.exit_code == 0 and done.stderr == "", done.output
    report = json.loads(done.stdout)
    assert report["absent"] == [{"name": "published notebook", "why": "needs the checkpoint; give --ckpt"}]
    assert report["cold_start"] == report["memory"] == [] and [
        c["name"] for c in report["result"]["contenders"]
    ] == ["mclst auto fp32"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--settings", "cpu:int8"), 4, "has no encoder in int8"),
        (("--settings", "tpu"), 2, "no provider 'tpu'"),
        (("--settings", "cpu:fp4"), 2, "no precision 'fp4'; choose fp32, fp16, bf16, int8"),
        (("--settings", ":"), 2, "is not a list"),
        (("--repeats", "0"), 2, "repeats"),
        (("--ckpt", "CKPT"), 4, "is not the checkpoint"),
        (("--json", "SLIDE"), 5, "SLIDE"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    small: Small, exported_bundle: Path, tmp_path: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    import torch

    other = tmp_path / "other.pt"
    state = torch.load(small.ckpt, weights_only=True)
    state["image_projection.fc.bias"] += 1
    torch.save(state, other)
    names = {"CKPT": str(other), "SLIDE": str(small.slide)}
    done = bench(small, exported_bundle, *(names.get(word, word) for word in words))
    assert done.exit_code == code and "Traceback" not in done.output
    assert names.get(says, says) in " ".join(done.output.split())


@pytest.mark.parametrize("command", ["end-to-end", "command"])
def test_a_slide_that_is_not_there_is_refused_before_any_process(
    small: Small, small_bundle: Path, tmp_path: Path, command: str
) -> None:
    absent = str(tmp_path / "no.png")
    words = [command, absent, "--spots", str(small.spots), "--bundle", str(small_bundle)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 4 and done.stderr == f"Error: {absent} does not exist; check the path\n"


def test_a_scale_that_only_the_spots_tell_is_used(small: Small, small_bundle: Path, tmp_path: Path) -> None:
    """As mclst-infer uses it; both benchmarks once asked for --mpp, which end-to-end does not have."""
    bundle, spots = tmp_path / "bundle", tmp_path / "spots.tsv"
    shutil.copytree(small_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["tile"]["mpp"] = 8.0
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    places = [(x, y) for x in range(2, 6) for y in range(2, 5)]  # 25 px for 200 µm
    table = [f"{x}\t{y}\t{25 * x}\t{25 * y}" for x, y in places]
    spots.write_text("\n".join(["x\ty\tpixel_x\tpixel_y", *table]) + "\n")
    moments = first_result(
        str(bundle / "encoder.onnx"), "cpu", "fp32", 32, 4, 0, str(small.slide), str(spots), str(bundle)
    )["moments"]
    assert "first expression" in moments
    words = ["robustness", small.slide, "--spots", spots, "--bundle", bundle, "--json", "-", "-q"]
    told, known = (CliRunner().invoke(main, [*map(str, words), *more]) for more in ((), ("--mpp", "8")))
    assert told.exit_code == known.exit_code == 0, told.output
    assert json.loads(told.stdout)["results"] == json.loads(known.stdout)["results"]


def test_the_notebook_is_unavailable_where_its_work_would_differ(
    small: Small, exported_bundle: Path, tmp_path: Path
) -> None:
    bundle, tiff = open_bundle(exported_bundle), tmp_path / "slide.tif"
    tifffile.imwrite(tiff, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    uniform = bundle.manifest.model_copy(
        update={"retrieval": bundle.manifest.retrieval.model_copy(update={"weighting": "uniform"})}  # type: ignore[union-attr]
    )
    with pytest.raises(PeerUnavailable, match="d⁻² weights"):
        open_notebook(type(bundle)(bundle.path, uniform, bundle.sha256), small.ckpt, small.slide, 1)
    with pytest.raises(PeerUnavailable, match="pictures, not slide files"):
        open_notebook(bundle, small.ckpt, tiff, 1)


# --- stages
# -------------------------------------------------------------------------------------------------------


def summary(wall: float, threads: dict[str, int] | None = None, **busy: float) -> dict[str, Any]:
    return stages.Stages(
        {name.replace("_", " "): s for name, s in busy.items()}, wall, threads or {}
    ).summary()


def test_shares_overlap_and_the_bound_by_hand() -> None:
    report = summary(10.0, {"decode": 2}, read=1.0, decode=12.0, encode=7.0, retrieve=0.5, write=0.5)
    assert report["overlap"] == pytest.approx(2.1)
    assert report["bound"] == "encode" and report["bound_share"] == pytest.approx(0.7)
    assert report["stages"]["decode"] == {"busy_s": 12.0, "share": 1.2, "lanes": 2}
    assert report["stages"]["copy up"] is None
    assert report["elsewhere_s"] == pytest.approx(2.0)
    assert summary(10.0, {"decode": 1}, decode=9.0, encode=7.0)["bound"] == "decode"


def test_stages_are_those_of_the_median_run() -> None:
    runs = [
        stages.Stages({"encode": busy}, wall, {})
        for wall, busy in ((9.0, 1.0), (3.0, 2.0), (5.0, 4.5), (4.0, 3.5))
    ]
    assert end_to_end.median_run(runs) is runs[3] and end_to_end.median_run(runs[:3]) is runs[2]


def test_stages_of_a_run_separate_reading_from_decoding() -> None:
    seconds = {
        "read": 3.0,
        "file": 0.5,
        "encode": 4.0,
        "retrieve": 1.0,
        "write": 0.25,
        "total": 6.0,
        "stream": 5.0,
    }
    report = stages.stages_of_run(seconds, workers=2)
    assert report.busy_s["read"] == 0.5 and report.busy_s["decode"] == 2.5 and report.threads["decode"] == 2
    del seconds["file"]
    unseen = stages.stages_of_run(seconds, workers=2)
    assert unseen.busy_s["read"] is None and unseen.busy_s["decode"] == 3.0
    assert unseen.summary()["elsewhere_s"] == pytest.approx(6.0 - 5.25)
    on_device = stages.stages_of_run(seconds | {"upload": 0.1, "download": 0.02, "gather": 9.0}, workers=2)
    assert (on_device.busy_s["copy up"], on_device.busy_s["copy down"]) == (0.1, 0.02)
    # There the host does not wait while a batch is encoded.
    assert on_device.summary()["elsewhere_s"] == pytest.approx(6.0 - 1.25)


def test_the_share_of_peak_is_that_of_the_device_in_use(exported_bundle: Path) -> None:
    bundle = open_bundle(exported_bundle)
    rates = {"host": {"fp32": 1e12}, "cuda": {"fp32": 1e13, "fp16": 1e14}}
    sides = {
        side: {"operations_per_s": operations, "bytes_per_s": 1e10} for side, operations in rates.items()
    }
    ways = [
        ("mclst auto fp16", "tensorrt", 1e14),
        ("mclst cpu fp32", "cpu", 1e12),
        ("mclst cuda fp32", "cuda", 1e13),
    ]
    result: dict[str, Any] = {
        "tiles": 10,
        "contenders": [
            {
                "name": name,
                "ours": True,
                "provider": provider,
                "stages": {"stages": {"encode": {"busy_s": 0.5}}},
            }
            for name, provider, _ in ways
        ],
    }
    add_share_of_peak(result, bundle, sides, 4)
    for entry, (_, _, peak) in zip(result["contenders"], ways, strict=True):
        assert entry["encoder_of_peak"] == pytest.approx(
            10 * result["encoder_operations_per_tile"] / 0.5 / peak
        )
    add_share_of_peak(result, bundle, {**sides, "cuda": None}, 4)
    assert [entry["encoder_of_peak"] is None for entry in result["contenders"]] == [True, False, True]


class OnFakeDevice:
    """An encoder on a played device: its work stands in a stream until somebody asks for something."""

    stream = None  # that of the stages

    def __init__(self, driver: FakeDriver, session: OnnxSession, batch: int) -> None:
        self.batch, self._driver, self._session = batch, driver, session

    def prepare(self, stream: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self._stream, self._places = stream, list(zip(inputs, outputs, strict=True))

    def enqueue(self, slot: int) -> None:
        source, to = self._places[slot]

        def run() -> None:
            shape = (self.batch, TILE_PX, TILE_PX, 3)
            tiles = np.frombuffer(ctypes.string_at(source, int(np.prod(shape))), np.uint8).reshape(shape)
            embedding = self._session.encode(tiles).tobytes()
            ctypes.memmove(to, embedding, len(embedding))

        self._driver.put(self._stream, run)

    def close(self) -> None: ...


def test_a_run_on_a_device_reports_its_copies(
    small: Small, exported_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver()
    package = ModuleType("cuda.bindings")
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    bundle, spots = open_bundle(exported_bundle), read_spots(small.spots)
    on_host = OnnxSession(bundle.encoder_path, threads=1)
    width = bundle.manifest.encoder.embedding_dim
    assert width is not None
    session = DeviceSession(
        CudaDevice(), lambda batch: OnFakeDevice(driver, on_host, batch), provider="tensorrt",
        engine="played", tile=(TILE_PX, TILE_PX, 3), width=width,
    )  # fmt: skip
    settings = {
        f"mclst {name} fp32": {"provider": name, "workers": 1, "batch_size": 4}
        for name in ("tensorrt", "cpu")
    }
    opened = opened_module.open_encoder  # type: ignore[attr-defined]
    monkeypatch.setattr(
        opened_module,
        "open_encoder",
        lambda name, request: (session, "") if name == "tensorrt" else opened(name, request),
    )
    report, expression = end_to_end.measure(
        bundle, small.slide, spots, settings=settings, notebook=None, rounds=1
    )
    device, host = report["contenders"]
    assert (device["provider"], host["provider"]) == ("tensorrt", "cpu")
    np.testing.assert_allclose(expression[device["name"]], expression[host["name"]], atol=1e-5)
    # The played clock moves by a millisecond with each thing the device does, on any stream; 24 tiles are six
    # batches.
    for name in ("copy up", "encode", "copy down"):
        assert device["stages"]["stages"][name]["busy_s"] >= 6e-3
    assert host["stages"]["stages"]["copy up"] is host["stages"]["stages"]["copy down"] is None


def test_settings_are_pairs() -> None:
    parse: Any = parse_settings
    assert parse(None, None, "cpu, cpu:int8,cpu:fp32") == [("cpu", "fp32"), ("cpu", "int8")]
