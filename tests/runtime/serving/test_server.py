"""A slide through an Open Inference Protocol server gives the local map, whatever happens."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_server import PATIENCE, FakeServer, hasten_patience
from forked_runs import HASHED_AT_ONCE, ForkServer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_model import Small, fast_regression

from mclst.runtime.cli.infer import main
from mclst.runtime.errors import InputError
from mclst.runtime.run.options import RunOptions
from mclst.runtime.serving import connection
from mclst.runtime.serving import flow_control as flow
from mclst.runtime.serving.client import Address
from mclst.runtime.serving.connection import REQUEST_BYTES, Server, batch_of
from mclst.runtime.serving.served_model import ServedModel

pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")

QUICK = ("--no-picture", "--no-html", "--workers", "2", "-q")
WORDS = ("slide.tif", "--spots", "spots.csv", *QUICK)
PROTOCOLS = ("http", "grpc")


def infer(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def values(path: Path | str) -> tuple[NDArray[np.float32], ...]:
    """X, nearest_distance, effective_k of a map."""
    with h5py.File(path) as file:
        return file["X"][:], file["obs/nearest_distance"][:], file["obs/effective_k"][:]


def report(name: str = "slide") -> dict[str, Any]:
    return json.loads(Path(f"{name}.run.json").read_text())


def assert_one_sentence(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert result.stdout == ""


@pytest.fixture(scope="module")
def local(run_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[NDArray[np.float32], ...]:
    """The map of a run without a server."""
    out = tmp_path_factory.mktemp("local") / "slide.h5ad"
    words = [str(run_inputs / "slide.tif"), "--spots", str(run_inputs / "spots.csv"), "--out", str(out)]
    result = infer(*words, *QUICK, "--bundle", str(run_inputs / "mclst-bundle"), "--provider", "cpu")
    assert result.exit_code == 0, result.stderr
    return values(out)


@pytest.fixture
def here(tmp_path: Path, run_inputs: Path, monkeypatch: pytest.MonkeyPatch, hashed_at_once: None) -> Path:
    """A folder with the slide and its spots, and no bundle; a failed request is soon tried again."""
    for name in ("slide.tif", "spots.csv"):
        shutil.copy(run_inputs / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flow, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(flow, "LONGEST_PAUSE_S", 0.2)
    return tmp_path


@pytest.fixture(scope="module", params=PROTOCOLS)
def lasting(request: pytest.FixtureRequest, run_inputs: Path) -> Iterator[FakeServer]:
    """A server by each protocol."""
    with FakeServer(run_inputs / "mclst-bundle", request.param) as fake:
        yield fake


@pytest.fixture
def fake(lasting: FakeServer) -> FakeServer:
    """It, well-behaved so far; a run that failed may have left it requests, which would be counted."""
    lasting.trouble = lambda number: ""
    lasting.see_off()
    lasting.n_requests = lasting.most_at_once = 0
    lasting.tiles.clear()
    return lasting


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> Event:
    """While it is set, patience passes quickly."""
    event = Event()
    hasten_patience(connection, event, monkeypatch)
    return event


def assert_the_local_map(local: tuple[NDArray[np.float32], ...], path: Path | str = "slide.h5ad") -> None:
    for ours, theirs in zip(local, values(path), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-6)


def test_a_server_gives_the_local_map_and_is_named_in_it(
    here: Path, fake: FakeServer, local: tuple[NDArray[np.float32], ...]
) -> None:
    result = infer(*WORDS, "--server", fake.url)
    assert result.exit_code == 0, result.stderr
    assert_the_local_map(local)
    assert sum(fake.tiles) == 600 and max(fake.tiles) == 8
    run_report = report()
    assert (
        run_report["provider"] == "server"
        and run_report["bundle"]["sha256"] == fake.document["bundle"]["sha256"]
    )
    server = run_report["server"]
    assert (server["url"], server["program"]) == (fake.url, "fake 1")
    assert (server["model"], server["model_version"]) == ("mclst", "1")
    assert server["requests"]["answered"] >= 75 and server["requests"]["retried"] == 0
    with h5py.File("slide.h5ad") as file:
        assert file["uns/mclst/server/url"].asstr()[()] == fake.url


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.slow
def test_a_real_network_and_a_grid(protocol: str, here: Path, small: Small, exported_bundle: Path) -> None:
    words = (str(small.slide), "--grid", "8", "--mpp", "0.5", "--no-picture", "--no-html", "-q")
    local = infer(*words, "--bundle", str(exported_bundle), "--out", "local.h5ad", "--provider", "cpu")
    assert local.exit_code == 0, local.stderr
    with FakeServer(exported_bundle, protocol) as fake:
        result = infer(*words, "--server", fake.url, "--out", "served.h5ad")
    assert result.exit_code == 0, result.stderr
    assert_the_local_map(values("local.h5ad"), "served.h5ad")


@pytest.mark.slow
def test_a_system_without_a_bank(here: Path) -> None:
    regression = fast_regression(here / "bundle", 5)
    local = infer(*WORDS, "--bundle", str(regression), "--out", "local.h5ad", "--provider", "cpu")
    assert local.exit_code == 0, local.stderr
    with FakeServer(regression) as fake:
        result = infer(*WORDS, "--server", fake.url)
    assert result.exit_code == 0, result.stderr
    with h5py.File("local.h5ad") as ours, h5py.File("slide.h5ad") as theirs:
        np.testing.assert_allclose(theirs["X"][:], ours["X"][:], rtol=1e-6, atol=1e-6)
        assert "nearest_distance" not in theirs["obs"]


TROUBLES: dict[str, Callable[[int], str]] = {
    "every third is too many": lambda n: "503" if n % 3 == 0 else "",
    "a storm of too many": lambda n: "503" if 10 <= n < 40 else "",
    "a server that fails now and then": lambda n: "500" if n % 11 == 5 else "",
    "answers that are slow and overtake": lambda n: "slow 0.05" if n % 7 == 0 else "",
    "answers cut off in the middle": lambda n: "cut off" if n % 9 == 4 else "",
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_no_row_is_lost_and_none_comes_twice(
    trouble: str, here: Path, fake: FakeServer, local: tuple[NDArray[np.float32], ...]
) -> None:
    if trouble == "answers cut off in the middle" and fake.protocol == "grpc":
        pytest.skip("gRPC frames its answers: a stopped server stands for this, below")
    fake.trouble = TROUBLES[trouble]
    result = infer(*WORDS, "--server", fake.url)
    assert result.exit_code == 0, result.stderr
    assert_the_local_map(local)
    assert fake.most_at_once <= 8
    if "slow" not in trouble:
        assert report()["server"]["requests"]["retried"] > 0


def test_a_server_with_little_room_is_given_little(
    here: Path, fake: FakeServer, local: tuple[NDArray[np.float32], ...]
) -> None:
    full = Event()

    def trouble(number: int) -> str:
        if fake.at_once > 2:
            full.set()
            return "503"
        if number >= 20:  # enough answers by now that the client sends 16 at once
            full.wait()
        return ""

    fake.trouble = trouble
    result = infer(*WORDS, "--server", fake.url, "--server-requests", "16")
    assert result.exit_code == 0, result.stderr
    assert_the_local_map(local)
    requests = report()["server"]["requests"]
    assert 0 < requests["rejected"] < requests["answered"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.slow
def test_a_server_killed_and_restarted_under_load(
    protocol: str, here: Path, run_inputs: Path, local: tuple[NDArray[np.float32], ...]
) -> None:
    under_way = {20: Event(), 50: Event()}
    stopped = {20: Event(), 50: Event()}

    def trouble(number: int) -> str:
        """Two requests find the server stopped while they are under way, and so do those beside them."""
        if number in under_way:
            under_way[number].set()
            stopped[number].wait()
        return ""

    with FakeServer(run_inputs / "mclst-bundle", protocol, trouble=trouble) as fake:

        def restart() -> None:
            for number, reached in under_way.items():
                reached.wait()
                fake.stop()
                stopped[number].set()
                fake.start()

        restarts = Thread(target=restart)
        restarts.start()
        result = infer(*WORDS, "--server", fake.url)
        restarts.join()
    assert result.exit_code == 0, result.stderr
    assert_the_local_map(local)
    assert report()["server"]["requests"]["lost"] > 0


@pytest.mark.slow
def test_a_server_that_does_not_come_back_ends_the_run_and_the_same_command_carries_on(
    here: Path, run_inputs: Path, local: tuple[NDArray[np.float32], ...], down: Event
) -> None:
    fake = FakeServer(run_inputs / "mclst-bundle")
    fake.start()
    words = (*WORDS, "--server", fake.url, *PATIENCE)

    def stop() -> None:
        fake.stop()
        down.set()

    def on_metadata(number: int) -> None:
        """The server is asked what it serves before each group of 512 is written: only the first is."""
        if number == 3:
            Thread(target=stop).start()
        if number > 2:
            down.wait()

    fake.on_metadata = on_metadata
    result = infer(*words)
    assert_one_sentence(result, 6, fake.url, "--server-patience", "512 of 600 spots are kept")
    assert report()["status"] == "stopped"
    fake.on_metadata = lambda number: None
    result = infer(*words)
    assert_one_sentence(result, 6, fake.url)
    down.clear()
    fake.tiles.clear()
    with fake:
        result = infer(*words)
    assert result.exit_code == 0, result.stderr
    assert_the_local_map(local)
    assert sum(fake.tiles) == 600 - 512
    assert report()["run"]["carried_on"] == 512


KILLED_ONCE_ROWS_ARE_KEPT = f"""
{HASHED_AT_ONCE}
import mclst.runtime.expression_map.journal
append = mclst.runtime.expression_map.journal.Journal.append
def append_and_die(self, records):
    append(self, records)
    os.kill(os.getpid(), signal.SIGKILL)
mclst.runtime.expression_map.journal.Journal.append = append_and_die
"""


@pytest.mark.slow
def test_a_killed_client_is_carried_on(
    here: Path,
    run_inputs: Path,
    log_dir: Path,
    fork_server: ForkServer,
    local: tuple[NDArray[np.float32], ...],
) -> None:
    with FakeServer(run_inputs / "mclst-bundle") as fake:
        words = (*WORDS, "--server", fake.url)
        ended = fork_server.run(here, *words, log_dir=log_dir, before=KILLED_ONCE_ROWS_ARE_KEPT)
        assert ended.code == -signal.SIGKILL, ended.stderr
        assert not Path("slide.h5ad").exists()
        fake.see_off()
        fake.tiles.clear()
        result = infer(*words)
    assert result.exit_code == 0, result.stderr
    assert_the_local_map(local)
    assert report()["run"]["carried_on"] == 512 and sum(fake.tiles) == 600 - 512


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Path:
    """A bundle of another hash, with the same genes and tiles."""
    folder = Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("another") / "bundle"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["retrieval"]["k"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.slow
def test_another_bundle_behind_the_server_is_noticed(here: Path, run_inputs: Path, another: Path) -> None:
    with FakeServer(run_inputs / "mclst-bundle") as fake:
        fake.on_metadata = lambda number: fake.hold(another) if number == 2 else None
        result = infer(*WORDS, "--server", fake.url)
        assert_one_sentence(result, 4, "another bundle", "512 of 600 spots are kept")
        result = infer(*WORDS, "--server", fake.url)
        assert_one_sentence(result, 4, "512 spots of another bundle", "--no-resume")
        result = infer(*WORDS, "--server", fake.url, "--no-resume")
        assert result.exit_code == 0, result.stderr
        fresh = infer(*WORDS, "--bundle", str(another), "--out", "fresh.h5ad", "--provider", "cpu")
        assert fresh.exit_code == 0, fresh.stderr
        assert_the_local_map(values("fresh.h5ad"))


WRONG = {
    "NaN": "expression that is not finite",
    "a row too few": "[7, 12] where float32 [8, 12] is due",
    "float64": "expression as float64",
    "an output too few": "leaves 'nearest_distance' out",
    "a short body": "cannot be understood",
    "no JSON": "cannot be understood",
    "another's answer": "another request",
    "400": "refuses the request",
    "404": "has no model 'mclst'",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_that_is_wrong_ends_the_run_in_a_sentence(wrong: str, here: Path, fake: FakeServer) -> None:
    if fake.protocol == "grpc" and wrong in ("no JSON", "another's answer"):
        pytest.skip("of HTTP")
    fake.trouble = lambda number: wrong if number == 5 else ""
    result = infer(*WORDS, "--server", fake.url)
    assert_one_sentence(result, 4, fake.url, WRONG[wrong])
    assert sorted(path.name for path in here.iterdir()) == ["slide.tif", "spots.csv"]


def test_what_a_server_says_of_itself_is_checked(here: Path, run_inputs: Path) -> None:
    with FakeServer(run_inputs / "mclst-bundle") as fake:
        for change, words in (
            ({"format": "mclst-server/2"}, "format"),
            ({"surprise": 1}, "surprise"),
            ({"name": "other"}, "the document of 'other'"),
            ({"genes": ["A", "A"]}, "genes"),
            ({"bundle": {**fake.document["bundle"], "manifest": {"format": "mclst-bundle/1"}}}, "manifest"),
            ({"genes": [f"X{i}" for i in range(13)]}, "genes"),
        ):
            fake.hold(run_inputs / "mclst-bundle")
            fake.document |= change
            assert_one_sentence(infer(*WORDS, "--server", fake.url), 4, fake.url, words)
        fake.hold(run_inputs / "mclst-bundle")
        fake.document["bundle"]["manifest"]["tile"]["size_px"] = 64
        assert_one_sentence(infer(*WORDS, "--server", fake.url), 4, "tiles UINT8 [-1, 32, 32, 3]")
        assert_one_sentence(infer(*WORDS, "--server", fake.url, "--server-model", "x"), 4, "--server-model")
    assert sorted(path.name for path in here.iterdir()) == ["slide.tif", "spots.csv"]


def test_http_to_the_port_of_grpc(here: Path, run_inputs: Path) -> None:
    with FakeServer(run_inputs / "mclst-bundle", "grpc") as fake:
        result = infer(*WORDS, "--server", fake.url.replace("grpc", "http"))
    assert_one_sentence(result, 4, "does not answer by HTTP", "grpc://")


@pytest.mark.parametrize(
    "words",
    [
        ("--server", "http://127.0.0.1:1", "--k", "3"),
        ("--server", "http://127.0.0.1:1", "--bundle", "b"),
        ("--server", "http://127.0.0.1:1", "--provider", "cpu"),
        ("--server", "http://127.0.0.1:1", "--memory-budget", "4GB"),
        ("--server", "ftp://127.0.0.1:1"),
        ("--server", "127.0.0.1:8000"),
        ("--server", "grpc://127.0.0.1"),
        ("--server", "http://user:word@127.0.0.1:1"),
        ("--server-model", "x"),
        ("--server-patience", "9"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], here: Path) -> None:
    result = infer(*WORDS, *words)
    assert result.exit_code == 2, (result.exit_code, result.stderr)


def test_a_cohort_by_a_server(here: Path, fake: FakeServer, local: tuple[NDArray[np.float32], ...]) -> None:
    for name in "ab":
        shutil.copy("slide.tif", f"{name}.tif")
    Path("cohort.csv").write_text("slide,spots\na.tif,spots.csv\nb.tif,spots.csv\n")
    words = ("--slides", "cohort.csv", "--out", "maps", *QUICK, "--server", fake.url)
    result = infer(*words)
    assert result.exit_code == 0, result.stderr
    for name in "ab":
        assert_the_local_map(local, f"maps/{name}.h5ad")
    fake.tiles.clear()
    assert infer(*words).exit_code == 0
    assert not fake.tiles
    assert infer(*words, "--cluster", "auto").exit_code == 2


@pytest.mark.slow
def test_a_cohort_ends_with_its_server(here: Path, run_inputs: Path, down: Event) -> None:
    """What no other slide would mend is not tried with each."""
    Path("cohort.csv").write_text("slide,spots,name\nslide.tif,spots.csv,a\nslide.tif,spots.csv,b\n")
    with FakeServer(run_inputs / "mclst-bundle") as fake:

        def fail(number: int) -> str:
            down.set()
            return "500"

        fake.trouble = fail
        words = ("--slides", "cohort.csv", "--out", "maps", *QUICK, "--server", fake.url)
        result = infer(*words, *PATIENCE)
    assert result.exit_code == 6 and "finished slides are kept" in result.stderr


@pytest.mark.slow
def test_a_laptop_needs_neither_network_nor_bank_nor_what_runs_them(here: Path, run_inputs: Path) -> None:
    blocked = ("onnxruntime", "faiss", "torch", "onnx", "openvino", "mclst.kernels._cpu")
    with FakeServer(run_inputs / "mclst-bundle") as fake:
        code = f"""
            import sys
            for name in {blocked}:
                sys.modules[name] = None
            sys.argv = ["mclst-infer", *{WORDS}, "--server", {fake.url!r}]
            from mclst.runtime.cli.infer import main
            main()
        """
        words = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "slide.h5ad\n"


@given(side=st.integers(8, 4096), genes=st.integers(1, 40_000), most=st.integers(1, 4096))
def test_requests_and_answers_stay_short(side: int, genes: int, most: int) -> None:
    n = batch_of(most, tile_bytes=3 * side**2, row_bytes=4 * genes)
    assert 1 <= n <= most
    assert n == 1 or n * max(3 * side**2, 4 * genes) <= REQUEST_BYTES
    assert n == most or (n + 1) * max(3 * side**2, 4 * genes) > REQUEST_BYTES


@settings(max_examples=50)
@given(st.text(max_size=40) | st.from_regex(r"(https?|grpcs?)://[a-z.:@/0-9?#\[\]]{0,20}", fullmatch=True))
def test_any_text_is_an_address_or_refused_in_words(text: str) -> None:
    try:
        result = Address.of(text)
    except ValueError as error:
        assert ("a password" if "@" in text else repr(text)) in str(error)
    else:
        assert Address.of(str(result)) == result


def test_python_gets_the_same_errors(here: Path, run_inputs: Path) -> None:
    with pytest.raises(InputError, match="--server"):
        Server("nowhere")
    with FakeServer(run_inputs / "mclst-bundle") as fake, Server(fake.url) as server:
        with pytest.raises(InputError, match="computes in fp32 and this run asks for int8"):
            RunOptions(precision="int8").for_model(ServedModel(server))
        fixed = RunOptions(precision="fp32").for_model(ServedModel(server))
        assert (fixed.provider, fixed.precision) == ("server", "fp32")
        assert fixed.for_model(ServedModel(server)) == fixed
