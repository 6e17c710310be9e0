"""Runs on a JPEG picture: decoded once, kept where it is read, and the same map as from all of its pixels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from refusals import assert_refused, tree
from small_model import Small

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main
from mclst.runtime.decoding import blocks, jpeg
from mclst.runtime.inference.loaded_model import LoadedModel
from mclst.runtime.report.files import Files
from mclst.runtime.run.job import Job, begin_opening, run_job
from mclst.runtime.run.options import RunOptions
from mclst.runtime.slide import picture
from mclst.sections.tables.spots import read_spots

WORDS = ("slide.jpg", "--spots", "spots.csv", "--provider", "cpu", "--precision", "fp32", "--no-picture")
needs_blocks = pytest.mark.skipif(
    not blocks.can_keep_blocks(), reason="the part is not compiled here, or there is no libjpeg-turbo"
)


@pytest.fixture
def here(small: Small, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with slide.jpg, spots.csv in one corner of it and mclst-bundle."""
    with Image.open(small.slide) as image:
        pixels = np.asarray(image.convert("RGB"))
    # The places that tell the stain lie all over it.
    several = -(-1200 // min(pixels.shape[:2]))
    Image.fromarray(np.tile(pixels, (several, several, 1))).save(tmp_path / "slide.jpg", quality=90)
    spots = read_spots(small.folder / "spots" / "B1_selection.tsv")
    near = np.argsort(spots.xy_px.sum(axis=1))[:9]
    rows = [f"{spots.id[i]},{spots.xy_px[i][0]},{spots.xy_px[i][1]}" for i in near]
    (tmp_path / "spots.csv").write_text("id,x,y\n" + "\n".join(rows) + "\n")
    shutil.copytree(small_bundle, tmp_path / "mclst-bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is decoded: the share that is kept, or "whole"."""
    made: list[Any] = []
    keep, decode = blocks.keep_blocks, jpeg.decode_jpeg

    def kept(data: bytes, size: Any, marked: Any, reduced: Any) -> Any:
        made.append(marked.mean())
        return keep(data, size, marked, reduced)

    def whole(data: bytes) -> Any:
        made.append("whole")
        return decode(data)

    monkeypatch.setattr(blocks, "BLOCK_PX", 16)
    monkeypatch.setattr(picture, "keep_blocks", kept)
    monkeypatch.setattr(jpeg, "decode_jpeg", whole)
    return made


def same(one: str, other: str) -> None:
    a, b = anndata.read_h5ad(one), anndata.read_h5ad(other)
    np.testing.assert_array_equal(a.X, b.X)
    assert a.obs.equals(b.obs)
    (images,), (others,) = ([s["images"] for s in map_.uns["spatial"].values()] for map_ in (a, b))
    assert images.keys() == others.keys()
    for name in images:
        np.testing.assert_array_equal(images[name], others[name])


@needs_blocks
def test_one_pass_keeps_what_is_read_and_gives_the_same_map(
    here: Path, passes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def infer(*words: str) -> None:
        passes.clear()
        done = CliRunner().invoke(main, [*WORDS, *words, "--no-cache"])
        assert done.exit_code == 0, done.output

    infer("--out", "blocks.h5ad")
    (share,) = passes
    assert 0 < share < 0.7
    model, options = LoadedModel(open_bundle("mclst-bundle")), RunOptions(files=Files(html=False))
    passes.clear()
    run_job(model, Job(here / "slide.jpg", Path("job.h5ad"), Path("spots.csv"), options=options))
    assert len(passes) == 1 and passes[0] < 0.7
    monkeypatch.setattr(picture, "can_keep_blocks", lambda: False)
    infer("--out", "whole.h5ad")
    assert passes == ["whole"]
    same("blocks.h5ad", "whole.h5ad")
    same("job.h5ad", "whole.h5ad")


@needs_blocks
@pytest.mark.parametrize(
    ("manifest", "decoded"),
    [
        ('{"tile": {"size_px": 8, "mpp": null, "pad": [0, 0, 0]}}', 2),
        ('{"tile": {"size_px": "8"}}', 1),
        ("no JSON", 1),
    ],
)
def test_a_manifest_that_proves_wrong_changes_nothing_but_the_passes(
    here: Path, passes: list[Any], manifest: str, decoded: int
) -> None:
    (here / "other").mkdir()
    (here / "other" / "manifest.json").write_text(manifest)
    options = RunOptions(
        files=Files(html=False), provider="cpu", precision="fp32", picture=False, cache=False
    )
    model = LoadedModel(open_bundle("mclst-bundle"))
    for out, opening in (("a.h5ad", True), ("b.h5ad", False)):
        job = Job(here / "slide.jpg", Path(out), Path("spots.csv"), options=options)
        passes.clear()
        run_job(model, job, opening=begin_opening(job, here / "other") if opening else None)
        assert len(passes) == (decoded if opening else 1)
        assert (passes[-1] == "whole") == opening
    same("a.h5ad", "b.h5ad")


@needs_blocks
def test_a_grid_decodes_the_picture_once(here: Path, passes: list[Any]) -> None:
    words = ("slide.jpg", "--grid", "40", "--mpp", "1", "--no-picture", "--no-html", "--no-cache")
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == 0, done.output
    assert passes == ["whole"]


@pytest.mark.parametrize("damage", ["cut off", "zeros"])
def test_a_damaged_picture_is_refused_before_anything_is_written(here: Path, damage: str) -> None:
    """Its upper rows, where all spots are, are whole."""
    path = Path("slide.jpg")
    content = path.read_bytes()
    place = int(len(content) * 0.9)
    path.write_bytes(content[:place] + (bytes(len(content) - place) if damage == "zeros" else b""))
    before = tree(here)
    for words in (WORDS, ("slide.jpg", "--grid", "40", "--mpp", "1")):
        done = CliRunner().invoke(main, list(words))
        assert_refused(done, 4, ("slide.jpg is a damaged or incomplete JPEG",))
        assert tree(here) == before


def test_spots_that_are_wrong_are_told_while_the_picture_opens(here: Path) -> None:
    Path("spots.csv").write_text("id,x,y\na,5,5\nb,100000,5\n")
    assert_refused(CliRunner().invoke(main, list(WORDS)), 4, ("spots.csv, line 3: spot b",))
    Path("spots.csv").write_text("id,x,y\na,5,oops\n")
    assert_refused(CliRunner().invoke(main, list(WORDS)), 4, ("spots.csv", "line 2"))
