"""`mclst-infer` as a stranger uses it: what it writes, and what it says to bad input."""

from __future__ import annotations

import gc
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from forked_runs import DEFAULT_SIGHUP, HASHED_AT_ONCE
from numpy.typing import NDArray
from PIL import Image
from refusals import assert_refused, tree
from small_model import Small

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.cli.infer import main
from mclst.runtime.cli.report import main as report_main
from mclst.runtime.hashing import file_sha256
from mclst.runtime.inference.providers import open_session


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Small, small_bundle: Path) -> Path:
    """A working folder with slide.png, spots.tsv and mclst-bundle."""
    shutil.copy(small.slide, tmp_path / "slide.png")
    shutil.copy(small.spots, tmp_path / "spots.tsv")
    shutil.copytree(small_bundle, tmp_path / "mclst-bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def infer(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_the_short_form_writes_map_and_picture(here: Path) -> None:
    done = infer("slide.png", "--spots", "spots.tsv")
    assert done.exit_code == 0, done.output
    assert done.stdout == "slide.h5ad\n"
    for word in ("24, pixel_x, pixel_y", "tiles/s", "cpu", "slide.h5ad", "slide.genes.png"):
        assert word in done.stderr
    with Image.open(here / "slide.genes.png") as picture:
        assert picture.size[0] > 1000


def test_an_objective_that_contradicts_is_one_line(here: Path) -> None:
    picture = np.asarray(Image.open("slide.png").convert("RGB"))
    tifffile.imwrite(
        "slide.svs", picture, photometric="rgb", tile=(64, 64), metadata=None,
        description="Aperio Image Library v11|AppMag = 40|MPP = 0.5",
    )  # fmt: skip
    done = infer("slide.svs", "--spots", "spots.tsv", "--no-picture", "--no-html")
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stderr.splitlines() if "objective" in line]
    assert line.startswith("Note: 0.5 µm/px is taken") and "40x objective (AppMag)" in line
    assert "0.25 is usual" in line and "2.0 times" in line and "--mpp" in line
    assert line.removeprefix("Note: ") in json.loads(Path("slide.run.json").read_text())["run"]["notes"]


def cells_of(rows: np.ndarray) -> dict[str, object]:
    """Triangles around the spots of spots.tsv, as QuPath exports cells."""
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": f"cell-{i}",
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[x - 3, y - 2], [x + 3, y - 2], [x, y + 4], [x - 3, y - 2]]],
                },
                "properties": {"objectType": "cell", "classification": {"name": "Tumor"}},
            }
            for i, (x, y) in enumerate(rows[:, 4:6])
        ],
    }


def test_cells_of_qupath_go_back_on_their_own_outlines(here: Path) -> None:
    rows = np.loadtxt("spots.tsv", skiprows=1, delimiter="\t")
    content = cells_of(rows)
    Path("cells.geojson").write_text(json.dumps(content))
    box = [[[0, 0], [120, 0], [120, 300], [0, 300], [0, 0]]]
    region = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": box}}
    Path("region.geojson").write_text(json.dumps(region))
    words = ("slide.png", "--no-html", "--no-picture", "--geojson", "--geojson-genes", "GENE0")
    done = infer(*words, "--spots", "cells.geojson", "--region", "region.geojson")
    assert done.exit_code == 0, done.output
    inside = np.flatnonzero(rows[:, 4] < 120)
    written = anndata.read_h5ad("slide.h5ad")
    assert written.obs_names.tolist() == [f"cell-{i}" for i in inside]
    assert written.obs["classification"].tolist() == ["Tumor"] * len(inside)
    np.testing.assert_allclose(written.obsm["spatial"], rows[inside, 4:6], atol=1e-9)
    assert f"{24 - len(inside)} left out for region.geojson" in done.stderr
    back = json.loads(Path("slide.geojson").read_text())["features"]
    assert [cell["properties"]["name"] for cell in back] == written.obs_names.tolist()
    given = content["features"]
    assert [cell["geometry"] for cell in back] == [given[i]["geometry"] for i in inside]  # type: ignore[index]
    assert back[0]["properties"]["classification"] == {"name": "Tumor"}
    report = ("slide.h5ad", *words[1:2], *words[3:], "--cells", "cells.geojson", "--out")
    again = CliRunner().invoke(report_main, [*report, "again"])
    assert again.exit_code == 0, again.output
    assert json.loads(Path("again.geojson").read_text())["features"] == back
    fewer = [cell for i, cell in enumerate(given) if i != inside[0]]  # type: ignore[arg-type, var-annotated]
    Path("cells.geojson").write_text(json.dumps({**content, "features": fewer}))
    refused = CliRunner().invoke(report_main, [*report, "third"])
    assert refused.exit_code == 4 and "has no cell" in refused.stderr
    assert not Path("third.geojson").exists()
    assert back[0]["properties"]["measurements"]["GENE0"] == pytest.approx(float(written.X[0, 0]), rel=1e-6)


def test_a_table_in_micrometers_needs_and_takes_the_scale(here: Path) -> None:
    rows = np.loadtxt("spots.tsv", skiprows=1, delimiter="\t")
    lines = [f"c{i}\t{x * 0.5!r}\t{y * 0.5!r}" for i, (x, y) in enumerate(rows[:, 4:6].tolist())]
    Path("m.tsv").write_text("\n".join(["Object ID\tCentroid X µm\tCentroid Y µm", *lines]) + "\n")
    words = ("slide.png", "--spots", "m.tsv", "--no-html", "--no-picture")
    done = infer(*words)
    assert done.exit_code == 4 and "m.tsv is in µm" in done.stderr and "give --mpp" in done.stderr
    done = infer(*words, "--mpp", "0.5")
    assert done.exit_code == 0 and "as x, y in µm, by 0.5 µm/px of the slide" in done.stderr, done.output
    np.testing.assert_allclose(anndata.read_h5ad("slide.h5ad").obsm["spatial"], rows[:, 4:6])


def test_a_region_beside_all_spots_is_refused(here: Path) -> None:
    box = [[[5000, 0], [6000, 0], [6000, 30]]]
    region = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": box}}
    Path("region.geojson").write_text(json.dumps(region))
    done = infer("slide.png", "--spots", "spots.tsv", "--region", "region.geojson")
    assert done.exit_code == 4 and "no spot is in a region of region.geojson" in done.stderr
    assert not Path("slide.h5ad").exists()


def embeddings_of(here: Path, bundle: Bundle) -> NDArray[np.float32]:
    """Cut and encode by hand: numpy slices, one tile at a time."""
    picture = np.asarray(Image.open(here / "slide.png").convert("RGB"))
    padded = np.pad(picture, ((100, 100), (100, 100), (0, 0)))
    rows = np.loadtxt(here / "spots.tsv", skiprows=1, delimiter="\t")
    session = open_session(bundle.encoder_path, "cpu")
    tiles = [padded[y + 84 : y + 116, x + 84 : x + 116] for x, y in np.floor(rows[:, 4:6]).astype(int)]
    return np.concatenate([session.encode(np.ascontiguousarray(tile[None])) for tile in tiles])


def expected_map(here: Path, spec: RetrievalSpec) -> NDArray[np.float32]:
    """Retrieve by the float64 definition."""
    bundle = open_bundle(here / "mclst-bundle")
    embeddings = embeddings_of(here, bundle)
    return Retriever(bundle.bank, spec, provider="reference").aggregate(embeddings).expression


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ((), RetrievalSpec(10)),
        (("--batch-size", "1", "--workers", "1"), RetrievalSpec(10)),
        (("--k", "48", "--rank", "l1", "--distance", "l2", "--weighting", "softmax", "--temperature", "2.5"),
         RetrievalSpec(48, "l1", "l2", "softmax", 2.5)),
        (("--k", "1", "--weighting", "uniform"), RetrievalSpec(1, weighting="uniform")),
    ],
)  # fmt: skip
def test_the_map_is_what_the_definition_gives(
    here: Path, options: tuple[str, ...], spec: RetrievalSpec
) -> None:
    done = infer("slide.png", "--spots", "spots.tsv", "--out", "map.h5ad", "--no-picture", *options)
    assert done.exit_code == 0, done.output
    written = anndata.read_h5ad(here / "map.h5ad")
    assert np.abs(written.X - expected_map(here, spec)).max() < 1e-4
    first = (here / "spots.tsv").read_text().splitlines()[1].split("\t")
    assert written.obs_names[0] == f"{first[0]}x{first[1]}"
    assert np.allclose(written.obsm["spatial"][0], [float(first[4]), float(first[5])])
    summary = written.uns["mclst"]
    assert (
        summary["settings"]["k"] == spec.k
        and summary["bundle"]["sha256"] == open_bundle("mclst-bundle").sha256
    )
    assert summary["slide"]["sha256"] and summary["provider"] == "cpu" and summary["versions"]["mclst"]
    assert not (here / "map.genes.png").exists()


def test_json_and_quiet(here: Path) -> None:
    done = infer("slide.png", "--spots", "spots.tsv", "--json", "-", "-q", "--out", "a.h5ad", "--no-picture")
    summary = json.loads(done.stdout)
    assert (
        done.stderr == "" and summary["spots"] == 24 and summary["genes"] == 12 and summary["map"] == "a.h5ad"
    )
    assert set(summary["tiles_per_second"]) == {"read", "encode", "retrieve", "total"}


def test_the_bundle_is_found_by_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(here / "mclst-bundle", here / "elsewhere")
    monkeypatch.setenv("MCLST_BUNDLE", str(here / "elsewhere"))
    assert infer("slide.png", "--spots", "spots.tsv", "--no-picture").exit_code == 0


def test_spots_marked_as_not_selected_are_left_out_unless_asked_for(here: Path) -> None:
    lines = (here / "spots.tsv").read_text().splitlines()
    lines[5] = lines[5].rsplit("\t", 1)[0] + "\t0"
    (here / "spots.tsv").write_text("\n".join(lines) + "\n")
    assert infer("slide.png", "--spots", "spots.tsv", "--no-picture").exit_code == 0
    assert (
        infer(
            "slide.png", "--spots", "spots.tsv", "--all-spots", "--out", "all.h5ad", "--no-picture"
        ).exit_code
        == 0
    )
    assert anndata.read_h5ad("slide.h5ad").n_obs == 23 and anndata.read_h5ad("all.h5ad").n_obs == 24


Change = Callable[[Path], object]


def spots(text: str) -> Change:
    return lambda here: (here / "spots.tsv").write_text(text)


def slide(content: bytes) -> Change:
    return lambda here: (here / "slide.png").write_bytes(content)


def half_a_tiff(here: Path) -> None:
    import tifffile

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


def test_a_refused_run_leaves_garbage_collected(here: Path) -> None:
    """It is not while a run loads, and this process goes on."""
    assert infer("slide.png", "--spots", "missing.tsv").exit_code == 4
    assert gc.isenabled()


def test_similarities_of_a_part_of_the_bank_or_that_add_up_to_nothing(here: Path) -> None:
    before = tree(here)
    words: tuple[str, ...] = ("slide.png", "--spots", "spots.tsv", "--weighting", "similarity", "-q")
    wrong = infer(*words)
    assert wrong.exit_code == 2 and "is of cosines, not of 'l1'; give distance 'cosine'" in wrong.stderr
    words = (*words, "--distance", "cosine")
    assert_refused(infer(*words), 4, ("over the whole bank", "--k 48"))
    half = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    put_into_bank(here, np.concatenate([half, -half]))
    before = tree(here)
    refused = infer(*words, "--k", "48")
    assert_refused(refused, 4, ("the cosines of spot", "are no weights", "--weighting"))
    assert tree(here) == before


def put_into_bank(here: Path, embedding: NDArray[np.float32]) -> None:
    path = here / "mclst-bundle" / "bank.h5"
    with h5py.File(path, "r+") as bank:
        bank["embedding"][:] = embedding
    manifest = json.loads((here / "mclst-bundle" / "manifest.json").read_text())
    manifest["files"]["bank.h5"] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (here / "mclst-bundle" / "manifest.json").write_text(json.dumps(manifest))


def test_a_map_by_similarity_is_what_the_definition_gives(here: Path) -> None:
    bundle = open_bundle("mclst-bundle")
    # Embeddings like CLIP's: all within a quarter turn of the tiles'.
    own = embeddings_of(here, bundle)
    toward = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
    rows = bundle.bank.embedding
    put_into_bank(here, (rows + 3 * np.linalg.norm(rows, axis=1)[:, None] * toward).astype(np.float32))
    words = ("--k", "48", "--distance", "cosine", "--weighting", "similarity", "--no-picture", "--no-html")
    done = infer("slide.png", "--spots", "spots.tsv", "--out", "map.h5ad", *words)
    assert done.exit_code == 0, done.output
    written = anndata.read_h5ad(here / "map.h5ad")
    expected = expected_map(here, RetrievalSpec(48, "cosine", "cosine", "similarity"))
    assert np.abs(written.X - expected).max() < 1e-4 and np.ptp(written.X, axis=0).min() > 1e-3
    assert written.uns["mclst"]["settings"]["weighting"] == "similarity"
    assert written.obs["effective_k"].between(1, 48).all()


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


def test_overwrite_replaces(here: Path) -> None:
    (here / "slide.h5ad").write_text("old")
    assert infer("slide.png", "--spots", "spots.tsv", "--overwrite", "--no-picture").exit_code == 0
    assert anndata.read_h5ad("slide.h5ad").n_obs == 24


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


def test_help_speaks_of_what_it_does() -> None:
    done = infer("--help")
    assert done.exit_code == 0
    for word in (
        "SLIDE",
        "--spots",
        "--bundle",
        "MCLST_BUNDLE",
        "--out",
        "--provider",
        "--mpp",
        "--overwrite",
    ):
        assert word in done.output


STOPPED_ONCE_ROWS_ARE_KEPT = f"""
{DEFAULT_SIGHUP}{HASHED_AT_ONCE}
import os, signal, sys
from mclst.runtime.cli.infer import main
from mclst.runtime.expression_map.row_file import RowFile

number, *words = sys.argv[1:]
write = RowFile.write

def write_and_stop(rows, *args):
    write(rows, *args)
    if rows.resumable_rows:
        os.kill(os.getpid(), getattr(signal, number))

RowFile.write = write_and_stop
main(words)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 143)])
@pytest.mark.slow
def test_a_stopped_run_says_what_it_keeps(here: Path, name: str, code: int) -> None:
    (here / "spots.tsv").write_text(
        "id\tx\ty\n" + "".join(f"s{i}\t{i % 200}\t{i % 180}\n" for i in range(60_000))
    )
    before = tree(here)
    words = [sys.executable, "-c", STOPPED_ONCE_ROWS_ARE_KEPT, name, "slide.png", "--spots", "spots.tsv"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert "of 60,000 spots are kept" in done.stderr and "the same command resumes" in done.stderr
    left = tree(here)
    assert set(left) - set(before) == {".slide.h5ad.rows", ".slide.h5ad.journal", "slide.run.json"}
    assert {name: left[name] for name in before} == before
    report = json.loads(left["slide.run.json"])
    assert report["status"] == "stopped" and 0 < report["spots_done"] < report["spots_total"] == 60_000


def test_a_run_stopped_before_it_wrote_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    before = tree(here)
    monkeypatch.setattr("mclst.kernels.Retriever.aggregate", interrupted)
    done = infer("slide.png", "--spots", "spots.tsv")
    assert done.exit_code == 130 and "nothing half-written is left behind" in done.stderr
    assert tree(here) == before


@pytest.mark.slow
def test_a_full_disk_ends_the_process_with_its_exit_code(here: Path) -> None:
    """HDF5 crashes a process that ends with a file of its own left open, which would hide the exit code."""
    script = (
        "import errno, os, sys; from mclst.runtime.cli.infer import main; real = os.pwrite\n"
        "def full(handle, *rest):\n"
        "    if '.slide.' in os.readlink(f'/proc/self/fd/{handle}'):\n"
        "        raise OSError(errno.ENOSPC, 'No space left')\n"
        "    return real(handle, *rest)\n"
        "os.pwrite = full\n"
        "main(['slide.png', '--spots', 'spots.tsv'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
