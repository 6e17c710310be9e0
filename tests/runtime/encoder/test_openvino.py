"""The openvino provider: the CPU's numbers, in the graph's own precision, or a sentence that says why not."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx.numpy_helper import from_array, to_array
from small_model import Small

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main as infer
from mclst.runtime.encoder import openvino_cache
from mclst.runtime.encoder.openvino import OpenVinoSession
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.providers.opening import EncoderRequest, list_providers, open_encoder, open_session

ov = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def graph(exported_bundle: Path) -> Path:
    return open_bundle(exported_bundle).encoder_path


@pytest.fixture(scope="module")
def tiles(graph: Path) -> np.ndarray:
    side = open_session(graph, "cpu")._tile[0]  # type: ignore[attr-defined]
    return np.random.default_rng(4).integers(0, 256, (13, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (2, 1)])
def test_it_gives_what_the_cpu_provider_gives(
    graph: Path, tiles: np.ndarray, threads: int, lanes: int
) -> None:
    session = OpenVinoSession(graph, threads=threads, lanes=lanes)
    expected = open_session(graph, "cpu").encode(tiles)
    for n in (13, 1):
        result = session.encode(tiles[:n])
        assert result.dtype == np.float32 and result.shape == expected[:n].shape
        np.testing.assert_allclose(result, expected[:n], rtol=0, atol=5e-5)


def test_results_do_not_share_memory_with_the_next_call(graph: Path, tiles: np.ndarray) -> None:
    session = OpenVinoSession(graph, threads=1)
    first = session.encode(tiles[:2])
    copied = first.copy()
    session.encode(tiles[2:4])
    assert np.array_equal(first, copied)


def test_half_precision_is_near_or_refused(graph: Path, tiles: np.ndarray) -> None:
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ResourceError, match="neither AMX-BF16"):
            OpenVinoSession(graph, "bf16")
        return
    expected = open_session(graph, "cpu").encode(tiles)
    result = OpenVinoSession(graph, "bf16").encode(tiles)
    cosine = (result * expected).sum(1) / np.linalg.norm(result, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.999 and np.abs(result - expected).max() > 1e-5


def test_what_it_cannot_run_is_refused(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match="does not run fp16; choose --precision fp32"):
        OpenVinoSession(graph, "fp16")
    other = tmp_path / "encoder.onnx"
    other.write_bytes(b"no graph")
    with pytest.raises(BundleError, match="does not open on openvino"):
        OpenVinoSession(other)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ResourceError, match=r"install mclst\[cpu\]"):
        open_encoder("openvino", EncoderRequest(tmp_path, graph, "fp32", 16))
    assert {name: yes for name, yes, _ in list_providers()}["openvino"] == "no"


def test_a_map_by_either_provider(small: Small, exported_bundle: Path, tmp_path: Path) -> None:
    result = {}
    for provider in ("cpu", "openvino"):
        out = tmp_path / f"{provider}.h5ad"
        words = [
            small.slide,
            "--spots",
            small.spots,
            "--bundle",
            exported_bundle,
            "--out",
            out,
            "--no-picture",
        ]
        done = CliRunner().invoke(infer, [*map(str, words), "--provider", provider])
        assert done.exit_code == 0, done.output
        assert provider in done.stderr
        result[provider] = anndata.read_h5ad(out).X
    np.testing.assert_allclose(result["openvino"], result["cpu"], atol=1e-3)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Each compilation from here on, with a cache that begins empty."""
    calls: list[str] = []
    compile_model = ov.Core.compile_model

    def counting(self: Any, *arguments: Any) -> Any:
        calls.append("compiled")
        return compile_model(self, *arguments)

    monkeypatch.setattr(ov.Core, "compile_model", counting)
    monkeypatch.setenv("MCLST_CACHE", str(tmp_path / "cache"))
    return calls


def test_a_graph_is_compiled_once_for_each_use(
    graph: Path, tiles: np.ndarray, tmp_path: Path, compiled: list[str]
) -> None:
    first = OpenVinoSession(graph, threads=1).encode(tiles)
    np.testing.assert_array_equal(OpenVinoSession(graph, threads=1).encode(tiles), first)
    assert len(compiled) == 1
    OpenVinoSession(graph, threads=2)
    assert len(compiled) == 2
    other = tmp_path / "encoder.onnx"
    shutil.copy(graph, other)  # the same graph, wherever it lies
    OpenVinoSession(other, threads=1)
    assert len(compiled) == 2
    model = onnx.load(graph)
    weight = next(w for w in model.graph.initializer if np.issubdtype(to_array(w).dtype, np.floating))
    weight.CopyFrom(from_array(to_array(weight) * 2, weight.name))
    onnx.save(model, other)
    assert np.abs(OpenVinoSession(other, threads=1).encode(tiles) - first).max() > 1e-4
    assert len(compiled) == 3


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "foreign"])
def test_a_damaged_or_foreign_compiled_graph_is_compiled_again(
    graph: Path, tiles: np.ndarray, tmp_path: Path, compiled: list[str], damage: str
) -> None:
    first = OpenVinoSession(graph, threads=1).encode(tiles)
    (path,) = (tmp_path / "cache" / "openvino").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "foreign":
        path.chmod(0o666)
    else:
        content[len(content) // 2] ^= 0xFF
        damaged = {"bit": bytes(content), "cut": bytes(content[:1000]), "empty": b""}
        path.write_bytes(damaged[damage])
    np.testing.assert_array_equal(OpenVinoSession(graph, threads=1).encode(tiles), first)
    assert len(compiled) == 2
    OpenVinoSession(graph, threads=1)
    assert len(compiled) == 2, "what was compiled again is kept"


def test_the_oldest_compiled_graphs_make_room(
    graph: Path, tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "openvino"
    OpenVinoSession(graph, threads=1)
    (first,) = folder.iterdir()
    os.utime(first, (1, 1))
    monkeypatch.setattr(openvino_cache, "MAX_CACHE_BYTES", int(1.5 * first.stat().st_size))
    OpenVinoSession(graph, threads=2)
    (second,) = folder.iterdir()
    assert second != first
    monkeypatch.setattr(openvino_cache, "MAX_GRAPH_BYTES", 1)
    OpenVinoSession(graph, threads=1)
    assert [*folder.iterdir()] == [second], "a large graph is not kept"
