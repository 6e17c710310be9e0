"""The cache of engines, which verifies every engine, and exports that carry them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_model import TILE_PX, Small

from mclst.export.cli import main as export_main
from mclst.runtime import open_bundle
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt.build import EngineError
from mclst.runtime.encoder.tensorrt.engine_cache import (
    Engine,
    EngineRequest,
    find_engine,
    graph_sha256,
    make_engine,
    open_engine,
    this_platform,
)
from mclst.runtime.encoder.tensorrt.library import Library, load_library
from mclst.runtime.encoder.tensorrt.manifest import EngineKey, read_engine_manifest
from mclst.runtime.errors import ResourceError

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; install mclst[rtx]")

GPU = Gpu(name="Made-up RTX", compute_capability="8.6", driver="580.1")


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library("tensorrt-rtx")


def key_of(path: Path, library: Library, **changed: Any) -> EngineKey:
    fields: dict[str, Any] = {
        "onnx_sha256": graph_sha256(path),
        "precision": "fp32",
        "flavor": library.flavor,
        "version": library.version,
        "max_batch": 8,
        "targets": ("sm_86", "sm_89"),
        "platform": this_platform(),
    }
    return EngineKey(**(fields | changed))


@pytest.fixture(scope="module")
def stored(small_bundle: Path, library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one engine; tests copy it before changing it."""
    bundle = Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("stored") / "bundle"))
    engine = open_engine(bundle, a_request(bundle, library), build=True, notify=lambda text: None)
    assert engine.manifest.key == a_request(bundle, library).key()
    return bundle


@pytest.fixture
def bundle(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "bundle"))


def a_request(
    bundle: Path, library: Library, *, precision: str = "fp32", gpu: Gpu = GPU, batch: int = 8
) -> EngineRequest:
    return EngineRequest(bundle / "encoder.onnx", precision, library, gpu, batch)


def the_engine(bundle: Path) -> Path:
    (folder,) = (bundle / "engines").iterdir()
    return folder


def test_an_engine_is_built_once(bundle: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mclst.runtime.encoder.tensorrt.engine_cache.build_engine", no_build)
    messages: list[str] = []
    engine = open_engine(bundle, a_request(bundle, library), build=False, notify=messages.append)
    assert not messages and engine.path == the_engine(bundle)
    assert engine.plan == (the_engine(bundle) / "engine.plan").read_bytes()
    smaller = open_engine(bundle, a_request(bundle, library, batch=3), build=False, notify=messages.append)
    assert smaller.path == engine.path
    assert open_bundle(bundle).manifest.kind == "retrieval"


def no_build(*_: Any, **__: Any) -> Any:
    raise AssertionError("an engine was built")


def flip(folder: Path) -> None:
    content = bytearray((folder / "engine.plan").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "engine.plan").write_bytes(bytes(content))


def truncate(folder: Path) -> None:
    os.truncate(folder / "engine.plan", 1000)


def lengthen(folder: Path) -> None:
    with (folder / "engine.plan").open("ab") as file:
        file.write(b"more")


def link(folder: Path) -> None:
    elsewhere = folder.parent.parent / "elsewhere.plan"
    (folder / "engine.plan").rename(elsewhere)
    (folder / "engine.plan").symlink_to(elsewhere)


def remove_plan(folder: Path) -> None:
    (folder / "engine.plan").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / "engine.json").unlink()


def spoil_manifest(folder: Path) -> None:
    (folder / "engine.json").write_text("{}")


def let_anyone_write(folder: Path) -> None:
    (folder / "engine.plan").chmod(0o666)


def change_key(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "engine.json").read_text())
        content["key"] |= changed
        (folder / "engine.json").write_text(json.dumps(content))

    return change


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "tampered": (flip, "SHA-256 differs"),
    "truncated": (truncate, "has 1000 bytes and"),
    "longer": (lengthen, "bytes and"),
    "a link": (link, "cannot be read"),
    "no plan": (remove_plan, "cannot be read"),
    "no manifest": (remove_manifest, "cannot be read"),
    "manifest damaged": (spoil_manifest, "its engine.json is damaged"),
    "writable by all": (let_anyone_write, "may be written by others"),
    "another graph": (change_key(onnx_sha256="0" * 64), "it was built from another graph"),
    "another version": (change_key(version="1.6.0"), "it was built by tensorrt-rtx 1.6.0 and here is"),
    "another system": (change_key(platform="linux-sparc"), "it was built for linux-sparc"),
    "another target": (change_key(targets=["sm_120"]), "it was built for sm_120 and this device is sm_86"),
    "too small": (change_key(max_batch=2), "it takes up to 2 tiles at once and 8 are needed"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_engine_is_built_again_with_one_line(how: str, bundle: Path, library: Library) -> None:
    spoil, reason = SPOILT[how]
    folder = the_engine(bundle)
    spoil(folder)
    engine, refusal = find_engine(bundle, a_request(bundle, library))
    assert engine is None and reason in refusal and folder.name in refusal
    with pytest.raises(ResourceError, match="leave --no-build out"):
        open_engine(bundle, a_request(bundle, library), build=False, notify=no_build)
    messages: list[str] = []
    made = open_engine(bundle, a_request(bundle, library), build=True, notify=messages.append)
    assert len(messages) == 1 and reason in messages[0] and "\n" not in messages[0]
    assert made.manifest.key == a_request(bundle, library).key()
    again, refusal = find_engine(bundle, a_request(bundle, library))
    assert again == made and not refusal
    mode = (made.path / "engine.plan").stat().st_mode & 0o777
    assert not mode & 0o022


def give_away(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(path, 65534, 65534)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


UNTRUSTED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "another user's plan": ("engine.plan", give_away, "its engine.plan belongs to user 65534"),
    "another user's folder": ("", give_away, "its folder belongs to user 65534"),
    "plan of a group": ("engine.plan", lambda path: path.chmod(0o664), "its engine.plan may be written"),
    "folder of a group": ("", lambda path: path.chmod(0o775), "its folder may be written by others"),
    "folder of all": ("", lambda path: path.chmod(0o1777), "its folder may be written by others"),
    "a pipe for a plan": ("engine.plan", make_pipe, "its engine.plan is not a plain file"),
    "a pipe for a manifest": ("engine.json", make_pipe, "its engine.json is no plain file"),
}


@pytest.mark.parametrize("how", UNTRUSTED)
def test_l6_an_engine_that_others_may_have_written_is_built_again(
    how: str, bundle: Path, library: Library
) -> None:
    file, spoil, reason = UNTRUSTED[how]
    folder = the_engine(bundle)
    spoil(folder / file)
    engine, refusal = find_engine(bundle, a_request(bundle, library))
    assert engine is None and reason in refusal and folder.name in refusal
    umask = os.umask(0o002)
    try:
        made = open_engine(bundle, a_request(bundle, library), build=True, notify=lambda text: None)
    finally:
        os.umask(umask)
    assert find_engine(bundle, a_request(bundle, library)) == (made, "")


def test_an_engine_of_another_precision_or_flavour_is_none_of_ours(bundle: Path, library: Library) -> None:
    assert find_engine(bundle, a_request(bundle, library, precision="fp16")) == (None, "")
    other = replace(library, flavor="tensorrt", version="10.3.0")
    assert find_engine(bundle, a_request(bundle, other)) == (None, "")


def tensorrt_key(library: Library, bundle: Path, **changed: Any) -> EngineKey:
    return key_of(
        bundle / "encoder.onnx",
        library,
        **({"flavor": "tensorrt", "version": "10.3.0", "targets": (), "gpu": GPU} | changed),
    )


@pytest.mark.parametrize(
    ("changed", "here", "reason"),
    [
        ({}, {}, None),
        ({}, {"driver": "581.2"}, "under driver 580.1 and here is 581.2"),
        ({}, {"name": "Other"}, r"built on Made-up RTX (sm_86) and this is Other (sm_86)"),
        ({}, {"compute_capability": "8.9"}, "and this is Made-up RTX (sm_89)"),
        ({"hardware_compatible": True}, {"name": "Other", "compute_capability": "9.0"}, None),
        ({"hardware_compatible": True}, {"compute_capability": "7.5"}, "and this is Made-up RTX (sm_75)"),
        ({"version": "10.2.0"}, {}, "built by tensorrt 10.2.0 and here is 10.3.0"),
        (
            {"version": "10.2.0", "version_compatible": True},
            {},
            "built by tensorrt 10.2.0 and here is 10.3.0",
        ),
    ],
)
def test_an_engine_of_tensorrt_belongs_to_its_gpu_driver_and_version(
    bundle: Path, library: Library, changed: dict[str, Any], here: dict[str, str], reason: str | None
) -> None:
    """What TensorRT would have built stands in for it: another library's bytes, never looked into here."""
    shutil.rmtree(bundle / "engines")
    keep_as(bundle, library, tensorrt_key(library, bundle, **changed))
    other = replace(library, flavor="tensorrt", version="10.3.0")
    gpu = replace(GPU, **here)
    engine, refusal = find_engine(bundle, a_request(bundle, other, gpu=gpu))
    if reason is None:
        assert engine is not None and not refusal
    else:
        assert engine is None and reason in refusal


def test_an_older_version_runs_where_its_lean_runtime_is(
    bundle: Path, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(bundle / "engines")
    keep_as(bundle, library, tensorrt_key(library, bundle, version="10.2.0", version_compatible=True))
    monkeypatch.setattr("mclst.runtime.encoder.tensorrt.engine_cache.lean_library", lambda version: tmp_path)
    for version, fits in (("10.3.0", True), ("11.0.0.114", True), ("10.1.0", False)):
        other = replace(library, flavor="tensorrt", version=version)
        assert (find_engine(bundle, a_request(bundle, other))[0] is not None) == fits


def keep_as(bundle: Path, library: Library, key: EngineKey) -> Engine:
    from mclst.runtime.encoder.tensorrt.build import BuiltEngine

    with pytest.MonkeyPatch.context() as patch:
        built = BuiltEngine(b"bytes", "embedding", TILE_PX, {"FLOAT": 3}, 0.1)
        patch.setattr("mclst.runtime.encoder.tensorrt.engine_cache.build_engine", lambda *_, **__: built)
        return make_engine(bundle, bundle / "encoder.onnx", key, library, must_store=True)


def test_a_bundle_that_cannot_be_written_still_runs(
    bundle: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(bundle / "engines")
    # A file where the folder should be stops root too.
    (bundle / "engines").write_text("in the way")
    messages: list[str] = []
    engine = open_engine(bundle, a_request(bundle, library), build=True, notify=messages.append)
    assert len(engine.plan) == engine.manifest.plan.bytes
    assert len(messages) == 2 and "is used but not kept" in messages[1]
    assert (bundle / "engines").read_text() == "in the way"


def test_a_build_that_fails_leaves_nothing(
    bundle: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(bundle / "engines")
    (bundle / "encoder.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match="parser refuses it"):
        open_engine(bundle, a_request(bundle, library), build=True, notify=lambda text: None)
    assert not (bundle / "engines").exists()


# --- the commands ---------------------------------------------------------------------------------


def export(small: Small, out: Path, *options: str) -> Any:
    common = ["--ckpt", str(small.ckpt), "--reference", str(small.folder), "--tile-px", str(TILE_PX)]
    few = ["--k", "10", "--parity-tiles", "8", "--out", str(out), "--precision", "fp32"]
    return CliRunner().invoke(export_main, [*common, *few, *options])


def test_an_export_carries_its_engines(small: Small, library: Library, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = export(
        small,
        out,
        "--engine",
        "tensorrt-rtx",
        "--target",
        "sm_89,SM_86,sm_89",
        "--max-batch",
        "4",
        "--workspace",
        "1GiB",
    )
    assert done.exit_code == 0, done.output
    folder = the_engine(out)
    manifest = read_engine_manifest(folder / "engine.json")
    key = manifest.key
    assert (key.targets, key.max_batch, key.workspace_bytes) == (("sm_89", "sm_86"), 4, 1 << 30)
    assert key.folder == folder.name and manifest.tile_px == TILE_PX
    bundle = open_bundle(out)
    assert not [name for name in bundle.manifest.files if "engines" in name]
    engine, refusal = find_engine(out, a_request(out, library, batch=4))
    assert engine is not None and not refusal
    flip(folder)
    assert open_bundle(out).sha256 == bundle.sha256


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--engine", "tensorrt", "--target", "sm_86"], 2, "--target belongs to --engine tensorrt-rtx"),
        (["--target", "sm_86"], 2, "--target belongs to --engine tensorrt-rtx"),
        (["--engine", "tensorrt-rtx", "--version-compatible"], 2, "belong to --engine tensorrt"),
        (["--engine", "tensorrt-rtx", "--timing-cache", "t"], 2, "belong to --engine tensorrt"),
        (["--engine", "tensorrt-rtx", "--target", "ampere"], 2, "is no compute capability such as sm_86"),
        (["--engine", "tensorrt-rtx", "--workspace", "much"], 2, "is not an amount of memory such as 4GB"),
        (["--engine", "tensorrt-rtx", "--target", "sm_87"], 6, "and not for sm_87; choose another --target"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_before_any_work(
    small: Small, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    done = export(small, tmp_path / "bundle", *options)
    assert done.exit_code == code and message in " ".join(done.output.split())
    assert not (tmp_path / "bundle").exists()


def test_an_engine_of_tensorrt_says_what_to_install(small: Small, tmp_path: Path) -> None:
    try:
        load_library("tensorrt")
    except ResourceError:
        done = export(small, tmp_path / "bundle", "--engine", "tensorrt")
        assert done.exit_code == 6 and "tensorrt is not installed; install mclst[tensorrt]" in done.output
    else:
        pytest.skip("TensorRT is installed")
