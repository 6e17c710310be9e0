"""What a calibrated bundle says of perturbed tiles, held against the measured section."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.benchmarks.harness.undefined import none_if_undefined
from mclst.evaluation.trust import coverage, risk_coverage, score_genes
from mclst.runtime.expression_map.measured import Pair
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.trust import RELIABLE_R
from mclst.runtime.trust.calibration import Calibration
from mclst.runtime.trust.measures import MeasuredResult
from mclst.runtime.trust.places import PLACE_PX
from mclst.runtime.trust.stain import measure_stain
from mclst.runtime.trust.verdict import compare_colors

U8 = NDArray[np.uint8]


def judge_tiles(
    calibration: Calibration, measured: MeasuredResult, rows: NDArray[np.intp], pair: Pair
) -> dict[str, Any]:
    """Hold what the calibration says of tiles against their pair.

    Parameters
    ----------
    calibration : Calibration
    measured : MeasuredResult
        Of all spots, as `RunTrust.measure` returns it.
    rows : int [m]
        Rows of the pair's spots.
    pair : Pair

    Returns
    -------
    dict
        `outside`: share of the spots. `nominal`, `covered`: of the widest intervals, those of spots outside
        too. `reliable`: number of genes; `reliable_r`, `other_r`: their mean r, and of the others.
        `spearman`: of expected and reached error of the spots; None where the calibration does not rank them.
    """
    level = int(np.argmax(calibration.levels))
    none_outside = np.zeros(len(rows), np.bool_)
    low, high = calibration.interval(measured.expression[rows], measured.distance[rows], none_outside, level)
    var = pd.DataFrame(
        {
            "expected_r": calibration.expected_r,
            "low_r": calibration.low_r,
            "reliable": calibration.reliable(RELIABLE_R),
        }
    )
    genes = score_genes(pair, var)
    ranked = risk_coverage(pair, measured.expected_error[rows].astype(np.float64), "expected_error")
    outside = calibration.percentiles(measured.distance) > RunOptions().outside_level
    result = {
        "outside": float(outside.mean()),
        "nominal": float(calibration.levels[level]),
        "covered": coverage(pair, low.astype(np.float64), high.astype(np.float64))["covered"],
        **{name: genes.get(name) for name in ("reliable", "reliable_r", "other_r")},
        "spearman": ranked.spearman if calibration.ranks_spots else None,
    }
    return dict(none_if_undefined(result))


def place_of(tiles: U8) -> U8:
    """Middle of tiles [n, s, s, 3], as wide as what a run's check of the stain reads of a spot."""
    side = min(PLACE_PX, tiles.shape[1])
    start = (tiles.shape[1] - side) // 2
    return tiles[:, start : start + side, start : start + side].copy()


def name_colors(
    calibration: Calibration, places: U8, glass: U8, perturb: Callable[[U8, int], U8] | None
) -> str:
    """Say how the colors differ from the reference's, as the verdict of a run does; "" if they do not.

    places: uint8 [n, p, p, 3], of perturbed tiles. glass: all over the slide [m, q, q, 3], as it is.
    """
    if perturb is not None:
        side = glass.shape[1]
        margin = ((side // 2, side // 2), (side // 2, side // 2), (0, 0))
        glass = np.stack([perturb(np.pad(place, margin, "edge"), side) for place in glass])
    return compare_colors(measure_stain(places, glass), calibration)
