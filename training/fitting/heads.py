"""Heads on frozen features: ridge, PCA and ridge, nearest neighbors, and ridge with neighbors' residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.contract import NoWeights
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.nearest import NearestSearch
from mclst.kernels.retriever import Retriever
from mclst.runtime.errors import InputError
from mclst.runtime.trust.calibration import gallery_rows
from mclst.training.fitting.folds import Folds
from mclst.training.fitting.ridge import (
    ALPHAS,
    AXES,
    BENCHMARK_COMPONENTS,
    Affine,
    Part,
    Penalty,
    RidgeFolds,
    RidgePath,
    benchmark_alpha,
    choose_alpha,
    choose_penalty,
)

Head = Literal["ridge", "pca-ridge", "knn", "blend"]
COMPONENTS = 256
"""Principal components of an embedding: neighbors and distances are searched among them.

Neighbors are as good among 64; but there, fluorescence lies among H&E.
"""
NEIGHBORS = (25, 50, 100, 200)
"""Numbers of neighbors to choose from."""
RESIDUAL_FOLDS = 8
KEPT_BYTES = 1 << 30
"""Fits are kept for a second use up to this size, and made again beyond it."""


class _Bank(NamedTuple):
    embedding: NDArray[np.float32]
    expression: NDArray[np.float32]


@dataclass(frozen=True)
class HeadOptions:
    """What to fit.

    alpha: of ridge; None: chosen, or the benchmark's for "pca-ridge". k: neighbors; None: chosen.
    weighting: of the neighbors of "knn"; by similarity, all spots are neighbors. one_penalty: whether one α
    is chosen, not one for each of the first principal components of the expression and one for the rest.
    """

    head: Head = "ridge"
    alpha: float | None = None
    k: int | None = None
    weighting: Literal["uniform", "similarity"] = "uniform"
    one_penalty: bool = False

    @property
    def retrieves(self) -> bool:
        """Whether the head has a bank."""
        return self.head in ("knn", "blend")

    @property
    def by_similarity(self) -> bool:
        """Whether all spots are neighbors."""
        return self.weighting == "similarity"


@dataclass(frozen=True)
class OutOfFold:
    """What a block's spots are predicted to express by a head that never saw their fold.

    prediction: float32 [n, G]. distance: float32 [n], to the nearest training spot.
    """

    prediction: NDArray[np.float32]
    distance: NDArray[np.float32]


@dataclass(frozen=True)
class FittedHead:
    """A head, fitted on all sections.

    layer: features [n, F] → [embedding | prediction]. embedding_dim, prediction_dim: sizes of the two.
    retrieval: with a bank. bank_expression: float32 [M, G], measured or residual, of all spots in block
    order. embedding: float32 [M, D] of all spots. gallery: rows of it to measure distances to, of a head
    without a bank.
    out_of_fold: per block. penalty: None without ridge.
    """

    layer: Affine
    embedding_dim: int
    prediction_dim: int
    embedding: NDArray[np.float32] = field(repr=False)
    out_of_fold: tuple[OutOfFold, ...] = field(repr=False)
    penalty: Penalty | None = None
    components: int = 0
    retrieval: RetrievalSpec | None = None
    bank_expression: NDArray[np.float32] | None = field(default=None, repr=False)
    gallery: NDArray[np.int64] | None = field(default=None, repr=False)

    def predict(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Expression float32 [n, G] of features [n, F], as a run of the exported bundle gives it."""
        values = self.layer(features).astype(np.float32)
        embedding, prediction = values[:, : self.embedding_dim], values[:, self.embedding_dim :]
        if self.retrieval is None or self.bank_expression is None:
            return prediction
        bank = _Bank(self.embedding, self.bank_expression)
        result = Retriever(bank, self.retrieval).aggregate(np.ascontiguousarray(embedding)).expression
        return result + prediction if self.prediction_dim else result


def fit_head(
    parts: Sequence[Part],
    folds: Folds,
    options: HeadOptions,
    advance: Callable[[int], None] = lambda n: None,
) -> FittedHead:
    """Fit a head on all blocks, and predict each fold by a head fitted without it.

    Parameters
    ----------
    parts : sequence of (features [n, F], expression [n, G])
        One per block of `folds`.
    folds : Folds
    options : HeadOptions
    advance : callable
        Called after each fold.

    Raises
    ------
    InputError
        If there are too few spots or folds for the head.
    """
    return _Fit(parts, folds, options, advance).run()


def check_enough(folds: Folds, options: HeadOptions) -> None:
    """Raise InputError if there are too few folds for a head, or spots for its neighbors."""
    if options.head == "blend" and len(folds.names) < 3:
        raise InputError("blend corrects by residuals of held-out sections; give three sections or more")
    most = folds.fewest_left
    if options.retrieves and options.k is not None and options.k > most:
        raise InputError(
            f"k is {options.k}, and {most} spots are left when one fold is left out; give --k of at "
            f"most {most}"
        )


class _Fit:
    """One fit; `path(fold)` is the regression without a fold, None without nothing."""

    def __init__(
        self, parts: Sequence[Part], folds: Folds, options: HeadOptions, advance: Callable[[int], None]
    ) -> None:
        self.parts, self.folds, self.options, self.advance = parts, folds, options, advance
        self.names = folds.names
        self.genes = parts[0][1].shape[1]
        self._ridge = RidgeFolds(parts)
        self._paths: dict[tuple[str, ...], RidgePath] = {}
        rank = min(parts[0][0].shape[1], sum(len(part[0]) for part in parts))
        size = 8 * rank * (parts[0][0].shape[1] + self.genes) * (len(self.names) + 1)
        self._keep = size <= KEPT_BYTES

    def run(self) -> FittedHead:
        head = self.options.head
        check_enough(self.folds, self.options)
        penalty = self._penalty()
        spec = self._choose_neighbors(penalty) if self.options.retrieves else None
        final = self.path()
        count = min(COMPONENTS, len(final.eigenvalues))
        embed = self._embed(final, count)
        regression = None if penalty is None else self._regression(final).affine(penalty)
        layer = embed if regression is None else _stack(embed, regression)
        embedding = np.concatenate([embed(x) for x, _ in self.parts]).astype(np.float32)
        bank, gallery = None, None
        if spec is None:
            gallery = gallery_rows(len(embedding))
            out_of_fold = self._predict_by_regression(penalty, embedding, gallery)
        else:
            bank = np.concatenate(self._bank_expression(self.names, penalty))
            out_of_fold = self._predict_by_neighbors(spec, penalty)
        return FittedHead(
            layer=layer,
            embedding_dim=count,
            prediction_dim=0 if regression is None else self.genes,
            embedding=embedding,
            out_of_fold=tuple(out_of_fold),
            penalty=penalty,
            components=min(BENCHMARK_COMPONENTS, len(final.eigenvalues)) if head == "pca-ridge" else 0,
            retrieval=spec,
            bank_expression=bank,
            gallery=gallery,
        )

    def path(self, *left_out: str) -> RidgePath:
        """The regression fitted without these folds."""
        key = tuple(sorted(left_out))
        path = self._paths.get(key)
        if path is None:
            numbers = [number for fold in key for number in self.folds.numbers(fold)]
            spots = sum(len(part[0]) for i, part in enumerate(self.parts) if i not in numbers)
            if spots < 2:
                raise InputError(f"{spots} spots are left without {', '.join(key)}; a fit needs more")
            path = self._ridge.without(numbers)
            if not path.eigenvalues.max(initial=0.0) > 0:
                rest = f"without {', '.join(key)}, all spots" if key else "all spots"
                raise InputError(f"{rest} have the same features, which predict nothing; check the images")
            if self._keep and len(key) < 2:
                self._paths[key] = path
        return path

    def _embed(self, path: RidgePath, count: int) -> Affine:
        # Cosines of centered features add up to nothing, and would be no weights.
        return path.uncentered(count) if self.options.by_similarity else path.components(count)

    def _regression(self, path: RidgePath) -> RidgePath:
        return path.truncated(BENCHMARK_COMPONENTS) if self.options.head == "pca-ridge" else path

    def _penalty(self) -> Penalty | None:
        head = self.options.head
        if head == "knn":
            return None
        if self.options.alpha is not None:
            return Penalty(float(self.options.alpha))
        if head == "pca-ridge":
            count = min(BENCHMARK_COMPONENTS, len(self.path().eigenvalues))
            return Penalty(benchmark_alpha(count, self.genes))
        errors = np.zeros((len(ALPHAS), AXES + 1))
        for fold in self.names:
            path = self.path(fold)
            for number in self.folds.numbers(fold):
                errors += path.component_errors(self.parts[number], ALPHAS)
            self.advance(1)
        return Penalty(choose_alpha(errors.sum(1))) if self.options.one_penalty else choose_penalty(errors)

    def _predict_by_regression(
        self, penalty: Penalty | None, embedding: NDArray[np.float32], gallery: NDArray[np.int64]
    ) -> list[OutOfFold]:
        assert penalty is not None
        of_row = np.repeat([block.fold for block in self.folds.blocks], [len(x) for x, _ in self.parts])
        starts = np.cumsum([0, *(len(x) for x, _ in self.parts)])
        result: list[OutOfFold | None] = [None] * len(self.parts)
        for fold in self.names:
            path = self._regression(self.path(fold))
            others = gallery[of_row[gallery] != fold]
            for number in self.folds.numbers(fold):
                rows = embedding[starts[number] : starts[number + 1]]
                result[number] = OutOfFold(
                    path.predict(self.parts[number][0], penalty).astype(np.float32),
                    NearestSearch(embedding[others]).distances(rows),
                )
        return [item for item in result if item is not None]

    def _bank_expression(self, folds: Sequence[str], penalty: Penalty | None) -> list[NDArray[np.float32]]:
        """What neighbors contribute, per block of `folds`: measured expression, or residuals."""
        numbers = [number for number, block in enumerate(self.folds.blocks) if block.fold in folds]
        if penalty is None:
            return [np.asarray(self.parts[number][1], np.float32) for number in numbers]
        absent = [fold for fold in self.names if fold not in folds]
        residuals: dict[int, NDArray[np.float32]] = {}
        for some in np.array_split(np.array(folds), min(RESIDUAL_FOLDS, len(folds))):
            path = self.path(*absent, *some.tolist())
            for number in numbers:
                if self.folds.blocks[number].fold in some:
                    x, y = self.parts[number]
                    residuals[number] = (y - path.predict(x, penalty)).astype(np.float32)
        return [residuals[number] for number in numbers]

    def _retrieve(self, fold: str, penalty: Penalty | None, specs: Sequence[RetrievalSpec]) -> Any:
        """Yield (number of spec, block, result) of a fold's blocks, its bank without the fold."""
        others = [name for name in self.names if name != fold]
        path = self.path(fold)
        embed = self._embed(path, COMPONENTS)
        blocks = [i for i, block in enumerate(self.folds.blocks) if block.fold != fold]
        bank = _Bank(
            np.concatenate([embed(self.parts[i][0]) for i in blocks]).astype(np.float32),
            np.concatenate(self._bank_expression(others, penalty)),
        )
        for which, spec in enumerate(specs):
            if self.options.by_similarity:
                spec = replace(spec, k=len(bank.embedding))
            if spec.k > len(bank.embedding):
                continue
            retriever = Retriever(bank, spec)
            for number in self.folds.numbers(fold):
                x = self.parts[number][0]
                try:
                    result = retriever.aggregate(embed(x).astype(np.float32))
                except NoWeights as error:
                    raise InputError(
                        f"spot {error.row + 1} of {fold} has cosines to the others that add up to "
                        f"{error.total:.3g}, so they are no weights; leave --weighting similarity out"
                    ) from error
                expression = result.expression
                if penalty is not None:
                    expression = expression + path.predict(x, penalty).astype(np.float32)
                yield which, number, OutOfFold(expression, result.nearest)

    def _choose_neighbors(self, penalty: Penalty | None) -> RetrievalSpec:
        total = sum(len(x) for x, _ in self.parts)
        if self.options.by_similarity:
            return RetrievalSpec(total, "cosine", "cosine", "similarity")
        if self.options.k is not None:
            return neighbor_spec(self.options.k)
        most = self.folds.fewest_left
        specs = [neighbor_spec(k) for k in NEIGHBORS if k <= most] or [neighbor_spec(most)]
        if len(specs) == 1:
            return specs[0]
        errors = np.zeros(len(specs))
        for fold in self.names:
            for which, number, item in self._retrieve(fold, penalty, specs):
                errors[which] += np.square(item.prediction - self.parts[number][1], dtype=np.float64).sum()
            self.advance(1)
        return specs[int(np.argmin(errors))]

    def _predict_by_neighbors(self, spec: RetrievalSpec, penalty: Penalty | None) -> list[OutOfFold]:
        result: dict[int, OutOfFold] = {}
        for fold in self.names:
            for _, number, item in self._retrieve(fold, penalty, [spec]):
                result[number] = item
        return [result[number] for number in range(len(self.parts))]


def neighbor_spec(k: int) -> RetrievalSpec:
    """Plain mean of the k nearest by cosine."""
    return RetrievalSpec(k, "cosine", "cosine", "uniform")


def _stack(first: Affine, second: Affine) -> Affine:
    return Affine(np.concatenate([first.weight, second.weight]), np.concatenate([first.bias, second.bias]))
