"""A fitted scikit-learn pipeline as a checkpoint, without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.weights import load_weights
from mclst.runtime.atomic import check_writable
from mclst.runtime.hashing import file_sha256
from mclst.sections.normalization_names import NORMALIZATION_NAMES
from mclst.training.fitting.checkpoint import FittedModel, WeightsFile, write_fitted
from mclst.training.fitting.features import EncoderSetup
from mclst.training.fitting.folds import Folds
from mclst.training.fitting.heads import FittedHead
from mclst.training.fitting.ridge import Affine

TRANSFORMERS = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "PCA", "TruncatedSVD")
"""Steps of scikit-learn that are affine, by class."""
REGRESSORS = (
    *("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV"),
    *("MultiTaskLasso", "MultiTaskElasticNet", "BayesianRidge", "PLSRegression"),
)
CHECKED_ROWS = 16
TOLERANCE = 1e-6


def from_sklearn(
    pipeline: Any,
    *,
    encoder: str,
    weights: str | Path,
    genes: Sequence[str],
    out: str | Path = "model.pt",
    views: Sequence[float] = (1.0,),
    context_um: float | None = None,
    tile_mpp: float | None = None,
    units: str = "gene-wise",
    overwrite: bool = False,
) -> Path:
    """Write a fitted linear pipeline and its encoder as a checkpoint for mclst-export.

    Parameters
    ----------
    pipeline : estimator
        scikit-learn's: a linear regression, alone or behind scaling and principal components, fitted on the
        features of `encoder`: one block per view and, with a context, the neighbors' mean of the view closest
        to 1.
    encoder : str
        Name or .yaml file of a recipe.
    weights : str or Path
        The encoder's weights.
    genes : sequence of str
        Names of the pipeline's outputs, G.
    out : str or Path
        The checkpoint.
    views : sequence of float
        Fields of view, as multiples of the encoder's own.
    context_um : float, optional
        Radius over which the neighbors' features are averaged.
    tile_mpp : float, optional
        µm/px of the encoder's field of view; the recipe's own by default, else level-0 pixels.
    units : str
        Normalization of the expression that the pipeline was fitted to.
    overwrite : bool
        Replace an existing checkpoint.

    Returns
    -------
    Path
        The checkpoint.

    Raises
    ------
    ValueError
        If a step is not linear, or features or genes do not fit; the step is named.
    CheckpointError, OutputError
        If the weights are not the encoder's, or the checkpoint cannot be written.

    Examples
    --------
    >>> from_sklearn(pipeline, encoder="uni", weights="pytorch_model.bin", genes=genes)  # doctest: +SKIP
    """
    out, weights = Path(out), Path(weights)
    check_writable(out, overwrite=overwrite)
    if units not in NORMALIZATION_NAMES:
        raise ValueError(f"units is {units!r}; choose one of {', '.join(NORMALIZATION_NAMES)}")
    recipe = find_recipe(encoder)
    width = recipe.width * (len(views) + (context_um is not None))
    layer = affine_of(pipeline, width)
    if len(layer.bias) != len(genes) or len(set(genes)) != len(genes):
        raise ValueError(
            f"the pipeline predicts {len(layer.bias)} values and genes names {len(set(genes))}; give a name "
            "for each"
        )
    setup = EncoderSetup(
        recipe,
        load_weights(recipe, weights),
        tuple(float(view) for view in views),
        recipe.mpp if tile_mpp is None else tile_mpp,
    )
    size = setup.tile.size_px
    model = FittedModel(
        setup=setup,
        head=FittedHead(layer, len(genes), 0, np.zeros((0, len(genes)), np.float32), ()),
        folds=Folds((), "not by mclst: fitted with scikit-learn"),
        sections=(),
        spots=(),
        truth=(),
        genes=tuple(str(gene) for gene in genes),
        units=units,
        context_um=context_um,
        weights=WeightsFile(weights.name, file_sha256(weights) if weights.is_file() else ""),
        record={"head": "scikit-learn", "sections": {}, "scores": {}},
        tiles=np.zeros((0, size, size, 3), np.uint8),
    )
    return write_fitted(out, model)


def affine_of(pipeline: Any, width: int) -> Affine:
    """Return a fitted pipeline's prediction as one affine map of `width` features.

    Raises ValueError, naming the step, if one is not linear or not fitted on as many features.
    """
    steps = [step for _, step in pipeline.steps] if hasattr(pipeline, "steps") else [pipeline]
    for number, step in enumerate(steps):
        name = type(step).__name__
        last = number == len(steps) - 1
        if not last and (step is None or step == "passthrough"):
            continue
        if name not in (REGRESSORS if last else TRANSFORMERS) or getattr(step, "clip", False):
            raise ValueError(
                f"{name} is not a linear {'regression' if last else 'step'} that fits into a graph; use "
                f"{', '.join(REGRESSORS if last else TRANSFORMERS)}"
            )
        if not hasattr(step, "n_features_in_"):
            raise ValueError(f"{name} is not fitted; fit the pipeline first")
    expected = next(step for step in steps if step is not None and step != "passthrough").n_features_in_
    if expected != width:
        raise ValueError(
            f"the pipeline was fitted on {expected} features and the encoder gives {width} with these views "
            "and context; give the ones it was fitted on"
        )
    zero = _predict(pipeline, np.zeros((1, width)))[0]
    weight = (_predict(pipeline, np.eye(width)) - zero).T
    layer = Affine(np.ascontiguousarray(weight), zero)
    rows = np.random.default_rng(0).normal(0, 3, (CHECKED_ROWS, width))
    truth = _predict(pipeline, rows)
    if not np.allclose(layer(rows), truth, rtol=TOLERANCE, atol=TOLERANCE * np.abs(truth).max()):
        raise ValueError("the pipeline is not linear in its features; use a linear regression")
    return layer


def _predict(pipeline: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    # A step with copy=False works in the rows it is given.
    values = np.asarray(pipeline.predict(rows.copy()), np.float64)
    return values.reshape(len(rows), -1)
