"""A run with a calibrated bundle: what it adds, and that X stays as it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pytest
from calibrated import calibrate_bundle, held_out, write_calibration
from click.testing import CliRunner, Result
from fake_server import FakeServer
from refusals import assert_refused, tree
from small_model import Small, fast_regression

from mclst.export.calibrate import HeldOut, calibrate
from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.bundle.calibration import calibration_bytes
from mclst.runtime.bundle.manifest import Normalization
from mclst.runtime.cli.infer import main
from mclst.runtime.cli.report import main as report_main
from mclst.runtime.expression_map.distinct import distinct_genes
from mclst.runtime.expression_map.morans_i import morans_i
from mclst.runtime.expression_map.writer import MapWriter
from mclst.runtime.providers.opening import open_session
from mclst.runtime.report.page.openseadragon import VIEWER_PATH
from mclst.runtime.trust.calibration import Calibration
from mclst.runtime.trust.measures import MeasuredResult


@pytest.fixture(scope="module")
def calibrated(small: Small, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle, calibrated on tiles of its sections: half of the genes well predicted, half not."""
    folder = tmp_path_factory.mktemp("calibrated")
    bundle = open_bundle(small_bundle)
    session = open_session(bundle.encoder_path, "cpu")
    rng = np.random.default_rng(3)
    groups = []
    for name in ("A1", "A2", "B1"):
        embedding = session.encode(tiles_of(small, name))
        level = rng.uniform(0.5, 2, (len(embedding), 1))
        truth = level * rng.gamma(2, 1, (len(embedding), 12))
        noise = level * np.where(np.arange(12) < 6, 0.3, 3.0)
        groups.append(HeldOut(name, truth + rng.normal(size=truth.shape) * noise, truth, embedding))
    calibrate_bundle(small_bundle, folder / "mclst-bundle", calibrate(groups))
    return folder / "mclst-bundle"


def tiles_of(small: Small, name: str) -> np.ndarray:
    from mclst.runtime.slide.open import open_slide
    from mclst.sections.tables.spots import read_spots

    spots = read_spots(small.folder / "spots" / f"{name}_selection.tsv")
    with open_slide(small.folder / "images" / f"{name}.png") as slide:
        corners = np.floor(spots.xy_px).astype(int) - 16
        return np.stack([slide.read(x, y, 32, 32) for x, y in corners.tolist()])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Small, calibrated: Path) -> Iterator[Path]:
    """A working folder with slide.png, spots.tsv and a calibrated mclst-bundle."""
    shutil.copy(small.slide, tmp_path / "slide.png")
    shutil.copy(small.spots, tmp_path / "spots.tsv")
    shutil.copytree(calibrated, tmp_path / "mclst-bundle")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def infer(*words: str) -> Result:
    return CliRunner().invoke(
        main, ["slide.png", "--spots", "spots.tsv", "--no-html", "--no-picture", *words]
    )


def test_a_calibration_adds_to_the_map_and_changes_nothing_of_x(here: Path, small_bundle: Path) -> None:
    done = infer("--intervals", "90")
    assert done.exit_code == 0, done.output
    plain = infer("--bundle", str(small_bundle), "--out", "plain.h5ad")
    assert plain.exit_code == 0, plain.output
    new, old = anndata.read_h5ad("slide.h5ad"), anndata.read_h5ad("plain.h5ad")
    np.testing.assert_array_equal(new.X, old.X)
    for column in old.obs.columns:
        np.testing.assert_array_equal(new.obs[column], old.obs[column])
    calibration = open_bundle("mclst-bundle").calibration
    assert calibration is not None
    added = {"distance_percentile", "outside", "expected_error", "section_share"}
    assert set(new.obs.columns) - set(old.obs.columns) == added
    np.testing.assert_array_equal(new.obs["outside"], new.obs["distance_percentile"] > 0.95)
    inside = ~new.obs["outside"].to_numpy()
    expected = np.where(inside, calibration.spot_errors(new.X), np.nan)
    np.testing.assert_allclose(new.obs["expected_error"], expected, rtol=1e-6)
    assert new.var["reliable"].tolist() == calibration.reliable(0.3).tolist() == [True] * 6 + [False] * 6
    np.testing.assert_allclose(new.var["expected_r"], calibration.expected_r)
    assert inside.any() and (new.layers["low"][inside] <= new.layers["high"][inside]).all()
    assert np.isnan(new.layers["low"][~inside]).all()
    width = new.layers["high"] - new.layers["low"]
    assert np.nanmean(width[:, 6:]) > 2 * np.nanmean(width[:, :6])
    trust = new.uns["mclst"]["trust"]
    assert trust["calibrated"] and trust["groups"] == 3 and "3 sections" in trust["verdict"]
    assert trust["outside_share"] == pytest.approx(new.obs["outside"].mean())
    assert trust["verdict"] in done.stderr and "6 of 12 genes" in done.stderr
    assert json.loads(Path("slide.run.json").read_text())["run"]["verdict"] == trust["verdict"]
    assert "not calibrated" in plain.stderr and not old.uns["mclst"]["trust"]["calibrated"]
    assert not old.layers and "expected_r" not in old.var


def test_both_summaries_name_the_same_structured_genes(here: Path) -> None:
    words = ["slide.png", "--spots", "spots.tsv", "--no-html"]
    ran = CliRunner().invoke(main, words)
    made = CliRunner().invoke(report_main, ["slide.h5ad", "--no-html", "--csv"])
    assert ran.exit_code == made.exit_code == 0, ran.output + made.output
    (line,) = {
        line.strip() for done in (ran, made) for line in done.stderr.splitlines() if "structured" in line
    }
    named = re.findall(r"(GENE\d+) \((-?\d\.\d\d)\)", line)
    written = anndata.read_h5ad("slide.h5ad")
    values, reliable = np.asarray(written.X), np.flatnonzero(written.var["reliable"])
    moran = morans_i(values, np.asarray(written.obsm["spatial"]))
    chosen = distinct_genes(values, reliable[np.argsort(-moran[reliable])].tolist(), 5)
    assert len(chosen) > 1
    assert named == [(written.var_names[gene], f"{moran[gene]:.2f}") for gene, _ in chosen]


HEAVY = {"anndata", "dask", "matplotlib", "pandas", "pyarrow", "rich", "scipy", "zarr"}


def test_a_run_loads_no_library_of_tables_or_figures(here: Path) -> None:
    """pandas and what it loads take 0.7 s of CPU, which the encoder needs."""
    rows = Path("spots.tsv").read_text().splitlines()
    rows = [f"{row}\t{'note' if number == 0 else 'a'}" for number, row in enumerate(rows)]
    Path("spots.tsv").write_text("\n".join(rows) + "\n")
    options = ["--intervals", "90", "--geojson", "--provider", "cpu", "--precision", "fp32"]
    page = ["--html" if VIEWER_PATH.is_file() else "--no-html"]
    code = (
        "import sys\nfrom mclst.runtime.cli.infer import main\n"
        f"try: main({['slide.png', '--spots', 'spots.tsv', *options, *page]})\n"
        "except SystemExit as end: assert not end.code\n"
        f"print({HEAVY!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    obs = anndata.read_h5ad("slide.h5ad").obs
    assert set(obs["note"]) == {"a"} and obs["outside"].dtype == bool
    assert {"slide.genes.png", "slide.geojson"} <= {path.name for path in here.iterdir()}


@pytest.mark.parametrize("units", ["gene-wise", "log-share"])
def test_the_intervals_are_those_of_each_spots_distance(here: Path, units: str) -> None:
    """Units that cannot be below 0 have no bound there; others have the bound that was calibrated."""
    manifest = json.loads(Path("mclst-bundle/manifest.json").read_text())
    manifest["normalization"] = Normalization.of("none", units).model_dump()
    manifest.pop("normalisation", None)
    Path("mclst-bundle/manifest.json").write_text(json.dumps(manifest))
    assert infer("--intervals", "80", "--outside-level", "0.999").exit_code == 0
    written = anndata.read_h5ad("slide.h5ad")
    bundle = open_bundle("mclst-bundle")
    spots = np.loadtxt("spots.tsv", skiprows=1, delimiter="\t")[:, 4:6]
    from mclst.runtime.slide.open import open_slide

    with open_slide(Path("slide.png")) as slide:
        corners = np.floor(spots).astype(int) - 16
        tiles = np.stack([slide.read(x, y, 32, 32) for x, y in corners.tolist()])
    calibration = bundle.calibration
    assert calibration is not None
    distance = calibration.distances(open_session(bundle.encoder_path, "cpu").encode(tiles))
    bins = np.searchsorted(calibration.edges, distance)
    low, high = (written.X + calibration.residual[0, bins, side] for side in (0, 1))
    assert (low < 0).any()
    if units == "gene-wise":
        low = np.maximum(low, np.minimum(written.X, 0))
    outside = written.obs["outside"].to_numpy()
    np.testing.assert_allclose(written.layers["low"][~outside], low[~outside], atol=1e-4)
    np.testing.assert_allclose(written.layers["high"][~outside], high[~outside], atol=1e-4)


def test_the_share_of_one_section_is_that_of_its_neighbors(here: Path) -> None:
    assert infer("--k", "7", "--weighting", "uniform").exit_code == 0
    written = anndata.read_h5ad("slide.h5ad")
    bundle = open_bundle("mclst-bundle")
    from mclst.kernels.definition.spec import RetrievalSpec
    from mclst.kernels.retriever import Retriever
    from mclst.runtime.slide.open import open_slide

    spots = np.loadtxt("spots.tsv", skiprows=1, delimiter="\t")[:, 4:6]
    with open_slide(Path("slide.png")) as slide:
        corners = np.floor(spots).astype(int) - 16
        tiles = np.stack([slide.read(x, y, 32, 32) for x, y in corners.tolist()])
    embedding = open_session(bundle.encoder_path, "cpu").encode(tiles)
    retriever = Retriever(bundle.bank, RetrievalSpec(7, weighting="uniform"), "reference")
    result = retriever.aggregate(embedding, neighbors=True)
    assert result.neighbors is not None
    of = bundle.bank.section[result.neighbors]
    expected = [max(np.mean(row == name) for name in np.unique(row)) for row in of]
    np.testing.assert_allclose(written.obs["section_share"], expected, atol=1e-6)


def test_reliable_writes_only_genes_that_reach_it(here: Path) -> None:
    assert infer("--out", "all.h5ad").exit_code == 0
    done = infer("--reliable", "0.3", "--intervals", "90")
    assert done.exit_code == 0, done.output
    few, every = anndata.read_h5ad("slide.h5ad"), anndata.read_h5ad("all.h5ad")
    assert few.var_names.tolist() == [f"GENE{i}" for i in range(6)] and few.var["reliable"].all()
    np.testing.assert_array_equal(few.X, every[:, few.var_names].X)
    np.testing.assert_array_equal(few.obs["expected_error"], every.obs["expected_error"])
    assert few.layers["low"].shape == few.shape
    assert_refused(infer("--reliable", "0.9999", "--overwrite"), 4, ("no gene", "0.9999", "--reliable"))


def far(calibration: Calibration) -> Calibration:
    """The same calibration, but every spot is outside, and predictions do not tell the error of any."""
    from dataclasses import replace

    return replace(
        calibration,
        gallery=calibration.gallery + 1e4,
        error_at=calibration.error_at[:1],
        spot_error=calibration.spot_error[:1],
    )


def test_too_many_spots_outside_leave_no_map_and_more_tolerance_finishes_it(here: Path) -> None:
    calibration = open_bundle("mclst-bundle").calibration
    assert calibration is not None
    write_calibration(here / "mclst-bundle", calibration_bytes(far(calibration)))
    done = infer("--max-outside", "30%")
    assert done.exit_code == 4 and "24 of 24 spots are outside" in done.stderr and "30%" in done.stderr
    assert not Path("slide.h5ad").exists()
    again = infer("--max-outside", "24")
    assert again.exit_code == 0, again.output
    assert "most of this map is a guess" in again.stderr
    written = anndata.read_h5ad("slide.h5ad")
    assert written.obs["outside"].all() and written.uns["mclst"]["trust"]["outside_share"] == 1
    assert "expected_error" not in written.obs


@pytest.mark.parametrize("option", [("--intervals", "90"), ("--reliable", "0.3"), ("--max-outside", "30%")])
def test_without_a_calibration_these_options_are_refused(
    here: Path, small_bundle: Path, option: tuple[str, str]
) -> None:
    before = tree(here)
    done = infer("--bundle", str(small_bundle), *option)
    assert_refused(done, 4, (option[0], "not calibrated"))
    assert tree(here) == before


def test_a_calibration_of_another_bundle_is_refused(here: Path) -> None:
    calibration = open_bundle("mclst-bundle").calibration
    assert calibration is not None
    write_calibration(here / "mclst-bundle", calibration_bytes(calibration), spots=5)
    assert_refused(infer(), 4, ("calibration.h5", "manifest"))
    (here / "mclst-bundle" / "calibration.h5").unlink()
    assert_refused(infer(), 4, ("calibration.h5",))


def test_a_stopped_run_resumes_with_what_was_measured(tmp_path: Path) -> None:
    """Rows of two processes: the second finds the distances of the first in its journal."""
    from map_writing import genes_of, publish, spots_of

    rng = np.random.default_rng(0)
    values = {name: rng.random(50).astype(np.float32) for name in ("near", "k", "far", "error", "share")}
    expression = rng.random((50, 3)).astype(np.float32)

    def result(rows: np.ndarray) -> MeasuredResult:
        return MeasuredResult(
            expression[rows],
            values["near"][rows],
            values["k"][rows],
            distance=values["far"][rows],
            expected_error=values["error"][rows],
            section_share=values["share"][rows],
        )

    def writer(*, measured: bool = True) -> MapWriter:
        return MapWriter(
            tmp_path / "m.h5ad", genes=genes_of(3), spots=spots_of(50), overwrite=False, measured=measured
        )

    with writer() as first:
        first.begin({"a": "b"})
        first.write(np.arange(20), result(np.arange(20)))
    with writer(measured=False) as other:
        state = other.resume({"a": "b"})
        assert state is not None and "journal" in state.changed
        with pytest.raises(ValueError, match="measured"):
            other.write(np.arange(1), result(np.arange(1)))
    with writer() as second:
        state = second.resume({"a": "b"})
        assert state is not None and (state.rows, state.changed) == (20, "")
        second.write(np.arange(20, 50), result(np.arange(20, 50)))
        np.testing.assert_array_equal(second.rows.distance, values["far"])
        np.testing.assert_array_equal(second.rows.expected_error, values["error"])
        with pytest.raises(ValueError, match="measured"):
            second.write(np.arange(1), RetrievalResult(expression[:1], values["near"][:1], values["k"][:1]))
        publish(second)
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "m.h5ad").X, expression)


def test_layers_that_do_not_read_back_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from map_writing import genes_of, publish, spots_of

    from mclst.runtime.errors import OutputError
    from mclst.runtime.expression_map import row_file

    path, ones = tmp_path / "m.h5ad", np.ones((40, 3), np.float32)
    written = row_file.RowFile.write_bytes

    def spoil(self: row_file.RowFile, content: memoryview, offset: int) -> None:
        written(self, memoryview(bytes(len(content))) if len(content) == 480 else content, offset)

    with MapWriter(path, genes=genes_of(3), spots=spots_of(40), overwrite=False, intervals=True) as writer:
        writer.write(np.arange(40), RetrievalResult(ones, ones[:, 0], ones[:, 0]))
        monkeypatch.setattr(row_file.RowFile, "write_bytes", spoil)
        with pytest.raises(OutputError, match="read back"):
            publish(writer, layers=lambda rows, x: (x - 1, x + 1))
    assert not path.exists()


@pytest.fixture
def client() -> None:
    """What `--server` needs."""
    pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")


def assert_same_trust(one: Path, other: Path) -> None:
    """All that a map says of what to trust."""
    ours, theirs = anndata.read_h5ad(one), anndata.read_h5ad(other)
    np.testing.assert_allclose(theirs.X, ours.X, rtol=1e-5, atol=1e-6)
    assert list(theirs.obs) == list(ours.obs) and list(theirs.var) == list(ours.var)
    assert "outside" in ours.obs and "expected_r" in ours.var and set(theirs.layers) == set(ours.layers)
    for frame, served in ((ours.obs, theirs.obs), (ours.var, theirs.var)):
        for column in frame.columns:
            np.testing.assert_allclose(
                served[column].to_numpy(float), frame[column].to_numpy(float), rtol=1e-4
            )
    for layer, values in ours.layers.items():
        np.testing.assert_allclose(theirs.layers[layer], values, rtol=1e-4, atol=1e-5)
    assert theirs.uns["mclst"]["trust"]["verdict"] == ours.uns["mclst"]["trust"]["verdict"]
    assert theirs.uns["mclst"]["trust"]["calibrated"]


def test_a_map_made_behind_a_server_is_as_calibrated_as_the_bundles(here: Path, client: None) -> None:
    with FakeServer(here / "mclst-bundle") as fake:
        done = infer("--server", fake.url, "--intervals", "90", "--reliable", "0.3", "--out", "served.h5ad")
        assert done.exit_code == 0, done.output
        plain = infer("--intervals", "90", "--reliable", "0.3", "--provider", "cpu")
        assert plain.exit_code == 0, plain.output
        assert_same_trust(here / "slide.h5ad", here / "served.h5ad")
        calibration = open_bundle("mclst-bundle").calibration
        assert calibration is not None
        write_calibration(here / "mclst-bundle", calibration_bytes(far(calibration)))
        fake.hold(here / "mclst-bundle")
        refused = infer("--server", fake.url, "--max-outside", "30%", "--out", "far.h5ad")
    assert refused.exit_code == 4 and "24 of 24 spots are outside" in refused.stderr
    assert not Path("far.h5ad").exists()


def test_a_head_behind_a_server_is_as_calibrated_as_its_bundle(
    here: Path, client: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calibration comes in many parts."""
    for module in ("fake_server", "mclst.runtime.serving.connection"):
        monkeypatch.setattr(f"{module}.PART_BYTES", 1000)
    bundle = fast_regression(here / "head", 5, embedding=4)
    write_calibration(bundle, calibration_bytes(calibrate(held_out(1, groups=3, spots=40, genes=5, dim=4))))
    with FakeServer(bundle) as fake:
        assert infer("--server", fake.url, "--intervals", "80", "--out", "served.h5ad").exit_code == 0
    assert infer("--bundle", "head", "--intervals", "80", "--provider", "cpu").exit_code == 0
    assert_same_trust(here / "slide.h5ad", here / "served.h5ad")


def test_a_calibration_that_a_server_spoils_is_refused(here: Path, client: None) -> None:
    before = tree(here)
    with FakeServer(here / "mclst-bundle") as fake:
        fake.calibration = fake.calibration[:-1] + b"?"
        assert_refused(infer("--server", fake.url), 4, (fake.url, "calibration.h5", "SHA-256"))
        fake.document["bundle"]["manifest"]["files"]["calibration.h5"]["bytes"] = 1 << 60
        assert_refused(infer("--server", fake.url), 4, (fake.url, "calibration.h5", "256 MiB"))
        del fake.document["bundle"]["manifest"]["files"]["calibration.h5"]
        assert_refused(infer("--server", fake.url), 4, (fake.url, "calibration.h5", "but not both"))
        fake.document["bundle"]["manifest"]["calibration"] = None
        assert_refused(infer("--server", fake.url), 4, (fake.url, "it is calibrated and its bundle is not"))
    assert tree(here) == before


def test_a_repository_without_its_bundles_calibration_is_named(here: Path, client: None) -> None:
    with FakeServer(here / "mclst-bundle") as fake:
        del fake.document["calibrated"]
        refused = infer("--server", fake.url, "--intervals", "90")
        assert_refused(refused, 4, ("--intervals", "not calibrated", "export its repository again"))
        assert infer("--server", fake.url).exit_code == 0
    trust = anndata.read_h5ad("slide.h5ad").uns["mclst"]["trust"]
    assert not trust["calibrated"] and "exported without the calibration" in trust["verdict"]
