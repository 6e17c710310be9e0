"""Bundles with fp16, bf16 and int8 graphs: their gate, their proof, runs and engines of them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from range_server import RangeServer
from refusals import assert_refused, tree
from small_model import TILE_PX, Small

from mclst.benchmarks.cli import main as bench_main
from mclst.benchmarks.systems.commands import precision_rows
from mclst.export.cli import main as export_main
from mclst.export.parity.compare import TileSet, compare_expression
from mclst.export.parity.precisions import PrecisionOptions, write_precisions
from mclst.export.parity.tiles import stored_tiles
from mclst.export.parity.tolerances import GATES, Gate, check_gate, gate_for
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.bundle.manifest import Tile
from mclst.runtime.cli.infer import main as infer_main
from mclst.runtime.errors import ParityError
from mclst.runtime.providers.opening import open_session

pytestmark = pytest.mark.usefixtures("short_stnet")


def export(*words: str) -> Result:
    return CliRunner().invoke(export_main, list(words))


# ---------------------------------------------------------------------------------------------- the gate


FIGURES: dict[str, dict[str, float]] = {
    "embedding": {"cosine_min": 0.9995},
    "neighbours": {"overlap_at_50": 0.985},
    "expression": {"pearson_per_gene_mean": 0.9985, "nrmse": 0.12},
    "measured": {"change": -0.0015},
}


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("embedding", "cosine_min", 0.9989, ("least cosine", "0.9989", "at least 0.999", "--min-cosine")),
        ("neighbours", "overlap_at_50", 0.979, ("50 nearest", "at least 0.98", "--min-overlap")),
        (
            "expression",
            "pearson_per_gene_mean",
            0.9979,
            ("Pearson r per gene on", "at least 0.998", "--min-pearson"),
        ),
        ("expression", "nrmse", 0.14, ("share of the spread", "0.14", "at most 0.13", "--min-pearson")),
        ("measured", "change", -0.0021, ("change", "0.0021", "at most 0.002", "--min-pearson")),
        ("measured", "change", 0.0021, ("change", "at most 0.002")),
    ],
)
def test_each_figure_of_the_gate_stops_an_export(
    part: str, name: str, value: float, words: tuple[str, ...]
) -> None:
    gate = gate_for("fp16", Gate())
    assert check_gate("fp16", FIGURES, gate, "64 tiles")["passed"]
    with pytest.raises(ParityError) as caught:
        check_gate("fp16", {**FIGURES, part: {name: value}}, gate, "64 tiles")
    for word in (*words, "in fp16", "no bundle"):
        assert word in str(caught.value)


def test_overrides_replace_limits_of_the_gate() -> None:
    assert GATES["fp16"] == Gate(cosine=0.999, overlap=0.98, pearson=0.998, nrmse=0.13, change=0.002)
    changed = gate_for("fp16", Gate(pearson=0.9, overlap=0.5))
    assert (changed.cosine, changed.overlap, changed.pearson) == (0.999, 0.5, 0.9)
    assert changed.change == pytest.approx(0.1) and changed.nrmse == pytest.approx(2 * 0.19**0.5)
    assert gate_for("fp32", Gate()) == Gate()
    assert gate_for("fp32", Gate(pearson=0.5)).overlap is None


def test_expression_that_is_shifted_or_does_not_vary_passes_no_gate() -> None:
    """r per gene is 1 of the one and undefined of the other."""
    gate = gate_for("int8", Gate())
    values = np.random.default_rng(0).normal(2, 0.3, (9, 20)).astype(np.float32)
    near = values + np.random.default_rng(1).normal(0, 0.03, values.shape).astype(np.float32)
    figures = {"expression": compare_expression(values, near)}
    assert figures["expression"]["nrmse"] == pytest.approx(0.1, rel=0.15)
    assert check_gate("int8", figures, gate, "9 tiles")["passed"]
    for shift in (0.15, 100):
        with pytest.raises(ParityError, match="share of the spread"):
            check_gate("int8", {"expression": compare_expression(values, values + shift)}, gate, "9 tiles")
    same = np.repeat(values[:1], 9, axis=0)
    with pytest.raises(ParityError, match=r"is undefined, for no gene varies.*--precision int8"):
        check_gate("int8", {"expression": compare_expression(same, same)}, gate, "9 tiles")


@pytest.mark.parametrize(
    ("every", "calibration"), [(7, []), (8, []), (9, [1]), (11, [1, 4, 8]), (16, [*range(1, 16, 2)])]
)
def test_tiles_of_a_checkpoint_judge_before_they_calibrate(every: int, calibration: list[int]) -> None:
    stored = torch.arange(every, dtype=torch.uint8)[:, None, None, None].expand(every, 8, 8, 3)
    shared = stored_tiles({"tiles": stored}, Tile(size_px=8), 64, 64)
    assert shared is not None
    kept, others = ([] if part is None else part.pixels[:, 0, 0, 0].tolist() for part in shared)
    assert others == calibration and sorted(kept + others) == [*range(every)]
    alone = stored_tiles({"tiles": stored}, Tile(size_px=8), 64, 0)
    assert alone is not None and len(alone[0].pixels) == every and alone[1] is None


def test_few_tiles_judge_no_reduced_precision(tmp_path: Path) -> None:
    tiles = TileSet(np.zeros((7, 32, 32, 3), np.uint8), "a section")
    said: list[str] = []

    def write(**options: Any) -> Any:
        chosen = PrecisionOptions(("fp32", "fp16", "int8"), **options)
        return write_precisions(tmp_path, chosen, tiles, tiles, lambda *graphs: {}, said.append)

    records, left_out = write(optional=("fp16", "int8"))
    assert not records and set(left_out) == {"fp16", "int8"} and len(said) == 2
    assert left_out["int8"] == "7 tiles of a section are too few to judge int8 by, which takes 8"
    with pytest.raises(ParityError, match=r"too few to judge fp16.*--parity-tiles"):
        write()


# ---------------------------------------------------------------------------------------------- bundles


TINY = ("--tile-px", "32", "--k", "10", "--parity-tiles", "8", "--hold-out", "B1")


@pytest.fixture(scope="module")
def precise_bundle(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle in all precisions, with lower gates for the untrained network."""
    folder = tmp_path_factory.mktemp("precise")
    shutil.copytree(small.folder, folder / "reference", ignore=shutil.ignore_patterns("model.pt"))
    shutil.copy(small.ckpt, folder)
    precisions = ("--precision", "fp16,bf16", "--precision", "int8", "--calibration-tiles", "16")
    lower = ("--min-cosine", "0.9", "--min-pearson", "0.5", "--min-overlap", "0.8")
    out = ("--out", str(folder / "bundle"), "--json", str(folder / "export.json"))
    result = export(
        "--ckpt",
        str(folder / "model.pt"),
        "--reference",
        str(folder / "reference"),
        *TINY,
        *precisions,
        *lower,
        *out,
    )
    assert result.exit_code == 0, result.output
    for word in ("fp16 ", "bf16 ", "int8 ", "overlap of the 50 nearest", "r against the measured"):
        assert word in result.stderr
    return folder


def test_a_bundle_lists_its_precisions_and_their_proof(precise_bundle: Path) -> None:
    bundle = open_bundle(precise_bundle / "bundle")
    assert bundle.precisions == ("fp32", "fp16", "bf16", "int8")
    for precision in bundle.precisions:
        path = bundle.encoder(precision)
        assert path.name == ("encoder.onnx" if precision == "fp32" else f"encoder.{precision}.onnx")
        assert bundle.manifest.files[path.name].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    parity = json.loads((bundle.path / "parity.json").read_text())
    assert parity["passed"] and set(parity["precisions"]) == {"fp16", "bf16", "int8"}
    for precision, record in parity["precisions"].items():
        assert record["passed"] and record["gate"]["pearson"] == 0.5, precision
        assert {"embedding", "neighbours", "expression", "measured", "encoder"} <= set(record)
    worst = [parity["precisions"][p]["embedding"]["max_abs"] for p in ("fp16", "bf16", "int8")]
    assert parity["embedding"]["max_abs"] < worst[0] < worst[1] and worst[0] < worst[2]
    calibration = parity["precisions"]["int8"]["calibration"]
    assert calibration["method"] == "percentile" and calibration["count"] >= 12
    assert "rounded" in parity["precisions"]["bf16"]["provider"]
    assert json.loads((precise_bundle / "export.json").read_text())["parity"] == parity


def test_a_half_graph_is_half_the_size_and_int8_a_quarter(precise_bundle: Path) -> None:
    size = {
        p: open_bundle(precise_bundle / "bundle").encoder(p).stat().st_size
        for p in ("fp32", "fp16", "bf16", "int8")
    }
    assert (
        size["fp16"] < 0.55 * size["fp32"]
        and size["bf16"] < 0.55 * size["fp32"]
        and size["int8"] < 0.3 * size["fp32"]
    )


def infer(precise_bundle: Path, small: Small, out: Path, *words: str) -> Result:
    arguments = (
        str(small.slide),
        "--spots",
        str(small.spots),
        "--bundle",
        str(precise_bundle / "bundle"),
        "--out",
        str(out),
    )
    return CliRunner().invoke(infer_main, [*arguments, "--provider", "cpu", "--no-picture", *words])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_map_in_another_precision(
    precise_bundle: Path, small: Small, tmp_path: Path, precision: str
) -> None:
    exact, other = tmp_path / "fp32.h5ad", tmp_path / "other.h5ad"
    assert infer(precise_bundle, small, exact).exit_code == 0
    result = infer(precise_bundle, small, other, "--precision", precision)
    assert result.exit_code == 0 and f"encoder in {precision}" in result.stderr, result.output
    fp32_map, other_map = anndata.read_h5ad(exact), anndata.read_h5ad(other)
    assert other_map.uns["mclst"]["settings"]["precision"] == precision
    graph_path = open_bundle(precise_bundle / "bundle").encoder(precision)
    assert np.abs(fp32_map.X - other_map.X).max() > 0, "another graph ran"
    assert np.corrcoef(np.ravel(fp32_map.X), np.ravel(other_map.X))[0, 1] > (
        0.99 if precision == "fp16" else 0.8
    )
    report = json.loads((tmp_path / "other.run.json").read_text())
    assert report["run"]["precision"] == precision and graph_path.exists()


def test_bf16_is_refused_on_the_cpu(precise_bundle: Path, small: Small, tmp_path: Path) -> None:
    before = tree(tmp_path)
    result = infer(precise_bundle, small, tmp_path / "map.h5ad", "-q", "--precision", "bf16")
    assert_refused(result, 6, ("encoder.bf16.onnx", "--precision", "--provider"))
    assert tree(tmp_path) == before


def test_a_precision_the_bundle_lacks_is_named(exported_bundle: Path, small: Small, tmp_path: Path) -> None:
    arguments = (
        str(small.slide),
        "--spots",
        str(small.spots),
        "--bundle",
        str(exported_bundle),
        "--out",
        str(tmp_path / "m.h5ad"),
    )
    result = CliRunner().invoke(infer_main, [*arguments, "--precision", "fp16", "-q"])
    assert_refused(result, 4, ("no encoder in fp16", "fp32", "--precision fp16"))


def test_every_precision_that_passes_is_written_unasked(precise_bundle: Path, tmp_path: Path) -> None:
    """fp16 passes, the others fail their gates: the bundle is what it says, without their files."""
    arguments = ("--ckpt", str(precise_bundle / "model.pt"), "--reference", str(precise_bundle / "reference"))
    words = (*arguments, *TINY, "--out", str(tmp_path / "b"))
    parity = json.loads((precise_bundle / "bundle" / "parity.json").read_text())["precisions"]
    cosine = {name: record["embedding"]["cosine_min"] for name, record in parity.items()}
    assert max(cosine["bf16"], cosine["int8"]) < cosine["fp16"]
    limit = (max(cosine["bf16"], cosine["int8"]) + cosine["fp16"]) / 2
    lower = ("--min-cosine", str(limit), "--min-pearson", "0.5", "--min-overlap", "0.8")
    result = export(*words, *lower, "--calibration-tiles", "8")
    assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "b")
    assert bundle.precisions == ("fp32", "fp16") and not list(bundle.path.glob("*int8*"))
    proof = json.loads((bundle.path / "parity.json").read_text())
    assert set(proof["precisions"]) == {"fp16"} and set(proof["left_out"]) == {"bf16", "int8"}
    for name in ("bf16", "int8"):
        assert f"in {name}, the least cosine" in proof["left_out"][name]
        assert f"no {name} graph: {proof['left_out'][name]}" in " ".join(result.stderr.split())
    only = export(*words, "--overwrite", "--precision", "fp32")
    assert only.exit_code == 0 and open_bundle(tmp_path / "b").precisions == ("fp32",), only.output


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ("--precision", "int8", "--min-cosine", "0.9999999"),
            4,
            ("in int8", "least cosine", "--precision int8"),
        ),
        (("--precision", "fp16", "--min-pearson", "0.99999"), 4, ("in fp16", "Pearson", "--min-pearson")),
        (("--min-cosine", "1"), 4, ("in fp32", "cosine")),
        (("--precision", "fp8"), 2, ("fp8", "fp32, fp16, bf16, int8")),
        (("--precision", "fp16", "--calibration", "slide.tif"), 2, ("--calibration", "int8")),
        (("--precision", "int8", "--calibration", "missing.tif"), 4, ("missing.tif",)),
    ],
)
def test_a_failed_export_leaves_nothing(
    precise_bundle: Path, tmp_path: Path, words: tuple[str, ...], code: int, message: tuple[str, ...]
) -> None:
    arguments = (
        "--ckpt",
        str(precise_bundle / "model.pt"),
        "--reference",
        str(precise_bundle / "reference"),
        "--out",
        str(tmp_path / "b"),
    )
    result = export("-q", *arguments, *TINY, *words)
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    for word in message:
        assert word in result.stderr
    assert tree(tmp_path) == {}


def test_int8_needs_real_tiles_and_takes_a_slide_elsewhere(precise_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(
        precise_bundle / "reference", tmp_path / "reference", ignore=shutil.ignore_patterns("images")
    )
    arguments = (
        "-q",
        "--ckpt",
        str(precise_bundle / "model.pt"),
        "--reference",
        str(tmp_path / "reference"),
        *TINY,
    )
    options = (
        "--out",
        str(tmp_path / "b"),
        "--precision",
        "int8",
        "--min-cosine",
        "0",
        "--min-pearson",
        "0",
        "--min-overlap",
        "0",
    )
    assert_refused(export(*arguments, *options), 4, ("real tiles", "--calibration"))
    pytest.importorskip("aiohttp", reason="the remote extra is not installed")
    with RangeServer(precise_bundle / "reference" / "images") as server:
        result = export(
            *arguments,
            *options,
            "--calibration",
            server.url("B1.png"),
            "--calibration-tiles",
            "6",
            "--calibration-method",
            "entropy",
        )
    assert result.exit_code == 0, result.output
    parity = json.loads((tmp_path / "b" / "parity.json").read_text())
    calibration = parity["precisions"]["int8"]["calibration"]
    assert (
        calibration == {"method": "entropy", "source": "B1.png", "count": calibration["count"]}
        and 0 < calibration["count"] <= 6
    )
    assert "made-up" in parity["tiles"]["source"]


# ---------------------------------------------------------------------------------------------- TensorRT's
# parser


def test_tensorrt_rtx_builds_every_precision(precise_bundle: Path) -> None:
    """NVIDIA's parser and builder, without a GPU, for two generations; types are counted by layer."""
    pytest.importorskip("tensorrt_rtx_libs", reason="the rtx extra is not installed")
    from mclst.runtime.encoder.tensorrt.build import build_engine
    from mclst.runtime.encoder.tensorrt.library import load_library
    from mclst.runtime.encoder.tensorrt.manifest import EngineKey

    library = load_library("tensorrt-rtx")
    bundle = open_bundle(precise_bundle / "bundle")
    layers = {}
    for precision in ("fp16", "bf16", "int8"):
        path = bundle.encoder(precision)
        key = EngineKey(
            onnx_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            precision=precision,
            flavor="tensorrt-rtx",
            version=library.version,
            max_batch=8,
            targets=("sm_86", "sm_89"),
            platform="test",
        )
        layers[precision] = build_engine(library, path, key).layers
    assert layers["fp16"]["HALF"] >= 22 and layers["bf16"]["BF16"] >= 22
    # An activation and a weight of each of the 19 convolutions that take int8; an activation may serve two.
    assert layers["int8"]["INT8"] >= 19


# ---------------------------------------------------------------------------------------------- measured


def test_the_benchmark_reports_each_precision(precise_bundle: Path, small: Small, tmp_path: Path) -> None:
    arguments = [
        str(small.slide),
        "--spots",
        str(small.spots),
        "--bundle",
        str(precise_bundle / "bundle"),
        "--provider",
        "cpu",
    ]
    options = [
        "--truth",
        str(small.folder),
        "--repeats",
        "1",
        "--timed-tiles",
        "4",
        "--json",
        str(tmp_path / "results.json"),
    ]
    result = CliRunner().invoke(bench_main, ["precision", *arguments, *options])
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    entries = results["precisions"]
    assert list(entries) == ["fp32", "fp16", "bf16", "int8"] and results["tiles"] == 24
    assert entries["fp32"]["against_fp32"]["embedding"]["max_abs"] == 0 and entries["fp32"]["times_fp32"] == 1
    assert "bf16" in results["not_as_it_is"] and "tiles_per_second" not in entries["bf16"]
    assert entries["bf16"]["runs_as"] == "cpu, rounded" and "rounded" not in entries["int8"]["runs_as"]
    bundle = open_bundle(precise_bundle / "bundle")
    assert entries["fp16"]["against_fp32"]["embedding"]["max_abs"] > 0
    assert bundle.manifest.retrieval is not None
    assert entries["int8"]["against_fp32"]["neighbours"]["k"] == bundle.manifest.retrieval.k
    alone = CliRunner().invoke(bench_main, ["precision", *arguments[:3], "--bundle", str(tmp_path / "none")])
    assert alone.exit_code == 4


def test_the_small_bundle_opens_as_before(exported_bundle: Path) -> None:
    bundle = open_bundle(exported_bundle)
    assert bundle.precisions == ("fp32",) and bundle.encoder() == bundle.encoder_path
    assert json.loads((exported_bundle / "parity.json").read_text())["precisions"] == {}
    tiles = np.zeros((1, TILE_PX, TILE_PX, 3), np.uint8)
    assert open_session(bundle.encoder(), "cpu").encode(tiles).shape == (1, 16)


def test_the_docs_match_the_measurements() -> None:
    """docs/precision.md has every line of the committed measurements, and the gates."""
    root = Path(__file__).resolve().parents[2]
    documented = [
        re.sub(r" +", " ", line) for line in (root / "docs" / "precision.md").read_text().splitlines()
    ]
    measured = sorted((root / "benchmarks" / "results").glob("precision-*.json"))
    assert measured
    for path in measured:
        for line in precision_rows(json.loads(path.read_text())["results"])[1:]:
            assert f"| {' | '.join(line)} |" in documented, (path.name, line)
    for precision, gate in GATES.items():
        limits = (gate.cosine, gate.overlap, gate.pearson, gate.nrmse, gate.change)
        assert f"| {precision} | {' | '.join(f'{limit:g}' for limit in limits if limit)} |" in documented
