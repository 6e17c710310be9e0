"""A hostile server: where tiles go, how much memory answers take, what messages repeat."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner

from mclst.runtime.errors import InputError, MclstError, ServerError
from mclst.runtime.serving import probe
from mclst.runtime.serving.connection import Server
from mclst.runtime.serving.server_manifest import MAX_ANSWER_BYTES

pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")


@cache
def bomb() -> bytes:
    """400 MB of zeros, compressed."""
    return gzip.compress(bytes(400 << 20), compresslevel=1)


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def listen(way: str, target: str = "") -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Serve on the loopback; yields the URL and the headers of each request."""
    requests: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append({"path": self.path, **self.headers})
            with suppress(OSError):
                getattr(self, way)()

        do_GET = do_POST

        def start(self, status: int, **headers: object) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()

        def redirects(self) -> None:
            self.start(307, Location=target + self.path, Content_Length=0)

        def answers(self) -> None:
            self.start(200, Content_Length=2)
            self.wfile.write(b"{}")

        def speaks_http_2(self) -> None:
            self.wfile.write(bytes([0, 0, 24, 4, 0, 0, 0, 0, 0]))
            self.close_connection = True

        def nests(self) -> None:
            self.start(200, Content_Length=100_000)
            self.wfile.write(b"[" * 100_000)

        def names_no_outputs(self) -> None:
            self.start(200, Content_Length=18)
            self.wfile.write(b'{"outputs": ["x"]}')

        def bombs(self) -> None:
            self.start(200, Content_Encoding="gzip", Content_Length=len(bomb()))
            self.wfile.write(bomb())

        def never_ends(self) -> None:
            self.start(200, Transfer_Encoding="chunked")
            while True:
                self.wfile.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")

    server = Listener(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()


def test_m3_redirects_are_not_followed() -> None:
    with listen("answers") as (other, received), listen("redirects", other) as (url, first):
        with pytest.raises(
            ServerError, match="redirects to another address, and tiles go to no other server"
        ):
            Server(url, patience_s=60)
        with pytest.raises(MclstError, match="307"):
            probe.probe(url, "mclst", 60)
    assert len(first) == 2 and received == []


def test_m3_the_probe_uses_no_proxy_of_the_environment() -> None:
    with listen("answers") as (proxy, received), listen("answers") as (url, asked):
        done = subprocess.run(
            [sys.executable, "-m", "mclst.runtime.serving.probe", url],
            env={**os.environ, "http_proxy": proxy, "no_proxy": ""},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 4 and received == [] and len(asked) == 1, done.stderr


@pytest.mark.parametrize(
    ("way", "code"), [("speaks_http_2", 6), ("nests", 6), ("names_no_outputs", 4), ("answers", 4)]
)
def test_the_probe_has_a_sentence_for_any_answer(way: str, code: int) -> None:
    with listen(way) as (url, _):
        done = CliRunner().invoke(probe.main, [url, "--timeout", "300"])
    assert done.exit_code == code and done.stderr.startswith(f"Error: {url}"), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("url", ["http://h:80x", "http://", "http://[::1", "grpc://h:1", "h:8000"])
def test_what_is_no_address_is_wrong_usage_of_the_probe(url: str) -> None:
    assert CliRunner().invoke(probe.main, [url]).exit_code == 2


def test_too_little_memory_here_is_no_fault_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tritonclient.http.InferInput", no_memory)
    with listen("answers") as (url, _), pytest.raises(MemoryError):
        Server(url)


LIMITED = """
import json, resource, sys
from pathlib import Path
from mclst.runtime.errors import MclstError
from mclst.runtime.serving.connection import Server
from mclst.runtime.serving.probe import probe
import tritonclient.http.aio
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (200 << 20),) * 2)
words = []
for call in (lambda: Server(sys.argv[1], patience_s=300), lambda: probe(sys.argv[1], "mclst", 300)):
    try:
        call()
    except MclstError as error:
        words.append(str(error))
print(json.dumps(words))
"""


@pytest.mark.parametrize(
    ("way", "client", "prober"),
    [
        ("bombs", "compresses its answers", "does not answer mclst_manifest"),
        ("never_ends", "an answer longer than 16 MiB", "its answer is longer than 16 MiB"),
    ],
)
def test_m4_answers_take_bounded_memory(way: str, client: str, prober: str) -> None:
    with listen(way) as (url, requests):
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, url],
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # 64 MiB of addresses for each thread that allocates
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    words = json.loads(done.stdout or "[]")
    assert len(words) == 2 and client in words[0] and prober in words[1], done.stderr[-2000:]
    assert all(request["Accept-Encoding"] == "identity" for request in requests)


def test_m4_grpc_answers_are_bounded() -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc as service

    class Servicer(service.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ModelInfer(self, request: Any, context: Any) -> Any:
            return messages.ModelInferResponse(raw_output_contents=[bytes(MAX_ANSWER_BYTES + 1)])

    server = grpc.server(ThreadPoolExecutor(2))
    service.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ServerError, match="an answer longer than 16 MiB"):
            Server(f"grpc://127.0.0.1:{port}", patience_s=60)
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    "url",
    [
        "http://user:geheim@h:1",
        "grpc://user:geheim@h:1",
        "http://user:geheim@h:x",
        "http://u:geheim/@h",
        "http://u:/geheim@h:1",
        "ftp://user:geheim@h",
        "user:geheim@h:1",
        "http://[geheim@h:1",
        "http://geheim@h:1",
    ],
)
def test_l8_no_message_repeats_a_password(url: str) -> None:
    with pytest.raises(InputError, match="perhaps a password") as caught:
        Server(url)
    result = CliRunner().invoke(probe.main, [url])
    assert result.exit_code == 2
    assert "geheim" not in f"{caught.value}{caught.value.__cause__}{result.stderr}"
