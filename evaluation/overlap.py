"""Which genes several predictions have in common (Figure S1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

LEVEL = 0.05
VENN_SETS = (2, 3)
"""Numbers of sets that a Venn diagram shows."""


def threshold(genes: int) -> float:
    """The least −log10 p of a gene that counts as predicted: 0.05 divided by the number of genes (Bonferroni)."""
    return float(-np.log10(LEVEL / genes))


def predicted_genes(
    ranked: pd.DataFrame, least: float, among: Collection[str] | None = None
) -> frozenset[str]:
    """Genes of `rank_genes` with a mean −log10 p of `least` or more and a mean r above 0; only those `among`, if given."""
    sure = (ranked["minus_log10_p"] >= least) & (ranked["pcc"] > 0)
    found = frozenset(str(gene) for gene in ranked.loc[sure, "gene"])
    return found if among is None else found & frozenset(among)


def intersections(sets: Mapping[str, frozenset[str]]) -> dict[tuple[str, ...], frozenset[str]]:
    """Every gene in exactly one part: the names of all sets that hold it → the genes that stand in just those.

    Largest part first, then by number of sets and their order; parts without genes are left out.
    """
    names = list(sets)
    parts: dict[tuple[str, ...], set[str]] = {}
    for gene in frozenset().union(*sets.values()):
        parts.setdefault(tuple(name for name in names if gene in sets[name]), set()).add(gene)
    place = {name: i for i, name in enumerate(names)}
    order = sorted(parts, key=lambda part: (-len(parts[part]), len(part), [place[name] for name in part]))
    return {part: frozenset(parts[part]) for part in order}


def membership(sets: Mapping[str, frozenset[str]]) -> pd.DataFrame:
    """One row per gene in any of the sets, sorted by name; a column gene, and one of 0 and 1 per set."""
    genes = sorted(frozenset().union(*sets.values()))
    columns = {name: [int(gene in found) for gene in genes] for name, found in sets.items()}
    return pd.DataFrame({"gene": genes, **columns})
