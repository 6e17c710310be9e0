"""What `mclst-infer` refuses: one sentence, an exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from refusals import assert_refused, tree

from mclst.runtime.cli.infer import main


def infer(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_a_region_beside_all_spots_is_refused(here: Path) -> None:
    box = [[[5000, 0], [6000, 0], [6000, 30]]]
    region = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": box}}
    Path("region.geojson").write_text(json.dumps(region))
    done = infer("slide.png", "--spots", "spots.tsv", "--region", "region.geojson")
    assert done.exit_code == 4 and "no spot is in a region of region.geojson" in done.stderr
    assert not Path("slide.h5ad").exists()


Change = Callable[[Path], object]


def spots(text: str) -> Change:
    return lambda here: (here / "spots.tsv").write_text(text)


def slide(content: bytes) -> Change:
    return lambda here: (here / "slide.png").write_bytes(content)


def half_a_tiff(here: Path) -> None:

    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    tifffile.imwrite(here / "whole.tif", pixels, tile=(64, 64), photometric="rgb")
    (here / "slide.png").write_bytes((here / "whole.tif").read_bytes()[:100_000])
    (here / "whole.tif").unlink()


def flip_a_byte(here: Path) -> None:
    content = bytearray((here / "mclst-bundle" / "bank.h5").read_bytes())
    content[2000] ^= 1
    (here / "mclst-bundle" / "bank.h5").write_bytes(content)


def newer(here: Path) -> None:
    path = here / "mclst-bundle" / "manifest.json"
    path.write_text(path.read_text().replace("mclst-bundle/1", "mclst-bundle/3"))


BAD = [
    ("no slide", lambda here: (here / "slide.png").unlink(), 4, ("slide.png",)),
    ("no spots", lambda here: (here / "spots.tsv").unlink(), 4, ("spots.tsv",)),
    ("no bundle", lambda here: shutil.rmtree(here / "mclst-bundle"), 4, ("mclst-bundle", "mclst-export")),
    ("not an image", slide(b"once upon a time " * 40), 4, ("slide.png",)),
    ("empty slide", slide(b""), 4, ("slide.png", "empty")),
    (
        "truncated picture",
        lambda here: slide((here / "slide.png").read_bytes()[:-200])(here),
        4,
        ("slide.png",),
    ),
    ("truncated TIFF", half_a_tiff, 4, ("slide.png",)),
    ("empty table", spots(""), 4, ("spots.tsv", "empty")),
    ("header only", spots("id,x,y\n"), 4, ("spots.tsv",)),
    ("missing column", spots("id,x\na,3\n"), 4, ("spots.tsv", "x")),
    ("unnamed columns", spots("1,20,30\n2,30,40\n"), 4, ("spots.tsv",)),
    ("NaN", spots("id,x,y\na,20,30\nb,nan,30\n"), 4, ("spots.tsv", "line 3")),
    ("blank", spots("id,x,y\na,20,30\nb,,30\n"), 4, ("spots.tsv", "line 3")),
    ("negative", spots("id,x,y\na,20,30\nb,-5,30\n"), 4, ("spots.tsv", "line 3", "b")),
    ("outside", spots("id,x,y\na,20,30\nb,20,300\n"), 4, ("spots.tsv", "line 3", "b", "240 x 200")),
    ("exchanged", spots("id,x,y\na,20,230\nb,20,210\n"), 4, ("x and y exchanged",)),
    (
        "duplicate barcodes",
        spots("barcode,x,y\nAAC,20,30\nAAG,30,30\nAAC,40,30\n"),
        4,
        ("spots.tsv", "AAC", "4"),
    ),
    ("changed byte", flip_a_byte, 4, ("bank.h5", "not the file that was exported")),
    ("newer format", newer, 4, ("mclst-bundle/3", "upgrade")),
    (
        "output exists",
        lambda here: (here / "slide.h5ad").write_text("precious"),
        5,
        ("slide.h5ad", "--overwrite"),
    ),
]


@pytest.mark.parametrize(("change", "code", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing(
    here: Path, change: Change, code: int, words: tuple[str, ...]
) -> None:
    change(here)
    before = tree(here)
    assert_refused(infer("slide.png", "--spots", "spots.tsv"), code, words)
    assert tree(here) == before


def test_k_beyond_the_bank(here: Path) -> None:
    before = tree(here)
    assert_refused(
        infer("slide.png", "--spots", "spots.tsv", "--k", "49", "-q"), 4, ("49", "48 spots", "--k")
    )
    assert tree(here) == before


def test_a_missing_provider(here: Path) -> None:
    before = tree(here)
    assert_refused(
        infer("slide.png", "--spots", "spots.tsv", "--provider", "cuda", "-q"), 6, ("CUDAExecutionProvider",)
    )
    assert tree(here) == before


def test_an_output_in_no_folder(here: Path) -> None:
    assert_refused(infer("slide.png", "--spots", "spots.tsv", "--out", "no/map.h5ad"), 5, ("no",))


@pytest.mark.parametrize(
    "words", [(), ("slide.png",), ("slide.png", "--spots", "spots.tsv", "--k", "0"), ("--nothing",)]
)
def test_wrong_usage_leaves_with_two(here: Path, words: tuple[str, ...]) -> None:
    assert infer(*words).exit_code == 2


def test_a_temperature_of_zero_is_wrong_usage(here: Path) -> None:
    done = infer("slide.png", "--spots", "spots.tsv", "--temperature", "0")
    assert done.exit_code == 2 and "temperature" in done.stderr


@pytest.mark.parametrize("victim", ["slide.png", "spots.tsv"])
def test_an_input_is_never_overwritten(here: Path, victim: str) -> None:
    before = tree(here)
    done = infer("slide.png", "--spots", "spots.tsv", "--out", victim, "--overwrite")
    assert_refused(done, 5, (victim, "would be lost"))
    (here / "link.genes.png").symlink_to(here / "slide.png")
    done = infer("slide.png", "--spots", "spots.tsv", "--out", "link.h5ad", "--overwrite")
    assert_refused(done, 5, ("would be lost",))
    (here / "link.genes.png").unlink()
    done = infer("slide.png", "--spots", "spots.tsv", "--json", victim, "--overwrite")
    assert_refused(done, 5, (victim, "would be lost"))
    assert tree(here) == before


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        ("slide.geojson", ("--spots", "spots.tsv", "--region", "slide.geojson", "--geojson")),
        ("slide.genes.png", ("--grid", "100", "--tissue-mask", "slide.genes.png")),
        ("slide.seurat", ("--spots", "slide.seurat", "--seurat")),
    ],
    ids=["region", "mask", "section"],
)
def test_other_inputs_are_never_overwritten(here: Path, victim: str, words: tuple[str, ...]) -> None:
    if victim == "slide.seurat":  # as a SpatialData store, or the folder of a section
        (here / victim).mkdir()
    (here / victim / "file" if victim == "slide.seurat" else here / victim).write_text("precious")
    before = tree(here)
    for overwrite in ((), ("--overwrite",)):
        assert_refused(infer("slide.png", *words, *overwrite), 5, (victim, "would be lost"))
    assert tree(here) == before


@pytest.mark.parametrize("option", ["SLIDE", "--spots", "--region", "--tissue-mask", "--bundle"])
def test_a_name_that_no_file_can_have_is_refused(here: Path, option: str) -> None:
    given = {"SLIDE": "slide.png", "--spots": "spots.tsv"}
    if option == "--tissue-mask":
        given = {"SLIDE": "slide.png", "--grid": "100", "--mpp": "1"}
    given[option] = "n" * 300
    before = tree(here)
    words = [given.pop("SLIDE"), *(word for pair in given.items() for word in pair), "--out", "map.h5ad"]
    assert_refused(infer(*words), 4, ("n" * 300,))
    assert tree(here) == before


@pytest.mark.parametrize("victim", ["mclst-bundle/bank.h5", "mclst-bundle/manifest.json"])
def test_the_bundle_is_never_overwritten(here: Path, victim: str) -> None:
    before = tree(here)
    for option in ("--out", "--json"):
        done = infer("slide.png", "--spots", "spots.tsv", option, victim, "--overwrite")
        assert_refused(done, 5, (victim, "would be lost"))
    assert tree(here) == before


@pytest.mark.parametrize("name", ["slide.h5ad", "slide.genes.png", "slide.run.json"])
def test_the_summary_does_not_replace_another_output(here: Path, name: str) -> None:
    assert_refused(infer("slide.png", "--spots", "spots.tsv", "--json", name), 5, (name, "written twice"))


@pytest.mark.parametrize("out", [".", "/", "", "mclst-bundle", "fifo", "zero"])
def test_what_is_no_plain_file_is_not_replaced(here: Path, out: str) -> None:
    os.mkfifo(here / "fifo")
    (here / "zero").symlink_to("/dev/zero")
    done = infer("slide.png", "--spots", "spots.tsv", "--out", out, "--overwrite")
    assert_refused(done, 5, ())
    assert stat.S_ISFIFO((here / "fifo").stat().st_mode) and (here / "zero").is_symlink()


@pytest.mark.parametrize("options", [("--mpp", "nan"), ("--temperature", "inf"), ("--temperature", "-1")])
def test_numbers_out_of_range_are_wrong_usage(here: Path, options: tuple[str, ...]) -> None:
    assert infer("slide.png", "--spots", "spots.tsv", *options).exit_code == 2


@pytest.mark.slow
def test_a_read_only_folder_is_refused_before_the_work(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an ordinary user, for root may write everywhere; a first run loads what that user may not read."""
    with tempfile.TemporaryDirectory() as folder:
        open_to_all = Path(folder) / "run"
        shutil.copytree(here, open_to_all)
        monkeypatch.chdir(open_to_all)
        refuse_a_read_only_folder(open_to_all)


def refuse_a_read_only_folder(here: Path) -> None:
    (here / "out").mkdir(mode=0o555)
    script = (
        "import os, sys, rich.console; from mclst.runtime.cli.infer import main\n"
        "words = ['slide.png', '--spots', 'spots.tsv', '-q', '--no-picture', '--out']\n"
        "main([*words, 'first.h5ad'], standalone_mode=False)\n"
        "os.getuid() or (os.setgid(65534), os.setuid(65534))\n"
        "main([*words, 'out/map.h5ad'])"
    )
    for folder in (here, here.parent):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    assert "out" in done.stderr and not list((here / "out").iterdir())
