"""A bundle by reference joined with its encoder: whole, or nothing is written."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner
from refusals import assert_refused, tree

from mclst.runtime.cli.bundle import main
from mclst.runtime.sharing import by_reference


@pytest.fixture
def part(small_bundle: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(small_bundle, tmp_path / "from" / "part"))
    (folder / "encoder.onnx").unlink()
    return folder


def refuse(part: Path, encoder: Path, code: int, *words: str) -> None:
    out = part.parents[1] / "to"
    out.mkdir()
    command = ["complete", str(part), "--encoder", str(encoder), "--out", str(out / "bundle")]
    assert_refused(CliRunner().invoke(main, command), code, words)
    assert not list(out.iterdir())


def test_both_parts_are_the_bundle(part: Path, small_bundle: Path, tmp_path: Path) -> None:
    command = ["complete", str(part), "--encoder", str(small_bundle), "--out", str(tmp_path / "whole")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert tree(tmp_path / "whole") == tree(small_bundle)


def test_no_file_is_written_outside_the_bundle(part: Path, small_bundle: Path) -> None:
    planted = part.parent / ".profile"
    planted.write_bytes(b"curl | sh")
    manifest = json.loads((part / "manifest.json").read_text())
    manifest["files"]["../.profile"] = {"bytes": 9, "sha256": sha256(planted.read_bytes()).hexdigest()}
    (part / "manifest.json").write_text(json.dumps(manifest))
    refuse(part, small_bundle, 4, "manifest.json", "outside the bundle")


def test_a_file_that_is_missing_is_named(part: Path, small_bundle: Path) -> None:
    (part / "bank.h5").unlink()
    refuse(part, small_bundle, 4, "bank.h5", "cannot be read")


def test_a_graph_that_cannot_be_read_is_named(
    part: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(by_reference, "file_sha256", broken)
    refuse(part, small_bundle, 4, "encoder.onnx cannot be read (Input/output error)")


def test_a_full_disk_is_told_of_the_output(
    part: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    refuse(part, small_bundle, 5, "to/bundle cannot be written (No space left on device)")
