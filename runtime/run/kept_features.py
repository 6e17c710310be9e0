"""A run's embeddings: encoded now, or what an earlier run of the same tiles and encoder left in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Any, Self

import numpy as np

from mclst.runtime.encoder.cpu_stages import CpuSession
from mclst.runtime.encoder.ring import Group, Ring, Stages, Step
from mclst.runtime.features.cache import FeatureCache, FeatureWriter, StoredFeatures
from mclst.runtime.providers.candidates import device_id
from mclst.runtime.run.context import RunContext
from mclst.runtime.run.hashes import RemoteIdentity, SlideHash
from mclst.runtime.versions import PACKAGES, installed_versions

IRRELEVANT = {"faiss-cpu"}
"""Of the packages that affect a map, those that do not affect an embedding."""


class KeptFeatures:
    """The encoder's output of a run, group by group; use as a context.

    A group is what it would be without the cache, to the bit: the key holds all that decides it.

    Parameters
    ----------
    run : RunContext
    slide_hash : SlideHash or RemoteIdentity
    on_device : bool
        Whether embeddings stay on a device; then none are kept or used.

    Attributes
    ----------
    ring : Ring or None
        What encodes, once it does.
    """

    def __init__(self, run: RunContext, slide_hash: SlideHash | RemoteIdentity, *, on_device: bool) -> None:
        self._run, self._hash = run, slide_hash
        self._stack = ExitStack()
        self.ring: Ring | None = None
        self._stored: StoredFeatures | None = None
        self._writer: FeatureWriter | None = None
        if not run.options.cache or on_device:
            return
        cache, count = FeatureCache.of_user(), len(run.inputs.spots)
        if not cache.limit_bytes:
            return
        encoder = run.model.encoder_sha256(run.session, run.options.precision)
        if encoder is None:
            return
        key = _key(run, encoder)
        self._stored = cache.find(key, slide_hash.result, count)
        if self._stored is not None:
            self._stack.callback(self._stored.close)
        elif not run.tiles.done.any():
            self._writer = self._stack.enter_context(cache.writer(key, count))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def stored(self) -> bool:
        """Whether nothing needs to be encoded."""
        return self._stored is not None

    def add(self, group: Group) -> None:
        """Take the values of a group for the next run, as the encoder gave them."""
        if self._writer is not None:
            self._writer.add(group.rows, group.values)

    def steps(self, open_stages: Callable[[], Stages]) -> Generator[Step]:
        """Yield the steps of a `Ring`; open_stages: called if tiles must be encoded."""
        if self._stored is not None:
            yield from self._kept(self._stored)
            return
        self.ring = Ring(open_stages())
        with closing(self.ring.run(self._run.tiles)) as steps:
            for step in steps:
                if self._writer is not None and step.failed:  # perhaps readable next time
                    self._writer.abandon()
                yield step

    def finish(self) -> None:
        """Keep what was encoded, once the slide is known not to have changed."""
        if self._writer is None:
            return
        self._writer.finish(self._hash.result())
        if self._writer.trouble:
            self._run.log.note(f"embeddings are not kept for the next run: {self._writer.trouble}")

    def _kept(self, stored: StoredFeatures) -> Generator[Step]:
        run = self._run
        run.log.note(
            "the embeddings are those of an earlier run of this slide, so nothing is encoded; --no-cache "
            "encodes again"
        )
        for rows, values in stored.blocks():
            if not run.tiles.done[rows].all():
                run.log.reused += len(rows)
                yield Step((), len(rows), Group(rows, values))


def _key(run: RunContext, encoder: str) -> dict[str, Any]:
    """Return all that decides an embedding but the slide's content."""
    slide, tiles, provider = run.inputs.slide, run.tiles, run.session.provider
    xy_px = np.ascontiguousarray(run.inputs.spots.xy_px, "<f8")
    # With them, the tiles that go through a large network at once.
    lanes = run.session.lanes if isinstance(run.session, CpuSession) and run.session.heavy else None
    return {
        "reader": slide.reader,
        "spots": [len(xy_px), hashlib.sha256(xy_px.tobytes()).hexdigest()],
        "tiles": [str(tiles.plan), *tiles.shape.pad, tiles.batch_size, tiles.group],
        "encoder": encoder,
        "precision": run.options.precision,
        "provider": [provider, run.session.engine],
        "lanes": lanes,
        "device": device_id(provider),
        "versions": installed_versions([name for name in PACKAGES if name not in IRRELEVANT]),
    }
