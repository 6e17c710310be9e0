"""`mclst-infer` as a stranger uses it: what it writes, and how a run ends."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
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

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.cli.infer import main
from mclst.runtime.cli.report import main as report_main
from mclst.runtime.hashing import file_sha256
from mclst.runtime.providers.opening import open_session


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


def test_overwrite_replaces(here: Path) -> None:
    (here / "slide.h5ad").write_text("old")
    assert infer("slide.png", "--spots", "spots.tsv", "--overwrite", "--no-picture").exit_code == 0
    assert anndata.read_h5ad("slide.h5ad").n_obs == 24


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
