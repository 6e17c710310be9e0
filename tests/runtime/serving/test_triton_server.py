"""The repository of `mclst-export --triton` under a real tritonserver on the CPU, over HTTP and gRPC.

The server at hand has no ONNX Runtime backend: `stand_in` runs the encoder's graph in its place. The
repository as it was written is loaded beside it, and the missing backend must be all that the server has to
say against it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from calibrated import held_out, write_calibration
from click.testing import CliRunner
from google.protobuf import text_format
from held_port import HeldPort
from numpy.typing import NDArray
from small_model import GENES, TILE_PX, fast_regression
from triton_server import PATIENCE_SECONDS, SECRET, Gate, TritonServer, stand_in, why_absent

from mclst.export.calibrate import calibrate
from mclst.export.triton.repository import Serving, write_repository
from mclst.kernels.retriever import Retriever
from mclst.runtime import open_bundle
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.bundle.calibration import calibration_bytes
from mclst.runtime.providers.opening import open_session
from mclst.runtime.serving.probe import main as probe
from mclst.runtime.serving.server_manifest import read_served

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed; install mclst[server]")
http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed; install mclst[server]")
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.skipif(bool(why_absent()), reason=why_absent())

BATCH = 8
SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "schemas" / "server.json"
NO_BACKEND = "unable to find backend library for backend 'onnxruntime'"


@dataclass(frozen=True)
class Serves:
    """A server, the gate of its encoder, the bundle it serves, and what each refused model is refused for."""

    server: TritonServer
    gate: Gate
    bundle: Bundle
    refused: dict[str, str]
    clients: dict[Any, Any]
    """Of HTTP and gRPC; kept, since gevent's must end in the thread it began in."""


def edited(field: Callable[[Any], object]) -> Callable[[Path], object]:
    """Change the config of a model."""

    def edit(model: Path) -> None:
        config = text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())
        field(config)
        (model / "config.pbtxt").write_text(text_format.MessageToString(config))

    return edit


def replaced(old: str, new: str) -> Callable[[Path], object]:
    def edit(model: Path) -> None:
        text = (model / "config.pbtxt").read_text()
        assert old in text
        (model / "config.pbtxt").write_text(text.replace(old, new))

    return edit


def flipped(name: str) -> Callable[[Path], object]:
    def flip(model: Path) -> None:
        path = model.parent / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return flip


# What is done to a repository of that name; the model it is done to; what the server, or the model, says of
# it.
BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "backend": (edited(lambda c: setattr(c, "backend", "onnxrumtime")), "encoder", "onnxrumtime"),
    "batch": (edited(lambda c: setattr(c, "max_batch_size", -3)), "manifest", "max_batch_size"),
    "preferred": (
        edited(lambda c: c.dynamic_batching.preferred_batch_size.append(BATCH + 1)),
        "retrieval",
        "preferred size must be <= max batch size",
    ),
    "gpu": (edited(lambda c: setattr(c.instance_group[0], "kind", 1)), "retrieval", "no GPUs are available"),
    "enumerator": (replaced("KIND_CPU", "KIND_TPU"), "retrieval", "failed to read text proto"),
    "field": (replaced("backend:", "back_end:"), "retrieval", "failed to read text proto"),
    "renamed": (edited(lambda c: setattr(c, "name", "another")), "retrieval", "renamed_retrieval"),
    "version": (lambda model: shutil.rmtree(model / "1"), "retrieval", "version directory is not present"),
    "import": (
        lambda model: (model / "1" / "model.py").write_text("import nothing_of_that_name"),
        "manifest",
        "No module named 'nothing_of_that_name'",
    ),
    "bank": (flipped("bank_retrieval/1/bank.h5"), "retrieval", "bank.h5 is not what was exported"),
    "graph": (flipped("graph_encoder/1/model.onnx"), "manifest", "model.onnx is not what was exported"),
    "document": (
        lambda model: (model / "1" / "server.json").write_text("{}"),
        "manifest",
        "server.json: format",
    ),
}


def break_one(bundle: Bundle, folder: Path, name: str) -> None:
    """The model that is broken, in `folder`, and of the others only what it reads."""
    spoil, part, _ = BROKEN[name]
    whole = write_repository(bundle, folder.parent / name, Serving(name, max_batch=BATCH))
    spoil(whole / f"{name}_{part}")
    for model in whole.iterdir():
        if model.name != f"{name}_{part}":
            (model / "config.pbtxt").unlink()
            (model / "1" / "model.py").unlink(missing_ok=True)
    shutil.copytree(whole, folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def serves(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serves]:
    folder = tmp_path_factory.mktemp("triton")
    bundle = open_bundle(Path(shutil.copytree(small_bundle, folder / "bundle")))
    good = write_repository(bundle, folder / "good", Serving(max_batch=BATCH))
    gate = Gate(folder / "gate")
    stand_in(good, "mclst", gate)
    as_written = write_repository(bundle, folder / "asis", Serving("asis", max_batch=BATCH))
    bad = folder / "bad"
    for name in BROKEN:
        break_one(bundle, bad, name)
    # Its encoder and retrieval are sound, and have one gene less than it says.
    shutil.copytree(good / "mclst", bad / "ensemble")
    edited(lambda c: (setattr(c, "name", "ensemble"), c.output[0].dims.__setitem__(0, GENES + 1)))(
        bad / "ensemble"
    )
    with TritonServer(good, as_written, bad, folder=folder, all_must_load=False) as server:
        server.wait()
        with clients(server) as open_clients:
            yield Serves(server, gate, bundle, index(server), open_clients)
        assert server.process.poll() is not None, "the last test ends it"
    assert not server.segments() and not server.stubs()


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serves]:
    folder = tmp_path_factory.mktemp("direct")
    path = fast_regression(folder / "bundle", 5, embedding=4)
    calibration = calibrate(held_out(groups=2, spots=20, genes=5, dim=4))
    write_calibration(path, calibration_bytes(calibration))
    bundle = open_bundle(path)
    repository = write_repository(bundle, folder / "good", Serving("direct", max_batch=BATCH))
    stand_in(repository, "direct")
    with TritonServer(repository, folder=folder) as server:
        server.wait()
        with clients(server) as open_clients:
            yield Serves(server, Gate(folder / "none"), bundle, {}, open_clients)
    assert not server.segments() and not server.stubs()


def index(server: TritonServer) -> dict[str, str]:
    """Models that are not ready, and why."""
    name, value = SECRET.split("=")
    request = urllib.request.Request(
        f"{server.url}/v2/repository/index", b"{}", {name: value, "Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        models = json.loads(answer.read())
    return {m["name"]: m.get("reason", "") for m in models if m.get("state") != "READY"}


def some_tiles(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, TILE_PX, TILE_PX, 3), dtype=np.uint8)


def here(bundle: Bundle, tiles: NDArray[np.uint8]) -> Any:
    """What a run on this machine makes of tiles."""
    embeddings = open_session(bundle.encoder_path).encode(tiles)
    return Retriever(bundle.bank, bundle.retrieval).aggregate(embeddings)


@contextmanager
def clients(server: TritonServer) -> Iterator[dict[Any, Any]]:
    with (
        http.InferenceServerClient(
            f"127.0.0.1:{server.http}",
            connection_timeout=PATIENCE_SECONDS,
            network_timeout=PATIENCE_SECONDS,
        ) as by_http,
        grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as by_grpc,
    ):
        yield {http: by_http, grpc: by_grpc}


def ask(library: Any, client: Any, model: str, name: str, values: NDArray[Any], kind: str) -> Any:
    tensor = library.InferInput(name, list(values.shape), kind)
    tensor.set_data_from_numpy(values)
    return client.infer(model, [tensor])


def test_the_repository_as_written_lacks_nothing_but_the_backend(serves: Serves) -> None:
    assert NO_BACKEND in serves.refused["asis_encoder"]
    assert not {"asis_manifest", "asis_retrieval", "mclst", "mclst_encoder"} & set(serves.refused)
    complaints = [
        line for line in serves.server.log_text().splitlines() if line.startswith("E") and "asis" in line
    ]
    assert len(complaints) == 2 and all(NO_BACKEND in line for line in complaints)
    assert "ensemble 'asis' depends on 'asis_encoder'" in complaints[1]


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_what_is_broken_is_refused_by_the_server(serves: Serves, name: str) -> None:
    _, part, says = BROKEN[name]
    model = f"{name}_{part}"
    client = serves.clients[http]
    assert not client.is_model_ready(model)
    lines = [line for line in serves.server.log_text().splitlines() if line.startswith("E") and model in line]
    log = " ".join([serves.refused.get(model, ""), *lines])
    assert says in log, log


def test_an_ensemble_of_other_genes_is_refused_by_the_server(serves: Serves) -> None:
    client = serves.clients[http]
    assert not client.is_model_ready("ensemble") and client.is_model_ready("mclst")
    lines = serves.server.log_text().splitlines()
    log = [line for line in lines if line.startswith("E") and "ensemble" in line]
    assert any(f"[-1,{GENES + 1}]" in line and f"[-1,{GENES}]" in line for line in log), log


@pytest.mark.parametrize("n", [1, 5, BATCH])
def test_a_server_gives_what_this_machine_gives(serves: Serves, n: int) -> None:
    tiles = some_tiles(n, n)
    expected = here(serves.bundle, tiles)
    for library, client in serves.clients.items():
        result = ask(library, client, "mclst", "tiles", tiles, "UINT8")
        largest = np.abs(serves.bundle.bank.expression).max()
        np.testing.assert_allclose(result.as_numpy("expression"), expected.expression, atol=1e-6 * largest)
        np.testing.assert_allclose(result.as_numpy("nearest_distance")[:, 0], expected.nearest, rtol=1e-5)
        np.testing.assert_allclose(result.as_numpy("effective_k")[:, 0], expected.effective_k, rtol=1e-4)


def check_manifest(serves: Serves, name: str, retriever: str | None) -> None:
    for library, client in serves.clients.items():
        result = ask(library, client, f"{name}_manifest", "ask", np.zeros(1, np.int32), "INT32")
        (document,) = result.as_numpy("manifest")
        jsonschema.validate(json.loads(document), json.loads(SCHEMA.read_text()))
        served = read_served(document, "the server")
        assert served.bundle.sha256 == serves.bundle.sha256 and list(served.genes) == serves.bundle.genes
        assert served.bundle.manifest == serves.bundle.manifest and served.max_batch == BATCH
        assert served.retriever == retriever and "mclst" in served.versions


def test_a_client_learns_what_it_needs_without_the_bank(serves: Serves) -> None:
    check_manifest(serves, "mclst", Retriever(serves.bundle.bank, serves.bundle.retrieval).provider)


def test_nan_is_refused_by_name_and_alone(serves: Serves) -> None:
    """Among requests that share a batch only the one that holds it."""
    embeddings = np.random.default_rng(1).normal(size=(6, 2, 16)).astype(np.float32)
    embeddings[3, 1, 7] = np.nan
    embeddings[5, 0, 2] = np.inf
    expected = Retriever(serves.bundle.bank, serves.bundle.retrieval)

    def one(values: NDArray[np.float32]) -> Any:
        with grpc.InferenceServerClient(f"127.0.0.1:{serves.server.grpc}") as client:
            try:
                return ask(grpc, client, "mclst_retrieval", "embedding", values, "FP32").as_numpy(
                    "expression"
                )
            except InferenceServerException as error:
                return error

    with ThreadPoolExecutor(6) as pool:
        result = list(pool.map(one, embeddings))
    for i, tensor in enumerate(embeddings):
        if i in (3, 5):
            assert result[i].status() == "StatusCode.INVALID_ARGUMENT"
            assert "row 1 of the embeddings holds nan in column 7" in result[i].message() or i == 5
        else:
            np.testing.assert_allclose(result[i], expected.aggregate(tensor).expression, rtol=1e-5, atol=1e-6)
    client = serves.clients[http]
    with pytest.raises(InferenceServerException) as caught:
        ask(http, client, "mclst_retrieval", "embedding", embeddings[5], "FP32")
    assert caught.value.status() == "400" and "holds inf in column 2" in caught.value.message()


@pytest.mark.parametrize(
    ("model", "shape", "kind", "code"),
    [
        ("mclst", (1, TILE_PX, TILE_PX + 1, 3), np.uint8, "400"),
        ("mclst", (BATCH + 1, TILE_PX, TILE_PX, 3), np.uint8, "400"),
        ("mclst", (1, TILE_PX, TILE_PX, 3), np.float32, "400"),
        ("mclst", (0, TILE_PX, TILE_PX, 3), np.uint8, "400"),
        ("other", (1, TILE_PX, TILE_PX, 3), np.uint8, "404"),
    ],
)
def test_another_request_is_refused(
    serves: Serves, model: str, shape: tuple[int, ...], kind: Any, code: str
) -> None:
    client = serves.clients[http]
    with pytest.raises(InferenceServerException) as caught:
        ask(http, client, model, "tiles", np.zeros(shape, kind), "UINT8" if kind is np.uint8 else "FP32")
    assert caught.value.status() == code


def statistics(server: TritonServer, model: str) -> dict[str, Any]:
    url = f"{server.url}/v2/models/{model}/stats"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        result: dict[str, Any] = json.loads(answer.read())["model_stats"][0]
        return result


def many(
    serves: Serves, requests: list[NDArray[np.uint8]], *, until_one_ends: bool = False, then: Any = None
) -> list[Any]:
    """All at once, each an array or an exception; the encoder begins when the server has all of them, or when
    it has answered one.

    then: called once the server has answered one, after the encoder may begin.
    """
    from tritonclient.grpc.aio import InferenceServerClient

    async def one(client: Any, tiles: NDArray[np.uint8]) -> Any:
        tensor = grpc.InferInput("tiles", list(tiles.shape), "UINT8")
        tensor.set_data_from_numpy(tiles)
        return (await client.infer("mclst", [tensor])).as_numpy("expression")

    async def run() -> list[Any]:
        async with InferenceServerClient(f"127.0.0.1:{serves.server.grpc}") as client:
            tasks = [asyncio.create_task(one(client, tiles)) for tiles in requests]
            if until_one_ends:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            else:  # what comes behind them, by the same connection, is answered
                await asyncio.sleep(0)
                ask = grpc.InferInput("ask", [1], "INT32")
                ask.set_data_from_numpy(np.zeros(1, np.int32))
                await client.infer("mclst_manifest", [ask])
            serves.gate.open()
            if then is not None:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.to_thread(then)
            return await asyncio.gather(*tasks, return_exceptions=True)

    serves.gate.shut()
    try:
        return asyncio.run(run())
    finally:
        serves.gate.open()


def test_small_requests_share_a_batch(serves: Serves) -> None:
    before = statistics(serves.server, "mclst_encoder")
    requests = [some_tiles(1, seed) for seed in range(24)]
    result = many(serves, requests)
    for tiles, rows in zip(requests, result, strict=True):
        np.testing.assert_allclose(rows, here(serves.bundle, tiles).expression, rtol=1e-5, atol=1e-6)
    after = statistics(serves.server, "mclst_encoder")
    assert after["inference_count"] - before["inference_count"] == 24
    assert after["execution_count"] - before["execution_count"] <= 12


def test_more_than_the_queue_holds_is_turned_away(serves: Serves) -> None:
    """With 503, at once; what was taken is answered, and after it all is as before."""
    result = many(serves, [some_tiles(BATCH)] * 48, until_one_ends=True)
    turned = [one for one in result if isinstance(one, InferenceServerException)]
    assert turned and {one.status() for one in turned} == {"StatusCode.UNAVAILABLE"}
    assert all("maximum queue size" in one.message() for one in turned)
    assert 32 <= 48 - len(turned) < 48
    assert many(serves, [some_tiles(1)])[0].shape == (1, GENES)


def test_it_listens_on_loopback_alone_and_guards_what_no_client_needs(serves: Serves) -> None:
    import psutil

    process = psutil.Process(serves.server.process.pid)
    listens = [
        connection.laddr
        for one in (process, *process.children(recursive=True))
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.port for address in listens} >= {serves.server.http, serves.server.grpc}
    assert {address.ip.removeprefix("::ffff:") for address in listens} == {"127.0.0.1"}
    for path in ("/v2/repository/index", "/v2/systemsharedmemory/status", "/v2/logging"):
        request = urllib.request.Request(serves.server.url + path, b"{}" if "index" in path else None)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)
        assert caught.value.code == 403


def test_a_server_that_is_told_to_end_answers_all_it_took(serves: Serves) -> None:
    """The last one: SIGTERM while requests are under way. Their expression, or that they are to be sent
    again.
    """
    requests = [some_tiles(BATCH, seed) for seed in range(12)]
    codes: list[int] = []
    serves.clients[http].close()  # else the server waits for it to go
    result = many(serves, requests, then=lambda: codes.append(serves.server.terminate()))
    assert codes == [0], serves.server.log_text()[-3000:]
    assert any(not isinstance(rows, InferenceServerException) for rows in result)
    for tiles, rows in zip(requests, result, strict=True):
        if isinstance(rows, InferenceServerException):
            assert rows.status() == "StatusCode.UNAVAILABLE"
        else:
            np.testing.assert_allclose(rows, here(serves.bundle, tiles).expression, rtol=1e-5, atol=1e-6)


def test_a_calibration_comes_in_parts_and_no_other_part_is_given(regression: Serves) -> None:
    content = (regression.bundle.path / "calibration.h5").read_bytes()
    for library, client in regression.clients.items():
        (part,) = ask(library, client, "direct_manifest", "ask", np.ones(1, np.int32), "INT32").as_numpy(
            "manifest"
        )
        assert part == content
        for number in (-1, 2):
            with pytest.raises(InferenceServerException, match="there are 1 parts"):
                ask(library, client, "direct_manifest", "ask", np.full(1, number, np.int32), "INT32")


def test_a_regression_gives_what_this_machine_gives(regression: Serves) -> None:
    tiles = some_tiles(BATCH)
    expected = open_session(regression.bundle.encoder_path).encode(tiles)
    calibration = regression.bundle.calibration
    for library, client in regression.clients.items():
        result = ask(library, client, "direct", "tiles", tiles, "UINT8")
        np.testing.assert_allclose(result.as_numpy("expression"), expected[:, 4:], rtol=1e-5, atol=1e-6)
        assert calibration is not None and result.as_numpy("nearest_distance") is None
        distance = calibration.distances(expected[:, :4])
        np.testing.assert_allclose(result.as_numpy("distance")[:, 0], distance, rtol=1e-5)
        for column, message in (
            (6, "row 0 of the expression holds inf in column 2"),
            (1, "row 0 of the embedding holds inf in column 1"),
        ):
            wrong = np.where(np.arange(9) == column, np.inf, 0).astype(np.float32)[None]
            with pytest.raises(InferenceServerException, match=message):
                ask(library, client, "direct_direct", "encoded", wrong, "FP32")
    check_manifest(regression, "direct", None)


def test_the_probe_finds_a_dead_model_that_the_server_calls_ready(regression: Serves) -> None:
    def probed(*words: str) -> Any:
        return CliRunner().invoke(probe, words)

    words = (regression.server.url, "--server-model", "direct", "--timeout", str(PATIENCE_SECONDS))
    done = probed(*words)
    assert done.exit_code == 0 and "5 genes" in done.stderr
    (stub,) = regression.server.stubs("direct_direct")
    os.kill(stub, signal.SIGKILL)
    done = probed(*words)
    assert done.exit_code == 6 and "answers direct with 500" in done.stderr and "restart it" in done.stderr
    client = regression.clients[http]
    assert client.is_server_ready() and client.is_model_ready("direct_direct")
    port = HeldPort()
    done = probed(f"http://127.0.0.1:{port.number}")
    port.close()
    assert done.exit_code == 6 and "does not answer mclst_manifest" in done.stderr
