"""Head and scores of the two protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.leaderboard.samples import Sample
from mclst.sections.accuracy import pearson_per_gene
from mclst.training.fitting.ridge import BENCHMARK_COMPONENTS, RidgeFolds, benchmark_alpha

Array = NDArray[np.float64]


def fit_and_predict(
    train: Sequence[Sample],
    test: Sequence[Sample],
    components: int = BENCHMARK_COMPONENTS,
    alpha: float | None = None,
) -> list[Array]:
    """Predict the test samples by HEST-bench's head.

    Features are standardized on the training spots and reduced to principal components, then ridge
    regression. The published code fits no intercept; as the components have mean 0, that changes no r, and
    here the genes' training means are added.

    Parameters
    ----------
    train, test : sequence of Sample
    components : int
        At most as many as features, and as training spots less one.
    alpha : float, optional
        Default: `benchmark_alpha`.

    Returns
    -------
    list of float64 [n, G]
        One per test sample.
    """
    x = np.concatenate([sample.features for sample in train])
    y = np.concatenate([sample.expression for sample in train])
    components = min(components, x.shape[1], max(len(x) - 1, 1))
    alpha = benchmark_alpha(components, y.shape[1]) if alpha is None else alpha
    head = RidgeFolds([(x, y)]).without().truncated(components)
    return [head.predict(sample.features, alpha) for sample in test]


def score_fold(
    protocol: str, predicted: Sequence[Array], test: Sequence[Sample], genes: Sequence[str]
) -> dict[str, Any]:
    """Score one fold as its benchmark does, and each section by itself.

    Parameters
    ----------
    protocol : "hest" or "stp"
    predicted : sequence of float64 [n, G]
    test : sequence of Sample
    genes : sequence of str

    Returns
    -------
    dict
        `pcc`: HEST-bench's mean r over the genes, over the spots of all test samples together, NaN if one has
        none; STP-Bench's mean over the samples of the mean over the genes that have one. `pcc_per_section`:
        the latter for both. `mae`: mean over samples and genes. `genes`: r by gene, of all spots together.
    """
    together = pearson_per_gene(np.concatenate(list(predicted)), np.concatenate([s.expression for s in test]))
    of_each = [pearson_per_gene(p, s.expression) for p, s in zip(predicted, test, strict=True)]
    per_section = float(np.mean([_nanmean(r) for r in of_each]))
    mae = float(np.mean([np.abs(p - s.expression).mean() for p, s in zip(predicted, test, strict=True)]))
    return {
        "pcc": float(together.mean()) if protocol == "hest" else per_section,
        "pcc_per_section": per_section,
        "mae": mae,
        "genes": dict(zip(genes, together.tolist(), strict=True)),
    }


def summarize(folds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation (of the population, as published) over the folds."""
    result: dict[str, float] = {}
    for name in ("pcc", "pcc_per_section", "mae"):
        values = [fold[name] for fold in folds]
        result[name], result[f"{name}_sd"] = float(np.mean(values)), float(np.std(values))
    return result


def row(name: str, protocol: str, tasks: dict[str, dict[str, float]]) -> list[str]:
    """Lines of the leaderboard's table in Markdown: headings, rule, and the row."""
    if protocol == "stp":
        ((_, own),) = tasks.items()
        heads = ["Model", "PCC", "MAE"]
        cells = [name, *(f"{own[m]:.4f} ± {own[f'{m}_sd']:.4f}" for m in ("pcc", "mae"))]
    else:
        heads = ["Model", *tasks, "Average"]
        average = float(np.mean([own["pcc"] for own in tasks.values()]))
        cells = [
            name,
            *(f"{own['pcc']:.4f} ± {own['pcc_sd']:.4f}" for own in tasks.values()),
            f"{average:.4f}",
        ]
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), cells)]


def _nanmean(values: Array) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
