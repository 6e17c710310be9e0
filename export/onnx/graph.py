"""The image network as an ONNX graph with preprocessing inside, from uint8 tiles."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mclst.export.onnx import large_weights
from mclst.models.encoders import ImageEncoder
from mclst.models.mclstexp import ProjectionHead
from mclst.models.pixels import prepare
from mclst.runtime.bundle.manifest import Preprocessing, Tile
from mclst.runtime.errors import CheckpointError

OPSET = 18
"""Supported by every ONNX Runtime and TensorRT since JetPack 6."""


class ProjectedEncoder(Protocol):
    """Shared by mclSTExp and BLEEP."""

    image_encoder: ImageEncoder
    image_projection: ProjectionHead


class ImageModule(nn.Module):
    """`encode_tiles` of a network as a module, optionally averaged over a tile's eight symmetries."""

    def __init__(self, network: nn.Module, symmetries: int = 1) -> None:
        super().__init__()
        projected = hasattr(network, "image_encoder") and hasattr(network, "image_projection")
        self.network = FoldedEncoder(cast(ProjectedEncoder, network)) if projected else network
        self.symmetries = symmetries

    def forward(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, S, S], preprocessed → float32 [N, D]."""
        if self.symmetries == 1:
            out: Tensor = self.network.encode_tiles(tiles)  # type: ignore[operator]
            return out
        rotations = [tiles, torch.rot90(tiles, 1, (2, 3))]
        turned = [
            image.flip(axes) if axes else image for image in rotations for axes in ((), (2,), (3,), (2, 3))
        ]
        encoded: Tensor = self.network.encode_tiles(torch.cat(turned))  # type: ignore[operator]
        return torch.unflatten(encoded, 0, (8, -1)).mean(0)


class FoldedEncoder(nn.Module):
    """Image encoder and projection with DenseNet's last normalization folded into the projection.

    Notes
    -----
    In eval mode `norm5`, average pooling and the projection's first Linear are consecutive linear maps, so
    γ/σ and β - μγ/σ move into that Linear. Folding is done in float64.
    """

    def __init__(self, network: ProjectedEncoder) -> None:
        super().__init__()
        encoder, head = network.image_encoder, network.image_projection
        self.trunk: nn.Module = encoder
        self.pooled = True
        self.projection = nn.Linear(head.projection.in_features, head.projection.out_features)
        self.projection.load_state_dict(head.projection.state_dict())
        self.gelu, self.fc, self.layer_norm = head.gelu, head.fc, head.layer_norm
        if encoder.name == "densenet121" and getattr(encoder, "recipe", None) is None:
            self._fold_norm5(encoder.model)

    def _fold_norm5(self, model: nn.Module) -> None:
        features = model[0]  # type: ignore[index]
        norm = features.norm5
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.double() - norm.running_mean.double() * scale
        weight, bias = self.projection.weight.double(), self.projection.bias.double()
        self.projection.weight = nn.Parameter((weight * scale).float(), requires_grad=False)
        self.projection.bias = nn.Parameter((bias + weight @ shift).float(), requires_grad=False)
        self.trunk = nn.Sequential(*[child for name, child in features.named_children() if name != "norm5"])
        self.pooled = False

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W], preprocessed → embeddings float32 [N, D]."""
        features: Tensor = self.trunk(tiles)
        if not self.pooled:
            features = features.mean((2, 3))
        projected: Tensor = self.projection(features)
        out: Tensor = self.layer_norm(self.fc(self.gelu(projected)) + projected)
        return out


def preprocess(tiles: np.ndarray, settings: Preprocessing) -> Tensor:
    """Preprocess in torch as the graph does in ONNX; the reference for parity.

    RGB uint8 [N, H, W, 3] → float32 [N, 3, H, W], or [N, 3, W, H] for x-major axes.
    """
    axes = (0, 3, 1, 2) if settings.axes == "row-major" else (0, 3, 2, 1)
    pixels = torch.from_numpy(np.ascontiguousarray(tiles)).permute(axes)
    return prepare(
        pixels,
        channels=settings.channels,
        pixel_range=settings.pixel_range,
        mean=settings.mean,
        std=settings.std,
    )


def write_graph(
    network: nn.Module, tile: Tile, settings: Preprocessing, path: Path, *, output: str = "embedding"
) -> None:
    """Trace the image network with preprocessing, uint8 `tiles` [N, S, S, 3] → float32 [N, D], N dynamic.

    Parameters
    ----------
    network : nn.Module
        With `encode_tiles`.
    tile : Tile
    settings : Preprocessing
    path : Path
        ONNX file to write; it is checked by onnx.
    output : str
        Name of the graph's output.

    Raises
    ------
    CheckpointError
        If the network cannot be traced at this tile size.
    """
    module = ImageModule(network, settings.symmetries).eval()
    for part in module.modules():
        # timm's fused attention is traced with arithmetic on shapes, which other compilers do not fold.
        if getattr(part, "fused_attn", False):
            cast(Any, part).fused_attn = False
    example = {"pixels": torch.zeros(2, 3, tile.size_px, tile.size_px)}
    model = trace(
        module,
        example,
        output,
        f"the encoder cannot be traced at {tile.size_px} px tiles",
        "try --tile-px",
        path,
    )
    _prepend_prologue(model, tile, settings)
    save(model, path)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Check and write a graph, free of the exporting machine's paths; large weights go to `<name>.data`.

    Raises CheckpointError if its first axis is not dynamic.
    """
    del model.graph.value_info[:]
    # The exporter stores its call stack, with local paths, in every node.
    for proto in (*model.graph.node, *model.graph.input, *model.graph.output, model.graph, model):
        del proto.metadata_props[:]
    model.producer_name = "mclst"
    large = sum(len(t.raw_data) for t in model.graph.initializer) > large_weights.EXTERNAL_DATA_BYTES
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")
    onnx.checker.check_model(path, full_check=True)
    # Inference would copy the weights twice.
    inferred = onnx.shape_inference.infer_shapes(large_weights.without_weights(model), strict_mode=True)
    batch = inferred.graph.output[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise CheckpointError(
            f"the traced {path.stem} takes {batch.dim_value} tiles at a time only; report this network"
        )


def add_metadata(path: Path, props: Mapping[str, str]) -> None:
    """Append `metadata_props` to a graph's file.

    Fields of a protocol buffer may stand in any order, and repeated ones add up:
    https://protobuf.dev/programming-guides/encoding/#last-one-wins. So no graph of gigabytes is rewritten.
    """
    addition = onnx.ModelProto()
    for key, value in props.items():
        addition.metadata_props.add(key=key, value=value)
    with path.open("ab") as file:
        file.write(addition.SerializeToString(deterministic=True))


def trace(
    module: nn.Module,
    inputs: dict[str, Tensor],
    output: str,
    refusal: str,
    cure: str,
    path: Path,
    translations: dict[Any, Any] | None = None,
) -> onnx.ModelProto:
    """Trace `module` on example `inputs` by name, the first axis of each dynamic.

    `translations` maps custom torch operators to ONNX nodes; weights too large for `path` go to
    `<path>.data`. Raises CheckpointError "refusal; cure".
    """
    rows = torch.export.Dim("N", min=1, max=4096 if translations is None else 1 << 20)
    for logger in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple({0: rows} for _ in inputs),
                custom_translation_table=translations,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many private types
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{refusal} ({reason}); {cure}") from error
    assert program is not None
    return large_weights.model_proto(program.model, path)


def _prepend_prologue(model: onnx.ModelProto, tile: Tile, settings: Preprocessing) -> None:
    """Prepend cast, transpose, channel order, scale and shift."""
    # Written in ONNX: traced from torch, a channels-last input would leave shape arithmetic in the graph.
    # Cast comes first because TensorRT refuses a uint8 Transpose.
    graph = model.graph
    inner = graph.input[0].name
    std = np.asarray(settings.std) * (255.0 if settings.pixel_range == "0-1" else 1.0)
    shift = -np.asarray(settings.mean) / np.asarray(settings.std)
    nodes = [
        helper.make_node("Cast", ["tiles"], ["tiles_float"], to=TensorProto.FLOAT),
        helper.make_node(
            "Transpose",
            ["tiles_float"],
            ["tiles_nchw"],
            perm=[0, 3, 1, 2] if settings.axes == "row-major" else [0, 3, 2, 1],
        ),
    ]
    steps: list[tuple[str, np.ndarray, dict[str, Any]]] = []
    if settings.channels == "bgr":
        steps.append(("Gather", np.array([2, 1, 0], np.int64), {"axis": 1}))
    if np.any(std != 1):
        steps.append(("Mul", (1 / std).astype(np.float32).reshape(1, 3, 1, 1), {}))
    if np.any(shift):
        steps.append(("Add", shift.astype(np.float32).reshape(1, 3, 1, 1), {}))
    for kind, constant, attributes in steps:
        name = f"prologue_{kind.lower()}"
        graph.initializer.append(numpy_helper.from_array(constant, name))
        nodes.append(helper.make_node(kind, [nodes[-1].output[0], name], [f"{name}_out"], **attributes))
    nodes[-1].output[0] = inner
    nodes.extend(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(
        helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["N", tile.size_px, tile.size_px, 3])
    )
