"""A small reference folder with a matching mclSTExp checkpoint and ONNX graphs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from synthetic_slides import stained

if TYPE_CHECKING:
    from mclst.models.mclstexp import MclSTExp

GENES = 12
POSITIONS = 20
TILE_PX = 32


def tiny_network(encoder: str = "resnet18", *, genes: int = GENES, positions: int = POSITIONS) -> MclSTExp:
    """A small mclSTExp with normalization statistics away from 0 and 1."""
    import torch

    from mclst.models.mclstexp import MclSTExp

    torch.manual_seed(7)
    network = MclSTExp(encoder, genes, projection_dim=16, heads=8, head_dim=4, depth=2, positions=positions)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.3, 0.3)
    return network.eval()


@dataclass(frozen=True)
class Small:
    """A small reference folder, and the slide and spots of its section B1."""

    folder: Path
    slide: Path
    spots: Path

    @cached_property
    def ckpt(self) -> Path:
        """An untrained ResNet-18 mclSTExp for it; needs torch."""
        import torch

        path = self.folder / "model.pt"
        torch.save(tiny_network().state_dict(), path)
        return path


def write_reference(folder: Path, names: tuple[str, ...] = ("A1", "A2", "B1"), spots: int = 24) -> None:
    """Write sections in the layout of the published HER2+ folder: counts, spots, images, genes.txt."""
    rng = np.random.default_rng(3)
    for part in ("counts", "spots", "images"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    genes = [f"GENE{i}" for i in range(GENES)]
    (folder / "genes.txt").write_text("\n".join(genes) + "\n")
    for name in names:
        squares = stained(rng.uniform(0, 0.6, (10, 12, 2)))
        picture = np.kron(squares, np.ones((20, 20, 1), np.uint8))
        Image.fromarray(picture).save(folder / "images" / f"{name}.png")
        cell = rng.permutation(144)[:spots]
        x, y = cell % 12 + 2, cell // 12 + 2
        counts = rng.poisson(6.0, (spots, GENES))
        table = ["\t" + "\t".join(genes)]
        table += [f"{a}x{b}\t" + "\t".join(map(str, row)) for a, b, row in zip(x, y, counts, strict=True)]
        (folder / "counts" / f"{name}.tsv").write_text("\n".join(table) + "\n")
        lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
        lines += [
            f"{a}\t{b}\t{a}.1\t{b}.1\t{18.0 * a - 20.5}\t{13.0 * b - 10.25}\t1"
            for a, b in zip(x, y, strict=True)
        ]
        (folder / "spots" / f"{name}_selection.tsv").write_text("\n".join(lines) + "\n")


def fast_regression(folder: Path, genes: int, *, embedding: int = 0, radius_um: float | None = None) -> Path:
    """Write a regression bundle whose network is one matrix product.

    embedding: width of an embedding beside the expression; radius_um: of a neighborhood, with an embedding.
    """
    from mclst.runtime.bundle.bundle import BundleDraft
    from mclst.runtime.bundle.manifest import Normalization, Preprocessing, Tile

    with BundleDraft(folder, overwrite=False) as draft:
        outputs = (embedding + genes) * (2 if radius_um else 1)
        fast_graph(draft.part / "encoder.onnx", "embedding" if embedding else "expression", outputs)
        (draft.part / "genes.txt").write_text("".join(f"GENE{i}\n" for i in range(genes)))
        draft.seal(
            kind="regression",
            system="stnet",
            encoder={
                "name": "one-product",
                "embedding_dim": embedding or genes,
                "prediction_dim": genes if embedding else 0,
            },
            neighborhood={"radius_um": radius_um} if radius_um else None,
            tile=Tile(size_px=TILE_PX).model_dump(mode="json"),
            preprocessing=Preprocessing().model_dump(mode="json"),
            normalization=Normalization.of("none", "log-share").model_dump(),
            genes=genes,
            genes_from="the test",
            checkpoint={"name": "none", "sha256": "0" * 64},
            versions={},
        )
    return folder


def fast_graph(path: Path, output: str, width: int) -> None:
    """Write a graph of one matrix product: tiles of TILE_PX → float32 [N, width], named `output`."""
    from onnx import TensorProto, helper, numpy_helper, save

    values = np.random.default_rng(5).normal(0, 1e-3, (TILE_PX * TILE_PX * 3, width)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["tiles"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], [output]),
    ]
    tiles = helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["N", TILE_PX, TILE_PX, 3])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", width])
    weights = [
        numpy_helper.from_array(values, "w"),
        numpy_helper.from_array(np.array([-1, len(values)]), "shape"),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "fast", [tiles], [result], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    save(model, path)
