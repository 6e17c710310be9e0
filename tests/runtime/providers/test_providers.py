"""The provider chosen: the first that opens, with the reasons of the others; or the one named."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from fake_cuda import FakeDriver, FakeTensorRT
from small_model import Small

from mclst.runtime.choices import FASTEST_FIRST
from mclst.runtime.cli.infer import main
from mclst.runtime.encoder.tensorrt.build import BuiltEngine
from mclst.runtime.encoder.tensorrt.library import FLAVORS, Library, load_library
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.providers import opening as providers
from mclst.runtime.providers.opening import (
    EncoderRequest,
    list_providers,
    onnxruntime_beside,
    open_encoder,
)


def request_of(bundle: Path, **changed: Any) -> EncoderRequest:
    return EncoderRequest(bundle, bundle / "encoder.onnx", "fp32", 4, **changed)


def opening(monkeypatch: pytest.MonkeyPatch, **ends: BaseException | str) -> list[str]:
    """Providers that open, or raise what they are told; the names that were tried."""
    tried: list[str] = []

    def fake_open(name: str, request: EncoderRequest) -> Any:
        tried.append(name)
        end = ends.get(name.replace("-", "_"), ResourceError(f"{name} is not here; install it"))
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr(providers, "_open", fake_open)
    return tried


@pytest.mark.parametrize("chosen", range(len(FASTEST_FIRST)))
def test_auto_takes_the_first_and_says_why_not_the_others(
    chosen: int, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {name.replace("-", "_"): name for name in FASTEST_FIRST[chosen:]}
    tried = opening(monkeypatch, **there)
    session, passed = open_encoder("auto", request_of(small_bundle))
    assert session == FASTEST_FIRST[chosen] and tried == list(FASTEST_FIRST[: chosen + 1])  # type: ignore[comparison-overlap]
    assert passed == "; ".join(f"{name}: {name} is not here" for name in FASTEST_FIRST[:chosen])


def test_auto_stops_at_a_bundle_that_is_wrong(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = opening(monkeypatch, cuda=BundleError("no encoder"), cpu="cpu")
    with pytest.raises(BundleError, match="no encoder"):
        open_encoder("auto", request_of(small_bundle))
    assert tried == ["tensorrt", "tensorrt-rtx", "cuda"]


def test_where_nothing_opens_all_reasons_are_said(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening(monkeypatch)
    with pytest.raises(
        ResourceError, match=r"tensorrt: .*; tensorrt-rtx: .*; cuda: .*; cpu: .*install mclst\[cpu\]"
    ):
        open_encoder("auto", request_of(small_bundle))


@pytest.mark.parametrize("name", FASTEST_FIRST)
def test_one_asked_for_is_never_replaced(
    name: str, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {other.replace("-", "_"): other for other in FASTEST_FIRST if other != name}
    tried = opening(monkeypatch, **others)
    with pytest.raises(ResourceError, match=f"{name} is not here; install it"):
        open_encoder(name, request_of(small_bundle))
    assert tried == [name]


def test_an_unknown_one_is_refused(small_bundle: Path) -> None:
    with pytest.raises(ResourceError, match="there is no provider 'warp'; choose one of auto, tensorrt"):
        open_encoder("warp", request_of(small_bundle))


def test_what_is_here_is_what_opens(small_bundle: Path) -> None:
    rows = list_providers()
    assert [name for name, _, _ in rows] == list(FASTEST_FIRST)
    for name, here, what in rows:
        assert what and "\n" not in what
        if here == "no":
            with pytest.raises(ResourceError) as caught:
                open_encoder(name, request_of(small_bundle))
            assert str(caught.value) == what
        elif name in ("cpu", "cuda"):
            assert open_encoder(name, request_of(small_bundle))[0].provider == name


def test_the_table_needs_nothing_else() -> None:
    done = CliRunner().invoke(main, ["--list-providers"])
    assert done.exit_code == 0
    lines = [line for line in done.output.splitlines() if not line.startswith(" ")]
    assert [line.split()[0] for line in lines] == list(FASTEST_FIRST)
    assert all(line.split()[1] in ("yes", "no") for line in lines)
    after_cpu = done.output.partition("\ncpu ")[2].splitlines()[1]
    assert after_cpu.split() == ["fp32"], "every processor computes in it"


def missing() -> list[str]:
    return [name for name, here, _ in list_providers() if here == "no"]


@pytest.mark.parametrize("name", FASTEST_FIRST)
def test_a_run_with_a_missing_one_is_exit_6_and_writes_nothing(
    name: str, small: Small, small_bundle: Path, tmp_path: Path
) -> None:
    if name not in missing():
        pytest.skip(f"{name} is here")
    out = tmp_path / "map.h5ad"
    options = ["--spots", str(small.spots), "--bundle", str(small_bundle), "--out", str(out)]
    done = CliRunner().invoke(main, [str(small.slide), *options, "--provider", name])
    assert done.exit_code == 6 and "install" in done.output
    assert not list(tmp_path.iterdir())


def test_a_run_says_in_one_line_what_was_passed_over(
    small: Small, small_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "map.h5ad"
    options = ["--spots", str(small.spots), "--bundle", str(small_bundle), "--out", str(out), "--no-picture"]
    done = CliRunner().invoke(main, [str(small.slide), *options, "--json", str(tmp_path / "run.json")])
    assert done.exit_code == 0, done.output
    run = json.loads((tmp_path / "run.json").read_text())
    before = FASTEST_FIRST[: FASTEST_FIRST.index(run["provider"])]
    notes = [note for note in run["notes"] if note.startswith("provider ")]
    assert len(notes) == (1 if before else 0)
    for name in before:
        assert f"{name}: " in notes[0]


def test_a_sequence_part_goes_by_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def there(provider: str) -> str:
        return "CUDAExecutionProvider"

    def not_there(provider: str) -> str:
        raise ResourceError("no")

    for check, on_device in ((there, "cuda"), (not_there, "cpu")):
        monkeypatch.setattr(providers, "check_onnxruntime", check)
        assert onnxruntime_beside("cpu") == "cpu"
        assert {onnxruntime_beside(name) for name in ("tensorrt", "tensorrt-rtx", "cuda")} == {on_device}


# --- TensorRT, played
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def fake_tensorrt(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[Any]]:
    """A bundle, on a machine with a played GPU and TensorRT; the keys of the engines that were built."""
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    driver, built = FakeDriver(), list[Any]()
    package = ModuleType("cuda.bindings")
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)

    def build(library: Library, onnx: Path, key: Any, *, timing_cache: Path | None) -> BuiltEngine:
        built.append(key)
        return BuiltEngine(b"plan", "embedding", 32, {}, 0.0)

    monkeypatch.setattr("mclst.runtime.encoder.tensorrt.engine_cache.build_engine", build)
    trt = FakeTensorRT(driver)
    monkeypatch.setattr(providers, "load_library", lambda flavor: Library(flavor, trt, "10.3.0"))
    return bundle, built


def test_auto_builds_an_engine_once_and_says_so(fake_tensorrt: tuple[Path, list[Any]]) -> None:
    bundle, built = fake_tensorrt
    messages: list[str] = []
    session, passed = open_encoder("auto", request_of(bundle, notify=messages.append))
    assert (session.provider, passed, len(built)) == ("tensorrt", "", 1)
    assert (
        len(messages) == 1
        and "building an engine of tensorrt 10.3.0 for Made-up RTX, since there is none" in messages[0]
    )
    assert built[0].gpu.name == "Made-up RTX" and built[0].max_batch == 4
    again, _ = open_encoder("tensorrt", request_of(bundle, build=False, notify=messages.append))
    assert len(messages) == 1 and len(built) == 1
    assert again.engine == session.engine and "engine " in session.engine


def test_without_building_the_next_is_taken(fake_tensorrt: tuple[Path, list[Any]]) -> None:
    bundle, built = fake_tensorrt
    with pytest.raises(ResourceError, match=r"has no engine of tensorrt 10\.3\.0 .* leave --no-build out"):
        open_encoder("tensorrt", request_of(bundle, build=False))
    session, passed = open_encoder("auto", request_of(bundle, build=False))
    assert session.provider == "cpu" and not built
    assert "there is none yet" in passed and "does not cover Made-up RTX (sm_86), only sm_89" in passed


# --- the library
# ---------------------------------------------------------------------------------------------------


class Found(ModuleType):
    Builder = object

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name)
        self.__version__ = version


@pytest.mark.parametrize(
    ("flavor", "version", "right"),
    [
        ("tensorrt", "10.0.1", True),
        ("tensorrt", "10.16.1.11", True),
        ("tensorrt", "11.4.0.106", True),
        ("tensorrt", "8.6.1", False),
        ("tensorrt", "12.0.0", False),
        ("tensorrt", "", False),
        ("tensorrt-rtx", "1.7.1.116", True),
        ("tensorrt-rtx", "2.0.0", False),
    ],
)
def test_versions_that_are_known(
    flavor: Any, version: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = flavor.replace("-", "_")
    monkeypatch.setitem(sys.modules, name, Found(name, version))
    if right:
        assert load_library(flavor).version == version
    else:
        with pytest.raises(
            ResourceError, match=r"is installed and mclst knows (10\.x or 11\.x|1\.x); install"
        ):
            load_library(flavor)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_library_that_is_missing_or_does_not_load_says_what_to_install(
    flavor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = flavor.replace("-", "_")
    for module in (name, f"{name}_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    extra = "mclst[tensorrt]" if flavor == "tensorrt" else "mclst[rtx]"
    with pytest.raises(ResourceError) as caught:
        load_library(flavor)
    assert str(caught.value).startswith(f"{flavor} is not installed") and extra in str(caught.value)
    monkeypatch.delitem(sys.modules, name)
    (tmp_path / f"{name}.py").write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ResourceError, match=r"libnvinfer\.so\.10: cannot open"):
        load_library(flavor)
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.raises(ResourceError, match=f"the module {name} that is installed is not {flavor}"):
        load_library(flavor)
