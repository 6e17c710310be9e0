"""mclst-infer through a real tritonserver: the local map by HTTP and gRPC, under overload, and through a
restart.

Its ONNX Runtime backend is not in the wheel; `stand_in` runs the same graph by onnxruntime in the Python
backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from calibrated import calibrate_bundle
from triton_server import PATIENCE_SECONDS, Gate, TritonServer, stand_in, why_absent

from mclst.export.triton import config
from mclst.export.triton.repository import Serving, write_repository
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.inference.loaded_model import LoadedModel
from mclst.runtime.report.files import Files
from mclst.runtime.run.job import Job, run_job
from mclst.runtime.run.options import RunOptions
from mclst.runtime.serving.connection import Server
from mclst.runtime.serving.flow_control import Counts
from mclst.runtime.serving.served_model import ServedModel

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed; install mclst[server]")
pytestmark = pytest.mark.skipif(bool(why_absent()), reason=why_absent())

BATCH, QUEUE = 8, 8
OPTIONS = RunOptions(provider="cpu", batch_size=BATCH, picture=False, report=False, files=Files(html=False))


class Running:
    """A tritonserver that can be killed and started again at its addresses."""

    def __init__(self, repository: Path, folder: Path, gate: Gate) -> None:
        self._repository, self._folder, self.gate = repository, folder, gate
        self.server = TritonServer(repository, folder=folder / "0")
        self.server.wait()

    def url(self, protocol: str) -> str:
        return f"{protocol}://127.0.0.1:{getattr(self.server, protocol)}"

    def kill_and_start(self) -> None:
        """As an operator's restart policy does."""
        self.server.close(keep_ports=True)
        self.gate.open()
        self.server = TritonServer(self._repository, folder=self._folder / "1", ports=self.server.ports)
        self.server.wait()


@pytest.fixture(scope="module")
def place(run_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """slide.tif, spots.csv, a calibrated bundle, and local.h5ad, its map of a run without a server."""
    folder = tmp_path_factory.mktemp("triton-client")
    for name in ("slide.tif", "spots.csv"):
        (folder / name).symlink_to(run_inputs / name)
    calibrate_bundle(run_inputs / "mclst-bundle", folder / "bundle")
    run_job(LoadedModel(open_bundle(folder / "bundle")), job(folder, "local"))
    return folder


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[Running]:
    for name in ("0", "1"):
        (place / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "MAX_QUEUE", QUEUE)
        write_repository(open_bundle(place / "bundle"), place / "models", Serving(max_batch=BATCH))
    gate = Gate(place / "gate")
    stand_in(place / "models", "mclst", gate)
    running = Running(place / "models", place, gate)
    try:
        yield running
    finally:
        running.server.close()


def job(folder: Path, name: str) -> Job:
    return Job(folder / "slide.tif", out=folder / f"{name}.h5ad", spots=folder / "spots.csv", options=OPTIONS)


def served(folder: Path, name: str, server: Server) -> Counts:
    """Make a map by a server; what became of the requests."""
    with server:
        run_job(ServedModel(server), job(folder, name))
        return server.flow.counts


def connect(running: Running, protocol: str, at_once: int = 8) -> Server:
    return Server(running.url(protocol), patience_s=PATIENCE_SECONDS, at_once=at_once)


def assert_the_local_map(folder: Path, name: str) -> None:
    with h5py.File(folder / "local.h5ad") as ours, h5py.File(folder / f"{name}.h5ad") as theirs:
        for values in ("X", "obs/nearest_distance", "obs/effective_k"):
            np.testing.assert_allclose(theirs[values][:], ours[values][:], rtol=1e-5, atol=1e-6)
        for values in (
            "obs/distance_percentile",
            "obs/section_share",
            "var/expected_r",
        ):
            np.testing.assert_allclose(theirs[values][:], ours[values][:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_local_map(place: Path, running: Running, protocol: str) -> None:
    counts = served(place, protocol, connect(running, protocol))
    assert_the_local_map(place, protocol)
    assert counts.answered >= 75 and counts.retried == 0


def test_clients_that_ask_for_more_than_there_is_room_for_all_get_their_maps(
    place: Path, running: Running
) -> None:
    """Three with up to 24 requests each, before a queue of 8: some are turned away and come again.

    Of 36 answers one client has 12 or more, so it sends 13 at once, to an encoder that then holds still.
    """
    servers = [connect(running, protocol, 24) for protocol in ("http", "grpc", "http")]
    running.gate.shut(after=36)
    with ThreadPoolExecutor(3) as pool:
        futures: list[Future[Counts]] = [
            pool.submit(served, place, f"client{i}", server) for i, server in enumerate(servers)
        ]
        try:
            until(lambda: any(server.flow.counts.rejected for server in servers), futures)
        finally:
            running.gate.open()
        counts = [future.result() for future in futures]
    for i in range(3):
        assert_the_local_map(place, f"client{i}")
    assert sum(count.rejected for count in counts) > 0 and sum(count.lost for count in counts) == 0


def test_a_server_killed_and_restarted_under_load(place: Path, running: Running) -> None:
    """By SIGKILL, with two clients under way; the last test, since it takes the server's place."""
    servers = {protocol: connect(running, protocol) for protocol in ("http", "grpc")}
    opening = [server.flow.counts for server in servers.values()]
    running.gate.shut(after=10)
    with ThreadPoolExecutor(2) as pool:
        futures = {
            protocol: pool.submit(served, place, f"{protocol}-again", server)
            for protocol, server in servers.items()
        }

        def both_wait() -> bool:
            """Neither can be done after ten batches: what each has sent since then is lost."""
            counts = [server.flow.counts for server in servers.values()]
            begun = all(
                now is not before and now.most_at_once for now, before in zip(counts, opening, strict=True)
            )
            return begun and sum(count.answered for count in counts) == 10

        try:
            until(both_wait, futures.values())
            running.kill_and_start()
        finally:
            running.gate.open()
        counts = {protocol: future.result() for protocol, future in futures.items()}
    for protocol, count in counts.items():
        assert_the_local_map(place, f"{protocol}-again")
        assert count.lost > 0, counts


def until(condition: Callable[[], bool], futures: Iterable[Future[Counts]]) -> None:
    """Wait for it, or for the error that keeps it from coming true."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        for future in futures:
            if future.done():
                future.result()
        assert time.monotonic() < give_up
        time.sleep(0.01)
