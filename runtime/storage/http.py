"""Objects behind http:// and https://, over the session of fsspec's HTTP file system.

The requests are our own: fsspec follows redirects, unpacks encodings, and takes answers of any length.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import fsspec
import yarl

from mclst.runtime.storage.remote import WHOLE, Answer, Changed, Refused, Server, Span, Transient, Version
from mclst.sections.location import RemoteLocation

CONNECT_S, SILENCE_S = 15.0, 30.0
SLOWEST_BYTES_S = 16 << 10
"""A request may take SILENCE_S and its bytes at this rate; else drops of single bytes would never end."""
BLOCK_BYTES = 1 << 20
SESSION = {"auto_decompress": False}
BUSY = (408, 425, 429, 500, 502, 503, 504)


class HttpServer(Server):
    """A web server; headers and proxies of fsspec's configuration and the environment apply."""

    def __init__(self, location: RemoteLocation) -> None:
        self._parts = urlsplit(location.url)
        self._fs: Any = fsspec.filesystem(location.scheme, skip_instance_cache=True, use_listings_cache=False)
        self._fs.client_kwargs = {"trust_env": True, **self._fs.client_kwargs, **SESSION}
        self.loop = self._fs.loop

    async def get(self, key: str, span: Span | None, limit: int, version: Version | None) -> Answer | None:
        """Ask once; see Server."""
        path = f"{self._parts.path.rstrip('/')}/{key}" if key else self._parts.path
        url = urlunsplit(self._parts._replace(path=path, fragment=""))
        options = dict(self._fs.kwargs)
        headers = dict(options.pop("headers", {}))
        if version is not None and version.etag.startswith('"'):  # a weak one is compared afterwards
            headers["If-Match"] = version.etag
        return await ask(await self._fs.set_session(), url, headers, span, limit, **options)

    def close(self) -> None:
        """Close the session."""
        session, self._fs._session = self._fs._session, None
        if session is not None:
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(session.close(), self.loop).result(timeout=1)


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    span: Span | None,
    limit: int,
    **options: Any,
) -> Answer | None:
    """Ask once for an object or a span of it; see Server.get."""
    asked = {**headers, "Accept-Encoding": "identity"}
    if span is not None:
        asked["Range"] = span.header
    options |= {
        "headers": asked,
        "allow_redirects": False,
        "timeout": aiohttp.ClientTimeout(
            total=SILENCE_S + limit / SLOWEST_BYTES_S, sock_connect=CONNECT_S, sock_read=SILENCE_S
        ),
    }
    try:
        async with session.get(yarl.URL(url, encoded=True), **options) as response:
            return await _read(response, span, limit)
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
        raise Refused("does not prove by TLS that it is this server; check the address") from error
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise Refused("is no address that can be asked; check it") from error
    # Their texts may hold the whole address.
    except aiohttp.ClientConnectorError as error:
        raise Transient(f"no connection: {error.os_error.strerror or 'the host is unknown'}") from error
    except TimeoutError as error:
        raise Transient("no answer in time") from error
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
        raise Transient("the connection was cut") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Transient(f"an answer that is no HTTP, {type(error).__name__}") from error


async def _read(response: aiohttp.ClientResponse, span: Span | None, limit: int) -> Answer | None:
    status, headers = response.status, response.headers
    if status in (404, 410):
        return None
    if 300 <= status < 400:
        raise Refused(
            f"is sent elsewhere by its server (status {status}{_target(headers)}); give that address"
        )
    if status in (401, 403):
        raise Refused(f"is refused by its server (status {status}); check the address and the credentials")
    if status == 412:
        raise Changed("another ETag")
    if status in BUSY:
        pause = headers.get("Retry-After", "")
        raise Transient(f"status {status}", float(pause) if pause.isdecimal() and len(pause) < 6 else 0.0)
    if status == 416 and span is not None:  # an empty object has no range
        whole = headers.get("Content-Range", "").rpartition("/")[2]
        return Answer(b"", _version(headers, int(whole) if whole.isdecimal() and len(whole) < 19 else 0))
    if status not in (200, 206):
        raise Refused(f"is answered with status {status}; check the address")
    if headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise Refused("is sent compressed though that was not asked for; download it first")
    if status == 206 and span is not None:
        length, size = span.within(headers.get("Content-Range", ""))
        data = await _body(response, length, _too_long)
        if len(data) != length:
            raise Transient("the connection was cut")
        return Answer(data, _version(headers, size))
    if status == 206:
        raise Refused("is sent in part though the whole was asked for; download it first")
    if span is None:
        data = await _body(response, limit, lambda reason: ValueError(f"it has {reason}"))
    else:
        # The whole object in place of a part is an answer if it is no longer than that.
        stated = headers.get("Content-Length", "")
        if span.first or not (stated.isdecimal() and int(stated) <= span.length):
            raise Refused(WHOLE)
        data = await _body(response, limit, _too_long)
    return Answer(data, _version(headers, len(data)))


def _too_long(reason: str) -> Exception:
    return Refused(f"is sent with {reason}; download it first")


async def _body(response: aiohttp.ClientResponse, limit: int, too_long: Callable[[str], Exception]) -> bytes:
    """Read at most `limit` bytes; raises what `too_long` makes of more."""
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_long(f"{int(length):,} bytes, more than the {limit:,} it may")
    parts, size = [], 0
    while part := await response.content.read(BLOCK_BYTES):
        size += len(part)
        if size > limit:
            raise too_long(f"more than the {limit:,} bytes it may")
        parts.append(part)
    return b"".join(parts)


def _version(headers: Any, size: int) -> Version:
    etag, modified = (
        "".join(letter for letter in headers.get(name, "")[:200] if letter.isprintable())
        for name in ("ETag", "Last-Modified")
    )
    return Version(size, etag, modified)


def _target(headers: Any) -> str:
    """Where a redirect leads, without what may be a signature."""
    with suppress(ValueError):
        parts = urlsplit(headers.get("Location", ""))
        if parts.hostname and parts.hostname.isprintable():
            return f" to {parts.scheme}://{parts.hostname[:200]}"
    return ""
