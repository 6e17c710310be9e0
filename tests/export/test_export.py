"""`mclst-export` end to end: its files, and its messages for bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from refusals import assert_refused, tree
from small_model import GENES, Small, tiny_network, write_reference

from mclst.export.cli import main
from mclst.export.parity import compare as parity
from mclst.runtime.bundle.bundle import open_bundle

TINY = ("--tile-px", "32", "--k", "10", "--parity-tiles", "4")


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Small) -> Path:
    """Working directory with model.pt and reference/."""
    write_reference(tmp_path / "reference")
    shutil.copy(small.ckpt, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*words: str) -> Result:
    return CliRunner().invoke(main, ["--precision", "fp32", *words])


def test_the_short_form_writes_a_bundle(workdir: Path) -> None:
    result = export("--ckpt", "model.pt", "--reference", "reference", "--hold-out", "B1", *TINY)
    assert result.exit_code == 0, result.output
    assert result.stdout == "mclst-bundle\n"
    for word in ("resnet18", "48 spots of 2 sections", "12 genes", "parity", "section A1, A2"):
        assert word in result.stderr
    assert {p.name for p in (workdir / "mclst-bundle").iterdir()} == {
        "manifest.json",
        "encoder.onnx",
        "bank.h5",
        "calibration.h5",
        "parity.json",
    }
    open_bundle("mclst-bundle")


def test_every_option_reaches_the_manifest(workdir: Path) -> None:
    words = (
        "--k 7 --rank l2 --distance cosine --weighting softmax --temperature 0.5 --heads 4 --context 5 "
        "--sentences section --positions pixel --input-normalization none --expression-normalization "
        "spot-wise --tile-px 40 --tile-mpp 0.5 --pad 255,254,253 --channels bgr --pixel-range 0-255 --mean "
        "1,2,3 --std 4,5,6 --axes x-major --parity-tiles 4"
    )
    # Pixel positions need tables that reach them.
    torch.save(tiny_network(positions=300).state_dict(), workdir / "model.pt")
    result = export(
        "--ckpt",
        "model.pt",
        "--reference",
        "reference",
        "--sections",
        "A1-A2",
        "--json",
        "-",
        "-q",
        *words.split(),
    )
    assert result.exit_code == 0 and result.stderr == "", result.output
    m = json.loads(result.stdout)["manifest"]
    assert m["retrieval"] == {
        "k": 7,
        "rank": "l2",
        "distance": "cosine",
        "weighting": "softmax",
        "temperature": 0.5,
    }
    assert m["context"] == {"spots": 5, "sentences": "section", "positions": "pixel"}
    assert m["spot_encoder"] == {"heads": 4, "depth": 2}
    assert m["normalization"] == {"input": "none", "expression": "spot-wise", "log_share_of": None}
    assert m["tile"] == {"size_px": 40, "mpp": 0.5, "pad": [255, 254, 253]}
    assert m["preprocessing"] == {
        "channels": "bgr",
        "pixel_range": "0-255",
        "mean": [1, 2, 3],
        "std": [4, 5, 6],
        "axes": "x-major",
        "symmetries": 1,
    }


def test_sections_are_chosen_and_held_out(workdir: Path) -> None:
    result = export(
        "--ckpt", "model.pt", "--reference", "reference", "--sections", "A2-B1", "--hold-out", "A2", *TINY
    )
    assert result.exit_code == 0, result.output
    assert [s.name for s in open_bundle("mclst-bundle").manifest.bank] == ["B1"]


def test_a_reference_without_images_gets_synthetic_tiles(workdir: Path) -> None:
    shutil.rmtree(workdir / "reference" / "images")
    result = export("--ckpt", "model.pt", "--reference", "reference", *TINY)
    assert result.exit_code == 0 and "made-up tissue" in result.stderr
    assert "made-up" in json.loads((workdir / "mclst-bundle" / "parity.json").read_text())["tiles"]["source"]


def test_reference_spots_outside_their_image_are_refused(workdir: Path) -> None:
    table = workdir / "reference/spots/A2_selection.tsv"
    header, *rows = (line.split("\t") for line in table.read_text().splitlines())
    for row in rows:
        row[4] = str(float(row[4]) + 1000)
    table.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
    result = export("--ckpt", "model.pt", "--reference", "reference", *TINY)
    assert result.exit_code == 4, result.output
    assert "section A2: spot" in result.stderr and "is outside A2.png (240 x 200 px)" in result.stderr
    assert not (workdir / "mclst-bundle").exists()


Change = Callable[[Path], object]


def genes(names: list[str]) -> Change:
    return lambda workdir: (workdir / "reference" / "genes.txt").write_text("\n".join(names))


def other_genes(workdir: Path) -> None:
    for path in (workdir / "reference" / "counts").iterdir():
        path.write_text(path.read_text().replace("GENE3", "OTHER"))


def empty_reference(workdir: Path) -> None:
    shutil.rmtree(workdir / "reference")
    (workdir / "reference").mkdir()


BAD = [
    ("no checkpoint", lambda workdir: (workdir / "model.pt").unlink(), ("model.pt", "not a file")),
    (
        "not a checkpoint",
        lambda workdir: (workdir / "model.pt").write_bytes(b"hello" * 50),
        ("model.pt", "not a checkpoint"),
    ),
    (
        "half a checkpoint",
        lambda workdir: (workdir / "model.pt").write_bytes((workdir / "model.pt").read_bytes()[:90_000]),
        ("model.pt",),
    ),
    ("no reference", lambda workdir: shutil.rmtree(workdir / "reference"), ("reference",)),
    ("empty reference", empty_reference, ("reference",)),
    ("short gene list", genes([f"GENE{i}" for i in range(11)]), ("genes.txt", "11", "12")),
    ("long gene list", genes([f"GENE{i}" for i in range(13)]), ("genes.txt", "13", "12")),
    ("repeated gene", genes(["GENE0", *[f"GENE{i}" for i in range(11)]]), ("genes.txt", "GENE0")),
    ("other genes", other_genes, ("GENE3", "1 of the model's 12")),
]


@pytest.mark.parametrize(("change", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing(
    workdir: Path, change: Change, words: tuple[str, ...]
) -> None:
    change(workdir)
    before = tree(workdir)
    assert_refused(export("-q", "--ckpt", "model.pt", "--reference", "reference", *TINY), 4, words)
    assert tree(workdir) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--k", "73"), ("73", "72 spots", "--k")),
        (("--heads", "5"), ("5 heads",)),
        (("--sections", "Z9"), ("Z9",)),
        (("--hold-out", "Q1"), ("Q1",)),
        (("--positions", "pixel"), ("position tables have 20 rows",)),
        (("--genes", "missing.txt"), ("missing.txt",)),
    ],
)
def test_options_that_do_not_fit_are_refused(
    workdir: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    before = tree(workdir)
    rest = tuple(w for w in TINY if options[0] != "--k" or w not in ("--k", "10"))
    assert_refused(export("-q", "--ckpt", "model.pt", "--reference", "reference", *rest, *options), 4, words)
    assert tree(workdir) == before


def test_a_published_checkpoint_needs_a_reference(workdir: Path) -> None:
    assert_refused(export("-q", "--ckpt", "model.pt"), 4, ("model.pt", "--reference"))


def test_an_existing_bundle_is_kept(workdir: Path) -> None:
    (workdir / "mclst-bundle").mkdir()
    result = export("-q", "--ckpt", "model.pt", "--reference", "reference", *TINY)
    assert_refused(result, 5, ("mclst-bundle", "--overwrite"))


def test_no_bundle_without_parity(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that differs by 1 % is refused."""
    right = parity.encode_with_export
    monkeypatch.setattr(parity, "encode_with_export", lambda *words: right(*words) * np.float32(1.01))
    before = tree(workdir)
    result = export("-q", "--ckpt", "model.pt", "--reference", "reference", *TINY)
    assert_refused(
        result, 4, ("does not give what the checkpoint gives", "largest difference of an embedding")
    )
    assert tree(workdir) == before


def test_a_checkpoint_with_its_own_bank_needs_no_reference(workdir: Path) -> None:
    rng = np.random.default_rng(0)
    sections = [
        {
            "name": name,
            "spot": [f"{i}x{i}" for i in range(9)],
            "counts": torch.from_numpy(rng.poisson(3, (9, GENES)).astype(np.float32)),
            "array_xy": torch.arange(18).reshape(9, 2),
        }
        for name in ("S1", "S2")
    ]
    content = {
        "format": "mclst-checkpoint/1",
        "model": tiny_network().state_dict(),
        "config": {
            "tile": {"size_px": 32, "pad": [255, 255, 255]},
            "retrieval": {"k": 5, "rank": "l2", "distance": "l2", "weighting": "softmax", "temperature": 2.0},
        },
        "genes": [f"G{i}" for i in range(GENES)],
        "sections": sections,
    }
    torch.save(content, workdir / "model.pt")
    result = export("--ckpt", "model.pt", "--k", "6", "--parity-tiles", "4")
    assert result.exit_code == 0, result.output
    bundle = open_bundle("mclst-bundle")
    assert bundle.retrieval.k == 6 and bundle.retrieval.rank == "l2"
    assert bundle.manifest.tile.pad == (255, 255, 255)
    assert list(bundle.bank.genes[:2]) == ["G0", "G1"] and len(bundle.bank) == 18
    content["sections"][0]["counts"] = torch.zeros(8, GENES)  # type: ignore[index]
    torch.save(content, workdir / "model.pt")
    assert_refused(
        export("-q", "--ckpt", "model.pt", "--k", "6", "--overwrite"), 4, ("do not fit its weights",)
    )
    assert open_bundle("mclst-bundle").manifest.bank_rows == 18


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    """A checkpoint that stores genes and one section."""
    counts = torch.from_numpy(np.random.default_rng(0).poisson(3, (9, GENES)).astype(np.float32))
    section = {"name": "S", "spot": [f"{i}x{i}" for i in range(9)], "counts": counts}
    return {
        "format": "mclst-checkpoint/1",
        "model": tiny_network().state_dict(),
        "config": {"tile": {"size_px": 32}},
        "genes": [f"GENE{i}" for i in range(GENES)],
        "sections": [{**section, "array_xy": torch.arange(18).reshape(9, 2)}],
    }


@pytest.mark.parametrize(
    "change",
    [
        {"counts": torch.full((9, GENES), -1.0)},
        {"counts": torch.full((9, GENES), torch.nan)},
        {"counts": torch.ones(9)},
        {"counts": "none"},
        {"array_xy": torch.zeros(8, 2)},
        {"spot": ["a"]},
    ],
)
def test_sections_stored_in_a_checkpoint_are_checked(
    workdir: Path, checkpoint: dict[str, Any], change: dict[str, Any]
) -> None:
    checkpoint["sections"][0].update(change)
    torch.save(checkpoint, workdir / "model.pt")
    assert_refused(export("-q", "--ckpt", "model.pt", "--k", "5"), 4, ("model.pt",))


@pytest.mark.parametrize(
    "tiles", ["none", 1.5, torch.zeros(0, 32, 32, 3, dtype=torch.uint8), torch.zeros(2, 32, 32, 3)]
)
def test_invalid_stored_tiles_are_ignored(workdir: Path, checkpoint: dict[str, Any], tiles: object) -> None:
    torch.save({**checkpoint, "tiles": tiles}, workdir / "model.pt")
    result = export("--ckpt", "model.pt", "--k", "5", "--parity-tiles", "4")
    assert result.exit_code == 0 and "made-up tissue" in result.stderr, result.output


def test_gene_order_of_the_checkpoint_comes_first(workdir: Path, checkpoint: dict[str, Any]) -> None:
    checkpoint["genes"] = checkpoint["genes"][::-1]
    torch.save(checkpoint, workdir / "model.pt")
    result = export("--ckpt", "model.pt", "--reference", "reference", *TINY)
    assert result.exit_code == 0 and "in the order of the checkpoint" in result.stderr, result.output
    assert list(open_bundle("mclst-bundle").bank.genes) == checkpoint["genes"]


def test_the_source_of_the_gene_order_is_reported(workdir: Path) -> None:
    result = export("--ckpt", "model.pt", "--reference", "reference", *TINY)
    assert "in the order of reference/genes.txt" in result.stderr
    assert open_bundle("mclst-bundle").manifest.genes_from == "reference/genes.txt"
    (workdir / "reference" / "genes.txt").unlink()
    result = export("--ckpt", "model.pt", "--reference", "reference", *TINY, "--overwrite")
    assert "section A1, since nothing else tells the model's order" in result.stderr


def test_gene_lists_that_contradict_each_other_are_refused(workdir: Path) -> None:
    write_reference(workdir / "more", names=("C1",))
    genes = [f"GENE{i}" for i in range(GENES)]
    (workdir / "more" / "genes.txt").write_text("\n".join(genes[::-1]))
    result = export("-q", "--ckpt", "model.pt", "--reference", "reference", "--reference", "more", *TINY)
    assert_refused(result, 4, ("more/genes.txt", "differ", "--genes"))


def test_values_that_are_no_counts_give_a_warning(workdir: Path) -> None:
    path = workdir / "reference" / "counts" / "A1.tsv"
    path.write_text(path.read_text().replace("\t5\t", "\t5.5\t"))
    result = export("--ckpt", "model.pt", "--reference", "reference", *TINY)
    assert result.exit_code == 0 and "section A1" in result.stderr and "not whole counts" in result.stderr
    # The British spelling still works.
    raw = ("--input-normalization", "none", "--expression-normalization", "none", "--overwrite")
    assert (
        "not whole counts" not in export("--ckpt", "model.pt", "--reference", "reference", *TINY, *raw).stderr
    )


def test_a_reference_without_expression_is_refused(workdir: Path) -> None:
    for path in (workdir / "reference" / "counts").iterdir():
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        path.write_text(
            "\n".join(
                "\t".join([line[0], *(["0"] * GENES)]) if i else "\t".join(line)
                for i, line in enumerate(lines)
            )
        )
    assert_refused(
        export("-q", "--ckpt", "model.pt", "--reference", "reference", *TINY), 4, ("no expression",)
    )


def test_an_unreadable_image_is_skipped(workdir: Path) -> None:
    (workdir / "reference" / "images" / "A1.png").write_bytes(b"not an image")
    result = export("--ckpt", "model.pt", "--reference", "reference", *TINY)
    assert (
        result.exit_code == 0
        and "not proved on section A1" in result.stderr
        and "section A2, B1" in result.stderr
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--temperature", "inf"),
        ("--temperature", "0"),
        ("--tile-mpp", "nan"),
        ("--std", "0,1,1"),
        ("--mean", "nan,0,0"),
        ("--pad", "300,0,-4"),
        ("--pad", "1,2"),
        ("--parity-tiles", "1000000000"),
    ],
)
def test_numbers_out_of_range_are_wrong_usage(workdir: Path, words: tuple[str, ...]) -> None:
    assert export("--ckpt", "model.pt", "--reference", "reference", *words).exit_code == 2


def test_a_bundle_that_holds_its_checkpoint_is_not_replaced(workdir: Path) -> None:
    (workdir / "bundle").mkdir()
    for name in ("model.pt", "manifest.json"):
        (workdir / "bundle" / name).write_text("precious")
    before = tree(workdir)
    words = ("--ckpt", "bundle/model.pt", "--reference", "reference", "--out", "bundle", "--overwrite")
    assert_refused(export("-q", *words), 5, ("bundle is an input of this run and would be lost",))
    assert tree(workdir) == before


def test_help_lists_options_and_defaults() -> None:
    result = export("--help")
    assert result.exit_code == 0
    for word in ("--ckpt", "--reference", "--hold-out", "--overwrite", "200", "cosine", "inverse-square"):
        assert word in result.output
