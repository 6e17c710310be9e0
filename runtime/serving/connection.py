"""A connection to a server: what it serves, and sending tiles from any thread."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.bundle.calibration import MAX_BYTES, check_record, parse_calibration
from mclst.runtime.bundle.manifest import CALIBRATION
from mclst.runtime.errors import BundleError, InputError, ServerError
from mclst.runtime.serving.client import ANYONE, EXPORT_AGAIN, Address, Answer, ProtocolClient, Tensors
from mclst.runtime.serving.flow_control import FlowControl
from mclst.runtime.serving.security import Credentials
from mclst.runtime.serving.server_manifest import (
    ASK,
    MANIFEST,
    PART_BYTES,
    TILES,
    inner_model,
    read_served,
)
from mclst.runtime.trust.calibration import Calibration

T = TypeVar("T")

REQUEST_BYTES = 4_000_000
"""Longest request and answer of more than one tile: gRPC servers take 4 MiB by default."""

END_S = 5.0


class Server:
    """A server of the Open Inference Protocol with a bundle behind it; a context manager.

    Parameters
    ----------
    url : str
        `http://host:port`, `https://host`, `grpc://host:port` or `grpcs://host:port`.
    model : str
        Name of the model that takes tiles.
    patience_s : float
        How long the server may give no answer.
    at_once : int
        Most requests under way.
    batch : int, optional
        Most tiles per request; a request never exceeds REQUEST_BYTES.
    notify : callable
        Called with notes on the connection for the user.
    credentials : Credentials
        Whom to trust, and the bearer token to send.

    Attributes
    ----------
    served : Served
        The server's manifest.
    program : str
        Name and version of the server's program.
    outputs : dict of str to int
        Width of each output, in the order of the columns of `submit`.
    batch, at_once : int
    flow : FlowControl

    Raises
    ------
    ServerError
        If this is no server of an mclst bundle.
    ResourceError
        If there is no answer, or no client library.
    InputError
        If the URL is invalid.
    """

    def __init__(
        self,
        url: str,
        model: str = "mclst",
        *,
        patience_s: float = 120.0,
        at_once: int = 8,
        batch: int | None = None,
        notify: Callable[[str], None] = lambda text: None,
        credentials: Credentials = ANYONE,
    ) -> None:
        try:
            self.address = Address.of(url)
        except ValueError as error:
            raise InputError(f"{error}; give --server as one of these") from error
        self.model, self._credentials = model, credentials
        self.version = ""
        self.flow = FlowControl(at_once, patience_s, str(self.address))
        self.flow.notify = notify
        self.at_once = at_once
        self._thread = _LoopThread()
        try:
            self._client = self._thread.run(self._connect())
            self._document = self._ask(0)
            self.served = read_served(self._document, f"{self.address}, model {inner_model(model, MANIFEST)}")
            if self.served.name != model:
                raise ServerError(
                    f"{self.address}: model {model!r} comes with the document of {self.served.name!r}; "
                    f"{EXPORT_AGAIN}"
                )
            self.program: str = self._call(self._client.server)
            self.outputs = self.served.outputs
            self._check_tensors(self._call(lambda: self._client.tensors(model)))
        except BaseException:
            self.close()
            raise
        tile_px = self.served.bundle.manifest.tile.size_px
        most = min(self.served.max_batch, batch or self.served.max_batch)
        self.batch = batch_of(most, tile_bytes=3 * tile_px**2, row_bytes=4 * self.width)

    @property
    def width(self) -> int:
        """Values per tile, in all outputs."""
        return sum(self.outputs.values())

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration of the server's bundle, by its SHA-256; None if the repository has none.

        Raises ServerError if the server gives another.
        """
        manifest = self.served.bundle.manifest
        if not self.served.calibrated:
            return None
        record, origin = manifest.files[CALIBRATION], f"{CALIBRATION} of {self.address}"
        if record.bytes > MAX_BYTES:
            raise ServerError(f"{origin} is larger than {MAX_BYTES >> 20} MiB; {EXPORT_AGAIN}")
        parts = range(1, 1 + -(-record.bytes // PART_BYTES))
        content = b"".join(self._ask(number) for number in parts)
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise ServerError(f"{origin} is not the one of its bundle (SHA-256 differs); {EXPORT_AGAIN}")
        try:
            dim = manifest.encoder.embedding_dim
            values = parse_calibration(content, origin, genes=manifest.genes, dim=dim)
            return check_record(values, manifest, origin)
        except BundleError as error:
            raise ServerError(str(error)) from error

    def submit(self, tiles: NDArray[np.uint8]) -> Future[NDArray[np.float32]]:
        """Send tiles.

        Parameters
        ----------
        tiles : uint8 array [n, S, S, 3]
            At most `batch`; must not change until answered.

        Returns
        -------
        Future of float32 array [n, width]
            Holds ServerError for an invalid answer, ResourceError for none.
        """
        return self._thread.start(self.predict_expression(tiles, self.flow))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on this connection's event loop, and wait for it."""
        return self._thread.run(work)

    def check_same(self) -> None:
        """Raise ServerError if the server's manifest has changed since this was opened."""
        document = self._ask(0)
        if document != self._document:
            now = read_served(document, str(self.address))
            change = "another bundle" if now.bundle.sha256 != self.served.bundle.sha256 else "in another way"
            raise ServerError(
                f"{self.address} serves {change} than when this run began; once it serves bundle "
                f"{self.served.bundle.sha256[:12]} as before, the same command resumes, and with --no-resume "
                "it starts over"
            )

    def close(self) -> None:
        """Cancel pending requests and close the connections."""
        self._thread.close(self._client.close if hasattr(self, "_client") else None)

    def _call(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._thread.run(self.flow.send(request))

    async def _connect(self) -> ProtocolClient:
        return ProtocolClient(self.address, self._credentials)

    def _ask(self, number: int) -> bytes:
        """Return the document, 0, or a part of the calibration."""
        model = inner_model(self.model, MANIFEST)
        ask = {ASK: np.array([number], np.int32)}
        document = self._call(lambda: self._client.infer(model, ask, (MANIFEST,))).arrays[MANIFEST]
        if document.shape != (1,) or not isinstance(document[0], bytes):
            raise ServerError(f"{self.address}: model {model!r} gives no document; {EXPORT_AGAIN}")
        return bytes(document[0])

    def _check_tensors(self, tensors: Tensors) -> None:
        side = self.served.bundle.manifest.tile.size_px
        inputs = {TILES: ("UINT8", (-1, side, side, 3))}
        outputs = {name: ("FP32", (-1, width)) for name, width in self.outputs.items()}
        if tensors.inputs != inputs or tensors.outputs != outputs:
            raise ServerError(
                f"{self.address}: model {self.model!r} takes {_describe(tensors.inputs)} and gives "
                f"{_describe(tensors.outputs)}, where "
                f"its bundle takes {_describe(inputs)} and gives {_describe(outputs)}; {EXPORT_AGAIN}"
            )

    async def predict_expression(self, tiles: NDArray[np.uint8], flow: FlowControl) -> NDArray[np.float32]:
        """See `submit`; through the caller's own flow control."""
        names = tuple(self.outputs)
        answer: Answer = await flow.send(lambda: self._client.infer(self.model, {TILES: tiles}, names))
        for name, width in self.outputs.items():
            array = answer.arrays[name]
            if array.shape != (len(tiles), width) or array.dtype != np.float32:
                raise ServerError(
                    f"{self.address} gives {name} as {array.dtype} {list(array.shape)} where float32 "
                    f"{[len(tiles), width]} is due; {EXPORT_AGAIN}"
                )
            if not np.isfinite(array).all():
                raise ServerError(
                    f"{self.address} gives {name} that is not finite; look at the server's log, and export "
                    "its bundle again"
                )
        self.version = self.version or answer.version
        if answer.version != self.version:
            raise ServerError(
                f"{self.address} serves version {answer.version} of {self.model!r} now and served "
                f"{self.version} before; run again once one version alone is served"
            )
        return np.concatenate([answer.arrays[name] for name in self.outputs], axis=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _describe(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {kind} {list(shape)}" for name, (kind, shape) in tensors.items()) or "nothing"


def batch_of(most: int, *, tile_bytes: int, row_bytes: int) -> int:
    """Return tiles per request, 1 to `most`, so that request and answer fit into REQUEST_BYTES."""
    return max(1, min(most, REQUEST_BYTES // max(tile_bytes, row_bytes)))


class _LoopThread:
    """An event loop in a separate thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="mclst-server", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for it."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        """Cancel what is under way, run `last`, and end; may be called again."""
        if self._loop.is_closed():
            return
        with suppress(TimeoutError):
            self.start(_end(last)).result(END_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(END_S)
        if not self._thread.is_alive():
            self._loop.close()


async def _end(last: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if last is not None:
        await last()
