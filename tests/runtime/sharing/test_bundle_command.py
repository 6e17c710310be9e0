"""`mclst-bundle` as its users call it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from described_bundle import describe_bundle
from refusals import assert_refused, tree

from mclst.runtime.cli.bundle import main


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return describe_bundle(small_bundle, tmp_path / "bundle")


def test_info_fits_a_screen(bundle: Path) -> None:
    done = run("info", bundle)
    assert done.exit_code == 0 and len(done.stdout.splitlines()) <= 24
    for words in (
        "Breast, small",
        "48 spots of 2 sections",
        "Apache-2.0",
        "hf://org/tiny@000",
        "r per gene 0.25",
    ):
        assert words in done.stdout


def test_info_of_a_stranger_s_bundle_commands_no_terminal(small_bundle: Path, tmp_path: Path) -> None:
    about = {"title": "A\x1b]0;owned\x07", "intended_use": "B\x1b]0;owned\x07"}
    shown = run("info", describe_bundle(small_bundle, tmp_path / "hostile", about)).stdout
    assert "\x1b" not in shown and r"A\x1b]0;owned" in shown and r"B\x1b]0;owned" in shown


def test_info_as_json(bundle: Path) -> None:
    content = json.loads(run("info", bundle, "--json", "-").stdout)
    assert content["facts"]["license"] == "Apache-2.0"
    assert content["manifest"]["about"]["training_data"]["organ"] == "breast"


def test_card_stands_beside_the_manifest(bundle: Path) -> None:
    done = run("card", bundle, "--hub", "org/name")
    assert done.stdout.strip() == str(bundle / "README.md")
    assert "--bundle hf://org/name" in (bundle / "README.md").read_text()
    assert run("verify", bundle).exit_code == 0
    assert_refused(run("card", bundle), 5, ("README.md", "exists", "--overwrite"))
    assert run("card", bundle, "--out", "-").stdout.startswith("---\n")


def test_a_card_names_the_hub_in_either_spelling_and_nothing_else(bundle: Path) -> None:
    cards = [run("card", bundle, "--out", "-", "--hub", hub).stdout for hub in ("org/name", "hf://org/name")]
    assert cards[0] == cards[1] and "--bundle hf://org/name\n" in cards[0]
    assert run("card", bundle, "--out", "-", "--hub", "org").exit_code == 2
    assert run("push", bundle, "org/name").exit_code == 2  # it may be meant as a folder


def test_pack_and_unpack(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("pack", bundle).stdout == "bundle.mclst.zip\n"
    assert_refused(run("unpack", "bundle.mclst.zip"), 5, ("bundle exists",))
    assert run("unpack", "bundle.mclst.zip", "--out", "again").stdout == "again\n"
    assert tree(tmp_path / "again") == tree(bundle)
    os.rename("bundle.mclst.zip", "other.bin")
    assert run("unpack", "other.bin").exit_code == 2
    assert_refused(run("pack", bundle, "--out", bundle / "bank.h5", "--overwrite"), 5, ("is an input",))


def test_what_a_command_reads_is_never_overwritten(bundle: Path, tmp_path: Path) -> None:
    assert run("pack", bundle, "--out", bundle / "a.mclst.zip").exit_code == 0
    before = tree(tmp_path)
    for words in (
        ("card", bundle, "--out", bundle / "manifest.json"),
        ("card", bundle, "--out", bundle / "bank.h5"),
        ("unpack", bundle / "a.mclst.zip", "--out", bundle),
        ("complete", bundle, "--encoder", bundle, "--out", bundle),
    ):
        assert_refused(run(*words, "--overwrite"), 5, ("is an input of this run and would be lost",))
    assert tree(tmp_path) == before


def test_verify_names_what_is_wrong(small_bundle: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(small_bundle, tmp_path / name))

    changed = broken("changed")
    with (changed / "encoder.onnx").open("r+b") as file:
        file.seek(5000)
        file.write(b"\x00\x01")
    assert_refused(run("verify", changed), 4, ("encoder.onnx", "SHA-256"))
    extra = broken("extra")
    (extra / "setup.py").touch()
    (extra / "more").mkdir()
    (extra / "more" / "x.bin").touch()
    assert_refused(run("verify", extra), 4, ("more/x.bin, setup.py", "manifest does not list"))
    linked = broken("linked")
    (linked / "LICENSES").symlink_to("/etc")
    assert_refused(run("verify", linked), 4, ("LICENSES",))
    assert_refused(run("verify", tmp_path / "none"), 4, ("none", "not a bundle"))


@pytest.mark.parametrize(
    "parity", ['{"passed": false}', '{"precisions": {}}', "[]", "{", '{"passed": "true"}']
)
def test_a_bundle_whose_parity_did_not_pass_is_refused(
    small_bundle: Path, tmp_path: Path, parity: str
) -> None:
    from mclst.runtime.hashing import file_sha256

    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    (bundle / "parity.json").write_text(parity)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["parity.json"] = {"bytes": len(parity), "sha256": file_sha256(bundle / "parity.json")}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(run("verify", bundle), 4, ("parity.json",))


def _archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, tiles=np.zeros(1))
    return buffer.getvalue()


def _more_than_memory() -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 32, 32, 3)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


@pytest.mark.parametrize("tiles", [_archive, _more_than_memory])
def test_parity_tiles_that_are_none_are_refused(bundle: Path, tiles: Callable[[], bytes]) -> None:
    content = tiles()
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("parity_tiles.npy", "parity_output.npy"):
        (bundle / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(run("verify", bundle), 4, ("parity_tiles.npy cannot be read",))
