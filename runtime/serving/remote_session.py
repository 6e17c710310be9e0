"""What a run takes in place of a bundle's encoder and bank: a server that does the work of both."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.bundle.bank import Bank
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.ring import GROUPS
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import BundleError, InputError
from mclst.runtime.inference.loaded_model import ModelCache
from mclst.runtime.inference.memory_budget import Fit
from mclst.runtime.inference.providers import EncoderRequest
from mclst.runtime.inference.readout import RETRIEVE_ROWS, Readout, without_neighbours
from mclst.runtime.progress import Clock
from mclst.runtime.serving.connection import Server
from mclst.runtime.serving.flow_control import Counts
from mclst.sections.section import Spots

AHEAD = 2
"""Batches read while as many requests as may be are under way."""


@dataclass(frozen=True)
class ServedBundleProxy(Bundle):
    """The bundle behind a server: what it says of itself. Its files are not here."""

    connection: Server | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, connection: Server) -> ServedBundleProxy:
        """The bundle behind an opened server."""
        told = connection.served.bundle
        return cls(Path(str(connection.address)), told.manifest, told.sha256, connection=connection)

    @property
    def server(self) -> str:
        """See Bundle."""
        return str(self._open.address)

    @property
    def _open(self) -> Server:
        assert self.connection is not None, "made by `of`"
        return self.connection

    @property
    def precisions(self) -> tuple[str, ...]:
        """The one it is served in."""
        return (self._open.served.precision,)

    @property
    def encoder_gives(self) -> int:
        """See Bundle: expression, and what belongs to it."""
        return self._open.width

    @cached_property
    def genes(self) -> list[str]:
        """See Bundle."""
        return list(self._open.served.genes)

    @cached_property
    def bank(self) -> Bank:
        """Not here: raises BundleError."""
        raise BundleError(f"the bank of this bundle is on {self.server}, and stays there")

    __repr__ = Bundle.__repr__


class ServerSession:
    """Session over a server: its rows hold expression and, with retrieval, nearest distance and effective k."""

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
        """See Session. Counts anew."""
        self._server.flow.counts = Counts()
        return ServerStages(self._server, batch, group_rows, clock, slots or self._server.at_once + AHEAD)


class ServerStages:
    """Stages over a server: a batch is a request, and its buffer is free once the answer is there."""

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
        """See Stages: sends the request, which may have to be sent again, so its ticket is the answer."""
        self._under_way[slot] = self._server.submit(self._tiles[slot][:n])
        return self._under_way[slot]

    def encode(self, slot: int, n: int, after: Sequence[Any]) -> Future[NDArray[np.float32]]:
        """See Stages: under way already."""
        return self._under_way[slot]

    def gather(
        self, slot: int, n: int, group: int, at: int, after: Sequence[Any]
    ) -> Future[NDArray[np.float32]]:
        """See Stages."""
        self._gathered.setdefault(group, []).append((at, self._under_way[slot]))
        return self._under_way[slot]

    def group(self, group: int, n: int) -> NDArray[np.float32]:
        """See Stages: puts the answers, in whatever order they came, where their tiles belong."""
        answers = self._gathered.pop(group)
        given = np.empty((n, self._server.width), np.float32)
        for at, future in answers:
            answer = future.result()
            given[at : at + len(answer)] = answer
        return given

    def done(self, ticket: Future[NDArray[np.float32]]) -> bool:
        """See Stages."""
        return ticket.done() and ticket.result() is not None

    def wait(self, ticket: Future[NDArray[np.float32]]) -> None:
        """See Stages."""
        ticket.result()

    def close(self) -> None:
        """See Stages; the time with requests under way counts as encoding."""
        for future in self._under_way.values():
            future.cancel()
        self._clock["encode"] = self._clock.get("encode", 0.0) + self._server.flow.counts.busy_s


class ServerReadout:
    """Readout over a server: what it gave is expression already."""

    on_device = False
    rows_at_once = RETRIEVE_ROWS
    resumable = True

    def __init__(self, server: Server) -> None:
        retrieval = server.served.bundle.manifest.retrieval
        self._server = server
        self.provider = server.served.retriever or "none"
        self.settings: dict[str, Any] = {} if retrieval is None else asdict(retrieval.spec())

    def predict_expression(self, rows: NDArray[np.int64], given: NDArray[np.float32]) -> RetrievalResult:
        """Expression of the spots `rows` [b] from `given` [b, D]; ServerError where the server's bundle was changed."""
        self._server.check_same()
        genes = len(self._server.served.genes)
        expression = np.ascontiguousarray(given[:, :genes])
        if given.shape[1] == genes:
            return without_neighbours(expression)
        return RetrievalResult(expression, given[:, genes].copy(), given[:, genes + 1].copy())


class ServerModel(ModelCache):
    """In place of an encoder and a bank opened here: a server, for one slide after another."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `predict` that go with it."""
        return {
            "provider": ServerSession.provider,
            "precision": self._server.served.precision,
            "batch_size": self._server.batch,
        }

    @property
    def encoder_is_open(self) -> bool:
        """Whether the server is still believed to answer."""
        return not self._server.flow.gave_up

    @property
    def told(self) -> dict[str, Any]:
        """See Opened."""
        served, server = self._server.served, self._server
        return {
            "server": {
                "url": str(server.address),
                "model": server.model,
                "model_version": server.version,
                "program": server.program,
                "backend": served.backend,
                "versions": served.versions,
                "requests": server.flow.counts.as_json(),
            }
        }

    def encoder(self, provider: str, request: EncoderRequest) -> tuple[Session, str]:
        """The server; `request` says how many tiles are sent at once."""
        if request.batch > self._server.batch:
            raise InputError(
                f"{self._server.address} takes {self._server.batch} tiles at once and not {request.batch}; give a smaller batch"
            )
        self._server.flow.tell = request.tell
        return ServerSession(self._server), ""

    def readout(
        self,
        bundle: Bundle,
        spec: RetrievalSpec | None,
        spots: Spots,
        provider: str,
        retriever: str,
        precision: str,
        *,
        half: bool = False,
    ) -> Readout:
        """The server; raises InputError where a retrieval is asked for that is not the server's."""
        retrieval = self._server.served.bundle.manifest.retrieval
        own = None if retrieval is None else retrieval.spec()
        if spec != own:
            raise InputError(
                f"{self._server.address} retrieves with {own or 'no bank'} and this run asks for {spec}; leave the "
                "retrieval options out, or serve another bundle"
            )
        return ServerReadout(self._server)

    def before_anything(self) -> None:
        """Nothing is opened here."""

    def fit(self, session: Session, readout: Readout, budget: int, most: int) -> Fit:
        """No budget of memory here decides what a server takes: raises InputError."""
        raise InputError(
            "a memory budget does not go with a server, which decides what it takes; leave it out"
        )
