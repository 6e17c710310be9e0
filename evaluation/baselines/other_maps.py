"""Maps of other models as baselines, such as ridge regression on the features of an ImageNet encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.evaluation.baselines.measured_section import MeasuredSection
from mclst.evaluation.baselines.predict import Predict
from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.measured import Prediction, choose_section, read_map


def read_baseline_maps(
    maps: Sequence[tuple[str, Path]],
    truth: Path,
    genes: Sequence[str],
    normalization: str,
    bins: str | None = None,
) -> dict[str, tuple[str, Predict]]:
    """Read maps that the evaluated ones have to beat.

    Parameters
    ----------
    maps : sequence of (name, path)
        One per section; sections of one model have one name.
    truth : Path
        Measured sections, to find each map's.
    genes : sequence of str
        Of the evaluated maps.
    normalization : str
        Of the evaluated maps.
    bins : str, optional
        Of the truth; see `find_sections`.

    Returns
    -------
    mapping of name to (what it sees, Predict)
        As `predict_baselines` takes it; a section without a map is said.

    Raises
    ------
    InputError
        If a map is damaged, lacks a gene, or is in other units.
    """
    by_name: dict[str, dict[str, Prediction]] = {}
    for name, path in maps:
        prediction = read_map(path)
        if prediction.normalization not in (None, normalization):
            raise InputError(
                f"{path} is normalized {prediction.normalization} and the evaluated maps {normalization}; "
                "give a map in their units"
            )
        missing = [gene for gene in genes if gene not in set(prediction.genes.tolist())]
        if missing:
            raise InputError(
                f"{path} lacks gene {missing[0]} of the evaluated maps; give a map of their genes"
            )
        by_name.setdefault(name, {})[choose_section(prediction, truth, None, bins).name] = prediction
    return {name: ("the tile, as another model", _predictor(own, genes)) for name, own in by_name.items()}


def _predictor(maps: Mapping[str, Prediction], genes: Sequence[str]) -> Predict:
    def predict(
        training: Sequence[MeasuredSection], section: MeasuredSection
    ) -> tuple[NDArray[np.float64] | None, str]:
        if section.name not in maps:
            return None, f"no map of section {section.name}"
        own = maps[section.name]
        columns = {gene: i for i, gene in enumerate(own.genes.tolist())}
        rows = {spot: i for i, spot in enumerate(own.spot.tolist())}
        result = np.full((len(section), len(genes)), np.nan)
        for i, spot in enumerate(section.spot):
            if spot in rows:
                result[i] = own.expression[rows[spot]][[columns[gene] for gene in genes]]
        return result, own.path.name

    return predict
