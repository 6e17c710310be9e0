"""Engines that TensorRT-RTX builds on the CPU: their answers, their keys, and graphs that are refused."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_model import tiny_network

from mclst.export.onnx.fp16 import to_half
from mclst.export.onnx.graph import write_graph
from mclst.runtime.bundle.manifest import Preprocessing, Tile
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt import build as engine_build
from mclst.runtime.encoder.tensorrt.build import (
    SMALL_BATCH,
    EngineError,
    batch_ranges,
    build_engine,
    check_parses,
    supported_targets,
)
from mclst.runtime.encoder.tensorrt.engine_cache import check_target, graph_sha256, this_platform
from mclst.runtime.encoder.tensorrt.library import Flavor, Library, load_library
from mclst.runtime.encoder.tensorrt.manifest import EngineKey
from mclst.runtime.errors import ResourceError

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; install mclst[rtx]")

GPU = Gpu(name="Made-up RTX", compute_capability="8.6", driver="580.1")
# Tile side by name: DenseNet and ResNet take small ones, a ViT's patches are 32 px.
NETWORKS = {"densenet121": 64, "resnet50": 64, "vit_base_patch32_224": 224}


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library("tensorrt-rtx")


@pytest.fixture(scope="module", params=NETWORKS)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An image encoder with random weights."""
    path = tmp_path_factory.mktemp(request.param) / "encoder.onnx"
    write_graph(tiny_network(request.param), Tile(size_px=NETWORKS[request.param]), Preprocessing(), path)
    return request.param, path


def key_of(path: Path, library: Library, **changed: Any) -> EngineKey:
    fields: dict[str, Any] = {
        "onnx_sha256": graph_sha256(path),
        "precision": "fp32",
        "flavor": library.flavor,
        "version": library.version,
        "max_batch": 8,
        "targets": ("sm_86", "sm_89"),
        "platform": this_platform(),
    }
    return EngineKey(**(fields | changed))


class Watched:
    """A library whose builder keeps network, config and profiles for inspection; needs no GPU."""

    def __init__(self, library: Library) -> None:
        trt, watched = library.trt, self
        self.profiles: list[Any] = []

        class Builder(trt.Builder):  # type: ignore[misc, name-defined]
            def create_network(self, flags: int = 0) -> Any:
                watched.network = trt.Builder.create_network(self, flags)
                return watched.network

            def create_builder_config(self) -> Any:
                watched.config = trt.Builder.create_builder_config(self)
                return watched.config

            def create_optimization_profile(self) -> Any:
                watched.profiles.append(trt.Builder.create_optimization_profile(self))
                return watched.profiles[-1]

        class Module:
            def __getattr__(self, name: str) -> Any:
                return Builder if name == "Builder" else getattr(trt, name)

        self.library = replace(library, trt=Module())
        self.network: Any = None
        self.config: Any = None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_of_every_encoder_for_two_targets(
    graph: tuple[str, Path], precision: str, library: Library
) -> None:
    name, path = graph
    model = onnx.load(path)
    if precision == "fp16":
        model, path = to_half(model, "fp16").model, path.with_name("encoder.fp16.onnx")
        onnx.save(model, path)
    trt, watched = library.trt, Watched(library)
    built = build_engine(watched.library, path, key_of(path, library, precision=precision))
    side = NETWORKS[name]
    assert (built.output, built.tile_px) == ("embedding", side)
    # TensorRT's own header: a mark, and the size at byte 16.
    assert built.plan[:4] == b"vtrt" and int.from_bytes(built.plan[16:24], "little") == len(built.plan)
    network, config = watched.network, watched.config
    tiles, embedding = network.get_input(0), network.get_output(0)
    assert (tiles.name, tiles.dtype, tuple(tiles.shape)) == ("tiles", trt.DataType.UINT8, (-1, side, side, 3))
    assert (embedding.name, embedding.dtype) == ("embedding", trt.DataType.FLOAT)
    assert tuple(embedding.shape) == (-1, 16)
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.num_optimization_profiles == 1
    assert [tuple(shape) for shape in watched.profiles[0].get_shape("tiles")] == [
        (1, side, side, 3),
        (8, side, side, 3),
        (8, side, side, 3),
    ]
    assert config.num_compute_capabilities == 2
    assert [str(config.get_compute_capability(i)).rsplit(".", 1)[-1] for i in (0, 1)] == ["SM86", "SM89"]
    assert sum(built.layers.values()) == network.num_layers
    # Products have the graph's types: TensorRT adds no rounding and leaves none out.
    products = [network.get_layer(i) for i in range(network.num_layers)]
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    types = {layer.get_output(0).dtype for layer in products if layer.type in kinds}
    assert types == {trt.DataType.FLOAT if precision == "fp32" else trt.DataType.HALF}
    assert ("HALF" in built.layers) == (precision == "fp16")
    weights = sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)
    assert len(built.plan) > 0.9 * weights


@pytest.mark.parametrize(
    ("flavor", "max_batch", "ranges"),
    [
        ("tensorrt", 64, [(64, 64), (1, SMALL_BATCH)]),
        ("tensorrt", SMALL_BATCH, [(SMALL_BATCH, SMALL_BATCH)]),
        ("tensorrt", 1, [(1, 1)]),
        ("tensorrt-rtx", 64, [(64, 64)]),
    ],
)
def test_small_batches_have_a_profile_of_their_own(
    flavor: Flavor, max_batch: int, ranges: list[tuple[int, int]]
) -> None:
    key = EngineKey(
        onnx_sha256="0" * 64,
        precision="fp32",
        flavor=flavor,
        version="10.3.0",
        max_batch=max_batch,
        platform="linux-x86_64",
    )
    assert batch_ranges(key) == ranges


def test_a_workspace_is_the_builders_limit(library: Library, tmp_path: Path) -> None:
    path = synthetic_graph(tmp_path)
    watched = Watched(library)
    build_engine(watched.library, path, key_of(path, library, workspace_bytes=123 << 20))
    assert watched.config.get_memory_pool_limit(library.trt.MemoryPoolType.WORKSPACE) == 123 << 20


def synthetic_graph(folder: Path, name: str = "right") -> Path:
    """A small encoder, or one that is wrong as its name says."""
    dtype = TensorProto.FLOAT if name == "float tiles" else TensorProto.UINT8
    side = 16
    nodes = [
        helper.make_node("Cast", ["tiles"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2]),
    ]
    if name == "transposed before the cast":
        nodes = [
            helper.make_node("Transpose", ["tiles"], ["x"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["x"], ["nchw"], to=TensorProto.FLOAT),
        ]
    nodes.append(
        helper.make_node(
            "Warp" if name == "unknown operator" else "Conv",
            ["nchw", "elsewhere" if name == "dangling" else "w"],
            ["features"],
            domain="made.up" if name == "unknown operator" else "",
        )
    )
    output = "logits" if name == "no embedding" else "embedding"
    nodes.append(helper.make_node("ReduceMean", ["features"], [output], axes=[2, 3], keepdims=0))
    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    batch: Any = 4 if name == "fixed batch" else "N"
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("tiles", dtype, [batch, side, side, 3])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 5])],
            [numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("made.up", 1)],
        ir_version=8,
    )
    path = folder / "encoder.onnx"
    onnx.save(model, path)
    return path


REFUSED = {
    "transposed before the cast": "UInt8",
    "float tiles": "is not an encoder",
    "unknown operator": "Warp",
    "dangling": "parser refuses it",
    "no embedding": "is not an encoder",
    "fixed batch": "is not an encoder",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_graph_is_one_sentence(name: str, library: Library, tmp_path: Path) -> None:
    path = synthetic_graph(tmp_path, name)
    with pytest.raises(EngineError, match=REFUSED[name]) as caught:
        build_engine(library, path, key_of(path, library))
    assert "\n" not in str(caught.value) and "encoder.onnx" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 60, -1])
def test_a_damaged_graph_is_one_sentence(cut: int, library: Library, tmp_path: Path) -> None:
    path = synthetic_graph(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    with pytest.raises(EngineError, match=r"parser refuses it|is not an encoder"):
        build_engine(library, path, key_of(path, library))
    if cut != -1:
        with pytest.raises(EngineError):
            check_parses(library, path)


def test_a_target_that_is_not_covered_is_named(library: Library, tmp_path: Path) -> None:
    assert {"sm_86", "sm_89", "sm_120"} <= set(
        supported_targets(library)
    ) and "sm_90" not in supported_targets(library)
    path = synthetic_graph(tmp_path)
    with pytest.raises(EngineError, match=r"does not build for sm_87, only for sm_75, sm_80"):
        build_engine(library, path, key_of(path, library, targets=("sm_86", "sm_87")))
    for capability in ("8.7", "9.0", "11.0"):
        with pytest.raises(ResourceError, match="does not cover Some GPU"):
            check_target(library, Gpu(name="Some GPU", compute_capability=capability, driver="1"))
    check_target(library, GPU)


def test_weights_beside_a_graph_are_part_of_what_it_is(tmp_path: Path) -> None:
    path = synthetic_graph(tmp_path)
    alone = graph_sha256(path)
    path.with_name("encoder.onnx.data").write_bytes(b"weights")
    assert graph_sha256(path) != alone


KEY = EngineKey(
    onnx_sha256="a" * 64,
    precision="fp32",
    flavor="tensorrt",
    version="10.3.0",
    max_batch=16,
    targets=(),
    gpu=GPU,
    platform="linux-x86_64",
)


OTHER = st.one_of(
    st.builds(lambda n: {"onnx_sha256": f"{n:064x}"}, st.integers(0, 2**200)),
    st.builds(lambda n: {"max_batch": n}, st.integers(1, 4096)),
    st.sampled_from(
        [
            {"precision": "fp16"},
            {"flavor": "tensorrt-rtx"},
            {"version": "10.3.0.1"},
            {"targets": ("sm_86",)},
            {"gpu": None},
            {"gpu": Gpu(name="Other", compute_capability="8.6", driver="580.1")},
            {"gpu": Gpu(name="Made-up RTX", compute_capability="8.7", driver="580.1")},
            {"gpu": Gpu(name="Made-up RTX", compute_capability="8.6", driver="580.2")},
            {"workspace_bytes": 5},
            {"version_compatible": True},
            {"hardware_compatible": True},
            {"platform": "linux-aarch64"},
        ]
    ),
)


@given(changed=OTHER)
def test_whatever_shapes_an_engine_gives_it_another_place(changed: dict[str, Any]) -> None:
    other = EngineKey(**(dict(KEY) | changed))
    assert (other.folder == KEY.folder) == (other == KEY)
    assert EngineKey.model_validate_json(other.model_dump_json()).folder == other.folder
    assert len(other.folder) == 16


def test_no_garbage_is_collected_while_tensorrt_logs(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder freed from within the logger waits for a lock that TensorRT holds while it logs."""
    collecting: list[bool] = []

    class Log(library.trt.ILogger):  # type: ignore[name-defined,misc]
        def log(self, severity: Any, msg: str) -> None:
            collecting.append(gc.isenabled())

    monkeypatch.setattr(engine_build, "_make_logger", lambda trt: Log())
    check_parses(library, synthetic_graph(tmp_path))
    assert collecting and not any(collecting) and gc.isenabled()
