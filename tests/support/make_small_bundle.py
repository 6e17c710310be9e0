"""Write tests/data/small: a bundle with a tiny hand-made encoder, a slide, its map and a run's journal.

`python tests/support/make_small_bundle.py FOLDER` needs onnx. The committed folder was made once, by
version 0.1.0 before its modules moved, with eval.json by its `mclst-eval`.
test_compatibility.py opens it since then.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small_model import GENES, TILE_PX, write_reference

from mclst.runtime import RunOptions, open_bundle, open_slide, predict
from mclst.runtime.bundle.bank import Bank, bank_bytes
from mclst.runtime.bundle.bundle import BundleDraft
from mclst.runtime.bundle.manifest import Settings
from mclst.runtime.versions import installed_versions
from mclst.sections import find_sections, gene_wise, match_genes, read_section
from mclst.sections.section import Section

EMBEDDING_DIM, POOL = 16, 4


def encoder() -> onnx.ModelProto:
    """uint8 [N, 32, 32, 3] → float32 [N, 16]: mean over 4 × 4 pixels, then one linear layer."""
    side = TILE_PX // POOL
    weights = np.random.default_rng(5).normal(0, 0.1, (3 * side * side, EMBEDDING_DIM)).astype(np.float32)
    constants = {
        "scale": np.float32(1 / 255),
        "mean": np.float32(0.5),
        "shape": np.array([-1, len(weights)]),
        "weights": weights,
    }
    nodes = [
        helper.make_node("Cast", ["tiles"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centered"]),
        helper.make_node("Transpose", ["centered"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["nchw"], ["pooled"], kernel_shape=[POOL, POOL], strides=[POOL, POOL]
        ),
        helper.make_node("Reshape", ["pooled", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["N", TILE_PX, TILE_PX, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", EMBEDDING_DIM])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tiles_of(section: Section) -> NDArray[np.uint8]:
    """The tiles centered on a section's spots, padded with black."""
    assert isinstance(section.image, Path) and section.xy_px is not None
    half = TILE_PX // 2
    image = np.pad(np.asarray(Image.open(section.image).convert("RGB")), ((99, 99), (99, 99), (0, 0)))
    corners = np.floor(section.xy_px).astype(int) + 99 - half
    return np.stack([image[y : y + TILE_PX, x : x + TILE_PX] for x, y in corners])


def write_bundle(reference: Path, folder: Path) -> None:
    """A retrieval bundle of the sections A1 and A2, whose bank holds the embeddings of their own tiles."""
    genes = (reference / "genes.txt").read_text().split()
    sections = [read_section(find_sections(reference)[name]) for name in ("A1", "A2")]
    settings = Settings().model_dump(mode="json")
    with BundleDraft(folder, overwrite=False) as draft:
        onnx.save(encoder(), draft.part / "encoder.onnx")
        session = onnxruntime.InferenceSession(
            draft.part / "encoder.onnx", providers=["CPUExecutionProvider"]
        )
        embeddings = [session.run(None, {"tiles": tiles_of(section)})[0] for section in sections]
        bank = Bank(
            np.concatenate(embeddings),
            np.concatenate([gene_wise(match_genes(section, genes)) for section in sections]),
            np.asarray(genes),
            np.concatenate([section.spot for section in sections]),
            np.repeat([section.name for section in sections], [len(section) for section in sections]),
        )
        (draft.part / "bank.h5").write_bytes(bank_bytes(bank))
        (draft.part / "parity.json").write_text(json.dumps({"passed": True, "precisions": {}}) + "\n")
        draft.seal(
            kind="retrieval",
            system="mclstexp",
            encoder={"name": "tiny", "embedding_dim": EMBEDDING_DIM},
            tile={**settings["tile"], "size_px": TILE_PX},
            preprocessing={**settings["preprocessing"], "mean": [0.5] * 3},
            retrieval={**settings["retrieval"], "k": 10},
            spot_encoder={"heads": 8, "depth": 2},
            context=settings["context"],
            normalization=settings["normalization"],
            genes=GENES,
            genes_from="genes.txt",
            bank=[{"name": section.name, "spots": len(section)} for section in sections],
            checkpoint={"name": "none", "sha256": hashlib.sha256().hexdigest()},
            versions=installed_versions(),
        )


def write_journal_header(bundle: Path, slide: Path, path: Path) -> None:
    """The first line of the journal that a run of some thousand spots keeps while it works."""

    def copy_header(rows: int) -> None:
        if journal.exists():
            path.write_bytes(journal.read_bytes().partition(b"\n")[0] + b"\n")

    with tempfile.TemporaryDirectory() as work, open_slide(slide) as opened:
        journal, spots = Path(work) / ".small.h5ad.journal", Path(work) / "spots.csv"
        rows = [f"s{i},{20 + i % 50},{20 + i // 50}" for i in range(4000)]
        spots.write_text("\n".join(["id,x,y", *rows]) + "\n")
        predict(open_bundle(bundle), opened, spots, Path(work) / "small.h5ad", advance=copy_header)


def main(folder: Path) -> None:
    """Write everything into `folder`, which must not exist."""
    folder.mkdir(parents=True)
    section, bundle = folder / "section", folder / "mclst-bundle"
    with tempfile.TemporaryDirectory() as work:
        reference = Path(work)
        write_reference(reference)
        write_bundle(reference, bundle)
        for name in ("images/B1.png", "spots/B1_selection.tsv", "counts/B1.tsv"):
            (section / name).parent.mkdir(parents=True)
            shutil.copy(reference / name, section / name)
    slide = section / "images" / "B1.png"
    with open_slide(slide) as opened:
        spots = section / "spots" / "B1_selection.tsv"
        predict(open_bundle(bundle), opened, spots, folder / "small.h5ad", RunOptions(picture=False))
    (folder / "small.html").unlink()
    write_journal_header(bundle, slide, folder / "journal-header.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
