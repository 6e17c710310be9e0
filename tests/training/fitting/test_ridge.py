"""Ridge regression against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mclst.training.fitting.ridge import (
    ALPHAS,
    AXES,
    Part,
    Penalty,
    RidgeFolds,
    choose_alpha,
    choose_penalty,
)

SIZES = ((90, 60, 75), (20, 12, 9))
"""Spots per section: more than the 40 features, and fewer when one is left out."""


def sections(sizes: tuple[int, ...], features: int = 40, genes: int = 7) -> list[Part]:
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(features, genes)) * (rng.random((features, 1)) < 0.3)
    parts = []
    for number, n in enumerate(sizes):
        x = 30 + number + rng.normal(size=(n, features)) * rng.uniform(0.01, 9, features)
        x[:, 3] = 2.5  # a constant feature, such as a dead unit of a network
        parts.append((x.astype(np.float32), (x @ mix + rng.normal(size=(n, genes))).astype(np.float32)))
    return parts


def joined(parts: list[Part], left_out: int) -> tuple[NDArray[Any], NDArray[Any]]:
    kept = [part for number, part in enumerate(parts) if number != left_out]
    x, y = (np.concatenate([part[i] for part in kept]).astype(np.float64) for i in (0, 1))
    return x, y


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("alpha", [0.1, 30.0, 1e5])
def test_every_fit_that_leaves_one_section_out_is_scikit_learns(sizes: tuple[int, ...], alpha: float) -> None:
    parts = sections(sizes)
    folds = RidgeFolds(parts)
    for number, (x, y) in enumerate(parts):
        peer = make_pipeline(StandardScaler(), Ridge(alpha)).fit(*joined(parts, number))
        expected = peer.predict(x.astype(np.float64))
        path = folds.without([number])
        np.testing.assert_allclose(path.predict(x, alpha), expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(path.affine(alpha)(x), expected, rtol=0, atol=1e-6)
        error = np.square(expected - y).sum()
        assert path.squared_errors((x, y), np.array([alpha]))[0] == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("alive", [0, 1, 2])
@pytest.mark.parametrize(("level", "spread"), [(0.0, 0.1), (0.0, 1e3), (2.5, 7.0)])
def test_a_unit_that_only_the_left_out_section_wakes_tells_nothing(
    alive: int, level: float, spread: float
) -> None:
    """What subtraction leaves of its squares is rounding, no variance, whatever the sections' order."""
    parts = sections((90, 60, 75))
    rng = np.random.default_rng(7)
    for number, (x, _) in enumerate(parts):
        x[:, 5] = level + spread * np.maximum(rng.normal(size=len(x)), 0) * (number == alive)
    x, _ = parts[alive]
    path = RidgeFolds(parts).without([alive])
    assert path.std[5] == 1
    peer = make_pipeline(StandardScaler(), Ridge(0.1)).fit(*joined(parts, alive))
    np.testing.assert_allclose(path.predict(x, 0.1), peer.predict(x.astype(np.float64)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
def test_principal_components_then_ridge_are_scikit_learns(sizes: tuple[int, ...]) -> None:
    parts = sections(sizes)
    x, _ = parts[1]
    count, alpha = 16, 100 / (16 * 7)
    # The benchmark's Ridge has no intercept. Its components are centered, so only the mean differs.
    scaled = make_pipeline(StandardScaler(), PCA(count, svd_solver="full"))
    peer = make_pipeline(scaled, Ridge(alpha, fit_intercept=False, solver="cholesky"))
    train_x, train_y = joined(parts, 1)
    expected = peer.fit(train_x, train_y).predict(x.astype(np.float64)) + train_y.mean(0)
    path = RidgeFolds(parts).without([1])
    np.testing.assert_allclose(path.truncated(count).predict(x, alpha), expected, rtol=0, atol=1e-6)
    components = peer[0].transform(x.astype(np.float64))
    mine = path.components(count)(x)
    np.testing.assert_allclose(np.abs(mine), np.abs(components), rtol=0, atol=1e-6)


def test_the_penalty_is_the_best_of_the_grid() -> None:
    parts = sections((90, 60, 75))
    folds = RidgeFolds(parts)
    errors = np.sum([folds.without([i]).squared_errors(part, ALPHAS) for i, part in enumerate(parts)], axis=0)
    expected = []
    for alpha in ALPHAS:
        total = 0.0
        for number, (x, y) in enumerate(parts):
            peer = make_pipeline(StandardScaler(), Ridge(alpha)).fit(*joined(parts, number))
            total += np.square(peer.predict(x.astype(np.float64)) - y).sum()
        expected.append(total)
    np.testing.assert_allclose(errors, expected, rtol=1e-8)
    assert choose_alpha(errors) == ALPHAS[int(np.argmin(expected))]
    assert choose_alpha(np.zeros(len(ALPHAS))) == ALPHAS[-1]


@pytest.mark.parametrize("sizes", SIZES)
def test_each_component_of_the_expression_may_have_its_own_penalty(sizes: tuple[int, ...]) -> None:
    parts = sections(sizes, genes=12)
    x, y = parts[1]
    train_x, train_y = joined(parts, 1)
    path = RidgeFolds(parts).without([1])
    np.testing.assert_allclose(path.axes @ path.axes.T, np.eye(AXES), atol=1e-9)
    if len(train_x) < train_x.shape[1]:
        peer_axes = PCA(AXES, svd_solver="full").fit(train_y).components_
        assert np.abs((peer_axes * path.axes).sum(1)).min() > 0.99
    scaler = StandardScaler().fit(train_x)

    def predicted(alpha: float, target: NDArray[Any]) -> NDArray[Any]:
        peer = Ridge(alpha).fit(scaler.transform(train_x), target)
        return np.asarray(peer.predict(scaler.transform(x.astype(np.float64))))

    penalty = Penalty(30.0, tuple(float(alpha) for alpha in 10.0 ** np.arange(AXES)))
    along = [predicted(a, train_y @ axis) for a, axis in zip(penalty.components, path.axes, strict=True)]
    rest = predicted(penalty.rest, train_y - train_y @ path.axes.T @ path.axes)
    expected = np.column_stack(along) @ path.axes + rest
    np.testing.assert_allclose(path.predict(x, penalty), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(path.affine(penalty)(x), expected, rtol=0, atol=1e-6)
    errors = path.component_errors((x, y), ALPHAS)
    np.testing.assert_allclose(errors.sum(1), path.squared_errors((x, y), ALPHAS), rtol=1e-9)
    direct = [np.square((path.predict(x, alpha) - y) @ path.axes.T).sum(0) for alpha in ALPHAS]
    np.testing.assert_allclose(errors[:, :AXES], direct, rtol=1e-7)
    chosen = choose_penalty(errors)
    assert chosen.components == tuple(ALPHAS[np.argmin(direct, axis=0)]) and chosen.rest in ALPHAS


def test_fewer_genes_than_components_and_none_that_vary() -> None:
    parts = sections((20, 12, 9), genes=3)
    path = RidgeFolds(parts).without([0])
    assert np.abs(path.axes[:3]).sum(1).min() > 0.5 and not path.axes[3:].any()
    flat = RidgeFolds([(x, np.ones_like(y)) for x, y in parts]).without([0])
    assert not flat.axes.any()
    same = Penalty(10.0, (10.0,) * AXES)
    np.testing.assert_allclose(path.predict(parts[0][0], same), path.predict(parts[0][0], 10.0), atol=1e-9)
    np.testing.assert_allclose(flat.predict(parts[0][0], same), 1.0)
