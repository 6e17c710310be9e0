"""One line on a slide: how much of it is like the training's, and whether its colors are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.trust.calibration import Calibration, stain_values
from mclst.runtime.trust.stain import Stain, doubt_stain

NOT_CALIBRATED = "not calibrated: nothing is known of the error of this map"
BACKGROUND, ANGLE, DENSITY = 35.0, 15.0, 1.6
"""Differences beyond which colors are unlike: RGB levels, degrees between stain vectors, a factor. Four
sections of one patient (her2st C2 to C5), each against the other three, differ by up to 26, 7 and 1.1."""
OPTIMISTIC = "the network may have been trained on them, so r, errors and intervals are optimistic"


@dataclass(frozen=True)
class Verdict:
    """What a run says of its slide.

    Attributes
    ----------
    text : str
        One line in plain words.
    outside_share : float or None
        Share of the predicted spots beyond the chosen level of distance; None if not calibrated.
    outside_level : float
        The level, 0 to 1: the share of held-out spots that are nearer.
    colors : str
        How the colors differ from the reference's, or without one from H&E's; "" if they do not.
    stain : Stain or None
        Measured of the slide; None if not.
    calibration : Calibration or None
    """

    text: str
    outside_share: float | None
    outside_level: float
    colors: str = ""
    stain: Stain | None = None
    calibration: Calibration | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for `uns["mclst"]["trust"]` and the report; unknown ones are left out."""
        record: dict[str, Any] = {
            "verdict": self.text,
            "calibrated": self.calibration is not None,
            "outside_level": self.outside_level,
        }
        if self.outside_share is not None:
            record["outside_share"] = self.outside_share
        if self.calibration is not None:
            record["left_out"] = self.calibration.kind
            record["optimistic"] = self.calibration.optimistic
            record["groups"] = len(self.calibration.group)
            record["sections"] = self.calibration.sections
            record["spots"] = self.calibration.spots
        if self.stain is not None:
            compared = self.calibration is not None and len(self.calibration.stain)
            record["colors"] = self.colors or ("as the reference's" if compared else "as of H&E")
            record["stain"] = {
                "background": list(self.stain.background),
                "hematoxylin": list(self.stain.hematoxylin),
                "eosin": list(self.stain.eosin),
                "density": self.stain.density,
            }
        return record


def judge(
    calibration: Calibration | None,
    percentile: NDArray[np.floating[Any]] | None,
    outside_level: float,
    stain: Stain | None,
    why_not: str = "",
) -> Verdict:
    """Judge a slide.

    Parameters
    ----------
    calibration : Calibration or None
    percentile : float [n]
        `Calibration.percentiles` of the spots with a prediction; None without a calibration.
    outside_level : float
        A spot above it is outside.
    stain : Stain or None
        Of the slide.
    why_not : str
        Why there is no calibration, if it is not the bundle's.
    """
    doubt = doubt_colors(stain, calibration)
    if calibration is None or percentile is None:
        text = NOT_CALIBRATED + (f" ({why_not})" if why_not else "") + (f"; {doubt}" if doubt else "")
        return Verdict(text, None, outside_level, doubt, stain)
    colors = "" if stain is None else compare_colors(stain, calibration)
    basis = f"{calibration.spots:,} spots of {_count(calibration.sections, 'section')}"
    share = float((percentile > outside_level).mean()) if len(percentile) else 0.0
    text = f"{share:.0%} of the spots are unlike the {basis} it was calibrated on"
    if share > 0.5:
        text += ", so most of this map is a guess"
    if colors:
        text += f"; its colors differ: {colors}"
    elif doubt:
        text += f"; {doubt}"
    elif stain is not None and len(calibration.stain):
        text += "; its colors are like theirs"
    if calibration.optimistic:
        text += f"; {OPTIMISTIC}"
    return Verdict(text, share, outside_level, colors or doubt, stain, calibration)


def doubt_colors(stain: Stain | None, calibration: Calibration | None) -> str:
    """Say what other stain than H&E the colors may be of, where no reference tells; "" if none."""
    if stain is None or (calibration is not None and len(calibration.stain)):
        return ""
    doubt = doubt_stain(stain)
    return f"it may be another stain than H&E: {doubt}" if doubt else ""


def compare_colors(stain: Stain, calibration: Calibration) -> str:
    """Name what of a stain differs from that of the calibrated section most like it; "" if nothing does."""
    if not len(calibration.stain):
        return ""
    reference = np.asarray(calibration.stain, np.float64)
    own = np.array(stain_values(stain))
    differences = []
    if np.abs(reference[:, :3] - own[:3]).max(axis=1).min() > BACKGROUND:
        differences.append("the background")
    for name, part in (("hematoxylin", slice(3, 6)), ("eosin", slice(6, 9))):
        cosine = (reference[:, part] * own[part]).sum(axis=1)
        if np.degrees(np.arccos(np.clip(cosine, -1, 1))).min() > ANGLE:
            differences.append(f"the hue of {name}")
    ratio = np.maximum(own[9], 1e-6) / np.maximum(reference[:, 9], 1e-6)
    if np.abs(np.log(ratio)).min() > np.log(DENSITY):
        differences.append("the strength of the stain")
    return ", ".join(differences)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
