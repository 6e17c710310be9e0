"""Measure how a slide is stained, and tell brightfield H&E from what is not.

Light that stain absorbs follows Beer and Lambert: optical density -log10(I/I0) is the sum of the stains' own,
each a fixed direction in RGB. Both stains of H&E absorb green most, so their hues lie between blue and pink.
DAB absorbs blue most, and looks brown. Fluorescence emits light: its background is black beside what shines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLACK, BRIGHT = 0.2, 0.4
"""A pixel is black if R, G and B are below this share of the light, bright if all are above this one.

The light is the glass's; where none is in sight, the brightest hundredth of the tissue. Half of a strong
stain that was scanned dark stays above two fifths of it, and fluorescence does not."""
DARKEST_LIGHT = 40
"""Below this level of 255 there is no light."""
STAINED_OD = 0.15
"""Sum of the optical densities of R, G and B from which a pixel counts as stained."""
FIRST_HUE, LAST_HUE = 200.0, 10.0
"""Hues of H&E in degrees, from blue over purple and pink; 99 % of the color of every H&E slide tried."""
LAST_BLUE, FIRST_PURPLE = 235.0, 250.0
"""Hematoxylin alone has hues of about 245; the sky is bluer, and eosin from purple on."""
FIRST_BROWN, LAST_BROWN = 10.0, 60.0
DARKEST_GLASS, MOST_TINTED = 90.0, 60.0
"""Smallest, and difference of the largest and smallest, R, G and B of what may be glass."""

ALL_BLACK = 0.99
MOST_BLACK, LEAST_BRIGHT = 0.25, 0.05
LEAST_STAINED = 0.005
LEAST_SATURATION = 0.05
LEAST_H_AND_E = 0.75
LEAST_DAB = 0.2
LEAST_SKY, MOST_PURPLE = 0.5, 0.02
WHITE, NEUTRAL = 190, 16
"""Limits of `name_other_stain`. H&E slides tried, with 20 changes of color each: black up to 0.07, saturation
from 0.08, purple from 0.04, H&E hues from 0.90 with glass in sight. Photographs: H&E hues up to 0.67."""
BROWN, PURE_BLUE, BLUER = 1.1, 0.2, 1.15
"""Limits of `doubt_stain`: absorption of blue over that of green, of the redder stain; of the bluer one, of
blue over red, and of red over green. 21 H&E slides and pictures: 0.10 to 0.97; from 0.29 where red is above
1.15 of green. Published vectors (Ruifrok and Johnston 2001; Landini et al. 2021): DAB 1.36; Alcian blue
0.18, Masson and Azan 0.13. PAS has 0.16 as its redder one, as some H&E has."""

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Stain:
    """How the tissue of a slide is stained.

    Attributes
    ----------
    places : int
        Pieces of tissue measured.
    light : float
        Level of 255 that counts as full light.
    black, bright, stained : float
        Share of their pixels that is black, bright, or has an optical density above `STAINED_OD`.
    saturation : float
        Mean of (largest - smallest)/sum of the optical densities of R, G and B over the stained pixels.
    h_and_e, brown : float
        Share of the color with the hues of H&E or DAB. A stained pixel's color is (largest - smallest)
        optical density, at most the median.
    blue, purple : float
        Share of the color with hues of the sky, or of eosin and what it mixes with: purple to pink.
    density : float
        Median sum of the optical densities over the stained pixels.
    background : (float, float, float)
        RGB of the glass; of the brightest tissue where no glass is in sight.
    hematoxylin, eosin : (float, float, float)
        Unit vectors of optical density (R, G, B) of the two stains after Macenko et al. (2009); zeros if
        nothing is stained.
    """

    places: int
    light: float
    black: float
    bright: float
    stained: float
    saturation: float
    h_and_e: float
    brown: float
    blue: float
    purple: float
    density: float
    background: Color
    hematoxylin: Color
    eosin: Color


def measure_stain(tissue: NDArray[np.uint8], overview: NDArray[np.uint8]) -> Stain:
    """Measure a slide's stain.

    Parameters
    ----------
    tissue : uint8 [n, h, w, 3]
        Places on tissue, RGB.
    overview : uint8 [m, h, w, 3]
        Places all over the slide, for the color of the glass.
    """
    pixels = tissue.reshape(-1, 3)
    glass, light = _glass(overview.reshape(-1, 3), pixels)
    # Channels first: numpy reduces a last axis of three ten times as slowly.
    pixels = np.ascontiguousarray(pixels.T)
    # One logarithm per value and channel instead of one per pixel.
    transmitted = np.clip(np.arange(256) / glass[:, None], 1 / 256, 1).astype(np.float32)
    densities = -np.log10(transmitted)
    density = np.stack([densities[i, pixels[i]] for i in range(3)])
    total = density.sum(axis=0)
    stained = total > STAINED_OD
    density, total = density[:, stained], total[stained]
    chroma = density.max(axis=0, initial=0) - density.min(axis=0, initial=np.inf)
    saturation = float((chroma / total).mean()) if len(total) else 0.0
    # A marker pen has several times the color of tissue: no pixel counts for more than the median one.
    chroma = np.minimum(chroma, np.median(chroma)) if len(chroma) else chroma
    color = max(float(chroma.sum()), 1e-9)
    hue = _hue(np.stack([transmitted[i, pixels[i, stained]] for i in range(3)]))
    of_h_and_e = (hue >= FIRST_HUE) | (hue < LAST_HUE)
    of_dab = (hue >= FIRST_BROWN) & (hue < LAST_BROWN)
    of_sky = (hue >= FIRST_HUE) & (hue < LAST_BLUE)
    of_eosin = (hue >= FIRST_PURPLE) | (hue < LAST_HUE)
    hematoxylin, eosin = stain_vectors(density.T)
    return Stain(
        places=len(tissue),
        light=light,
        black=float((pixels.max(axis=0) < BLACK * light).mean()),
        bright=float((pixels.min(axis=0) > BRIGHT * light).mean()),
        stained=float(stained.mean()),
        saturation=saturation,
        h_and_e=float(chroma[of_h_and_e].sum()) / color,
        brown=float(chroma[of_dab].sum()) / color,
        blue=float(chroma[of_sky].sum()) / color,
        purple=float(chroma[of_eosin].sum()) / color,
        density=float(np.median(total)) if len(total) else 0.0,
        background=_color(glass),
        hematoxylin=hematoxylin,
        eosin=eosin,
    )


def name_other_stain(stain: Stain) -> str:
    """Say what a slide is if it is no H&E, with the measure that tells; "" for H&E."""
    if stain.light < DARKEST_LIGHT or stain.black >= ALL_BLACK:
        return "it is black"
    if stain.black >= MOST_BLACK and stain.bright < LEAST_BRIGHT:
        return f"{stain.black:.0%} of its tissue is black and hardly any of it bright, as in fluorescence"
    if stain.stained < LEAST_STAINED:
        return "its tissue places hold no stain, as blank glass"
    if stain.saturation < LEAST_SATURATION:
        return "it is gray and has no stain's color"
    if stain.blue >= LEAST_SKY and stain.purple < MOST_PURPLE:
        return f"{stain.blue:.0%} of its color is blue and none purple or pink, as of the sky in a photograph"
    on_glass = min(stain.background) >= WHITE and max(stain.background) - min(stain.background) < NEUTRAL
    if stain.brown >= LEAST_DAB and stain.h_and_e + stain.brown >= LEAST_H_AND_E and on_glass:
        return f"{stain.brown:.0%} of its color is brown, as of DAB in immunohistochemistry"
    if stain.h_and_e < LEAST_H_AND_E or stain.brown >= LEAST_DAB:
        return (
            f"only {stain.h_and_e:.0%} of its color is the blue, purple and pink of hematoxylin and eosin, "
            "as in a photograph, under much ink or with another stain"
        )
    return ""


def doubt_stain(stain: Stain) -> str:
    """Say what other stain the colors may be of; "" if they are as of H&E.

    For what is not surely something else. PAS and Giemsa are not told: some H&E has the same vectors.
    """
    bluer, redder = stain.hematoxylin, stain.eosin
    if redder[2] > BROWN * redder[1]:
        return "its red is brown, as of DAB"
    if bluer[2] < PURE_BLUE * bluer[0] and bluer[0] > BLUER * bluer[1]:
        return "its blue is purer than hematoxylin, as of trichrome or Alcian blue"
    return ""


def stain_vectors(density: NDArray[np.floating[Any]]) -> tuple[Color, Color]:
    """Return the unit vectors of hematoxylin and eosin in optical densities [n, 3] of stained pixels.

    Source: Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009:
    the pixels are projected onto the plane of the two largest eigenvectors of their covariance, and the
    stains are the directions at the 1st and 99th percentile of the angle. Hematoxylin is the one that absorbs
    more red.
    """
    if len(density) < 3:
        return (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    plane = np.linalg.eigh(np.cov(density.T.astype(np.float64)))[1][:, :0:-1]
    plane *= np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    projected = density @ plane
    angle = np.arctan2(projected[:, 1], projected[:, 0])
    first, last = np.percentile(angle, (1, 99))
    one, other = (np.abs(plane @ (np.cos(a), np.sin(a))) for a in (first, last))
    hematoxylin, eosin = (one, other) if one[0] > other[0] else (other, one)
    return _color(hematoxylin), _color(eosin)


def _color(values: NDArray[np.floating[Any]]) -> Color:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _glass(overview: NDArray[np.uint8], tissue: NDArray[np.uint8]) -> tuple[NDArray[np.float64], float]:
    """The color of glass, and the level of full light.

    Glass is the brightest twentieth of the slide, else of the tissue; else white, with the tissue's light.
    """
    for pixels in (overview, tissue):
        brightest = np.percentile(pixels, 95, axis=0) if len(pixels) else np.zeros(3)
        if brightest.min() >= DARKEST_GLASS and np.ptp(brightest) <= MOST_TINTED:
            return np.asarray(brightest, np.float64), float(brightest.min())
    light = np.percentile(tissue.max(axis=1), 99) if len(tissue) else 0.0
    return np.full(3, 255.0), float(light)


def _hue(rgb: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Hue in degrees of [3, n]; 0 where there is none."""
    red, green, blue = rgb
    largest = rgb.max(axis=0)
    spread = np.maximum(largest - rgb.min(axis=0), 1e-9)
    sixth = np.where(
        largest == red,
        ((green - blue) / spread) % 6,
        np.where(largest == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    return np.asarray(60.0 * sixth)
