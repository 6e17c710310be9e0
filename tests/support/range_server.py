"""A web server on loopback that serves a folder by byte ranges, counts what it sends, and lies on demand."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Self
from urllib.parse import unquote

ENDLESS_BLOCK = bytes(1 << 16)


@dataclass
class Behavior:
    """What is wrong with the server; each fault counts down from the number of answers it spoils.

    after: answers that are right before. only: (first, end) of the bytes whose ranges are spoilt.
    """

    after: int = 0
    only: tuple[int, int] = (0, 1 << 62)
    cut: int = 0
    busy: int = 0
    whole: int = 0
    redirect: int = 0
    endless: int = 0
    compressed: int = 0
    other_range: int = 0
    other_etag: int = 0
    no_size: int = 0
    status: int = 0
    silent: int = 0
    hang: int = 0
    tell_etag: bool = True
    token: str = ""

    @classmethod
    def lying(cls, fault: str, answers: int = 1 << 30, *, after: int = 0) -> Self:
        """One fault, by its name."""
        counts: dict[str, Any] = {fault: answers}
        return cls(after=after, **counts)


@dataclass
class RangeServer:
    """Serves `folder`; a context manager.

    sent: bytes of bodies. requests: (path, Range header) of each. hanging: set once an answer hangs.
    """

    folder: Path
    behavior: Behavior = field(default_factory=Behavior)
    sent: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    hanging: Event = field(default_factory=Event)
    released: Event = field(default_factory=Event)

    def __enter__(self) -> Self:
        self._lock = Lock()
        owner: RangeServer = self

        class Handler(_Handler):
            server_of_test = owner

        self._server = _Listener(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, name: str, userinfo: str = "") -> str:
        return f"http://{userinfo}127.0.0.1:{self._server.server_address[1]}/{name}"

    def fault(self, requested: str) -> str:
        """Name of the fault that spoils the answer to a Range header, counted down; "" for none."""
        behavior = self.behavior
        first = re.match(r"bytes=(\d+)-", requested)
        if first and not behavior.only[0] <= int(first[1]) < behavior.only[1]:
            return ""
        with self._lock:
            if behavior.after:
                behavior.after -= 1
                return ""
            for name in ("cut", "busy", "whole", "redirect", "endless", "compressed", "other_range",
                         "other_etag", "no_size", "silent", "hang"):  # fmt: skip
                left = getattr(behavior, name)
                if left:
                    setattr(behavior, name, left - 1)
                    return name
        return "status" if behavior.status else ""

    def path_of(self, name: str) -> Path:
        """File of a path without its query."""
        return self.folder / unquote(name)

    def count(self, size: int) -> None:
        with self._lock:
            self.sent += size


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *request: object) -> None:
        """A client that gives up is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_test: RangeServer

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        server, name = self.server_of_test, self.path.partition("?")[0].lstrip("/")
        with server._lock:
            server.requests.append((self.path, self.headers.get("Range", "")))
            server.authorizations.append(self.headers.get("Authorization", ""))
        path, fault = server.path_of(name), server.fault(self.headers.get("Range", ""))
        if fault == "busy":
            self._answer(503, b"", {"Retry-After": "0"})
        elif fault == "redirect":
            self._answer(302, b"", {"Location": "http://elsewhere.example/slide.tif?signature=secret"})
        elif fault == "status":
            self._answer(server.behavior.status, b"")
        elif fault == "silent":
            self.close_connection = True
        elif fault == "hang":
            server.hanging.set()
            server.released.wait()
            self.close_connection = True
        elif not path.is_file():
            self._answer(404, b"no such object")
        else:
            self._object(path.read_bytes(), fault)

    def _object(self, data: bytes, fault: str) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}{"x" if fault == "other_etag" else ""}"'
        headers = {"ETag": etag} if self.server_of_test.behavior.tell_etag else {}
        expected = self.headers.get("If-Match")
        if expected and headers and expected != etag and fault != "other_etag":
            return self._answer(412, b"")
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if fault == "compressed":
            headers["Content-Encoding"] = "gzip"
        if match is None or fault == "whole":
            return self._answer(200, data, headers, cut=fault == "cut", endless=fault == "endless")
        first = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
        last = min(int(match[2] or len(data) - 1), len(data) - 1) if match[1] else len(data) - 1
        if first >= len(data):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        if fault == "other_range":
            first, last = first + 1, last + 1
        total = "*" if fault == "no_size" else str(len(data))
        headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        body = data[first : last + 1]
        return self._answer(206, body, headers, cut=fault == "cut", endless=fault == "endless")

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        cut: bool = False,
        endless: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if endless:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            # Counted before: whoever has read it must find it counted.
            while endless:
                self.server_of_test.count(len(ENDLESS_BLOCK))
                self.wfile.write(b"%x\r\n%b\r\n" % (len(ENDLESS_BLOCK), ENDLESS_BLOCK))
            sent = body[: len(body) // 2] if cut else body
            self.server_of_test.count(len(sent))
            self.wfile.write(sent)
        except OSError:
            self.close_connection = True
        if cut:
            self.close_connection = True
