"""`make gpu-check` without a GPU: each step names what is missing, and none outlives its limit."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from host_driver import HostDriver, compiler

from mclst.benchmarks.gpu_check import counters, retrieval, sanitize
from mclst.benchmarks.gpu_check import device as described
from mclst.benchmarks.gpu_check import run as gpu_check
from mclst.benchmarks.gpu_check import steps as gpu_steps
from mclst.benchmarks.gpu_check.run import FAILED, LATE, MISSING, NO_TIME, PASSED, STOPPED, check
from mclst.benchmarks.gpu_check.steps import ROOT, Step, all_steps, chosen
from mclst.benchmarks.reading.jpeg_slide import write_slide
from mclst.benchmarks.retrieval.cases import CASES, Case
from mclst.benchmarks.retrieval.peers import DEVICE_PEERS, torch_embedding_bag
from mclst.benchmarks.retrieval.synthetic import Source
from mclst.benchmarks.roofline.retrieval_bound import Peaks
from mclst.kernels.cuda.provider import CudaProvider
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import PROVIDERS, Retriever
from mclst.runtime import open_slide
from mclst.runtime.encoder.cpu_stages import CpuStages
from mclst.runtime.encoder.ring import Group
from mclst.runtime.progress import Clock


def ends(pid: int) -> bool:
    """Whether a process ends within minutes (a zombie has ended)."""
    for _ in range(6000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.is_file() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


LIMIT, SOON = 900.0, 7.5
"""Of a step; one that ends SOON is late once it has done what it does, whatever the clock says."""
SLEEPS = (
    "import os, pathlib, sys, time; path = pathlib.Path(sys.argv[1]); "
    "path.with_suffix('.part').write_text(str(os.getpid())); path.with_suffix('.part').rename(path); "
    "time.sleep(3600)"
)
"""A process that tells its number in a file, and sleeps on."""


def late_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that end SOON are late once `path` is there."""

    class Process(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            if timeout != SOON:
                return super().wait(timeout)
            while self.poll() is None and not path.exists():
                time.sleep(0.02)
            return super().wait(0.0)

    monkeypatch.setattr(subprocess, "Popen", Process)


def test_steps_pass_fail_run_late_and_lack_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "d.json"
    child = tmp_path / "child"
    forks = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}, {str(child)!r}])"
    late_after(child, monkeypatch)
    steps = [
        Step(
            "good",
            ("-c", f"open({str(document)!r}, 'w').write('[1]'); print('done')"),
            LIMIT,
            document=document,
        ),
        Step("bad", ("-c", "print('line'); raise SystemExit(3)"), LIMIT),
        Step("late", ("-c", forks), SOON),
        Step("lacks", ("-c", "0"), LIMIT, needs=("numpy", "no_such_module")),
        Step("lacks all", ("-c", "0"), LIMIT, any_of=("no_such", "nor_this")),
        Step("has one", ("-c", "0"), LIMIT, any_of=("no_such", "json")),
        Step("behind", ("-c", "0"), LIMIT, files=(tmp_path / "absent.txt",)),
        Step("on a device", ("-c", "0"), LIMIT, device=True),
        Step("lacks a program", ("-c", "0"), LIMIT, programs=(Path("no-such-sanitizer"),)),
    ]
    report = check(tmp_path, steps, 10 * LIMIT)
    by_name = {step["name"]: step for step in report["steps"]}
    assert [step["status"] for step in report["steps"]] == [
        PASSED, FAILED, LATE, MISSING, MISSING, PASSED, MISSING, PASSED, MISSING,
    ]  # fmt: skip
    assert by_name["good"]["document"] == [1] and by_name["good"]["said"] == ["done"]
    assert by_name["bad"]["why"] == "exit status 3" and by_name["bad"]["said"] == ["line"]
    assert by_name["lacks"]["why"] == "not installed: no_such_module"
    assert "absent.txt" in by_name["behind"]["why"]
    assert ends(int(child.read_text()))  # the child of a late step ends with it
    json.dumps(report, allow_nan=False)


MEASURES = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
for case in ("first", "second"):
    (folder / f"{case}.json").write_text(json.dumps({"case": case}))
(folder / "third.json").write_text('{"case": "thi')  # cut off
print("two cases", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "seconds", "status"),
    [
        ("folder.with_name('measured').touch(); time.sleep(3600)", SOON, LATE),
        ("raise SystemExit(4)", LIMIT, FAILED),
        ("", LIMIT, PASSED),
    ],
)
def test_a_step_that_is_killed_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, seconds: float, status: str
) -> None:
    late_after(tmp_path / "measured", monkeypatch)
    code = MEASURES.replace("{end}", end)
    steps = [
        Step("measures", ("-c", code, str(tmp_path / "cases")), seconds, document=tmp_path / "cases"),
        Step("next", ("-c", "0"), LIMIT),
    ]
    report = check(tmp_path, steps, 10 * LIMIT)
    assert [step["status"] for step in report["steps"]] == [status, PASSED]
    assert report["steps"][0]["document"] == {"first": {"case": "first"}, "second": {"case": "second"}}
    assert report["steps"][0]["said"][0] == "two cases"


TWO_STEPS = """
import pathlib, sys
from mclst.benchmarks.gpu_check import run
from mclst.benchmarks.gpu_check.steps import Step
out = pathlib.Path(sys.argv[1])
waits = '''
import os, pathlib, sys, time
path, parent = pathlib.Path(sys.argv[1]), os.getppid()
path.with_suffix(".part").write_text("[2]")
path.with_suffix(".part").rename(path)
while os.getppid() == parent:
    time.sleep(0.1)
'''
run.all_steps = lambda folder: [
    Step("one", ("-c", "0"), 3600),
    Step("two", ("-c", waits, str(out / "two.json")), 3600, document=out / "two.json"),
    Step("three", ("-c", "0"), 3600),
]
sys.argv = ["run", "--out", str(out), "--copy", str(out.parent / "copy.json"), "--seconds", "9999"]
run.main()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_document_is_there_after_every_step(how: signal.Signals, tmp_path: Path) -> None:
    """A check that is itself ended in its second step has the first one's result; if it may, the second's."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", TWO_STEPS, str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None and process.stdout.readline().startswith(b"one")
    while not (out / "two.json").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    for path in (out / "gpu-check.json", tmp_path / "copy.json"):
        steps = json.loads(path.read_text())["steps"]
        assert [(step["name"], step["status"], step["document"]) for step in steps] == [
            ("one", PASSED, None),
            *([("two", STOPPED, [2])] if how == signal.SIGTERM else []),
        ]


def test_a_stop_as_a_step_starts_ends_that_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Process(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            started.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.signal(signal.SIGTERM, gpu_check._stop)
    try:
        monkeypatch.setattr(gpu_check, "_nvidia_smi", lambda: None)
        monkeypatch.setattr(subprocess, "Popen", Process)
        sleeps = [Step(name, ("-c", "import time; time.sleep(3600)"), LIMIT) for name in ("one", "two")]
        report = check(tmp_path, sleeps, 10 * LIMIT)
        assert signal.getsignal(signal.SIGTERM) is gpu_check._stop
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert [(step["name"], step["status"]) for step in report["steps"]] == [("one", STOPPED)]
    assert [process.poll() for process in started] == [-signal.SIGKILL]


def test_steps_are_chosen_by_words_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = all_steps(tmp_path)
    assert chosen(steps, None) == steps
    names = [step.name for step in chosen(steps, "counters, 31")]
    assert names == ["device", "counters", "tests: 31 bits"]
    (tmp_path / "mine.txt").write_text("precious")
    for arguments, message in (
        (["--steps", "tests,nonsense"], "no step is called 'nonsense'; choose of retrieval, encoder"),
        (["--out", str(tmp_path)], "holds other files than an earlier check's"),
    ):
        monkeypatch.setattr(sys, "argv", ["run", "--out", str(tmp_path / "new"), *arguments])
        with pytest.raises(SystemExit):
            gpu_check.main()
        assert message in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"


NCU = """==PROF== Connected to process 77 (/usr/bin/python3)
==WARNING== Note: Running with uncontrolled GPU clocks.
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",\
"Device","CC","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name","Rule Description"
"0","77","python3","h","place(Placing)","1","7","(256, 1, 1)","(9, 1, 1)","0","9.0","Occupancy","Warps",\
"warp","8","",""
"1","77","python3","h","choose(Job)","1","7","(256, 1, 1)","(5, 1, 1)","0","9.0","GPU Speed Of Light",\
"Elapsed Cycles","cycle","1,234","",""
"1","77","python3","h","choose(Job)","1","7","(256, 1, 1)","(5, 1, 1)","0","9.0","GPU Speed Of Light",\
"","","","Bottleneck","two
lines"
"2","77","python3","h","place(Placing)","1","7","(256, 1, 1)","(1, 1, 1)","0","9.0","Occupancy","Mode",\
"","x","",""
"""


def test_counters_are_read_from_what_ncu_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        "place": {"grid": "(1, 1, 1)", "block": "(256, 1, 1)", "Occupancy: Mode": "x"},
        "choose": {
            "grid": "(5, 1, 1)",
            "block": "(256, 1, 1)",
            "GPU Speed Of Light: Elapsed Cycles [cycle]": 1234.0,
        },
    }
    assert counters.read_counters(NCU.splitlines()) == expected
    program = tmp_path / "ncu"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "log = pathlib.Path(sys.argv[sys.argv.index('--log-file') + 1])\n"
        f"log.write_text({NCU!r} if 'her2st' in log.name else '==ERROR== no counters')\n"
        "sys.exit('no counters' if 'visium' in log.name else 0)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["counters", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="failed: visium-k2400"):
        counters.main()
    (document,) = (tmp_path / "out").glob("*.json")
    assert document.name == "her2st-l1.json" and json.loads(document.read_text()) == expected


def test_without_a_device_the_rest_is_left_out_and_time_runs_out_at_the_end(tmp_path: Path) -> None:
    steps = [
        Step("device", ("-c", "raise SystemExit('no CUDA device')"), LIMIT),
        Step("needs it", ("-c", "0"), LIMIT, device=True),
        Step("does not", ("-c", "0"), LIMIT),
    ]
    report = check(tmp_path, steps, 10 * LIMIT)
    assert [step["status"] for step in report["steps"]] == [FAILED, MISSING, PASSED]
    assert report["steps"][1]["why"] == "no CUDA device" and report["steps"][0]["said"] == ["no CUDA device"]
    assert [s["status"] for s in check(tmp_path, steps[2:], total_seconds=1.0)["steps"]] == [NO_TIME]


@pytest.mark.parametrize("module", [gpu_check, gpu_steps, described])
def test_it_imports_the_standard_library_alone(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    modules = {n.name for node in tree.body if isinstance(node, ast.Import) for n in node.names}
    modules |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    ours = {name for name in modules if name.startswith("mclst.")}
    assert ours <= {gpu_steps.__name__, described.__name__}
    assert {name.split(".")[0] for name in modules - ours} <= sys.stdlib_module_names


def test_every_step_is_there_and_they_fit_into_eight_minutes(tmp_path: Path) -> None:
    names = [step.name for step in all_steps(tmp_path)]
    assert names[:3] == ["device", "retrieval", "encoder"]  # numbers first
    assert names[-6:] == ["counters", "bundle", "end-to-end", "latency", "sanitizer", "tests: 31 bits"]
    assert all(step.device for step in all_steps(tmp_path)[1:])
    # The bank beyond 31 bits takes half a minute on the host: it is in the last step alone.
    huge = "test_cuda_gpu.py::test_a_bank_beyond_31_bits"
    selected = [step for step in all_steps(tmp_path) if any(word.endswith(huge) for word in step.arguments)]
    assert selected[-1].name == "tests: 31 bits" and "--deselect" not in selected[-1].arguments
    assert all("--deselect" in step.arguments for step in selected[:-1])
    assert "def test_a_bank_beyond_31_bits(" in (ROOT / "tests/kernels/test_cuda_gpu.py").read_text()
    marked = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.gpu", re.MULTILINE)
    on_gpu = {path.stem for path in (ROOT / "tests").rglob("test_*.py") if marked.search(path.read_text())}
    assert len(on_gpu) >= 3
    files = [
        word
        for step in all_steps(tmp_path)
        for word in step.arguments
        if word.endswith(".py") and "::" not in word
    ]
    assert files and all((ROOT / file).is_file() for file in files)
    modules = [step.arguments[1] for step in all_steps(tmp_path) if step.arguments[1].startswith("mclst.")]
    assert modules and all(find_spec(module) for module in modules)
    assert {f"tests: {stem}" for stem in on_gpu} <= set(names)
    assert gpu_check.TOTAL_SECONDS < 480


def test_the_whole_of_it_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = subprocess.run(
        [sys.executable, "-m", "mclst.benchmarks.gpu_check.run", "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False, cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT / "build" / "as")},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    report = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    # Where a busy machine takes a minute to import torch, it is late.
    assert report["schema"] == "mclst-gpu-check/1" and report["steps"][0]["status"] in (FAILED, LATE)
    for step in report["steps"][1:]:
        assert step["status"] == MISSING and step["why"], step


BARE = """
import importlib, importlib.util, sys

missing = set(sys.argv[2].split())

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in missing else real(name, *more)
for name in ("retrieval", "sanitize"):
    importlib.import_module(f"mclst.benchmarks.gpu_check.{name}")
for name in ("encoder.ring", "encoder.cuda.device", "encoder.cuda.session"):
    importlib.import_module(f"mclst.runtime.{name}")
from mclst.benchmarks.gpu_check import decoders
from mclst.runtime.decoding import library
library.compiled = lambda: None
decoders.shutil.which = lambda name: None
print(decoders.prepare())
from mclst.runtime.slide.open import open_slide
with open_slide(sys.argv[1]) as slide:
    sys.stdout.write(slide.read(100, 50, 300, 200).tobytes().hex())
"""
NOT_BROUGHT = (
    "pydantic pydantic_core annotated_types typing_inspection anndata array_api_compat natsort zarr "
    "numcodecs imagecodecs simplejpeg faiss openslide openvino onnxruntime tensorrt pycuda"
)


def test_it_measures_a_slide_where_few_packages_are(tmp_path: Path) -> None:
    """numpy, scipy, Pillow, tifffile and torch, as on a rented machine: it starts and decodes."""
    path, _ = write_slide(tmp_path / "slide.tiff", size_px=480)
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(path), NOT_BROUGHT],
        capture_output=True, text=True, check=False, cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT / "build" / "as")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    decoder, _, pixels = done.stdout.partition("\n")
    assert decoder == "Pillow"
    with open_slide(path) as slide:
        assert bytes.fromhex(pixels) == slide.read(100, 50, 300, 200).tobytes()


def test_a_case_of_full_shape_is_made_without_data(tmp_path: Path) -> None:
    from mclst.benchmarks.gpu_check.case import make_case
    from mclst.runtime.bundle.bundle import open_bundle

    report = make_case(
        tmp_path / "made", encoder="resnet18", genes=16, slide_px=512, across=4, reference=230, tile_px=64
    )
    bundle = open_bundle(tmp_path / "made" / "mclst-bundle")
    assert bundle.manifest.bank_rows == 230 and bundle.manifest.tile.size_px == 64
    assert list(bundle.precisions) == report["precisions"]
    for name in ("model.pt", "slide.tiff", "spots.csv"):
        assert (tmp_path / "made" / name).is_file()


@pytest.fixture(scope="module")
def played_case() -> Iterator[Case]:
    """A small case, registered for the time of these tests."""
    case = Case("played", 300, 6, RetrievalSpec(k=9, distance="l2"), d=12)
    CASES[case.name] = case
    yield case
    del CASES[case.name]


@pytest.mark.skipif(compiler() is None, reason="g++ is not installed, and the emulation needs it")
def test_a_case_is_measured_by_stage_on_a_played_device(
    played_case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = HostDriver()
    monkeypatch.setitem(PROVIDERS, "cuda", lambda e, x, spec: CudaProvider(e, x, spec, driver=driver))
    peaks = (Peaks(1e10, 1e10), Peaks(1e12, 1e12))
    measured = []

    def measure_one(name: str, n: int, rounds: int) -> dict[str, object]:
        if n > 9:
            raise RuntimeError("the device is gone")
        measured.append(n)
        return retrieval.measure_case(name, n, rounds, driver, peaks, peers=(), staged=7)

    with pytest.raises(RuntimeError, match="the device is gone"):
        retrieval.run(tmp_path, [("played", 8, 2), ("played", 9, 1), ("played", 10, 1)], measure_one)
    assert measured == [8, 9]
    # What was measured before the fault is there, whole.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["played-n8.json", "played-n9.json"]
    document = json.loads((tmp_path / "played-n8.json").read_text())
    device = document["device"]
    assert device["queries"] == 7 and device["from_device_wall_s"]["n"] == 2
    # Times of the played device: a millisecond for everything that begins.
    stages = device["stages_s"]
    assert stages["place"] == stages["weigh"] == stages["gather"] == pytest.approx(0.001)
    assert stages["copy up"] == pytest.approx(0.001) and stages["copy down"] == pytest.approx(0.003)
    (result,) = document["results"]
    (ours,) = result["contenders"]
    assert ours["name"] == "mclst cuda" and ours["error"] < 1e-6 and result["shape"]["n"] == 8
    assert set(result["bound_s"]) == {"host", "cuda"}


def test_the_published_cases_come_before_a_million_queries() -> None:
    names = [(name, n) for name, n, _ in retrieval.SIZES]
    assert {name for name, _ in names} <= set(CASES) and len(set(names)) == len(names)
    sizes = [n for _, n in names]
    assert sizes == sorted(sizes) and sizes[-1] == 1_000_000
    assert all("cuda" in peer.name or "gpu" in peer.name or "cuvs" in peer.name for peer in DEVICE_PEERS)
    assert any("split GEMM" in peer.name for peer in DEVICE_PEERS) and len(DEVICE_PEERS) == 4


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_product_of_halves_ranks_as_float32_does(distance: Any) -> None:
    """The split-GEMM peer, on the CPU."""
    pytest.importorskip("torch")
    case = Case("x", 400, 7, RetrievalSpec(k=20, distance=distance), d=24)
    source = Source("clustered", case)
    bank, queries = source.bank(), source.queries(30)
    got = torch_embedding_bag(bank, case.spec, 1, split=True)(queries)
    expected = Retriever(bank, case.spec, "reference").aggregate(queries).expression
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(bank.expression).max()


def test_a_slide_of_jpeg_tiles_opens_as_a_scanners_does(tmp_path: Path) -> None:
    path, xy = write_slide(tmp_path / "slide.tiff", size_px=1000)
    with open_slide(path) as slide:
        assert (slide.width_px, slide.height_px, slide.levels[0].segment_px) == (1000, 1000, (240, 240))
        pixels = slide.read(0, 0, 1000, 1000)
    assert len(xy) == 16 and xy.min() == 112 and xy.max() + 112 <= 1000
    assert 120 < pixels.mean() < 200 and pixels.std() > 20
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        assert (page.compression.name, page.tilewidth) == ("JPEG", 240)
        np.testing.assert_array_equal(pixels, page.asarray())


def test_without_a_sanitizer_the_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    assert described.find_program("compute-sanitizer") is None
    monkeypatch.setattr(sys, "argv", ["sanitize"])
    with pytest.raises(SystemExit, match="compute-sanitizer is not installed"):
        sanitize.main()


def test_tiles_in_memory_go_through_the_ring_in_order() -> None:
    pytest.importorskip("torch")
    from mclst.benchmarks.gpu_check.encoder import TilesInMemory, ring_run

    class OnCpu:
        def stages(self, batch: int, *, group_rows: int, on_device: bool, clock: Clock) -> CpuStages:
            return CpuStages(
                lambda tiles: tiles.reshape(len(tiles), -1)[:, :5].astype(np.float32),
                batch=(batch, 224, 224, 3),
                group_rows=group_rows,
                clock=clock,
            )

    source, clock = TilesInMemory(70, 16, 2), Clock()
    got = np.full((70, 5), np.nan, np.float32)

    def take(group: Group) -> None:
        got[group.rows] = group.values

    assert ring_run(OnCpu(), source, 16, clock, take=take) > 0 and clock["encode"] > 0  # type: ignore[arg-type]
    np.testing.assert_array_equal(got, source.pictures[np.arange(70) % 64].reshape(70, -1)[:, :5])
