"""The encoder as an ONNX graph: uint8 tiles in, embeddings out, preprocessing inside."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mclst.models.mclstexp import MclSTExp
from mclst.runtime.errors import CheckpointError
from mclst.runtime.manifest import Preprocessing, Tile

OPSET = 18
"""Read by every ONNX Runtime and TensorRT in the field since JetPack 6."""

EXTERNAL_DATA_BYTES = 1_900_000_000
"""Above this the weights leave the file: protobuf ends at 2 GiB."""


class FoldedEncoder(nn.Module):
    """Image encoder and projection as one module, DenseNet's last normalisation folded into the projection.

    `norm5` (affine per channel in eval mode), average pooling and the projection's first Linear are three linear maps
    with nothing between them in mclSTExp, so γ/σ and β - μγ/σ move into that Linear; folded in float64.
    """

    def __init__(self, network: MclSTExp) -> None:
        super().__init__()
        encoder, head = network.image_encoder, network.image_projection
        self.trunk: nn.Module = encoder
        self.pooled = True
        self.projection = nn.Linear(head.projection.in_features, head.projection.out_features)
        self.projection.load_state_dict(head.projection.state_dict())
        self.gelu, self.fc, self.layer_norm = head.gelu, head.fc, head.layer_norm
        if encoder.name == "densenet121":
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

    def forward(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W], preprocessed → embeddings float32 [N, D]."""
        features: Tensor = self.trunk(tiles)
        if not self.pooled:
            features = features.mean((2, 3))
        projected: Tensor = self.projection(features)
        out: Tensor = self.layer_norm(self.fc(self.gelu(projected)) + projected)
        return out


def preprocess(tiles: np.ndarray, settings: Preprocessing) -> Tensor:
    """What the graph's prologue does, in torch: RGB uint8 [N, H, W, 3] → float32 [N, 3, H, W]; the parity oracle."""
    pixels = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float()
    if settings.channels == "bgr":
        pixels = pixels.flip(1)
    if settings.pixel_range == "0-1":
        pixels = pixels / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (settings.mean, settings.std))
    return (pixels - mean) / std


def write_graph(network: MclSTExp, tile: Tile, settings: Preprocessing, path: Path) -> None:
    """Trace the image side of `network` into `path`: uint8 `tiles` [N, S, S, 3] → float32 `embedding` [N, D].

    The batch is dynamic. onnx's checker and shape inference run over the result.
    Raises CheckpointError where the network cannot be traced at this tile size.
    """
    model = _trace(FoldedEncoder(network).eval(), tile.size_px)
    _prepend_prologue(model, tile, settings)
    del model.graph.value_info[:]
    # The exporter writes the call stack, with paths of the exporting machine, into every node.
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, model.graph, model):
        del part.metadata_props[:]
    model.producer_name = "mclst"
    large = sum(len(t.raw_data) for t in model.graph.initializer) > EXTERNAL_DATA_BYTES
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")
    onnx.checker.check_model(path, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), strict_mode=True)
    batch = inferred.graph.output[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise CheckpointError(
            f"the traced encoder takes {batch.dim_value} tiles at a time only; report this network"
        )


def _trace(encoder: nn.Module, size_px: int) -> onnx.ModelProto:
    example = torch.zeros(2, 3, size_px, size_px)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                encoder,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("N", min=1, max=4096)},),
                verbose=False,
            )
    except Exception as error:  # the exporter raises many private kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the encoder cannot be traced at {size_px} px tiles ({reason}); try --tile-px"
        ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _prepend_prologue(model: onnx.ModelProto, tile: Tile, settings: Preprocessing) -> None:
    """Cast, transpose, channel order, scale and shift in ONNX itself.

    Cast comes first because TensorRT refuses a uint8 Transpose; traced from torch, a channels-last input would leave
    shape arithmetic in the graph.
    """
    graph = model.graph
    inner = graph.input[0].name
    std = np.asarray(settings.std) * (255.0 if settings.pixel_range == "0-1" else 1.0)
    shift = -np.asarray(settings.mean) / np.asarray(settings.std)
    nodes = [
        helper.make_node("Cast", ["tiles"], ["tiles_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["tiles_float"], ["tiles_nchw"], perm=[0, 3, 1, 2]),
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
