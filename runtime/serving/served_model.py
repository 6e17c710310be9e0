"""A server as a run's model: its encoder, retrieval and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.encoder.ring import GROUPS
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import InputError
from mclst.runtime.inference.memory_budget import Fit
from mclst.runtime.inference.model import EncoderSettings
from mclst.runtime.inference.readout import RETRIEVE_ROWS, Readout, without_neighbors
from mclst.runtime.progress import Clock, Notify
from mclst.runtime.providers.candidates import ChoiceRequest
from mclst.runtime.providers.choice import EncoderChoice
from mclst.runtime.providers.timings import Candidate
from mclst.runtime.serving.connection import Server
from mclst.runtime.serving.server_manifest import (
    DISTANCE,
    EFFECTIVE_K,
    EXPRESSION,
    NEAREST,
    SECTION_SHARE,
)
from mclst.runtime.trust.calibration import Calibration
from mclst.runtime.trust.measures import PlacedResult
from mclst.sections.section import Spots

AHEAD = 2
"""Batches to read ahead while the maximum number of requests is under way."""


class ServerSession:
    """Session over a server: rows of expression and what `Served.outputs` has beside it."""

    provider = "server"

    def __init__(self, server: Server) -> None:
        self._server = server
        versions = ", ".join(f"{name} {version}" for name, version in sorted(server.served.versions.items()))
        self.engine = f"{server.served.backend}, {versions}"

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, S, S, 3] → float32 [N, D], in one request."""
        return self._server.submit(tiles).result()

    def stages(
        self, batch: int, *, group_rows: int, on_device: bool, clock: Clock, slots: int | None = None
    ) -> ServerStages:
        """See Session; begins a run."""
        self._server.flow.begin()
        return ServerStages(self._server, batch, group_rows, clock, slots or self._server.at_once + AHEAD)


class ServerStages:
    """Stages over a server: a batch is a request, whose buffer is free once it is answered."""

    def __init__(self, server: Server, batch: int, group_rows: int, clock: Clock, slots: int) -> None:
        side = server.served.bundle.manifest.tile.size_px
        self.slots = slots
        self.groups = max(GROUPS, 1 + -(-slots * batch // group_rows))
        self._server, self._clock = server, clock
        self._tiles = [np.empty((batch, side, side, 3), np.uint8) for _ in range(slots)]
        self._under_way: dict[int, Future[NDArray[np.float32]]] = {}
        self._gathered: dict[int, list[tuple[int, Future[NDArray[np.float32]]]]] = {}

    def tiles(self, slot: int) -> NDArray[np.uint8]:
        """See Stages."""
        return self._tiles[slot]

    def upload(self, slot: int, n: int, after: Sequence[Any]) -> Future[NDArray[np.float32]]:
        """See Stages: sends the request; it may be sent again, so the ticket is the answer."""
        self._under_way[slot] = self._server.submit(self._tiles[slot][:n])
        return self._under_way[slot]

    def encode(self, slot: int, n: int, after: Sequence[Any]) -> Future[NDArray[np.float32]]:
        """See Stages: already under way."""
        return self._under_way[slot]

    def gather(
        self, slot: int, n: int, group: int, at: int, after: Sequence[Any]
    ) -> Future[NDArray[np.float32]]:
        """See Stages."""
        if at == 0:
            self._gathered[group] = []
        self._gathered[group].append((at, self._under_way[slot]))
        return self._under_way[slot]

    def group(self, group: int, n: int) -> NDArray[np.float32]:
        """See Stages: puts the answers into the order of their tiles."""
        rows = np.empty((n, self._server.width), np.float32)
        for at, future in self._gathered[group]:
            if at < n:
                answer = future.result()
                rows[at : at + len(answer)] = answer
        return rows

    def done(self, ticket: Future[NDArray[np.float32]]) -> bool:
        """See Stages."""
        return ticket.done() and ticket.result() is not None

    def wait(self, ticket: Future[NDArray[np.float32]]) -> None:
        """See Stages."""
        ticket.result()

    def close(self) -> None:
        """See Stages; time with requests under way counts as encoding."""
        for future in self._under_way.values():
            future.cancel()
        self._clock["encode"] = self._clock.get("encode", 0.0) + self._server.flow.counts.busy_s


class ServerReadout:
    """Readout over a server, whose answers are expression already."""

    on_device = False
    rows_at_once = RETRIEVE_ROWS

    def __init__(self, server: Server) -> None:
        retrieval = server.served.bundle.manifest.retrieval
        self._server = server
        self.provider = server.served.retriever or "none"
        self.settings: dict[str, Any] = {} if retrieval is None else asdict(retrieval.spec())

    def predict_expression(self, rows: NDArray[np.int64], features: NDArray[np.float32]) -> RetrievalResult:
        """Split the answers [b, D]; raise ServerError if the server's bundle has changed."""
        self._server.check_same()
        starts = np.cumsum([0, *self._server.outputs.values()])[:-1]
        values = dict(zip(self._server.outputs, np.split(features, starts[1:], axis=1), strict=True))
        columns = {name: np.ascontiguousarray(part[:, 0]) for name, part in values.items()}
        result = without_neighbors(np.ascontiguousarray(values[EXPRESSION]))
        return PlacedResult(
            result.expression,
            columns.get(NEAREST, result.nearest),
            columns.get(EFFECTIVE_K, result.effective_k),
            distance=columns.get(DISTANCE),
            section_share=columns.get(SECTION_SHARE),
        )


class ServedModel:
    """A `Model` over a server; a run's provider, precision and batch size are the server's.

    Parameters
    ----------
    server : Server
        Opened, and open for as long as this is used.
    """

    def __init__(self, server: Server) -> None:
        self._connection, served = server, server.served
        self.manifest, self.sha256 = served.bundle.manifest, served.bundle.sha256
        self.folder: Path | None = None
        self.server = str(server.address)
        self.output_dim = server.width
        self.precisions: tuple[str, ...] = (served.precision,)
        self.encoder_settings: EncoderSettings | None = EncoderSettings(
            ServerSession.provider, served.precision, server.batch
        )

    @property
    def genes(self) -> list[str]:
        """See Model."""
        return list(self._connection.served.genes)

    @property
    def gene_ids(self) -> list[str] | None:
        """See Model."""
        ids = self._connection.served.gene_ids
        return None if ids is None else list(ids)

    @property
    def calibration(self) -> Calibration | None:
        """See Model: fetched from the server on first use; the server measures the distances."""
        return self._connection.calibration

    def server_record(self) -> dict[str, Any] | None:
        """See Model."""
        served, connection = self._connection.served, self._connection
        return {
            "url": self.server,
            "model": connection.model,
            "model_version": connection.version,
            "program": connection.program,
            "backend": served.backend,
            "versions": served.versions,
            "requests": connection.flow.counts.as_json(),
        }

    def prepare(
        self, provider: str, precision: str, batch_size: int, *, retriever: str, retrieval: Mapping[str, Any]
    ) -> None:
        """See Model: the server is open already."""

    def wait(self) -> None:
        """See Model."""

    def choose_encoder(
        self, request: ChoiceRequest, notify: Notify, *, run_tiles: int | None = None
    ) -> EncoderChoice:
        """See Model: `encoder_settings` names the only one."""
        return EncoderChoice(request.provider, request.precision)

    def pearson_kept(self, precision: str) -> float | None:
        """See Model: unknown here."""
        return None

    def check_unchanged(self) -> None:
        """See Model: each answer is checked instead, by `ServerReadout`."""

    def encoder(
        self, name: Candidate, batch_size: int, *, build: bool, notify: Notify
    ) -> tuple[Session, str]:
        """See Model."""
        self._connection.flow.notify = notify
        return ServerSession(self._connection), ""

    def head(self, session: Session, precision: str) -> None:
        """See Model: the server runs the whole graph."""
        return

    def encoder_sha256(self, session: Session, precision: str) -> None:
        """See Model: what the server computes is kept there, or nowhere."""
        return

    def readout(
        self,
        spec: RetrievalSpec | None,
        spots: Spots,
        provider: str,
        retriever: str,
        precision: str,
        *,
        fp16: bool,
    ) -> Readout:
        """See Model; raises InputError if the retrieval is not the server's."""
        settings = self.manifest.retrieval
        served = None if settings is None else settings.spec()
        if spec != served:
            raise InputError(
                f"{self.server} retrieves with {served or 'no bank'} and this run asks for {spec}; leave the "
                "retrieval options out, or serve another bundle"
            )
        return ServerReadout(self._connection)

    def measure_free_memory(self) -> None:
        """See Model: nothing is opened here."""

    def fit(self, session: Session, readout: Readout, budget: int, max_batch: int) -> Fit:
        """Raise InputError: the server decides about memory."""
        raise InputError(
            "a memory budget does not go with a server, which decides what it takes; leave it out"
        )
