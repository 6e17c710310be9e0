"""Heads on synthetic features, against plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mclst.runtime.errors import InputError
from mclst.training.fitting import heads
from mclst.training.fitting.folds import make_folds, patient_note
from mclst.training.fitting.heads import HeadOptions, fit_head

NAMES = ("A1", "A2", "A3")


def sections(
    features: int, shift: float, spots: int = 50, genes: int = 4
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Features around `shift`, and expression that depends on them."""
    rng = np.random.default_rng(features)
    mix = rng.normal(size=(features, features)) / np.sqrt(features)
    slope = rng.normal(size=(features, 4))
    parts = []
    for _ in NAMES:
        x = rng.normal(size=(spots, features)) @ mix + shift
        parts.append((x.astype(np.float32), (x @ slope + rng.normal(size=(spots, 4))).astype(np.float32)))
    return parts


def weighted_by_cosine(train_x, train_y, x) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of all training spots by their cosine along the mean and the first principal components."""
    std = train_x.std(axis=0)
    scaled, queries = train_x / std, x / std
    mean = scaled.mean(axis=0)
    components = np.linalg.svd(scaled - mean, full_matrices=False)[2][: heads.COMPONENTS - 1]
    axes = np.linalg.qr(np.vstack([mean, components]).T)[0]
    unit = [x / np.linalg.norm(x, axis=1)[:, None] for x in (queries @ axes, scaled @ axes)]
    cosine = unit[0] @ unit[1].T
    return (cosine @ train_y) / cosine.sum(axis=1, keepdims=True), 1 - cosine.max(axis=1)


@pytest.mark.parametrize("features", [90, 160], ids=["fewer features than spots", "more"])
def test_knn_by_similarity_is_the_mean_of_all_spots_weighted_by_their_cosine(
    features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "COMPONENTS", 64)
    parts = sections(features, shift=1.5)
    folds = make_folds(NAMES, [np.zeros((len(x), 2)) for x, _ in parts])
    head = fit_head(parts, folds, HeadOptions("knn", weighting="similarity"))
    assert head.retrieval is not None and head.retrieval.k == 150
    for number, (x, _) in enumerate(parts):
        others = [part for other, part in enumerate(parts) if other != number]
        train_x, train_y = (np.concatenate([part[i] for part in others]).astype(np.float64) for i in (0, 1))
        expected, nearest = weighted_by_cosine(train_x, train_y, x.astype(np.float64))
        most = np.abs(train_y).max()
        np.testing.assert_allclose(head.out_of_fold[number].prediction, expected, rtol=0, atol=2e-6 * most)
        np.testing.assert_allclose(head.out_of_fold[number].distance, nearest, rtol=1e-3, atol=1e-6)
        assert np.ptp(expected, axis=0).min() > 1e-3 * most, "it is no constant"


def test_features_around_zero_have_no_similarity_to_weigh_by() -> None:
    parts = sections(20, shift=0.0)
    folds = make_folds(NAMES, [np.zeros((len(x), 2)) for x, _ in parts])
    with pytest.raises(InputError, match=r"add up to .* leave --weighting similarity out"):
        fit_head(parts, folds, HeadOptions("knn", weighting="similarity"))


@pytest.mark.parametrize("head", ["ridge", "pca-ridge", "knn", "blend"])
@pytest.mark.parametrize("features", [5, 200])
def test_folds_whose_other_spots_are_all_alike_are_refused(head: Any, features: int) -> None:
    """As where one tile of a blank picture differs: a fold without it has nothing to learn from."""
    x = np.full((40, features), 0.1, np.float32)
    x[0] = 7
    parts = [(x[:10], np.ones((10, 3))), *((x[i : i + 10], np.ones((10, 3))) for i in (10, 20, 30))]
    folds = make_folds(("A", "B", "C", "D"), [np.zeros((10, 2))] * 4)
    with pytest.raises(InputError, match="without A, all spots have the same features"):
        fit_head(parts, folds, HeadOptions(head))


def test_sections_whose_patient_stays_in_training_are_said() -> None:
    assert "--groups patient" in patient_note(["A1", "A2", "B1"], None)
    alone = [(["A1", "A2", "B1"], "patient"), (["A1", "B1"], None), (["A1", "A2"], None), (["X", "Y"], None)]
    assert not any(patient_note(names, groups) for names, groups in alone)
    folds = make_folds(["T_1", "T-2", "151673"], [np.zeros((4, 2))] * 3, "patient")
    assert folds.names == ["T", "151673"]
