"""Painting a layout as haematoxylin and eosin: optical densities, nuclei, fibres and fat cells, then RGB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from mclst.demo.domains import DOMAINS, Layout

Field = NDArray[np.float32]

# Optical density per unit of stain in R, G, B: Macenko et al. 2009, the usual reference vectors.
HAEMATOXYLIN = (0.5626, 0.7201, 0.4062)
EOSIN = (0.2159, 0.8012, 0.5581)

NUCLEI_PER_MM2 = {"tumour": 7000.0, "stroma": 1100.0, "adipose": 1200.0, "immune": 10500.0}
WALL_PX = 4
"""Level-0 px per cell of the grid on which walls of fat cells are drawn."""
STAMPS = 48
"""Nuclei drawn per kind; every nucleus on the slide is one of them."""


def stretch(field: Field, side_px: int) -> Field:
    """A square field of any resolution over [side_px, side_px], bicubic."""
    size = (side_px, side_px)
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)


def fibres(rng: np.random.Generator, layout: Layout) -> Field:
    """Strands along layout.fibre, [size_px, size_px], about 0 … 1: line integral convolution of noise.

    Each pass averages with the place twice as far along the direction, so six passes reach 64 steps of 2 px.
    """
    half = (layout.size_px + 1) // 2
    angle = stretch(layout.fibre, half)
    step_x, step_y = np.cos(angle), np.sin(angle)
    row, column = np.mgrid[0:half, 0:half].astype(np.float32)
    strands = rng.standard_normal((half, half), dtype=np.float32)
    for reach in (1, 2, 4, 8, 16, 32):
        there_y = np.mod(row + reach * step_y, half).astype(np.int32) % half
        there_x = np.mod(column + reach * step_x, half).astype(np.int32) % half
        strands = (strands + strands[there_y, there_x]) * 0.5
    strands = np.clip(0.5 + strands / (4 * float(strands.std())), 0, 1)
    return np.clip(stretch(strands, layout.size_px), 0, 1)


def fat_walls(rng: np.random.Generator, layout: Layout) -> Field:
    """Cell walls of fat, [h, w] on a grid of WALL_PX px, 1 on a wall and 0 inside a cell or outside fat: Voronoi borders."""
    side = -(-layout.size_px // WALL_PX)
    pitch = 62 / layout.mpp / WALL_PX  # fat cells of about 60 µm
    count = int(np.ceil(side / pitch)) + 2
    grid = (
        np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2).astype(np.float64)
    )
    seeds = (grid - 0.5 + rng.uniform(-0.42, 0.42, grid.shape)) * pitch
    fat = stretch(layout.weight[DOMAINS.index("adipose")], side)
    row, column = np.nonzero(fat > 0.03)
    walls = np.zeros((side, side), dtype=np.float32)
    if len(row):
        distance = np.asarray(cKDTree(seeds).query(np.stack([column, row], axis=1), k=2)[0])
        apart_um = (distance[:, 1] - distance[:, 0]) * WALL_PX * layout.mpp
        walls[row, column] = np.clip(1.5 - apart_um / 3.2, 0, 1)
    return walls


def nucleus(
    rng: np.random.Generator, long_px: float, short_px: float, angle: float, vesicular: float
) -> Field:
    """One nucleus as stain density [m, m] in 0 … 1.

    long_px, short_px: half axes. vesicular: 0 evenly dark (lymphocyte) … 1 pale with a rim and a nucleolus (tumour).
    """
    reach = int(np.ceil(long_px * 1.25)) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    bearing = np.arctan2(across / short_px, along / long_px)
    bumps = 1 + sum(
        rng.normal(0, 0.03) * np.cos(n * bearing + phase)
        for n, phase in zip((2, 3, 5), rng.uniform(0, 6, 3), strict=True)
    )
    radius = np.hypot(along / long_px, across / short_px) / bumps
    inside = np.clip((1 - radius) * short_px + 0.5, 0, 1)
    chromatin = 1 - vesicular * (0.55 - 0.5 * np.clip(radius, 0, 1) ** 4)
    spot_x, spot_y = rng.uniform(-0.35, 0.35, 2) * short_px
    nucleolus = (
        vesicular * 0.5 * np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / (0.06 * short_px**2 + 0.5))
    )
    grain = 1 + 0.12 * rng.standard_normal(x.shape)
    return np.asarray(np.clip(inside * (chromatin + nucleolus) * grain, 0, 1.2), dtype=np.float32)


def nucleus_shapes(rng: np.random.Generator, kind: str, mpp: float) -> list[Field]:
    """STAMPS nuclei of a kind: by direction for stroma and fat, by grade (small to large) for tumour."""
    shapes = []
    for i in range(STAMPS):
        share = i / (STAMPS - 1)
        if kind == "tumour":
            long_um = 3.3 + 2.6 * share + rng.normal(0, 0.25)
            short_um, turn, vesicular, dark = (
                long_um * rng.uniform(0.72, 0.95),
                rng.uniform(0, np.pi),
                0.7,
                0.9,
            )
            dark += 0.3 * share
        elif kind == "immune":
            long_um = 3.1 + rng.normal(0, 0.15)
            short_um, turn, vesicular, dark = long_um * rng.uniform(0.88, 1), rng.uniform(0, np.pi), 0.1, 1.12
        else:
            long_um = 6.8 + rng.normal(0, 0.8)
            short_um, turn, vesicular, dark = rng.uniform(1.3, 1.9), np.pi * i / STAMPS, 0.2, 0.85
        shapes.append(dark * nucleus(rng, long_um / mpp, short_um / mpp, turn, vesicular))
    return shapes


def scatter(rng: np.random.Generator, layout: Layout) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Places of nuclei: (x, y) level-0 px [n, 2] and domain [n] (place in DOMAINS); a jittered grid, thinned.

    High-grade tumour is the more crowded.
    """
    densest = max(NUCLEI_PER_MM2.values())
    pitch = 1000 / np.sqrt(densest) / layout.mpp
    axis = np.arange(pitch / 2, layout.size_px, pitch)
    place = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    place[:, 0] += np.where((np.arange(len(place)) // len(axis)) % 2, pitch / 2, 0)
    place += rng.uniform(-0.45, 0.45, place.shape) * pitch
    weight = np.cumsum(layout.at(layout.weight, place), axis=0)
    domain = (rng.random(len(place)) * weight[-1] > weight).sum(axis=0).clip(0, len(DOMAINS) - 1)
    crowding = np.array([NUCLEI_PER_MM2[d] for d in DOMAINS])[domain] / densest
    crowding *= np.where(domain == DOMAINS.index("tumour"), 0.7 + 0.6 * layout.at(layout.grade, place), 1.0)
    kept = rng.random(len(place)) < crowding * (layout.at(layout.tissue, place) > 0.7)
    return place[kept], domain[kept].astype(np.int64)


def stain_nuclei(rng: np.random.Generator, layout: Layout, walls: Field, haematoxylin: Field) -> None:
    """Draw every nucleus into `haematoxylin` [size_px, size_px], in place; overlaps take the darker.

    walls: as `fat_walls` gives them; a fat cell's nucleus lies against its wall.
    """
    place, domain = scatter(rng, layout)
    column, row = np.clip(place / WALL_PX, 0, len(walls) - 1).astype(np.int64).T
    seen = (domain != DOMAINS.index("adipose")) | (walls[row, column] > 0.5)
    place, domain = place[seen], domain[seen]
    shapes = [nucleus_shapes(rng, kind, layout.mpp) for kind in DOMAINS]
    wander = rng.normal(0, 1, len(place))
    by_grade = (layout.at(layout.grade, place) + 0.12 * wander) * (STAMPS - 1)
    by_direction = (layout.at(layout.fibre, place) + 0.2 * wander) / np.pi * STAMPS
    size = layout.size_px
    for i, (x, y) in enumerate(np.rint(place).astype(np.int64)):
        kind = DOMAINS[domain[i]]
        if kind == "stroma" or kind == "adipose":
            which = int(by_direction[i]) % STAMPS
        elif kind == "tumour":
            which = int(min(max(by_grade[i], 0), STAMPS - 1))
        else:
            which = i % STAMPS
        shape = shapes[domain[i]][which]
        reach = shape.shape[0] // 2
        top, left = max(y - reach, 0), max(x - reach, 0)
        bottom, right = min(y + reach + 1, size), min(x + reach + 1, size)
        if top < bottom and left < right:
            under = haematoxylin[top:bottom, left:right]
            part = shape[top - y + reach : bottom - y + reach, left - x + reach : right - x + reach]
            np.maximum(under, part, out=under)


def paint(rng: np.random.Generator, layout: Layout) -> NDArray[np.uint8]:
    """The layout as an H&E picture, uint8 [size_px, size_px, 3] RGB on a near-white ground.

    How strongly the section took each stain varies a little from one `rng` to the next, as between real slides.
    """
    size = layout.size_px
    strand = fibres(rng, layout)
    tumour, stroma, adipose, immune = (stretch(w, size) for w in layout.weight)
    tissue = np.clip(stretch(layout.tissue, size), 0, 1)
    walls = fat_walls(rng, layout)
    grain = repeat(rng.standard_normal((256, 256), dtype=np.float32), size)
    mottle = rng.standard_normal((509, 509), dtype=np.float32)
    mottle = gaussian_filter(mottle, 2.2 / layout.mpp, mode="wrap")
    mottle = repeat(mottle / float(mottle.std()), size)

    eosin = (
        tumour * (0.30 + 0.12 * strand + 0.09 * mottle)
        + stroma * (0.10 + 0.95 * strand**1.3)
        + immune * (0.16 + 0.25 * strand + 0.05 * mottle)
    )
    eosin += adipose * (0.015 + 0.6 * np.clip(stretch(walls, size), 0, 1))
    eosin = np.maximum(eosin, 0) * tissue * (1 + 0.05 * grain)
    haematoxylin = tumour * (0.21 + 0.06 * mottle) + immune * 0.10 + stroma * 0.03
    haematoxylin *= tissue
    haematoxylin += 0.012 * np.abs(grain) * tissue
    stain_nuclei(rng, layout, walls, haematoxylin)

    took_h, took_e = rng.uniform(0.9, 1.1, 2)
    glass = np.array([244, 243, 245]) + rng.uniform(-2, 2, 3)
    picture = np.empty((size, size, 3), dtype=np.uint8)
    for channel in range(3):
        density = haematoxylin * (took_h * 1.25 * HAEMATOXYLIN[channel]) + eosin * (took_e * EOSIN[channel])
        light = glass[channel] * np.exp(-density) + 1.2 * grain
        picture[..., channel] = np.clip(light, 0, 255)
    soft = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.35 / layout.mpp))
    return np.asarray(soft, dtype=np.uint8)


def repeat(tile: Field, side_px: int) -> Field:
    """`tile` laid side by side over [side_px, side_px]."""
    times = -(-side_px // len(tile))
    return np.tile(tile, (times, times))[:side_px, :side_px]
