"""Render a layout as hematoxylin and eosin: optical densities, nuclei, fibers and fat cells, then RGB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from mclst.demo.domains import DOMAINS, Layout

Field = NDArray[np.float32]

# Optical density per unit of stain in R, G, B: reference vectors of Macenko et al. 2009.
HEMATOXYLIN = (0.5626, 0.7201, 0.4062)
EOSIN = (0.2159, 0.8012, 0.5581)

NUCLEI_PER_MM2 = {"tumor": 7000.0, "stroma": 1100.0, "adipose": 1200.0, "immune": 10500.0}
WALL_PX = 4
"""Level-0 px per cell of the grid of fat cell walls."""
N_SHAPES = 48
"""Nucleus shapes per domain; every nucleus on the slide is one of them."""


def resize(field: Field, side_px: int) -> Field:
    """Resize a square field to [side_px, side_px], bicubic."""
    size = (side_px, side_px)
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)


def fiber_texture(rng: np.random.Generator, layout: Layout) -> Field:
    """Fibers along layout.fiber, [size_px, size_px], about 0 … 1: line integral convolution of noise.

    Each pass averages with the point twice as far along the direction, so six passes reach 64 steps of 2 px.
    """
    half = (layout.size_px + 1) // 2
    angle = resize(layout.fiber, half)
    step_x, step_y = np.cos(angle), np.sin(angle)
    row, column = np.mgrid[0:half, 0:half].astype(np.float32)
    strands = rng.standard_normal((half, half), dtype=np.float32)
    for reach in (1, 2, 4, 8, 16, 32):
        source_y = np.mod(row + reach * step_y, half).astype(np.int32) % half
        source_x = np.mod(column + reach * step_x, half).astype(np.int32) % half
        strands = (strands + strands[source_y, source_x]) * 0.5
    strands = np.clip(0.5 + strands / (4 * float(strands.std())), 0, 1)
    return np.clip(resize(strands, layout.size_px), 0, 1)


def fat_walls(rng: np.random.Generator, layout: Layout) -> Field:
    """Fat cell walls as Voronoi borders, [h, w] on a grid of WALL_PX px: 1 on a wall, else 0."""
    side = -(-layout.size_px // WALL_PX)
    pitch = 62 / layout.mpp / WALL_PX  # fat cells of about 60 µm
    count = int(np.ceil(side / pitch)) + 2
    grid = (
        np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2).astype(np.float64)
    )
    seeds = (grid - 0.5 + rng.uniform(-0.42, 0.42, grid.shape)) * pitch
    fat = resize(layout.weight[DOMAINS.index("adipose")], side)
    row, column = np.nonzero(fat > 0.03)
    walls = np.zeros((side, side), dtype=np.float32)
    if len(row):
        distance = np.asarray(cKDTree(seeds).query(np.stack([column, row], axis=1), k=2)[0])
        wall_distance_um = (distance[:, 1] - distance[:, 0]) * WALL_PX * layout.mpp
        walls[row, column] = np.clip(1.5 - wall_distance_um / 3.2, 0, 1)
    return walls


def nucleus(
    rng: np.random.Generator, long_px: float, short_px: float, angle: float, vesicular: float
) -> Field:
    """One nucleus as stain density [m, m] in 0 … 1.

    long_px, short_px: half axes. vesicular: 0 evenly dark (lymphocyte) … 1 pale with a rim and a nucleolus
    (tumor).
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
    """N_SHAPES nuclei of a domain, ordered by direction for stroma and fat, by grade for tumor."""
    shapes = []
    for i in range(N_SHAPES):
        share = i / (N_SHAPES - 1)
        if kind == "tumor":
            long_um = 3.3 + 2.6 * share + rng.normal(0, 0.25)
            short_um, rotation, vesicular, darkness = (
                long_um * rng.uniform(0.72, 0.95),
                rng.uniform(0, np.pi),
                0.7,
                0.9,
            )
            darkness += 0.3 * share
        elif kind == "immune":
            long_um = 3.1 + rng.normal(0, 0.15)
            short_um, rotation, vesicular, darkness = (
                long_um * rng.uniform(0.88, 1),
                rng.uniform(0, np.pi),
                0.1,
                1.12,
            )
        else:
            long_um = 6.8 + rng.normal(0, 0.8)
            short_um, rotation, vesicular, darkness = rng.uniform(1.3, 1.9), np.pi * i / N_SHAPES, 0.2, 0.85
        shapes.append(darkness * nucleus(rng, long_um / mpp, short_um / mpp, rotation, vesicular))
    return shapes


def place_nuclei(rng: np.random.Generator, layout: Layout) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Nuclei on a thinned, jittered grid: centers (x, y) in level-0 px [n, 2] and index in DOMAINS [n].

    High-grade tumor is more crowded.
    """
    densest = max(NUCLEI_PER_MM2.values())
    pitch = 1000 / np.sqrt(densest) / layout.mpp
    axis = np.arange(pitch / 2, layout.size_px, pitch)
    xy_px = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    xy_px[:, 0] += np.where((np.arange(len(xy_px)) // len(axis)) % 2, pitch / 2, 0)
    xy_px += rng.uniform(-0.45, 0.45, xy_px.shape) * pitch
    weight = np.cumsum(layout.at(layout.weight, xy_px), axis=0)
    domain = (rng.random(len(xy_px)) * weight[-1] > weight).sum(axis=0).clip(0, len(DOMAINS) - 1)
    crowding = np.array([NUCLEI_PER_MM2[d] for d in DOMAINS])[domain] / densest
    crowding *= np.where(domain == DOMAINS.index("tumor"), 0.7 + 0.6 * layout.at(layout.grade, xy_px), 1.0)
    keep = rng.random(len(xy_px)) < crowding * (layout.at(layout.tissue, xy_px) > 0.7)
    return xy_px[keep], domain[keep].astype(np.int64)


def draw_nuclei(rng: np.random.Generator, layout: Layout, walls: Field, hematoxylin: Field) -> None:
    """Draw all nuclei into `hematoxylin` [size_px, size_px]; the darker one wins where they overlap.

    walls: of `fat_walls`; nuclei of fat cells are at the walls.
    """
    xy_px, domain = place_nuclei(rng, layout)
    column, row = np.clip(xy_px / WALL_PX, 0, len(walls) - 1).astype(np.int64).T
    visible = (domain != DOMAINS.index("adipose")) | (walls[row, column] > 0.5)
    xy_px, domain = xy_px[visible], domain[visible]
    shapes = [nucleus_shapes(rng, kind, layout.mpp) for kind in DOMAINS]
    jitter = rng.normal(0, 1, len(xy_px))
    by_grade = (layout.at(layout.grade, xy_px) + 0.12 * jitter) * (N_SHAPES - 1)
    by_direction = (layout.at(layout.fiber, xy_px) + 0.2 * jitter) / np.pi * N_SHAPES
    size = layout.size_px
    for i, (x, y) in enumerate(np.rint(xy_px).astype(np.int64)):
        kind = DOMAINS[domain[i]]
        if kind == "stroma" or kind == "adipose":
            index = int(by_direction[i]) % N_SHAPES
        elif kind == "tumor":
            index = int(min(max(by_grade[i], 0), N_SHAPES - 1))
        else:
            index = i % N_SHAPES
        shape = shapes[domain[i]][index]
        reach = shape.shape[0] // 2
        top, left = max(y - reach, 0), max(x - reach, 0)
        bottom, right = min(y + reach + 1, size), min(x + reach + 1, size)
        if top < bottom and left < right:
            under = hematoxylin[top:bottom, left:right]
            part = shape[top - y + reach : bottom - y + reach, left - x + reach : right - x + reach]
            np.maximum(under, part, out=under)


def render_he(rng: np.random.Generator, layout: Layout) -> NDArray[np.uint8]:
    """Render the layout as an H&E image, uint8 [size_px, size_px, 3] RGB on a near-white background.

    Stain strength varies slightly with `rng`, as between real slides.
    """
    size = layout.size_px
    strand = fiber_texture(rng, layout)
    tumor, stroma, adipose, immune = (resize(w, size) for w in layout.weight)
    tissue = np.clip(resize(layout.tissue, size), 0, 1)
    walls = fat_walls(rng, layout)
    grain = repeat(rng.standard_normal((256, 256), dtype=np.float32), size)
    mottle = rng.standard_normal((509, 509), dtype=np.float32)
    mottle = gaussian_filter(mottle, 2.2 / layout.mpp, mode="wrap")
    mottle = repeat(mottle / float(mottle.std()), size)

    eosin = (
        tumor * (0.30 + 0.12 * strand + 0.09 * mottle)
        + stroma * (0.10 + 0.95 * strand**1.3)
        + immune * (0.16 + 0.25 * strand + 0.05 * mottle)
    )
    eosin += adipose * (0.015 + 0.6 * np.clip(resize(walls, size), 0, 1))
    eosin = np.maximum(eosin, 0) * tissue * (1 + 0.05 * grain)
    hematoxylin = tumor * (0.21 + 0.06 * mottle) + immune * 0.10 + stroma * 0.03
    hematoxylin *= tissue
    hematoxylin += 0.012 * np.abs(grain) * tissue
    draw_nuclei(rng, layout, walls, hematoxylin)

    strength_h, strength_e = rng.uniform(0.9, 1.1, 2)
    glass = np.array([244, 243, 245]) + rng.uniform(-2, 2, 3)
    image = np.empty((size, size, 3), dtype=np.uint8)
    for channel in range(3):
        density = hematoxylin * (strength_h * 1.25 * HEMATOXYLIN[channel]) + eosin * (
            strength_e * EOSIN[channel]
        )
        light = glass[channel] * np.exp(-density) + 1.2 * grain
        image[..., channel] = np.clip(light, 0, 255)
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.35 / layout.mpp))
    return np.asarray(blurred, dtype=np.uint8)


def repeat(tile: Field, side_px: int) -> Field:
    """Repeat `tile` over [side_px, side_px]."""
    times = -(-side_px // len(tile))
    return np.tile(tile, (times, times))[:side_px, :side_px]
