"""Measures against scipy, scikit-learn, scanpy and mpmath, also degenerate input; mclst-eval end to end."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import anndata
import mpmath
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Circle
from PIL import Image
from scipy.stats import pearsonr
from small_model import TILE_PX, Small

from mclst.evaluation.annotation import read_annotation
from mclst.evaluation.cli import main
from mclst.evaluation.evaluate import evaluate
from mclst.evaluation.metrics.coexpression import (
    compare_coexpression,
    correlate_genes,
    mean_of,
    order_genes,
)
from mclst.evaluation.metrics.domains import compare_groupings, find_domains
from mclst.evaluation.metrics.overlap import bonferroni_threshold, intersections, membership, predicted_genes
from mclst.evaluation.metrics.significance import minus_log10_p, rank_genes
from mclst.evaluation.overlap_figures import draw_venn
from mclst.export.inputs.references import GeneList, read_references
from mclst.runtime.bundle.manifest import Tile
from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.measured import Pair, choose_section, pair_with_truth, read_map
from mclst.sections.formats.reference import find_sections, match_genes, read_section
from mclst.sections.normalize import gene_wise
from mclst.training.data import read_training_section
from mclst.training.fitting.sections import read_fit_section


def mp_minus_log10_p(r: float, spots: int) -> float:
    """The same p-value from Student's t in 60 digits, through its density's integral."""
    with mpmath.workdps(60):
        r_, df = mpmath.mpf(r), spots - 2
        x = 1 - r_**2
        p = mpmath.betainc(mpmath.mpf(df) / 2, mpmath.mpf(1) / 2, 0, x, regularized=True)
        return float(-mpmath.log10(p))


@settings(max_examples=80, deadline=None)
@given(st.integers(3, 60), st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_p_values_are_scipys(spots: int, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=spots)
    b = a + noise * rng.normal(size=spots) + 1e-3 * rng.normal(size=spots)
    expected = pearsonr(a, b)
    result = minus_log10_p(np.array([expected.statistic]), spots)[0]
    assert result == pytest.approx(-np.log10(expected.pvalue), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("r", [0.0, 0.3, -0.9, 0.999])
@pytest.mark.parametrize("spots", [3, 184, 5000])
def test_p_values_beyond_float64_are_mpmaths(r: float, spots: int) -> None:
    result = minus_log10_p(np.array([r]), spots)[0]
    assert result == pytest.approx(mp_minus_log10_p(r, spots), rel=1e-9, abs=1e-12)


def test_p_values_of_degenerate_genes() -> None:
    result = minus_log10_p(np.array([np.nan, 1.0, -1.0, 0.0]), 10)
    assert np.isnan(result[0]) and result[1] == result[2] and np.isfinite(result[1]) and result[3] == 0
    assert minus_log10_p(np.array([1.0, np.nan]), 2)[0] == 0  # two points always lie on a line


def test_genes_rank_by_their_mean_over_sections() -> None:
    r = [np.array([0.9, -0.95, np.nan, np.nan]), np.array([0.9, 0.0, 0.5, np.nan])]
    ranked = rank_genes(["A", "B", "C", "D"], r, [20, 30])
    expected = {
        "A": (mp_minus_log10_p(0.9, 20) + mp_minus_log10_p(0.9, 30)) / 2,
        "B": mp_minus_log10_p(0.95, 20) / 2,
        "C": mp_minus_log10_p(0.5, 30),
    }
    assert ranked["gene"].tolist() == [*sorted(expected, key=lambda gene: -expected[gene]), "D"]
    assert ranked["rank"].tolist() == [1, 2, 3, 4]
    by_gene = ranked.set_index("gene")
    for gene, value in expected.items():
        assert by_gene.loc[gene, "minus_log10_p"] == pytest.approx(value, rel=1e-9)
    assert by_gene["sections"].to_dict() == {"A": 2, "B": 2, "C": 1, "D": 0}
    assert by_gene["minus_log10_p"].isna()["D"]
    assert by_gene.loc["B", "pcc"] == pytest.approx(-0.475)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.integers(2, 9), st.integers(0, 2**32 - 1), st.integers(-150, 150))
def test_gene_gene_correlation_is_numpys(spots: int, genes: int, seed: int, power: int) -> None:
    values = np.random.default_rng(seed).normal(size=(spots, genes))
    np.testing.assert_allclose(
        correlate_genes(values * 10.0**power), np.corrcoef(values, rowvar=False), atol=1e-9
    )


def test_coexpression_agrees_over_the_pairs_that_are_defined() -> None:
    rng = np.random.default_rng(4)
    measured, predicted = rng.normal(size=(2, 30, 8))
    predicted += measured
    measured[:, 3] = 0.1
    result = compare_coexpression(predicted, measured)
    kept = [0, 1, 2, 4, 5, 6, 7]
    a, b = (
        [np.corrcoef(values[:, i], values[:, j])[0, 1] for i, j in itertools.combinations(kept, 2)]
        for values in (measured, predicted)
    )
    assert result.pairs == 21 and np.isnan(result.measured[3]).all() and np.isnan(result.measured[:, 3]).all()
    assert result.agreement == pytest.approx(pearsonr(a, b).statistic)
    assert result.rms_difference == pytest.approx(np.sqrt(np.mean((np.array(a) - b) ** 2)))
    assert compare_coexpression(measured, measured).agreement == pytest.approx(1)
    assert np.isnan(compare_coexpression(np.ones((5, 4)), np.ones((5, 4))).agreement)
    assert np.isnan(compare_coexpression(measured[:, :2], measured[:, :2]).agreement), (
        "one pair is no correlation"
    )


def test_only_defined_correlations_are_averaged() -> None:
    a, b = np.array([[1.0, 0.2], [0.2, 1.0]]), np.array([[1.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(mean_of([a, b]), a)
    assert np.isnan(mean_of([b, b])[0, 1])


def test_correlated_genes_are_adjacent() -> None:
    rng = np.random.default_rng(0)
    program = rng.normal(size=(60, 3))
    genes = program[:, np.tile([0, 1, 2], 5)] + 0.3 * rng.normal(size=(60, 15))
    order = order_genes(correlate_genes(genes)) % 3
    assert len([1 for a, b in itertools.pairwise(order) if a != b]) == 2
    assert sorted(order_genes(np.full((4, 4), np.nan)).tolist()) == [0, 1, 2, 3]


def test_domains_are_scanpys_components_and_sklearns_k_means() -> None:
    import scanpy as sc
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(1)
    kind = rng.integers(0, 4, 120)
    expression = rng.normal(size=(4, 30))[kind] * 2 + rng.normal(size=(120, 30))
    components = sc.pp.pca(expression, n_comps=9, svd_solver="full")
    expected = KMeans(n_clusters=4, n_init=10, random_state=0).fit_predict(components)
    result = find_domains(expression, 4)
    assert compare_groupings(result, expected).ari == pytest.approx(1)
    assert compare_groupings(result, kind).ari > 0.9
    np.testing.assert_array_equal(result, find_domains(expression, 4))
    assert len(np.unique(find_domains(rng.normal(size=(5, 2)), 3))) == 3
    with pytest.raises(ValueError, match="6 domains of 5 spots"):
        find_domains(np.eye(5), 6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_adjusted_rand_index_is_its_definition(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    together = sum(comb(n, 2) for n in Counter(pairs).values())
    of_a, of_b = (sum(comb(n, 2) for n in Counter(side.tolist()).values()) for side in (a, b))
    chance, most = of_a * of_b / comb(len(pairs), 2), (of_a + of_b) / 2
    expected = 1.0 if most == chance else (together - chance) / (most - chance)
    assert compare_groupings(a, b).ari == pytest.approx(expected)
    assert compare_groupings(a, a).nmi == pytest.approx(1)


@given(st.dictionaries(st.sampled_from("abcd"), st.frozensets(st.sampled_from("ABCDEFG")), min_size=1))
def test_intersections_partition_the_genes(sets: dict[str, frozenset[str]]) -> None:
    parts = intersections(sets)
    union = frozenset().union(*sets.values())
    assert sum(len(genes) for genes in parts.values()) == len(union)
    for part, genes in parts.items():
        assert genes and all((gene in sets[name]) == (name in part) for gene in genes for name in sets)
    table = membership(sets).set_index("gene")
    assert table.index.tolist() == sorted(union)
    assert {name: int(table[name].sum()) for name in sets} == {name: len(sets[name]) for name in sets}


@pytest.mark.parametrize("count", [2, 3])
def test_venn_numbers_are_in_their_regions(count: int) -> None:
    names = ["one", "two", "three"][:count]
    sets = {name: frozenset(f"{name}{i}" for i in range(3 + i)) | {"all"} for i, name in enumerate(names)}
    (axes,) = draw_venn(intersections(sets), names).axes
    circles = [(np.array(p.get_center()), p.get_radius()) for p in axes.patches if isinstance(p, Circle)]
    result: dict[tuple[str, ...], int] = {}
    for text in axes.texts:
        if text.get_text().isdigit():
            inside = [np.linalg.norm(text.get_position() - center) < r for center, r in circles]
            result[tuple(n for n, within in zip(names, inside, strict=True) if within)] = int(text.get_text())
    alone: dict[tuple[str, ...], int] = {(name,): 3 + i for i, name in enumerate(names)}
    of_two: list[tuple[str, ...]] = list(itertools.combinations(names, 2)) if count == 3 else []
    pairs = dict.fromkeys(of_two, 0)
    assert result == {**alone, **pairs, tuple(names): 1}
    assert {text.get_text() for text in axes.texts} >= {f"{n}\n{4 + i}" for i, n in enumerate(names)}
    with pytest.raises(ValueError, match="two or three"):
        draw_venn({}, ["a", "b", "c", "d"])


def test_a_predicted_gene_is_significant_and_positive() -> None:
    ranked = pd.DataFrame(
        {"gene": list("ABCD"), "minus_log10_p": [9.0, 8.0, 4.0, np.nan], "pcc": [0.9, -0.9, 0.4, np.nan]}
    )
    assert predicted_genes(ranked, 4.0) == {"A", "C"}
    assert predicted_genes(ranked, 4.0, {"C", "D"}) == {"C"}
    assert bonferroni_threshold(785) == pytest.approx(-np.log10(0.05 / 785))


def pair(name: str = "S1", method: str = "", *, seed: int = 0, genes: int = 6) -> Pair:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(20, genes))
    return Pair(
        method,
        name,
        tuple(f"G{i}" for i in range(genes)),
        np.array([f"{i}x1" for i in range(20)]),
        truth + rng.normal(size=truth.shape),
        truth,
        rng.random((20, 2)),
        "gene-wise",
        0,
        0,
        0,
        0,
    )


def test_sections_have_equal_weight_and_gene_order_is_free() -> None:
    import dataclasses

    a, b = pair("S1"), pair("S2", seed=1)
    turned = dataclasses.replace(
        b, genes=b.genes[::-1], predicted=b.predicted[:, ::-1], truth=b.truth[:, ::-1]
    )
    result, again = evaluate([a, b]), evaluate([a, turned])
    table = result.table().set_index("section")
    assert table.loc["mean", "mse"] == pytest.approx(table.loc[["S1", "S2"], "mse"].mean())
    assert table.loc["mean", "pcc_acg"] == pytest.approx(table.loc[["S1", "S2"], "pcc_acg"].mean())
    pd.testing.assert_frame_equal(result.genes(), again.genes())
    for other in (pair("S1", seed=3), dataclasses.replace(b, normalization="spot-wise"), pair("S2", genes=5)):
        with pytest.raises(InputError, match=r"two maps are of section S1|differ in"):
            evaluate([a, other])


def test_domains_are_compared_on_labeled_spots_only() -> None:
    one = pair()
    region = np.array(["tumour"] * 8 + ["stroma"] * 8 + [""] * 4)
    result = evaluate([one], regions={("", "S1"): region}).methods[0].sections[0].domains
    assert result is not None and result.of_measured is not None
    assert (result.against, result.of_predicted.spots) == ("annotation", 16)
    expected = compare_groupings(find_domains(one.predicted, 2)[:16], region[:16])
    assert result.of_predicted == expected
    without = evaluate([one], domains=3).methods[0].sections[0].domains
    assert without is not None and without.against == "measured" and without.of_measured is None


@pytest.fixture
def maps(small: Small, tmp_path: Path) -> dict[str, Path]:
    """Maps of the sections A1 and B1: their own truth with noise, spots turned round and one not measured."""
    written: dict[str, Path] = {}
    for name in ("A1", "B1"):
        section = read_section(find_sections(small.folder)[name])
        genes = section.genes.tolist()
        rng = np.random.default_rng(len(written))
        noisy = gene_wise(match_genes(section, genes))[::-1] + rng.normal(0, 0.2, (len(section), len(genes)))
        noisy = np.concatenate([noisy, noisy[:1]]).astype(np.float32)
        noisy[2] = np.nan
        result = anndata.AnnData(
            noisy,
            obs=pd.DataFrame(index=[*section.spot[::-1].tolist(), "99x99"]),
            var=pd.DataFrame(index=genes),
        )
        assert section.xy_px is not None
        result.obsm["spatial"] = np.concatenate([section.xy_px[::-1], [[0.0, 0.0]]])
        result.uns["mclst"] = {"bundle": {"normalization_expression": "gene-wise"}}
        result.uns["spatial"] = {name: {}}
        written[name] = tmp_path / f"{name}.h5ad"
        result.write_h5ad(written[name])
    return written


def run(*args: Any) -> Result:
    """Without the baseline by an encoder, which has its own tests and takes seconds."""
    quick = [] if "--baselines" in args else ["--baselines", "no-encoder"]
    return CliRunner().invoke(main, [*map(str, args), *quick])


def test_a_map_is_joined_with_its_truth_by_spot_name(small: Small, maps: dict[str, Path]) -> None:
    predicted = read_map(maps["A1"])
    source = choose_section(predicted, small.folder, None)
    result = pair_with_truth(predicted, source)
    section = read_section(find_sections(small.folder)["A1"])
    truth = gene_wise(match_genes(section, result.genes))
    row_of = {spot: i for i, spot in enumerate(section.spot.tolist())}
    assert (result.only_in_map, result.only_in_truth, result.without_tile) == (1, 0, 1)
    assert len(result.spot) == len(section) - 1
    np.testing.assert_array_equal(result.truth, truth[[row_of[spot] for spot in result.spot.tolist()]])
    assert np.abs(result.predicted - result.truth).max() < 1.5
    assert result.section == "A1"


@pytest.mark.slow
def test_eval_writes_tables_json_and_figures(small: Small, maps: dict[str, Path]) -> None:
    folder = maps["A1"].parent
    regions = folder / "regions.tsv"
    section = read_section(find_sections(small.folder)["A1"])
    assert section.array_xy is not None
    rows = [f"{x + 0.2}\t{y - 0.3}\t{'a' if x > 7 else 'b'}" for x, y in section.array_xy.tolist()]
    regions.write_text("x\ty\tlabel\n" + "\n".join(rows) + "\n")
    completed = run(
        maps["A1"],
        maps["B1"],
        "--truth",
        small.folder,
        "--annotation",
        f"A1={regions}",
        "--json",
        folder / "e.json",
    )
    assert completed.exit_code == 0, completed.output
    page = (folder / "A1.eval.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == page.count("<figure>") > 1
    assert (
        "Predicted and measured expression" in page
        and "Pearson r per gene" in page
        and ">gene-gene r<" in page
    )
    assert completed.stdout == f"{folder / 'A1.eval.csv'}\n"
    result = json.loads((folder / "e.json").read_text())
    table = pd.read_csv(folder / "A1.eval.csv").set_index("section")
    assert table.index.tolist() == ["A1", "B1", "mean"]
    sections = result["methods"]["map"]["sections"]
    for name in ("A1", "B1"):
        own = pair_with_truth(read_map(maps[name]), find_sections(small.folder)[name])
        r = [pearsonr(own.predicted[:, g], own.truth[:, g]).statistic for g in range(len(own.genes))]
        assert sections[name]["pcc_acg"] == pytest.approx(np.mean(r))
        assert table.loc[name, "pcc_acg"] == pytest.approx(np.mean(r), rel=1e-5)
        assert table.loc[name, "mse"] == pytest.approx(np.mean((own.predicted - own.truth) ** 2), rel=1e-5)
        assert sections[name]["only_in_map"] == 1 and sections[name]["without_tile"] == 1
    assert sections["A1"]["domains"]["against"] == "annotation" and "domains" not in sections["B1"]
    ranking = pd.read_csv(folder / "A1.eval.genes.csv")
    assert ranking["minus_log10_p"].is_monotonic_decreasing and len(ranking) == 12
    for ending in ("", ".coexpression", ".domains"):
        with Image.open(folder / f"A1.eval{ending}.png") as picture:
            assert np.asarray(picture.convert("RGB")).std() > 10
    assert "Note: A1: 1 spots of the map are not in the truth; 1 spots have no prediction" in completed.stderr
    assert "PCC (HEG)  the same over the 50 genes" in completed.stderr


@pytest.mark.slow
def test_eval_compares_methods(small: Small, maps: dict[str, Path]) -> None:
    folder = maps["A1"].parent
    args = ["--truth", small.folder, "--section", "A1", "--section", "A1", "--out", folder / "two"]
    completed = run(f"one={maps['A1']}", f"other={maps['A1']}", *args, "--figures", "svg", "--json", "-")
    assert completed.exit_code == 0, completed.output
    result = json.loads(completed.stdout)
    assert list(result["methods"]) == ["one", "other"]
    (part,) = result["predicted_genes"]["parts"]
    assert part["in"] == ["one", "other"] and part["genes"] == result["methods"]["one"]["predicted_genes"]
    for figure in ("overlap", "venn"):
        assert (folder / f"two.{figure}.svg").read_text().lstrip().startswith("<?xml")
    assert set(pd.read_csv(folder / "two.overlap.csv").columns) == {"gene", "one", "other"}
    listed = folder / "immune.txt"
    listed.write_text("GENE1\nGENE5\nABSENT\n")
    again = run(
        f"one={maps['A1']}", "--truth", small.folder, "--gene-set", listed, "--json", "-", "--least", "0"
    )
    assert set(json.loads(again.stdout)["methods"]["one"]["predicted_genes"]) <= {"GENE1", "GENE5"}


@pytest.mark.parametrize(
    ("args", "code", "fragment"),
    [
        (["MAP", "--section", "Z9"], 4, "has no section Z9; there are A1, A2, B1"),
        (["MAP", "MAP"], 4, "two maps are of section A1; tell them apart as METHOD=MAP"),
        (["MAP", "--section", "A1", "--section", "B1"], 2, "1 maps and 2 --section"),
        (["MAP", "--domains", "500"], 2, "more than a section has spots"),
        (["MAP", "--annotation", "B1=x.csv"], 2, "of a section that no map is of"),
        (["MAP", "--annotation", "absent.csv"], 4, "absent.csv: the file cannot be read"),
        (["MAP", "--annotation", "obs:region"], 4, "needs a truth in .h5ad"),
        (["a/b=MAP"], 2, "a method's name is part of file names"),
        (["absent.h5ad"], 4, "absent.h5ad is not a file"),
        (["LIST"], 4, "genes.txt is not a map"),
    ],
)
def test_eval_refuses_in_one_sentence(
    small: Small, maps: dict[str, Path], args: list[str], code: int, fragment: str
) -> None:
    replaced = [
        w.replace("MAP", str(maps["A1"])).replace("LIST", str(small.folder / "genes.txt")) for w in args
    ]
    completed = run(*replaced, "--truth", small.folder, "--figures", "none")
    assert completed.exit_code == code and fragment in completed.stderr, completed.output
    assert "Traceback" not in completed.output
    assert not list(maps["A1"].parent.glob("*.csv"))


@pytest.mark.parametrize("unit", ["median-log1p", "log-share"])
def test_truth_counts_all_measured_genes_where_the_formula_does(
    small: Small, maps: dict[str, Path], unit: str
) -> None:
    """Maps of BLEEP and ST-Net are of some genes, in units made of all."""
    result = anndata.read_h5ad(maps["A1"])[:, ["GENE3", "GENE1"]].copy()
    result.uns["mclst"] = {"bundle": {"normalization_expression": unit}}
    path = maps["A1"].parent / "few.h5ad"
    result.write_h5ad(path)
    pair = pair_with_truth(read_map(path), find_sections(small.folder)["A1"])
    section = read_section(find_sections(small.folder)["A1"])
    counts = section.counts.toarray().astype(np.float64)
    total = counts.sum(1, keepdims=True)
    with_inf = (
        np.log1p(counts / total * np.median(total))
        if unit == "median-log1p"
        else np.log((1 + counts) / (counts.shape[1] + total))
    )
    row_of = {spot: i for i, spot in enumerate(section.spot.tolist())}
    rows, columns = [row_of[spot] for spot in pair.spot.tolist()], [3, 1]
    np.testing.assert_allclose(pair.truth, with_inf[rows][:, columns], atol=1e-6)
    genes = ["GENE3", "GENE1"]
    fit = read_fit_section(section, genes, None).expression(unit)
    training = read_training_section(section, genes, Tile(size_px=TILE_PX))
    source = {"A1": find_sections(small.folder)["A1"]}
    (reference,), _, _ = read_references(source, lambda _: GeneList(np.array(genes), "test"), print)
    for values in (fit, training.normalized(unit), reference.normalized(unit)):
        np.testing.assert_allclose(values, with_inf[:, columns], atol=1e-6)


@pytest.mark.parametrize("unit", ["gene-wise", "median-log1p"])
def test_a_spot_that_a_fit_leaves_out_counts_in_the_units_of_the_others(
    small: Small, maps: dict[str, Path], unit: str
) -> None:
    source = find_sections(small.folder)["A1"]
    section = read_section(source)
    result = anndata.read_h5ad(maps["A1"])
    result.uns["mclst"] = {"bundle": {"normalization_expression": unit}}
    genes = result.var_names.tolist()
    path = maps["A1"].parent / "units.h5ad"
    result.write_h5ad(path)
    pair = pair_with_truth(read_map(path), source)
    truth = dict(zip(pair.spot.tolist(), pair.truth, strict=True))
    assert section.xy_px is not None
    xy_px = section.xy_px.copy()
    xy_px[[2, 7]] = np.nan
    placed = replace(section, xy_px=xy_px)
    fit = read_fit_section(placed, genes, None)
    fit = fit.take(np.arange(1, len(fit.spot)))
    training = read_training_section(placed, genes, Tile(size_px=TILE_PX))
    for spots, values in ((fit.spot, fit.expression(unit)), (training.spot, training.normalized(unit))):
        assert 2 <= len(section) - len(spots) <= 3
        shared = [row for row, spot in enumerate(spots) if spot in truth]
        assert len(shared) > 10
        np.testing.assert_array_equal(values[shared], [truth[spots[row]] for row in shared])


def test_a_map_in_unknown_units_or_of_other_spots_is_refused(small: Small, maps: dict[str, Path]) -> None:
    plain = anndata.read_h5ad(maps["A1"])
    del plain.uns["mclst"]
    path = maps["A1"].parent / "plain.h5ad"
    plain.write_h5ad(path)
    args = [path, "--truth", small.folder, "--section", "A1", "--figures", "none"]
    assert "does not say how its expression is normalized" in run(*args).stderr
    assert run(*args, "--normalization", "gene-wise").exit_code == 0
    plain.obs_names = [f"spot{i}" for i in range(plain.n_obs)]
    plain.write_h5ad(path)
    assert "have no spot in common" in run(*args, "--normalization", "gene-wise", "--overwrite").stderr
    with_inf = anndata.read_h5ad(maps["A1"])
    matrix = np.asarray(with_inf.X).copy()
    matrix[5, 1] = np.inf
    with_inf.X = matrix
    with_inf.write_h5ad(path)
    assert "has inf for GENE1" in run(*args, "--overwrite").stderr


def test_unmeasured_genes_are_refused_or_skipped(small: Small, maps: dict[str, Path]) -> None:
    result = anndata.read_h5ad(maps["A1"])
    result.var_names = ["ALIEN", *result.var_names[1:]]
    path = maps["A1"].parent / "alien.h5ad"
    result.write_h5ad(path)
    args = [path, "--truth", small.folder, "--section", "A1", "--figures", "none"]
    assert "lacks 1 of the model's 12 genes (ALIEN)" in run(*args).stderr
    completed = run(*args, "--common-genes", "--json", "-")
    section = json.loads(completed.stdout)["methods"]["map"]["sections"]["A1"]
    assert section["left_out_genes"] == 1 and len(section["pcc_per_gene"]) == 11


def test_annotation_of_an_anndata_truth(tmp_path: Path) -> None:
    obs = pd.DataFrame({"region": ["a", "undetermined", "b"]}, index=["s1", "s2", "s3"])
    anndata.AnnData(np.ones((3, 2), np.float32), obs=obs, var=pd.DataFrame(index=["G1", "G2"])).write_h5ad(
        tmp_path / "T.h5ad"
    )
    source = find_sections(tmp_path / "T.h5ad")["T"]
    result = read_annotation("obs:region", source, np.array(["s3", "s2", "s9", "s1"]))
    assert result.tolist() == ["b", "", "", "a"]
    with pytest.raises(InputError, match="no obs column 'area'; there are region"):
        read_annotation("obs:area", source, np.array(["s1"]))


@pytest.mark.slow
def test_eval_of_the_real_reference_prediction(her2st: Path, tmp_path: Path) -> None:
    reference = np.load(her2st / "reference" / "C4.npz")
    spots, genes = [name.decode() for name in reference["spot"]], (her2st / "genes.txt").read_text().split()
    frame = {"obs": pd.DataFrame(index=spots), "var": pd.DataFrame(index=genes)}
    anndata.AnnData(reference["expression_l1_k200"].astype(np.float32), **frame).write_h5ad(
        tmp_path / "C4.h5ad"
    )
    args = ["--truth", her2st, "--normalization", "gene-wise", "--figures", "none", "--json", "-"]
    completed = run(tmp_path / "C4.h5ad", *args)
    assert completed.exit_code == 0, completed.output
    mean = json.loads(completed.stdout)["methods"]["map"]["mean"]
    result = [mean[name] for name in ("pcc_acg", "pcc_heg", "mse", "mae")]
    assert result == pytest.approx([0.2571, 0.3918, 0.9136, 0.7800], abs=5.01e-5)
