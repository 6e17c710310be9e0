"""Objects at a server: read in ranges, with retries; a change in between is an error, never other pixels."""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

from mclst.runtime.errors import ResourceError, SlideError
from mclst.sections.location import RemoteLocation

TRIES = 4
AT_ONCE = 16
"""Requests under way."""
FIRST_PAUSE_S = 0.3
LONGEST_PAUSE_S = 10.0
WHOLE = "is only sent whole, as its server ignores ranges; download it first"


class Transient(Exception):
    """A request failed in a way that a later one may not; pause_s: how long the server asks to wait."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class Refused(Exception):
    """What is wrong, as the end of a sentence that begins with the address."""


class Changed(Exception):
    """The object is another than the one asked for; the message says by what."""


@dataclass(frozen=True)
class Version:
    """What tells an object's content from another's.

    size: bytes. etag, modified: as the server says, "" where it does not.
    """

    size: int
    etag: str = ""
    modified: str = ""

    def __str__(self) -> str:
        parts = [
            f"{self.size} bytes",
            self.etag and f"ETag {self.etag}",
            self.modified and f"of {self.modified}",
        ]
        return ", ".join(filter(None, parts))

    def difference(self, other: Version) -> str:
        """Name what differs, "" if nothing does."""
        pairs = (
            ("size", self.size, other.size),
            ("ETag", self.etag, other.etag),
            ("modification time", self.modified, other.modified),
        )
        return next((name for name, old, new in pairs if old != new), "")


class Span(NamedTuple):
    """Bytes to ask for: `length` from `first`, or the last `length` if `first` is negative."""

    first: int
    length: int

    @property
    def header(self) -> str:
        """The Range header (RFC 9110, section 14.2)."""
        return (
            f"bytes=-{self.length}"
            if self.first < 0
            else f"bytes={self.first}-{self.first + self.length - 1}"
        )

    def within(self, content_range: str) -> tuple[int, int]:
        """Compare with a Content-Range header: (bytes to come, size of the object); raises Refused."""
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range.strip(), re.IGNORECASE)
        if match is None:
            raise Refused("is sent in part without its size (Content-Range); download it first")
        first, last, size = (int(number) for number in match.groups())
        start = max(0, size - self.length) if self.first < 0 else self.first
        if (first, last) != (start, min(start + self.length, size) - 1):
            raise Refused(
                f"is answered with bytes {first}-{last} of {size}, which nobody asked for; download it"
            )
        return last - first + 1, size


class Answer(NamedTuple):
    """Bytes of an object, and its version."""

    data: bytes
    version: Version


class Server(ABC):
    """Where objects are.

    Attributes
    ----------
    loop : asyncio.AbstractEventLoop
        fsspec's, in a thread of its own; `get` runs there.
    """

    loop: asyncio.AbstractEventLoop

    @abstractmethod
    async def get(self, key: str, span: Span | None, limit: int, version: Version | None) -> Answer | None:
        """Ask once for an object or a span of it; None if there is no such object.

        key: below the location, "" for the object itself. limit: most bytes to take. version: the object must
        have it. Raises Transient, Refused or Changed, and ValueError beyond `limit`.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


class RemoteObjects:
    """What is read from one location; threads may read at the same time.

    Attributes
    ----------
    location : RemoteLocation
    bytes_read : int
        Received so far.
    requests : int
        Answered so far.
    """

    def __init__(self, location: RemoteLocation, server: Server) -> None:
        self.location, self._server = location, server
        self.bytes_read = self.requests = 0
        self._lock = Lock()
        self._stopped = False
        self._under_way: set[Future[Answer | None]] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._versions: dict[str, Version] = {}
        self._identity: set[str] = set()
        self._digests: dict[tuple[str, int, int], bytes] = {}
        self._own = uuid.uuid4().hex

    def begin(self, key: str, span: Span | None, limit: int) -> Future[Answer | None]:
        """Begin to read; the future raises SlideError or ResourceError, ValueError beyond `limit` bytes."""
        with self._lock:
            if self._stopped:
                raise self._no_longer()
            future = asyncio.run_coroutine_threadsafe(self._get(key, span, limit), self._server.loop)
            self._under_way.add(future)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: Future[Answer | None]) -> None:
        with self._lock:
            self._under_way.discard(future)

    def wait(self, future: Future[Answer | None]) -> Answer | None:
        """Return the answer; also raises SlideError where `stopping` has ended it."""
        try:
            return future.result()
        except CancelledError:
            raise self._no_longer() from None

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """End what is under way, and begin nothing inside, so that threads that wait for it go on."""
        with self._lock:
            self._stopped, futures = True, list(self._under_way)
        try:
            for future in futures:
                future.cancel()
            yield
        finally:
            self._stopped = False

    def _no_longer(self) -> SlideError:
        return SlideError(f"{self.location} is no longer read, since the run stops")

    def read(self, key: str, span: Span | None, limit: int, *, identity: bool = False) -> bytes | None:
        """Read a whole object or a span of it, shorter only at its end; None if there is no such object.

        identity: its version is part of what identifies the slide.
        """
        if identity:
            self._identity.add(key)
        return self.take(key, span, self.wait(self.begin(key, span, limit)))

    def take(self, key: str, span: Span | None, answer: Answer | None) -> bytes | None:
        """Record an answer as read, and return its bytes."""
        if answer is None:
            return None
        self.record(key, 0 if span is None else span.first, answer.data)
        return answer.data

    def version(self, key: str) -> Version:
        """Return the version of an object that identifies the slide and was read."""
        return self._versions[key]

    async def _get(self, key: str, span: Span | None, limit: int) -> Answer | None:
        pause = FIRST_PAUSE_S
        for attempt in range(1, TRIES + 1):
            known = self._versions.get(key)
            try:
                async with self._slots:
                    answer = await self._server.get(key, span, limit, known)
                self._check(key, known, answer, keep=span is not None or key in self._identity)
                return answer
            except Transient as error:
                if attempt == TRIES:
                    raise ResourceError(
                        f"{self._name(key)} cannot be read, tried {TRIES} times ({error}); check the "
                        "connection and run again"
                    ) from None
                wait = min(max(pause, error.pause_s), LONGEST_PAUSE_S)
            except Changed as error:
                raise self._changed(key, str(error)) from None
            except Refused as error:
                raise SlideError(f"{self._name(key)} {error}") from None
            await asyncio.sleep(wait)
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _check(self, key: str, known: Version | None, answer: Answer | None, *, keep: bool) -> None:
        """Count an answer, and compare its version with the first one's; keep: for later comparisons."""
        with self._lock:
            self.requests += 1
            if answer is None:
                if known is not None:
                    raise Changed("it is gone")
                return
            self.bytes_read += len(answer.data)
            first = self._versions.setdefault(key, answer.version) if keep else answer.version
        if difference := first.difference(answer.version):
            raise Changed(f"another {difference}")

    def record(self, key: str, offset: int, data: bytes) -> None:
        """Take part of an object into the digest; SlideError if it was other bytes before."""
        digest = hashlib.sha256(data).digest()
        with self._lock:
            first = self._digests.setdefault((key, offset, len(data)), digest)
        if first != digest:
            raise self._changed(key, "other bytes at the same place")

    def digest(self) -> str:
        """SHA-256, as hex, of what was read: by object and offset, its length and its SHA-256.

        It does not depend on how ranges were joined or in which order they came.
        """
        total = hashlib.sha256()
        with self._lock:
            for (key, offset, count), part in sorted(self._digests.items()):
                total.update(f"{key}\0{offset}\0{count}\0{part.hex()}\n".encode())
        return total.hexdigest()

    def describe(self) -> str:
        """Return what identifies the content: the versions of the objects that do."""
        return "; ".join(f"{key} {self._versions[key]}".strip() for key in self._kept())

    def identity(self) -> str:
        """SHA-256, as hex, of the address and of what the server says identifies the content.

        Where that is no more than a size, it is another one each time, so that nothing is taken over.
        """
        told = all(self._versions[key].etag or self._versions[key].modified for key in self._kept())
        text = f"{self.location}, {self.describe()}{'' if told else self._own}"
        return hashlib.sha256(text.encode()).hexdigest()

    def check_unchanged(self) -> None:
        """Ask for these versions again; raises SlideError if one is another."""
        for future in [self.begin(key, Span(0, 1), 1) for key in self._kept()]:
            self.wait(future)

    def _kept(self) -> list[str]:
        return sorted(self._identity & self._versions.keys())

    def close(self) -> None:
        """End what is under way, and close the connection."""
        with self.stopping():
            self._server.close()

    def _name(self, key: str) -> str:
        return f"{self.location}{f'/{key}' if key else ''}"

    def _changed(self, key: str, how: str) -> SlideError:
        return SlideError(
            f"{self._name(key)} changed while it was being read ({how}); run again once it is complete"
        )
