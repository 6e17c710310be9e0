"""A request to a server of the Open Inference Protocol, version 2, by HTTP or gRPC: arrays there, arrays back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import ResourceError, ServerError
from mclst.runtime.serving.flow_control import Busy, Lost

BUSY = ("429", "503", "UNAVAILABLE", "RESOURCE_EXHAUSTED")
FAILED = (
    *("408", "500", "502", "504", "520", "521", "522", "523", "524"),
    *("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "DATA_LOSS"),
)
"""Answers after which the same request may yet be answered; a Triton that is restarted gives some of them."""

NO_CONNECTION = re.compile(r"connect|socket|reset|closed|goaway|eof|stream|transport", re.IGNORECASE)
"""What gRPC says under UNAVAILABLE where no server spoke."""

DATATYPES = {np.dtype(np.uint8): "UINT8", np.dtype(np.int32): "INT32"}
LONGEST_REASON = 300

GRPC_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Its own pauses between connections grow to minutes; a server that is restarted would wait for them.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Tiles of patients go to the server that was named, and through no proxy of the environment.
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True)
class Address:
    """Where a server is: `http://host:port`, with a path if wished, or `grpc://host:port`."""

    protocol: str
    place: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Understand a URL; ValueError in words where it is none of these."""
        try:
            found = urlsplit(url.strip())
            port, host = found.port, found.hostname
        except ValueError as error:
            raise ValueError(f"{url!r} is no URL ({error})") from error
        if found.scheme not in ("http", "grpc") or not host or (found.scheme == "grpc" and port is None):
            raise ValueError(f"{url!r} is neither http://HOST:PORT nor grpc://HOST:PORT")
        if found.username or found.password or found.query or found.fragment:
            raise ValueError(f"{url!r} holds more than a host, a port and a path")
        if found.scheme == "grpc" and found.path.strip("/"):
            raise ValueError(f"{url!r} holds a path, and gRPC has none")
        return cls(found.scheme, found.netloc + found.path.rstrip("/"))

    def __str__(self) -> str:
        return f"{self.protocol}://{self.place}"


@dataclass(frozen=True)
class Answer:
    """The arrays that were asked for, by name, and the version of the model that gave them ("" where it is not told)."""

    arrays: dict[str, NDArray[Any]]
    version: str


@dataclass(frozen=True)
class Tensors:
    """What a model takes and gives: (data type, shape with -1 for any length), by name."""

    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]


class ProtocolClient:
    """Connections to one server; made, used and closed on one event loop.

    Every method raises Busy or Lost where the same may yet succeed, and ServerError where it would not.
    """

    def __init__(self, address: Address) -> None:
        """Raises ResourceError where the client library is not installed. Connects with the first request."""
        # gRPC writes to stderr by itself; what goes wrong comes as an exception, and is said once.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            self._kit: Any = import_module(f"tritonclient.{address.protocol}")
            aio: Any = import_module(f"tritonclient.{address.protocol}.aio")
            self._error: Any = import_module("tritonclient.utils").InferenceServerException
        except ImportError as error:
            raise ResourceError(f"--server needs tritonclient ({error}); install mclst[server]") from error
        self.address = address
        self._http = address.protocol == "http"
        if self._http:
            # Each request has a time limit of its own, see Flow.
            self._client = aio.InferenceServerClient(address.place, conn_limit=0, conn_timeout=None)
            from aiohttp import ClientError, ClientResponseError

            self._broken: tuple[type[Exception], ...] = (ClientError, OSError)
            self._foreign: tuple[type[Exception], ...] = (ClientResponseError,)
        else:
            self._client = aio.InferenceServerClient(address.place, channel_args=GRPC_OPTIONS)
            self._broken, self._foreign = (OSError,), ()
        self._sent = 0

    async def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Answer:
        """Run a model on uint8 or int32 arrays; every one of `outputs` is there."""
        self._sent += 1
        request = str(self._sent)
        try:
            found = await self._client.infer(
                model,
                [self._input(name, array) for name, array in inputs.items()],
                outputs=[self._output(name) for name in outputs],
                request_id=request,
            )
            return self._answer(found, request, outputs)
        except ServerError:
            raise
        except Exception as error:
            raise self._sorted(error, model) from error

    async def tensors(self, model: str) -> Tensors:
        """What a model takes and gives."""
        try:
            found = await self._client.get_model_metadata(model, **self._as_json)
            return Tensors(*({t["name"]: _tensor(t) for t in found[side]} for side in ("inputs", "outputs")))
        except Exception as error:
            raise self._sorted(error, model) from error

    async def server(self) -> str:
        """Name and version of the server's program."""
        try:
            found = await self._client.get_server_metadata(**self._as_json)
            return f"{found['name']} {found.get('version', '')}".strip()
        except Exception as error:
            raise self._sorted(error, "") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    @property
    def _as_json(self) -> dict[str, bool]:
        return {} if self._http else {"as_json": True}

    def _input(self, name: str, array: NDArray[Any]) -> Any:
        tensor = self._kit.InferInput(name, list(array.shape), DATATYPES[array.dtype])
        tensor.set_data_from_numpy(array)
        return tensor

    def _output(self, name: str) -> Any:
        return self._kit.InferRequestedOutput(name)

    def _answer(self, found: Any, request: str, outputs: Sequence[str]) -> Answer:
        head = found.get_response()
        told = {name: head.get(name, "") if isinstance(head, dict) else getattr(head, name)
                for name in ("id", "model_version")}  # fmt: skip
        if told["id"] not in ("", request):
            raise ServerError(
                f"{self.address} answers another request than it was sent; what lies between mixes them up"
            )
        arrays = {name: found.as_numpy(name) for name in outputs}
        missing = [name for name, array in arrays.items() if array is None]
        if missing:
            raise ServerError(f"{self.address} leaves {missing[0]!r} out of its answer; {EXPORT_AGAIN}")
        return Answer(arrays, str(told["model_version"]))

    def _sorted(self, error: Exception, model: str) -> Exception:
        """What to make of a failure: Busy, Lost or ServerError."""
        if isinstance(error, self._error):
            return _of_status(str(error.status() or ""), _line(error.message()), f"{self.address}", model)
        if isinstance(error, self._foreign):
            return ServerError(f"{self.address} does not answer by HTTP; look at the port, or try grpc://")
        if isinstance(error, self._broken):
            cause = getattr(error, "os_error", error)  # of a connection that aiohttp could not make
            return Lost(_line(cause) or type(error).__name__)
        reason = _line(f"{type(error).__name__}: {error}")
        return ServerError(
            f"{self.address} gives an answer that cannot be understood ({reason}); {EXPORT_AGAIN}"
        )


EXPORT_AGAIN = "give it the repository that mclst-export --triton of this version writes"


def _tensor(told: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    return str(told["datatype"]), tuple(int(length) for length in told["shape"])


def _line(text: object) -> str:
    return " ".join(str(text or "").split())[:LONGEST_REASON]


def _of_status(status: str, reason: str, where: str, model: str) -> Exception:
    code = status.removeprefix("StatusCode.")
    too_large = code == "413" or (code == "RESOURCE_EXHAUSTED" and "larger than max" in reason)
    if code in BUSY and not too_large:
        no_server = code == "UNAVAILABLE" and NO_CONNECTION.search(reason)
        return Lost(reason) if no_server else Busy(f"it takes no more for now ({reason})")
    if code in FAILED:
        return Lost(f"it failed ({reason})")
    if code in ("404", "NOT_FOUND"):
        return ServerError(f"{where} has no model {model!r} ({reason}); check --server-model")
    if code in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerError(f"{where} lets nobody in without leave ({reason}); ask whoever runs it")
    if too_large:
        return ServerError(f"{where} takes no request that long ({reason}); give a smaller --batch-size")
    return ServerError(f"{where} refuses the request ({code} {reason}); {EXPORT_AGAIN}")
