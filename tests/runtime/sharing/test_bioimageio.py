"""`rdf.yaml`: accepted by bioimageio.spec, and run by bioimageio.core's tester where they are installed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from described_bundle import ABOUT, describe_bundle
from refusals import assert_refused

from mclst.runtime.bundle.onnx_scan import opset_version
from mclst.runtime.cli.bundle import main

CITATION = "Min et al. 2024, doi:10.1093/bib/bbae551."


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def described(small_bundle: Path, run_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle with a card and rdf.yaml, whose tiles are of the slide of the tests."""
    about = {**ABOUT, "citation": [CITATION]}
    folder = describe_bundle(small_bundle, tmp_path_factory.mktemp("rdf") / "bundle", about)
    assert run("card", folder).exit_code == 0
    done = run("bioimageio", folder, run_inputs / "slide.tif", "--author", "A. Maker")
    assert done.stdout.strip() == str(folder / "rdf.yaml"), done.output
    return folder


def rdf(folder: Path) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load((folder / "rdf.yaml").read_text()))


def test_test_tensors_are_what_the_graph_takes_and_gives(described: Path) -> None:
    content = rdf(described)
    arrays = []
    for side in ("inputs", "outputs"):
        tensor = content[side][0]["test_tensor"]
        path = described / tensor["source"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == tensor["sha256"]
        arrays.append(np.load(path))
    tiles, expected = arrays
    assert tiles.shape == (4, 32, 32, 3) and tiles.dtype == np.uint8 and np.ptp(tiles) > 50
    session = onnxruntime.InferenceSession(described / content["weights"]["onnx"]["source"])
    np.testing.assert_allclose(session.run(None, {"tiles": tiles})[0], expected, rtol=0, atol=1e-5)
    opsets = {o.domain: o.version for o in onnx.load(described / "encoder.onnx").opset_import}
    assert (
        content["weights"]["onnx"]["opset_version"] == opsets[""] == opset_version(described / "encoder.onnx")
    )
    assert content["license"] == "Apache-2.0"
    assert content["cite"] == [{"text": CITATION, "doi": "10.1093/bib/bbae551"}]


def test_the_bundle_stays_whole(described: Path) -> None:
    assert run("verify", described).exit_code == 0
    again = ("bioimageio", described, "slide.tif", "--author", "A")
    assert_refused(run(*again), 4, ("slide.tif",))


def test_the_parity_tiles_are_test_tensors_where_the_bundle_keeps_them(
    small_bundle: Path, tmp_path: Path
) -> None:
    folder = describe_bundle(small_bundle, tmp_path / "bundle", ABOUT)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    session = onnxruntime.InferenceSession(folder / "encoder.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, array in (
        ("parity_tiles.npy", tiles),
        ("parity_output.npy", session.run(None, {"tiles": tiles})[0]),
    ):
        np.save(folder / name, array)
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert run("card", folder).exit_code == 0
    assert run("bioimageio", folder, "--author", "A. Maker").exit_code == 0
    described = rdf(folder)
    tensors = [described[side][0]["test_tensor"] for side in ("inputs", "outputs")]
    assert tensors == [
        {"source": name, "sha256": manifest["files"][name]["sha256"]}
        for name in ("parity_tiles.npy", "parity_output.npy")
    ]
    assert not (folder / "test_tiles.npy").exists() and run("verify", folder).exit_code == 0


def test_spec_accepts_it(described: Path) -> None:
    spec = pytest.importorskip("bioimageio.spec", reason="bioimageio.spec is not installed")
    summary = spec.load_description(described / "rdf.yaml").validation_summary
    assert summary.status in ("passed", "valid-format"), summary.format()


def test_core_s_tester_runs_it(described: Path) -> None:
    core = pytest.importorskip("bioimageio.core", reason="bioimageio.core is not installed")
    summary = core.test_model(described / "rdf.yaml", weight_format="onnx")
    assert summary.status == "passed", summary.format()


def test_what_bioimage_io_needs_is_named(small_bundle: Path, run_inputs: Path, tmp_path: Path) -> None:
    slide = run_inputs / "slide.tif"
    plain = Path(shutil.copytree(small_bundle, tmp_path / "plain"))
    assert_refused(run("bioimageio", plain, slide, "--author", "A"), 4, ("no license",))
    uncarded = describe_bundle(small_bundle, tmp_path / "uncarded", ABOUT)
    assert_refused(run("bioimageio", uncarded, slide, "--author", "A"), 4, ("README.md", "mclst-bundle card"))
    assert run("bioimageio", uncarded, slide).exit_code == 2
    assert run("card", uncarded).exit_code == 0
    assert_refused(run("bioimageio", uncarded, "--author", "A"), 4, ("--keep-parity-tiles",))
    assert not (uncarded / "rdf.yaml").exists()
