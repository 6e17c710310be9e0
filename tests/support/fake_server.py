"""A small Open Inference Protocol server around a real bundle, by HTTP or gRPC, that can be made to
misbehave.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from types import ModuleType
from typing import Any, Self

import numpy as np
import pytest
from held_port import HeldPort
from numpy.typing import NDArray

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.bundle.manifest import CALIBRATION
from mclst.runtime.inference.readout import RegressionReadout, RetrievalReadout
from mclst.runtime.providers.opening import EncoderRequest, open_encoder
from mclst.runtime.serving.flow_control import FlowControl
from mclst.runtime.serving.server_manifest import PART_BYTES
from mclst.runtime.trust.measures import PlacedResult

TYPES = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32, "FP64": np.float64}
STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


Trouble = Callable[[int], str]
"""Number of a request for expression, from 0 → what goes wrong with it, or ""."""


PATIENCE = ("--server-patience", "60")


def hasten_patience(module: ModuleType, event: Event, patch: pytest.MonkeyPatch) -> None:
    """Have --server-patience pass a hundred times as fast while `event` is set, and else not at all:
    a slow machine loses none.
    """
    since: list[float] = []

    def clock() -> float:
        if not event.is_set():
            since.clear()
            return 0.0
        since.append(time.monotonic())
        return 100 * (since[-1] - since[0])

    patch.setattr(module, "FlowControl", partial(FlowControl, clock=clock))


class Refusal(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FakeServer:
    """Serves a bundle on the loopback; a context manager. `trouble` may be set at any time."""

    def __init__(
        self,
        bundle: Path,
        protocol: str = "http",
        *,
        max_batch: int = 8,
        trouble: Trouble = lambda n: "",
        certificate: tuple[Path, Path] | None = None,
        token: str | None = None,
    ) -> None:
        """certificate: key and certificate, for https and grpcs. token: what each request needs."""
        self.certificate, self.token, self.name = certificate, token, "127.0.0.1"
        self.protocol, self.max_batch, self.trouble = protocol, max_batch, trouble
        self._held_port: HeldPort | None = None
        self.port = 0
        self.n_requests = self.at_once = self.most_at_once = self.metadata_requests = 0
        self.on_metadata: Callable[[int], None] = lambda number: None
        self.tiles: list[int] = []
        self._lock = Lock()
        self._compute = Lock()
        self.hold(bundle)

    def hold(self, path: Path) -> None:
        """Serve another bundle from now on."""
        bundle = open_bundle(path)
        session, _ = open_encoder("cpu", EncoderRequest(path, bundle.encoder(), "fp32", 64, threads=1))
        spec = bundle.retrieval if bundle.manifest.kind == "retrieval" else None
        readout = RegressionReadout(bundle.manifest.genes) if spec is None else RetrievalReadout(bundle, spec)
        self._bundle, self._session, self._readout = bundle, session, readout
        self.document: dict[str, Any] = {
            "format": "mclst-server/1",
            "name": "mclst",
            "bundle": {"sha256": bundle.sha256, "manifest": bundle.manifest.model_dump(mode="json")},
            "genes": bundle.genes,
            "precision": "fp32",
            "max_batch": self.max_batch,
            "backend": "onnxruntime",
            "files": {},
            "retriever": None if spec is None else readout.provider,
            "versions": {"mclst": "0.1.0"},
        }
        if bundle.calibration is not None:
            self.document["calibrated"] = True
            self.calibration = (path / CALIBRATION).read_bytes()

    @property
    def url(self) -> str:
        return f"{self.protocol}://{self.name}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()
        if self._held_port is not None:
            self._held_port.close()
            self._held_port = None

    def start(self) -> None:
        """Listen; the second time on the same port."""
        if self._held_port is None:
            self._held_port = HeldPort()
            self.port = self._held_port.number
        self._listener: Any = (_Http if self.protocol.startswith("http") else _Grpc)(self)

    def stop(self) -> None:
        """Refuse connections and drop those there are, in the middle of whatever they do."""
        self._listener.stop()

    def see_off(self) -> None:
        """Drop the connections of clients that have ended, and wait until what they had asked for is done."""
        self.stop()
        self._listener.join()
        self.start()

    def check_token(self, authorization: str | None) -> None:
        if self.token is not None and authorization != f"Bearer {self.token}":
            raise Refusal(401, f"no token but {authorization}")

    def metadata(self, model: str) -> dict[str, Any]:
        if model != "mclst":
            raise Refusal(404, f"Request for unknown model: '{model}' is not found")
        side, manifest = self._bundle.manifest.tile.size_px, self._bundle.manifest
        outputs = [("expression", manifest.genes)]
        if manifest.kind == "retrieval":
            outputs += [("nearest_distance", 1), ("effective_k", 1)]
        if "calibrated" in self.document:
            outputs += [("distance", 1)]
            outputs += [("section_share", 1)] if len(manifest.bank) > 1 else []
        return {
            "name": model,
            "versions": ["1"],
            "platform": "ensemble",
            "inputs": [{"name": "tiles", "datatype": "UINT8", "shape": [-1, side, side, 3]}],
            "outputs": [{"name": n, "datatype": "FP32", "shape": [-1, width]} for n, width in outputs],
        }

    def infer(self, model: str, inputs: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], str]:
        """The outputs, and what is to go wrong with sending them."""
        if model == "mclst_manifest":
            content = json.dumps(self.document).encode()
            if number := int(inputs["ask"][0]):
                part = self.calibration[(number - 1) * PART_BYTES : number * PART_BYTES]
                return {"manifest": np.array([part], np.object_)}, ""
            self.metadata_requests += 1
            self.on_metadata(self.metadata_requests)
            return {"manifest": np.array([content], np.object_)}, ""
        self.metadata(model)
        with self._lock:
            number, self.n_requests = self.n_requests, self.n_requests + 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self._express(inputs["tiles"], self.trouble(number))
        finally:
            with self._lock:
                self.at_once -= 1

    def _express(self, tiles: NDArray[np.uint8], trouble: str) -> tuple[dict[str, NDArray[Any]], str]:
        if trouble.startswith("slow"):
            time.sleep(float(trouble.split()[1]))
        if trouble.isdigit():
            raise Refusal(int(trouble), "Exceeds maximum queue size" if trouble == "503" else "so it is")
        if len(tiles) > self.max_batch:
            raise Refusal(400, f"batch-size must be <= {self.max_batch}")
        with self._compute:
            embeddings = self._session.encode(tiles)
            result = self._readout.predict_expression(np.arange(len(tiles)), embeddings)
        self.tiles.append(len(tiles))
        outputs: dict[str, NDArray[Any]] = {"expression": result.expression}
        if self._bundle.manifest.kind == "retrieval":
            outputs["nearest_distance"] = result.nearest[:, None]
            outputs["effective_k"] = result.effective_k[:, None]
        if (calibration := self._bundle.calibration) is not None:
            outputs["distance"] = calibration.distances(embeddings[:, : len(calibration.projection)])[:, None]
        if isinstance(result, PlacedResult) and result.section_share is not None:
            outputs["section_share"] = result.section_share[:, None]
        if trouble == "NaN":
            outputs["expression"][0, 0] = np.nan
        if trouble == "of other tiles":
            outputs["expression"] = outputs["expression"] + 1
        if trouble == "a row too few":
            outputs["expression"] = outputs["expression"][1:]
        if trouble == "float64":
            outputs["expression"] = outputs["expression"].astype(np.float64)
        if trouble == "an output too few":
            del outputs["nearest_distance"]
        return outputs, trouble


def _name(dtype: np.dtype[Any]) -> str:
    return {"float32": "FP32", "float64": "FP64", "object": "BYTES"}[dtype.name]


def _raw(array: NDArray[Any]) -> bytes:
    if array.dtype != np.object_:
        return np.ascontiguousarray(array).tobytes()
    return b"".join(len(item).to_bytes(4, "little") + item for item in array.ravel())


class _Http:
    def __init__(self, fake: FakeServer) -> None:
        self.connections: list[tuple[Thread, socket.socket]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body leave together, or the second waits for an acknowledgment

            def log_message(self, *words: object) -> None:
                pass

            def do_GET(self) -> None:
                parts = self.path.strip("/").split("/")
                try:
                    fake.check_token(self.headers.get("Authorization"))
                    metadata = (
                        fake.metadata(parts[2]) if len(parts) == 3 else {"name": "fake", "version": "1"}
                    )
                except Refusal as refusal:
                    return self.send(refusal.status, json.dumps({"error": str(refusal)}).encode())
                self.send(200, json.dumps(metadata).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                head_length = int(self.headers["Inference-Header-Content-Length"])
                head, at = json.loads(body[:head_length]), head_length
                inputs = {}
                for tensor in head["inputs"]:
                    size = tensor["parameters"]["binary_data_size"]
                    array = np.frombuffer(body[at : at + size], TYPES[tensor["datatype"]])
                    inputs[tensor["name"]], at = array.reshape(tensor["shape"]), at + size
                model = self.path.strip("/").split("/")[2]
                try:
                    fake.check_token(self.headers.get("Authorization"))
                    outputs, trouble = fake.infer(model, inputs)
                except Refusal as refusal:
                    return self.send(refusal.status, json.dumps({"error": str(refusal)}).encode())
                raw = {name: _raw(array) for name, array in outputs.items()}
                answer = json.dumps({
                    "model_name": model, "model_version": "1",
                    "id": "another" if trouble == "another's answer" else head["id"],
                    "outputs": [
                        {"name": name, "datatype": _name(array.dtype), "shape": list(array.shape),
                         "parameters": {"binary_data_size": len(raw[name])}}
                        for name, array in outputs.items()
                    ],
                }).encode()  # fmt: skip
                content = answer + b"".join(raw.values())
                if trouble == "a short body":
                    content = content[:-40]
                if trouble == "no JSON":
                    content = b"<html>" + content[6:]
                self.send(200, content, len(answer), cut=trouble == "cut off")

            def send(
                self, status: int, content: bytes, head: int | None = None, *, cut: bool = False
            ) -> None:
                with suppress(OSError):  # the client may be dead
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    if head is not None:
                        self.send_header("Inference-Header-Content-Length", str(head))
                    self.end_headers()
                    self.wfile.write(content[: len(content) // 2] if cut else content)
                    self.wfile.flush()
                    if cut:
                        self.request.shutdown(socket.SHUT_RDWR)
                        self.close_connection = True

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def process_request(self, request: Any, client_address: Any) -> None:
                work = (request, client_address)
                thread = Thread(target=self.process_request_thread, args=work, daemon=True)
                outer.connections.append((thread, request))
                thread.start()

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Listener(("127.0.0.1", fake.port), Handler)
        if fake.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(fake.certificate[1], fake.certificate[0])
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for _, connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        for thread, _ in self.connections:
            thread.join()


class _Grpc:
    def __init__(self, fake: FakeServer) -> None:
        import grpc
        from tritonclient.grpc import service_pb2 as messages
        from tritonclient.grpc import service_pb2_grpc as service

        def refuse(context: Any, refusal: Refusal) -> None:
            context.abort(getattr(grpc.StatusCode, STATUS[refusal.status]), str(refusal))

        def check(context: Any) -> None:
            try:
                fake.check_token(dict(context.invocation_metadata()).get("authorization"))
            except Refusal as refusal:
                refuse(context, refusal)

        class Servicer(service.GRPCInferenceServiceServicer):  # type: ignore[misc]
            def ServerMetadata(self, request: Any, context: Any) -> Any:
                check(context)
                return messages.ServerMetadataResponse(name="fake", version="1")

            def ModelMetadata(self, request: Any, context: Any) -> Any:
                check(context)
                try:
                    return messages.ModelMetadataResponse(**fake.metadata(request.name))
                except Refusal as refusal:
                    refuse(context, refusal)

            def ModelInfer(self, request: Any, context: Any) -> Any:
                check(context)
                inputs = {
                    tensor.name: np.frombuffer(raw, TYPES[tensor.datatype]).reshape(list(tensor.shape))
                    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
                }
                try:
                    outputs, trouble = fake.infer(request.model_name, inputs)
                except Refusal as refusal:
                    refuse(context, refusal)
                answer = messages.ModelInferResponse(
                    model_name=request.model_name, model_version="1", id=request.id
                )
                for name, array in outputs.items():
                    answer.outputs.add(name=name, datatype=_name(array.dtype), shape=array.shape)
                    raw = _raw(array)
                    answer.raw_output_contents.append(raw[:-8] if trouble == "a short body" else raw)
                return answer

        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        service.add_GRPCInferenceServiceServicer_to_server(Servicer(), self._server)
        address = f"127.0.0.1:{fake.port}"
        if fake.certificate is None:
            self._server.add_insecure_port(address)
        else:
            pair = tuple(path.read_bytes() for path in fake.certificate)
            self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def join(self) -> None:
        self._pool.shutdown()
