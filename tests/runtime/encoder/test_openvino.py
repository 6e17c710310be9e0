"""The openvino provider: the CPU's numbers, in the graph's own precision, or a sentence that says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from click.testing import CliRunner
from small_model import Small

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main as infer
from mclst.runtime.encoder.openvino import OpenVinoSession
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.inference.providers import EncoderRequest, list_providers, open_encoder, open_session

ov = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def graph(exported_bundle: Path) -> Path:
    return open_bundle(exported_bundle).encoder_path


@pytest.fixture(scope="module")
def tiles(graph: Path) -> np.ndarray:
    side = open_session(graph, "cpu")._tile[0]  # type: ignore[attr-defined]
    return np.random.default_rng(4).integers(0, 256, (13, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("threads", "batch_size"), [(1, 16), (2, 16), (2, 1)])
def test_it_gives_what_the_cpu_provider_gives(
    graph: Path, tiles: np.ndarray, threads: int, batch_size: int
) -> None:
    session = OpenVinoSession(graph, threads=threads, batch_size=batch_size)
    expected = open_session(graph, "cpu").encode(tiles)
    for n in (13, 1):
        result = session.encode(tiles[:n])
        assert result.dtype == np.float32 and result.shape == expected[:n].shape
        np.testing.assert_allclose(result, expected[:n], rtol=0, atol=5e-5)


def test_results_do_not_share_memory_with_the_next_call(graph: Path, tiles: np.ndarray) -> None:
    session = OpenVinoSession(graph, threads=1, batch_size=1)
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
