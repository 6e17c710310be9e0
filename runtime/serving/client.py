"""Client of the Open Inference Protocol, version 2, by HTTP or gRPC."""

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
from mclst.runtime.serving.security import TOKEN_VARIABLE, Credentials, untrusted
from mclst.runtime.serving.server_manifest import MAX_ANSWER_BYTES

BUSY = ("429", "503", "UNAVAILABLE", "RESOURCE_EXHAUSTED")
FAILED = (
    *("408", "500", "502", "504", "520", "521", "522", "523", "524"),
    *("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "DATA_LOSS"),
)
"""Errors after which a retry may succeed; a restarting Triton gives some of them."""

NO_CONNECTION = re.compile(
    r"connect|socket|reset|closed|goaway|eof|stream|transport|all calls", re.IGNORECASE
)
"""Texts of gRPC's UNAVAILABLE that mean there is no server, or (of all calls) that it ends."""

DATATYPES = {np.dtype(np.uint8): "UINT8", np.dtype(np.int32): "INT32"}
LONGEST_REASON = 300

GRPC_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    # gRPC's own pauses grow to minutes, which delays the connection to a restarted server.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Patients' tiles go to the named server only, through no proxy of the environment.
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True)
class Address:
    """Address of a server: `http://host:port` or `https://host` with an optional path, `grpc://host:port` or
    `grpcs://host:port`.
    """

    protocol: str
    host: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Parse a URL; raise ValueError if it is not an address."""
        if "@" in url:
            # Neither the URL nor urlsplit's errors, which quote parts of it: messages reach logs.
            raise ValueError(
                "the address of the server holds '@', and so perhaps a password, which is not sent"
            )
        try:
            parts = urlsplit(url.strip())
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise ValueError(f"{url!r} is no URL ({error})") from error
        grpc = parts.scheme in ("grpc", "grpcs")
        if not (grpc or parts.scheme in ("http", "https")) or not host or (grpc and port is None):
            raise ValueError(f"{url!r} is none of http://, https://, grpc:// and grpcs:// with HOST:PORT")
        if parts.query or parts.fragment:
            raise ValueError(f"{url!r} holds more than a host, a port and a path")
        if grpc and parts.path.strip("/"):
            raise ValueError(f"{url!r} holds a path, and gRPC has none")
        return cls(parts.scheme, parts.netloc + parts.path.rstrip("/"))

    @property
    def encrypted(self) -> bool:
        """Whether the connection is by TLS."""
        return self.protocol in ("https", "grpcs")

    @property
    def name(self) -> str:
        """The host without port and path."""
        return urlsplit(str(self)).hostname or ""

    def __str__(self) -> str:
        return f"{self.protocol}://{self.host}"


@dataclass(frozen=True)
class Answer:
    """The requested arrays by name, and the model's version, "" if unknown."""

    arrays: dict[str, NDArray[Any]]
    version: str


@dataclass(frozen=True)
class Tensors:
    """A model's inputs and outputs by name: data type, and shape with -1 for any length."""

    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]


ANYONE = Credentials()
"""Trusts what the system trusts, and sends no token."""


class ProtocolClient:
    """Connections to one server; created, used and closed on one event loop.

    Methods raise Busy or Lost if a retry may succeed, else ServerError.
    """

    def __init__(self, address: Address, credentials: Credentials = ANYONE) -> None:
        """Connect with the first request.

        Raises ResourceError if the client library is not installed, InputError if the credentials cannot be
        used.
        """
        # gRPC would print errors that are also raised.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        library = address.protocol.removesuffix("s")
        try:
            self._kit: Any = import_module(f"tritonclient.{library}")
            aio: Any = import_module(f"tritonclient.{library}.aio")
            self._error: Any = import_module("tritonclient.utils").InferenceServerException
        except ImportError as error:
            raise ResourceError(f"--server needs tritonclient ({error}); install mclst[server]") from error
        self.address, self._credentials = address, credentials
        self._headers = credentials.headers(
            encrypted=address.encrypted, host=address.name, address=str(address)
        )
        self._http = library == "http"
        if self._http:
            context = credentials.context() if address.encrypted else None
            # FlowControl limits the time of each request.
            self._client = aio.InferenceServerClient(
                address.host, conn_limit=0, conn_timeout=None, ssl=address.encrypted, ssl_context=context
            )
            # tritonclient follows redirects and reads whole answers of any size.
            self._client._stub = _Session(self._client._stub, f"{address}")
            from aiohttp import ClientError, ClientResponseError

            self._broken: tuple[type[Exception], ...] = (ClientError, OSError)
            self._foreign: tuple[type[Exception], ...] = (ClientResponseError,)
        else:
            creds = None
            if address.encrypted:
                creds = import_module("grpc").ssl_channel_credentials(credentials.roots())
            self._client = aio.InferenceServerClient(address.host, channel_args=GRPC_OPTIONS, creds=creds)
            self._broken, self._foreign = (OSError,), ()
        self._sent = 0

    async def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Answer:
        """Run a model on uint8 or int32 arrays; the answer has all `outputs`."""
        self._sent += 1
        request = str(self._sent)
        try:
            result = await self._client.infer(
                model,
                [self._input(name, array) for name, array in inputs.items()],
                outputs=[self._output(name) for name in outputs],
                request_id=request,
                headers=self._headers,
            )
            return self._answer(result, request, outputs)
        except Exception as error:
            raise self._classify(error, model) from error

    async def tensors(self, model: str) -> Tensors:
        """Return a model's inputs and outputs."""
        try:
            metadata = await self._client.get_model_metadata(model, headers=self._headers, **self._as_json)
            return Tensors(
                *({t["name"]: _tensor(t) for t in metadata[side]} for side in ("inputs", "outputs"))
            )
        except Exception as error:
            raise self._classify(error, model) from error

    async def server(self) -> str:
        """Return the name and version of the server's program."""
        try:
            metadata = await self._client.get_server_metadata(headers=self._headers, **self._as_json)
            return f"{metadata['name']} {metadata.get('version', '')}".strip()
        except Exception as error:
            raise self._classify(error, "") from error

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

    def _answer(self, result: Any, request: str, outputs: Sequence[str]) -> Answer:
        head = result.get_response()
        identifier, version = (
            head.get(name, "") if isinstance(head, dict) else getattr(head, name)
            for name in ("id", "model_version")
        )
        if identifier not in ("", request):
            raise ServerError(
                f"{self.address} answers another request than it was sent; a proxy between mixes them up"
            )
        arrays = {name: result.as_numpy(name) for name in outputs}
        missing = [name for name, array in arrays.items() if array is None]
        if missing:
            raise ServerError(f"{self.address} leaves {missing[0]!r} out of its answer; {EXPORT_AGAIN}")
        return Answer(arrays, str(version))

    def _classify(self, error: Exception, model: str) -> Exception:
        """Turn a failure into Busy, Lost or ServerError, whose texts hold no token."""
        if isinstance(error, ServerError | MemoryError):
            return error
        if isinstance(error, self._error):
            reason = self._line(error.message())
            refused = untrusted(f"{self.address}", reason) if self.address.encrypted else None
            return refused or _of_status(str(error.status() or ""), reason, f"{self.address}", model)
        if isinstance(error, self._foreign):
            return ServerError(f"{self.address} does not answer by HTTP; look at the port, or try grpc://")
        if isinstance(error, self._broken):
            cause = getattr(error, "os_error", error)  # of a connection that aiohttp could not make
            reason = self._line(cause) or type(error).__name__
            refused = untrusted(f"{self.address}", reason) if self.address.encrypted else None
            return refused or Lost(reason)
        reason = self._line(f"{type(error).__name__}: {error}")
        return ServerError(
            f"{self.address} gives an answer that cannot be understood ({reason}); {EXPORT_AGAIN}"
        )

    def _line(self, text: object) -> str:
        return _line(self._credentials.hide(str(text or "")))


@dataclass(frozen=True)
class _HttpAnswer:
    """What tritonclient needs of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    async def read(self) -> bytes:
        return self.body


class _Session:
    """An aiohttp session that sends to one server alone and bounds the memory of an answer."""

    def __init__(self, session: Any, address: str) -> None:
        self._session, self._address = session, address

    async def get(self, **request: Any) -> _HttpAnswer:
        return await self._read(self._session.get, **request)

    async def post(self, **request: Any) -> _HttpAnswer:
        return await self._read(self._session.post, **request)

    async def close(self) -> None:
        await self._session.close()

    async def _read(self, method: Any, *, headers: Mapping[str, str] | None, **request: Any) -> _HttpAnswer:
        """Send a request; raise ServerError for a redirect, a compressed or an oversized answer."""
        # aiohttp asks for gzip by default, and Triton then compresses.
        headers = {**(headers or {}), "Accept-Encoding": "identity"}
        async with method(headers=headers, allow_redirects=False, **request) as response:
            if 300 <= response.status < 400:
                raise ServerError(
                    f"{self._address} redirects to another address, and tiles go to no other server; "
                    "give --server the address that answers"
                )
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise ServerError(
                    f"{self._address} compresses its answers, which was not asked for; {EXPORT_AGAIN}"
                )
            chunks, size = [], 0
            async for chunk in response.content.iter_any():
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise ServerError(_too_long(self._address))
            return _HttpAnswer(response.status, response.headers, b"".join(chunks))


def _too_long(address: str) -> str:
    return f"{address} gives an answer longer than {MAX_ANSWER_BYTES >> 20} MiB; {EXPORT_AGAIN}"


EXPORT_AGAIN = "give it the repository that mclst-export --triton of this version writes"


def _tensor(metadata: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    return str(metadata["datatype"]), tuple(int(length) for length in metadata["shape"])


def _line(text: object) -> str:
    return " ".join(str(text or "").split())[:LONGEST_REASON]


def _of_status(status: str, reason: str, address: str, model: str) -> Exception:
    code = status.removeprefix("StatusCode.")
    if code == "RESOURCE_EXHAUSTED" and "CLIENT: Received message larger" in reason:
        return ServerError(_too_long(address))
    too_large = code == "413" or (code == "RESOURCE_EXHAUSTED" and "larger than max" in reason)
    if code in BUSY and not too_large:
        no_server = code == "UNAVAILABLE" and NO_CONNECTION.search(reason)
        return Lost(reason) if no_server else Busy(f"it takes no more for now ({reason})")
    if code in FAILED:
        return Lost(f"it failed ({reason})")
    if code in ("404", "NOT_FOUND"):
        return ServerError(f"{address} has no model {model!r} ({reason}); check --server-model")
    if code in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerError(
            f"{address} requires authorization ({reason}); set {TOKEN_VARIABLE}, or ask its administrator"
        )
    if too_large:
        return ServerError(f"{address} takes no request that long ({reason}); give a smaller --batch-size")
    return ServerError(f"{address} refuses the request ({code} {reason}); {EXPORT_AGAIN}")
