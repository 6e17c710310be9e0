"""Features of the tiles under a section's spots, by the encoder's exported graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mclst.export.onnx.graph import write_graph
from mclst.models.fitted import FeatureEncoder, weights_sha256
from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.recipe import Recipe
from mclst.models.views import view_px
from mclst.runtime.bundle.manifest import Preprocessing, Tile
from mclst.runtime.encoder.ring import Ring
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import ReferenceDataError
from mclst.runtime.features.cache import FeatureCache, FeatureWriter, StoredFeatures
from mclst.runtime.progress import Clock
from mclst.runtime.providers.opening import EncoderRequest, open_encoder
from mclst.runtime.slide.base import Slide, TileReadError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.storage.digest import slide_sha256
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.location import local_path
from mclst.training.fitting.sections import FitSection

GROUP_BATCHES = 8
SAMPLE_BYTES, MOST_SAMPLES = 12 << 20, 16
"""Most tiles kept of a section, whatever the other sections: the features' file holds them. 16 of up to 448
px are enough for one section to prove a reduced precision and to calibrate int8."""


@dataclass(frozen=True)
class EncoderSetup:
    """An encoder and the tiles it sees.

    recipe: of the network. state: its weights. views: fields of view, as multiples of the recipe's own. mpp:
    µm/px of its own field of view, None: level-0 px. provider, batch_size, workers: how it runs.
    """

    recipe: Recipe
    state: dict[str, Tensor] = field(repr=False)
    views: tuple[float, ...] = (1.0,)
    mpp: float | None = None
    provider: str = "auto"
    batch_size: int = 16
    workers: int = 2

    @property
    def tile(self) -> Tile:
        """The tile of a bundle: the largest view."""
        return Tile(size_px=max(view_px(self.recipe.tile_px, view) for view in self.views), mpp=self.mpp)

    @property
    def preprocessing(self) -> Preprocessing:
        """The recipe's."""
        return Preprocessing(mean=self.recipe.mean, std=self.recipe.std)

    @property
    def width(self) -> int:
        """Features per tile."""
        return self.recipe.width * len(self.views)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights, whatever file they came in."""
        return weights_sha256(self.state)


@dataclass(frozen=True)
class TileFeatures:
    """Features of a section's tiles.

    values: float32 [n, F], 0 where a tile could not be read. failed: {row: reason}. sample: uint8 [t, S, S,
    3], some of the tiles.
    """

    values: NDArray[np.float32]
    failed: Mapping[int, str]
    sample: NDArray[np.uint8]

    @classmethod
    def of(cls, stored: StoredFeatures, size_px: int) -> Self:
        """Read features from the cache; size_px: side of a tile."""
        values = np.zeros((len(stored) + len(stored.failed), stored.width), np.float32)
        for rows, block in stored.blocks():
            values[rows] = block
        sample = np.frombuffer(stored.attachment, np.uint8).reshape(-1, size_px, size_px, 3)
        return cls(values, stored.failed, sample.copy())


class FeatureSource:
    """Encodes sections; the graph is traced and opened when the first section is not in the cache.

    Parameters
    ----------
    setup : EncoderSetup
    cache : FeatureCache
    say : callable
        Called with what takes time.
    """

    def __init__(
        self,
        setup: EncoderSetup,
        cache: FeatureCache,
        *,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.setup, self._cache, self._say = setup, cache, say
        self._scratch: TemporaryDirectory[str] | None = None
        self._session: Session | None = None
        self.provider = ""
        self.encoded = 0
        """Tiles that were encoded, not taken from the cache."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
        if self._scratch is not None:
            self._scratch.cleanup()

    def encode(
        self, section: FitSection, samples: int, advance: Callable[[int], None] = lambda n: None
    ) -> TileFeatures:
        """Encode a section's tiles, or take them from the cache.

        Parameters
        ----------
        section : FitSection
        samples : int
            Tiles to keep as they are.
        advance : callable
            Called with the number of tiles done.

        Raises
        ------
        SlideError
            If the image cannot be read or its scale is unknown.
        ReferenceDataError
            If a feature is not finite.
        """
        setup, tile, count = self.setup, self.setup.tile, len(section.spot)
        with open_slide(section.image, lazy=True) as slide:
            tile_shape = TileShape(tile.size_px, tile.mpp, tile.pad)
            tiles = Tiles(
                slide,
                section.xy_px,
                tile_shape,
                batch_size=setup.batch_size,
                workers=setup.workers,
                slide_mpp=section.mpp,
                group=GROUP_BATCHES,
            )
            key = {
                "reader": slide.reader,
                "spots": [count, _digest(section)],
                "tile": [str(tiles.plan), *tile.pad],
                "recipe": json.dumps(setup.recipe.record(), sort_keys=True),
                "weights": setup.weights_sha256,
                "views": setup.views,
                "samples": samples,
            }
            sha256 = cache(lambda: _identity(slide))
            kept = self._cache.find(key, sha256, count)
            if kept is not None:
                advance(count)
                with closing(kept):
                    return TileFeatures.of(kept, tile.size_px)
            with self._cache.writer(key, count) as writer:
                features = self._encode(section, tiles, samples, writer, advance)
                if slide.remote is not None:
                    slide.remote.check_unchanged()
                writer.finish(sha256(), failed=features.failed, attachment=features.sample.tobytes())
                if writer.trouble:
                    self._say(f"the features are not kept for the next fit: {writer.trouble}")
        return features

    def _encode(
        self,
        section: FitSection,
        tiles: Tiles,
        samples: int,
        writer: FeatureWriter,
        advance: Callable[[int], None],
    ) -> TileFeatures:
        session = self._open()
        count = len(section.spot)
        values, failed = np.zeros((count, self.setup.width), np.float32), dict[int, str]()
        stages = session.stages(
            min(tiles.batch_size, count),
            group_rows=min(tiles.batch_size * tiles.group, count),
            on_device=False,
            clock=Clock(),
        )
        with closing(Ring(stages).run(tiles)) as steps:
            for step in steps:
                failed.update(step.failed)
                if step.group is not None:
                    values[step.group.rows] = step.group.values
                    writer.add(step.group.rows, step.group.values)
                advance(step.count)
        self.encoded += count
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise ReferenceDataError(
                f"the encoder gives features that are not finite for spot {section.spot[bad[0]]} of section "
                f"{section.name}; check the weights of {self.setup.recipe.title}"
            )
        readable = np.array([row for row in range(count) if row not in failed], np.int64)
        return TileFeatures(values, failed, sample_tiles(tiles, readable, samples)[1])

    def _open(self) -> Session:
        if self._session is None:
            setup = self.setup
            self._say(f"tracing {setup.recipe.title} to ONNX")
            self._scratch = TemporaryDirectory(prefix="mclst-fit-")
            folder = Path(self._scratch.name)
            network = FeatureEncoder(setup.recipe, setup.views, build_encoder(setup.recipe, setup.state))
            write_graph(network, setup.tile, setup.preprocessing, folder / "encoder.onnx")
            request = EncoderRequest(
                folder, folder / "encoder.onnx", "fp32", setup.batch_size, notify=self._say
            )
            self._session, _ = open_encoder(setup.provider, request)
            self.provider = self._session.provider
        return self._session


def samples_per_section(tile: Tile) -> int:
    """Tiles to keep of each section for an export's parity check."""
    return max(1, min(MOST_SAMPLES, SAMPLE_BYTES // (3 * tile.size_px**2)))


def sample_tiles(
    tiles: Tiles, rows: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read at most `count` tiles, evenly over `rows`; those that cannot be decoded are left out.

    Returns their rows int64 [t] and pixels uint8 [t, S, S, 3].
    """
    side = tiles.shape.size_px
    spread = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)
    chosen: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    for row in rows[np.unique(spread)].tolist():
        try:
            pixels.append(tiles.read_tile(row))
        except TileReadError:
            continue
        chosen.append(row)
    return np.array(chosen, np.int64), np.array(pixels, np.uint8).reshape(-1, side, side, 3)


def _identity(slide: Slide) -> str:
    """What tells a slide's content from another's."""
    if slide.remote is not None:
        return slide.remote.identity()
    path = local_path(slide.path)
    assert path is not None, "a slide that is not remote has a path"
    return slide_sha256(path)


def _digest(section: FitSection) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(section.xy_px).tobytes()).hexdigest()
