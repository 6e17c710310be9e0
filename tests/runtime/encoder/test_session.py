"""Sessions: the provider that was asked for or a sentence, never another in silence."""

from __future__ import annotations

import time
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.providers.opening import open_session
from mclst.runtime.resources import gc_disabled

NO_CUDA = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


def test_the_cpu_is_the_default(small_bundle: Path) -> None:
    session = open_session(small_bundle / "encoder.onnx")
    assert session.provider == "cpu"
    assert session.encode(np.zeros((3, 32, 32, 3), np.uint8)).shape == (3, 16)


@pytest.mark.skipif(not NO_CUDA, reason="this ONNX Runtime has CUDA")
def test_an_encoder_that_is_left_frees_its_memory_at_once(small_bundle: Path) -> None:
    """Others are opened beside it next, while a provider is chosen: no garbage collection is waited for."""
    give_up = time.monotonic() + 600
    session = open_session(small_bundle / "encoder.onnx", threads=2)
    session.encode(np.zeros((4, *session._tile), np.uint8))  # type: ignore[attr-defined]
    left = weakref.ref(session)
    with gc_disabled():
        del session
        while left() is not None:  # a thread that has given its part may still hold it for a moment
            assert time.monotonic() < give_up
            time.sleep(0.01)


def test_a_missing_provider_is_not_replaced(small_bundle: Path) -> None:
    with pytest.raises(ResourceError, match="CUDAExecutionProvider"):
        open_session(small_bundle / "encoder.onnx", "cuda")


def test_an_unknown_provider_is_refused(small_bundle: Path) -> None:
    with pytest.raises(ResourceError, match="cpu and cuda, not 'warp'"):
        open_session(small_bundle / "encoder.onnx", "warp")


def graph(path: Path, kind: int, batch: str | int, rank: int = 4, output: str = "embedding") -> Path:
    shape = [batch, 8, 8, 3][:rank]
    node = helper.make_node("Cast", ["tiles"], [output], to=TensorProto.FLOAT)
    g = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("tiles", kind, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(g, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    "spoilt",
    [
        {"kind": TensorProto.FLOAT, "batch": "N"},
        {"kind": TensorProto.UINT8, "batch": 4},
        {"kind": TensorProto.UINT8, "batch": "N", "rank": 3},
        {"kind": TensorProto.UINT8, "batch": "N", "output": "logits"},
    ],
)
def test_a_graph_that_is_no_encoder_is_refused(tmp_path: Path, spoilt: dict[str, object]) -> None:
    path = graph(tmp_path / "encoder.onnx", **spoilt)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        open_session(path, "cpu")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\x0a"])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "encoder.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        open_session(tmp_path / "encoder.onnx", "cpu")
