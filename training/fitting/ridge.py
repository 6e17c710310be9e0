"""Ridge regression on standardized features, for many penalties at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

ALPHAS = 10.0 ** np.arange(-1, 8.01, 0.25)
"""Penalties to choose from, for features standardized to unit variance."""
AXES = 8
"""Principal components of the expression that have a penalty of their own."""
ROWS_AT_ONCE = 4096
EPS = np.finfo(np.float64).eps
BENCHMARK_COMPONENTS = 256
"""Principal components of the HEST benchmark's regression."""

Array = NDArray[np.float64]
Part = tuple[NDArray[Any], NDArray[Any]]
"""Features [n, F] and expression [n, G] of some spots."""


@dataclass(frozen=True)
class Affine:
    """x → weight · x + bias, weight float64 [P, F], bias float64 [P]."""

    weight: Array
    bias: Array

    def __call__(self, x: NDArray[Any]) -> Array:
        """Map features [n, F] to float64 [n, P]."""
        return np.asarray(x, np.float64) @ self.weight.T + self.bias


@dataclass(frozen=True)
class Moments:
    """Sums over spots, of features and expression less a common shift.

    Sums of several sections add up, so every leave-one-section-out fit needs one pass over the features.
    x, y: float64 [F], [G]. xx, xy: float64 [F, F], [F, G].
    """

    count: int
    shift: Array
    x: Array
    y: Array
    xx: Array
    xy: Array

    @classmethod
    def of(cls, part: Part, shift: Array) -> Self:
        """Sum over the spots of `part`; shift: near the features' mean, against cancellation."""
        features, expression = part
        size, genes = features.shape[1], expression.shape[1]
        x, y = np.zeros(size), np.zeros(genes)
        xx, xy = np.zeros((size, size)), np.zeros((size, genes))
        for start in range(0, len(features), ROWS_AT_ONCE):
            rows = np.asarray(features[start : start + ROWS_AT_ONCE], np.float64) - shift
            values = np.asarray(expression[start : start + ROWS_AT_ONCE], np.float64)
            x += rows.sum(0)
            y += values.sum(0)
            xx += rows.T @ rows
            xy += rows.T @ values
        return cls(len(features), shift, x, y, xx, xy)

    def __add__(self, other: Self) -> Self:
        return self._combine(other, 1)

    def __sub__(self, other: Self) -> Self:
        return self._combine(other, -1)

    def _combine(self, other: Self, sign: int) -> Self:
        return replace(
            self,
            count=self.count + sign * other.count,
            **{name: getattr(self, name) + sign * getattr(other, name) for name in ("x", "y", "xx", "xy")},
        )


@dataclass(frozen=True)
class Penalty:
    """Penalties of one ridge regression.

    rest: α. components: α of the first principal components of the expression, in its place.
    """

    rest: float
    components: tuple[float, ...] = ()

    def record(self) -> float | list[float]:
        """α, or those of the components and then the rest."""
        return [*self.components, self.rest] if self.components else self.rest

    def __str__(self) -> str:
        if not self.components:
            return f"α {self.rest:.3g}"
        return f"α {min(self.components):.3g} to {max(*self.components, self.rest):.3g}"


@dataclass(frozen=True)
class RidgePath:
    """Ridge regression of expression on standardized features, for every penalty α.

    With z = basis · (x - mean)/std, the prediction is Σ_r z_r · target_r / (eigenvalue_r + α) + y_mean: that
    of scikit-learn's StandardScaler and Ridge(α). Ridge regression of an orthonormal rotation of the
    expression is the rotated one, so each principal component of the expression may have its own α: a few
    follow the features closely, and most are noise.

    mean, std: float64 [F]. y_mean: float64 [G]. eigenvalues: float64 [R], descending, of the standardized
    features' Gram matrix. basis: float64 [F, R]. target: float64 [R, G].
    """

    mean: Array
    std: Array
    y_mean: Array
    eigenvalues: Array
    basis: Array
    target: Array

    @classmethod
    def of_moments(cls, moments: Moments, total: Moments) -> Self:
        """Fit from sums, which are what subtraction left of `total`; for more spots than features."""
        n = moments.count
        mean, y_mean = moments.x / n, moments.y / n
        covariance = moments.xx / n - np.outer(mean, mean)
        rounding = total.count * EPS * np.diag(total.xx) / n
        std, constant = _scale(np.diag(covariance), mean + moments.shift, n, rounding)
        gram = n * covariance / np.outer(std, std)
        gram[constant], gram[:, constant] = 0, 0
        values, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
        order = np.arange(len(values))[::-1]
        basis = vectors[:, order]
        centered = (moments.xy - np.outer(moments.x, y_mean)) / std[:, None]
        centered[constant] = 0
        return cls(mean + moments.shift, std, y_mean, np.maximum(values[order], 0), basis, basis.T @ centered)

    @classmethod
    def of_rows(cls, features: NDArray[Any], expression: NDArray[Any]) -> Self:
        """Fit from the spots themselves; for more features than spots."""
        x, y = np.asarray(features, np.float64), np.asarray(expression, np.float64)
        mean, y_mean = x.mean(0), y.mean(0)
        variance = x.var(0)
        std, constant = _scale(variance, mean, len(x), len(x) * EPS * variance)
        standard = (x - mean) / std
        standard[:, constant] = 0  # what is left of the mean's rounding
        values, vectors = scipy.linalg.eigh(
            standard @ standard.T, overwrite_a=True, check_finite=False, driver="evd"
        )
        values, vectors = values[::-1], vectors[:, ::-1]
        # Centering takes one dimension; what remains of it is rounding.
        kept = values > values[0] * len(x) * EPS if len(values) else values > 0
        values, vectors = values[kept], vectors[:, kept]
        basis = (standard.T @ vectors) / np.sqrt(values)
        target = np.sqrt(values)[:, None] * (vectors.T @ (y - y_mean))
        return cls(mean, std, y_mean, values, basis, target)

    def truncated(self, components: int) -> Self:
        """Keep the first principal components: ridge regression on these alone."""
        return replace(
            self,
            eigenvalues=self.eigenvalues[:components],
            basis=self.basis[:, :components],
            target=self.target[:components],
        )

    def scores(self, features: NDArray[Any]) -> Array:
        """Principal components float64 [n, R] of features [n, F]."""
        return ((np.asarray(features, np.float64) - self.mean) / self.std) @ self.basis

    @cached_property
    def axes(self) -> Array:
        """Orthonormal principal components of the expression, float64 [AXES, G]; 0 where there are fewer.

        Of what the least penalty fits: with no more spots than features, that is the expression itself.
        """
        fitted = (np.sqrt(self.eigenvalues) / (self.eigenvalues + ALPHAS[0]))[:, None] * self.target
        by_gene = fitted.shape[1] <= len(fitted)
        gram = fitted.T @ fitted if by_gene else fitted @ fitted.T
        size = len(gram)
        values, vectors = scipy.linalg.eigh(
            gram, subset_by_index=[max(0, size - AXES), size - 1], check_finite=False
        )
        values, vectors = values[::-1], vectors[:, ::-1].T
        vectors = vectors[values > max(values[0], 0) * size * EPS]
        if not by_gene:
            vectors = vectors @ fitted
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        axes = np.zeros((AXES, fitted.shape[1]))
        axes[: len(vectors)] = vectors
        return axes

    def coefficients(self, penalty: Penalty | float) -> Array:
        """Expression by principal component of the features, float64 [R, G]."""
        if not isinstance(penalty, Penalty):
            penalty = Penalty(penalty)
        plain: Array = self.target / (self.eigenvalues + penalty.rest)[:, None]
        if not penalty.components:
            return plain
        axes = self.axes[: len(penalty.components)]
        own = 1 / (self.eigenvalues[:, None] + np.array(penalty.components))
        along = (self.target @ axes.T) * (own - 1 / (self.eigenvalues + penalty.rest)[:, None])
        return np.asarray(plain + along @ axes)

    def predict(self, features: NDArray[Any], penalty: Penalty | float) -> Array:
        """Expression float64 [n, G] of features [n, F]."""
        return np.asarray(self.scores(features) @ self.coefficients(penalty) + self.y_mean)

    def component_errors(self, part: Part, alphas: Array) -> Array:
        """Errors as of `squared_errors` along each of `axes`, and across all, float64 [alphas, AXES + 1]."""
        scores, truth = self.scores(part[0]), np.asarray(part[1], np.float64) - self.y_mean
        along, measured = self.target @ self.axes.T, truth @ self.axes.T
        own = [np.square((scores / (self.eigenvalues + alpha)) @ along - measured).sum(0) for alpha in alphas]
        return np.column_stack([np.array(own), self.squared_errors(part, alphas) - np.sum(own, axis=1)])

    def squared_errors(self, part: Part, alphas: Array) -> Array:
        """Σ (prediction - truth)² over all values of `part`, for every α; each after the first costs R²."""
        scores, truth = self.scores(part[0]), np.asarray(part[1], np.float64) - self.y_mean
        weight = 1 / (self.eigenvalues + alphas[:, None])
        mixed = np.einsum("rg,rg->r", scores.T @ truth, self.target)
        squares = (scores.T @ scores) * (self.target @ self.target.T)
        errors: Array = np.square(truth).sum() - 2 * weight @ mixed
        errors += np.einsum("ar,rs,as->a", weight, squares, weight, optimize=True)
        return errors

    def affine(self, penalty: Penalty | float) -> Affine:
        """The same prediction as one affine map of the features."""
        weight = (self.basis @ self.coefficients(penalty)).T / self.std
        return Affine(weight, self.y_mean - weight @ self.mean)

    def components(self, count: int) -> Affine:
        """The first principal components as an affine map."""
        rows = self.basis[:, :count].T / self.std
        return Affine(rows, -rows @ self.mean)

    def uncentered(self, count: int) -> Affine:
        """Coordinates of x/std along the mean and the first components; not centered, so spots are alike."""
        mean = self.mean / self.std
        axes = np.linalg.qr(np.column_stack([mean, self.basis[:, : count - 1]]))[0]
        return Affine(axes.T / self.std, np.zeros(axes.shape[1]))


class RidgeFolds:
    """Ridge regressions that each leave some parts out.

    Parameters
    ----------
    parts : sequence of (features, expression)
        One per section.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._spots = sum(len(part[0]) for part in parts)
        self._primal = self._spots > parts[0][0].shape[1]
        self._shift = np.asarray(parts[0][0], np.float64).mean(0)
        self._total: Moments | None = None

    def without(self, left_out: Sequence[int] = ()) -> RidgePath:
        """Fit on all parts but those of these numbers."""
        if not self._primal:
            kept = [part for number, part in enumerate(self.parts) if number not in left_out]
            return RidgePath.of_rows(*(np.concatenate([part[i] for part in kept]) for i in (0, 1)))
        if self._total is None:
            moments = (Moments.of(part, self._shift) for part in self.parts)
            self._total = next(moments)
            for other in moments:
                self._total = self._total + other
        rest = self._total
        for number in left_out:
            rest = rest - Moments.of(self.parts[number], self._shift)
        return RidgePath.of_moments(rest, self._total)


def benchmark_alpha(components: int, genes: int) -> float:
    """Penalty of the HEST benchmark's ridge regression: 100 / (components · genes)."""
    return 100.0 / (components * genes)


def choose_alpha(errors: Array, alphas: Array = ALPHAS) -> float:
    """Return the penalty with the least error; of equal ones the larger."""
    least = np.flatnonzero(errors <= errors.min())[-1]
    return float(alphas[least])


def choose_penalty(errors: Array) -> Penalty:
    """Return the penalties with the least errors, float64 [ALPHAS, components + 1]."""
    *components, rest = (choose_alpha(column) for column in errors.T)
    return Penalty(rest, tuple(components))


def _scale(variance: Array, mean: Array, count: int, rounding: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Standard deviations, 1 for constant features, and which these are.

    rounding: bound of the variance's error. The bound is that of scikit-learn's StandardScaler, whose
    variance is not what a subtraction left: a unit that is alive in the left-out sections alone.
    """
    constant = variance <= rounding + np.square(count * mean * EPS)
    return np.where(constant, 1.0, np.sqrt(np.maximum(variance, 0))), constant
