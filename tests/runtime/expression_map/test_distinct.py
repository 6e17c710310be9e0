"""Genes that are drawn show different patterns."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick

from mclst.runtime.expression_map import distinct
from mclst.runtime.expression_map.distinct import distinct_genes


def patterns(copies: int = 8, kinds: int = 4, n: int = 500) -> np.ndarray:
    """`kinds` patterns, each in `copies` noisy genes, one kind after the other."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(n, kinds))
    return np.repeat(base, copies, axis=1) + rng.normal(0, 0.2, (n, copies * kinds))


def test_eight_copies_of_one_pattern_are_not_chosen() -> None:
    chosen = [gene for gene, _ in distinct_genes(patterns(), range(32), 6)]
    assert [gene // 8 for gene in chosen] == [0, 1, 2, 3] and chosen[0] == 0


def test_a_file_large_or_small_gives_what_an_array_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = patterns().astype(np.float32)
    values[[3, 77]] = np.nan
    whole = distinct_genes(values, range(32), 8)
    monkeypatch.setattr(distinct, "BLOCK_BYTES", 4 * 32 * 7)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        assert distinct_genes(file.create_dataset("X", data=values), range(32), 8) == whole
    monkeypatch.setattr(distinct, "MOST_SPOTS", 100)
    noisy = np.random.default_rng(0).normal(size=values.shape)
    noisy[::5] = values[::5]
    assert distinct_genes(noisy, range(32), 8) == distinct_genes(values[::5], range(32), 8)
    monkeypatch.undo()
    assert distinct_genes(noisy, range(32), 8) != distinct_genes(values[::5], range(32), 8)


@quick
@given(seed=st.integers(0, 1000), genes=st.integers(0, 20), count=st.integers(0, 25), constant=st.booleans())
def test_each_next_gene_is_the_first_that_is_little_correlated(
    seed: int, genes: int, count: int, constant: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(30, max(genes, 1))) @ rng.normal(size=(max(genes, 1), max(genes, 1)))
    if constant:
        values[:, 0] = 1.0
    pairs = distinct_genes(values, range(genes), count)
    chosen = [gene for gene, _ in pairs]
    assert len(chosen) == len(set(chosen)) <= min(genes, count) and chosen[:1] == [0][: min(genes, count)]
    if constant or not chosen:
        return
    r = np.abs(np.corrcoef(values[:, :genes].T)).reshape(genes, genes)
    for number, gene in enumerate(chosen[1:], start=1):
        most = r[:, chosen[:number]].max(axis=1)
        others = [g for g in range(genes) if g not in chosen[:number]]
        first = next((g for g in others if most[g] <= distinct.UNLIKE), None)
        assert gene == first if first is not None else most[gene] == min(most[others]) <= distinct.COPY
        assert pairs[number][1] == pytest.approx(most[gene])
    if len(chosen) < min(genes, count):
        left = [g for g in range(genes) if g not in chosen]
        assert r[np.ix_(left, chosen)].max(axis=1).min() > distinct.COPY - 1e-9
