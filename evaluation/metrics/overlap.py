"""Predicted genes that several methods share (Figure S1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

SIGNIFICANCE_LEVEL = 0.05
VENN_SETS = (2, 3)
"""Numbers of sets that a Venn diagram supports."""


def bonferroni_threshold(genes: int) -> float:
    """Minimum −log10 p of a predicted gene: 0.05 divided by the number of genes (Bonferroni)."""
    return float(-np.log10(SIGNIFICANCE_LEVEL / genes))


def predicted_genes(
    ranked: pd.DataFrame, threshold: float, gene_set: Collection[str] | None = None
) -> frozenset[str]:
    """Genes of `rank_genes` with mean −log10 p ≥ `threshold` and mean r > 0, within `gene_set` if given."""
    significant = (ranked["minus_log10_p"] >= threshold) & (ranked["pcc"] > 0)
    genes = frozenset(str(gene) for gene in ranked.loc[significant, "gene"])
    return genes if gene_set is None else genes & frozenset(gene_set)


def intersections(sets: Mapping[str, frozenset[str]]) -> dict[tuple[str, ...], frozenset[str]]:
    """Genes of each combination of sets: the names of all sets that contain a gene → those genes.

    Largest first, then by number of sets and their order; empty combinations are omitted.
    """
    names = list(sets)
    parts: dict[tuple[str, ...], set[str]] = {}
    for gene in frozenset().union(*sets.values()):
        parts.setdefault(tuple(name for name in names if gene in sets[name]), set()).add(gene)
    index_of = {name: i for i, name in enumerate(names)}
    order = sorted(parts, key=lambda part: (-len(parts[part]), len(part), [index_of[name] for name in part]))
    return {part: frozenset(parts[part]) for part in order}


def membership(sets: Mapping[str, frozenset[str]]) -> pd.DataFrame:
    """Table of genes in any set, sorted by name: a column gene, and one of 0 and 1 per set."""
    genes = sorted(frozenset().union(*sets.values()))
    columns = {name: [int(gene in members) for gene in genes] for name, members in sets.items()}
    return pd.DataFrame({"gene": genes, **columns})
