"""Bundles at a hub on the loopback, through the real client: pushed, pulled, moved, damaged, offline."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from described_bundle import ABOUT, describe_bundle
from fake_hub import TOKEN, FakeHub
from refusals import assert_refused, tree

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.bundle.location import HubLocation
from mclst.runtime.cli.bundle import main
from mclst.runtime.cli.infer import main as infer

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

REPOSITORY = "hf://org/small"
# huggingface_hub 2.4 uploads by an argument that its HTTP library will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, and a cache of its own for the client."""
    from huggingface_hub import constants

    with FakeHub() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
            monkeypatch.setattr(constants, name, 600)  # a busy machine may be slow
        yield server


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return describe_bundle(small_bundle, tmp_path / "bundle")


def run(*words: object) -> Result:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert TOKEN not in done.output
    return done


def push(bundle: Path, *words: object) -> str:
    done = run("push", bundle, REPOSITORY, "-q", *words)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def test_what_is_pulled_is_what_was_pushed(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    address = push(bundle)
    commit = address.rpartition("@")[2]
    assert hub.repositories["org/small"].branches["main"] == commit
    done = run("pull", REPOSITORY, "--out", tmp_path / "out")
    assert done.exit_code == 0 and f"is commit {commit}" in done.stderr
    pulled = tree(tmp_path / "out")
    assert REPOSITORY in pulled.pop("README.md").decode() and pulled.pop(".gitattributes") == b""
    assert pulled == tree(bundle)
    assert run("verify", address).stdout.strip().endswith(f"models--org--small/snapshots/{commit}")
    assert "Breast, small" in run("info", address).stdout


def test_a_moved_branch_is_another_commit_and_a_commit_stays(
    hub: FakeHub, bundle: Path, tmp_path: Path
) -> None:
    first = push(bundle)
    other = describe_bundle(bundle, tmp_path / "other", {**ABOUT, "title": "Second"})
    second = push(other)
    assert first != second
    assert "Second" in run("info", REPOSITORY).stdout
    assert "Breast, small" in run("info", first).stdout


def test_what_describes_the_bundle_of_before_is_deleted_and_other_files_stay(
    hub: FakeHub, bundle: Path
) -> None:
    push(bundle)
    repository = hub.repositories["org/small"]
    _, files = repository.files("main")
    old = dict.fromkeys(("encoder.int8.onnx", "model.sig", "rdf.yaml", "parity_tiles.npy"), b"old")
    kept = dict.fromkeys(("picture.png", "LICENSE"), b"kept")
    repository.commit("main", {**files, **old, **kept})
    push(bundle)
    _, files = repository.files("main")
    assert kept.keys() <= files.keys() and not old.keys() & files.keys()


def test_what_the_manifest_does_not_list_is_not_fetched(hub: FakeHub, bundle: Path) -> None:
    push(bundle)
    repository = hub.repositories["org/small"]
    _, files = repository.files("main")
    repository.commit("main", {**files, "engines/x/engine.plan": b"code", "setup.py": b"code"})
    assert run("pull", REPOSITORY).exit_code == 0
    assert not any("setup.py" in request or "engines" in request for request in hub.requests)


def test_nothing_is_written_beside_a_bundle_in_the_cache(hub: FakeHub, bundle: Path) -> None:
    address = push(bundle)
    snapshot = Path(run("pull", address).stdout.strip())
    before = {path: os.readlink(path) for path in snapshot.iterdir()}
    assert_refused(run("card", address, "--overwrite"), 4, ("in the hub's cache", "--out"))
    assert_refused(run("bioimageio", snapshot, "--author", "A"), 4, ("in the hub's cache",))
    assert {path: os.readlink(path) for path in snapshot.iterdir()} == before
    assert "# Breast, small" in run("card", address, "--out", "-").stdout


def test_a_cache_that_cannot_be_written_is_named(
    hub: FakeHub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    push(bundle)
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert_refused_after_note(run("pull", REPOSITORY), 5, ("file/hub cannot be written", "HF_HOME"))


def test_a_tampered_file_is_refused(hub: FakeHub, bundle: Path) -> None:
    push(bundle)
    repository = hub.repositories["org/small"]
    _, files = repository.files("main")
    changed = bytearray(files["encoder.onnx"])
    changed[6000] ^= 1
    repository.commit("main", {**files, "encoder.onnx": bytes(changed)})
    assert_refused_after_note(
        run("pull", REPOSITORY), 4, ("encoder.onnx", "SHA-256", "remove it from the cache")
    )


def assert_refused_after_note(done: Result, code: int, words: tuple[str, ...]) -> None:
    assert done.exit_code == code and done.stdout == "" and "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert [line.startswith("Note: ") for line in lines] == [True] * (len(lines) - 1) + [False]
    for word in words:
        assert word in lines[-1]


def test_each_missing_thing_has_its_sentence(hub: FakeHub, bundle: Path) -> None:
    assert_refused(run("pull", "hf://org/none"), 4, ("hf://org/none", "does not exist, or is private"))
    push(bundle)
    assert_refused(run("pull", f"{REPOSITORY}@v9"), 4, (f"{REPOSITORY}@v9", "no such branch, tag or commit"))
    assert_refused(run("pull", f"{REPOSITORY}@{'0' * 40}"), 4, ("no such branch, tag or commit",))
    hub.repositories["org/small"].gated = True
    os.environ["HF_TOKEN"] = "hf_other"
    assert_refused(run("pull", REPOSITORY), 4, ("is gated", "hf auth login"))
    hub.broken = 503
    assert_refused(run("pull", "hf://org/other"), 6, ("hf://org/other", "cannot be reached"))
    assert run("pull", "hf://org").exit_code == 2
    assert run("pull", "hf://org/../x").exit_code == 2


def test_a_repository_without_a_bundle(hub: FakeHub, bundle: Path) -> None:
    push(bundle)
    repository = hub.repositories["org/small"]
    _, files = repository.files("main")
    repository.commit("main", {name: body for name, body in files.items() if name != "bank.h5"})
    assert_refused_after_note(run("pull", REPOSITORY), 4, ("lacks bank.h5",))
    repository.commit("main", {"README.md": b"# nothing"})
    assert_refused_after_note(run("pull", REPOSITORY), 4, ("holds no manifest.json",))


def test_offline_what_was_pulled_works(hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    address = push(bundle)
    assert run("pull", REPOSITORY, "-q").exit_code == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    for location in (REPOSITORY, address):
        assert run("verify", location).exit_code == 0
    assert len(hub.requests) == before
    assert_refused(run("verify", "hf://org/other"), 6, ("not in the hub's cache", "HF_HOME"))
    assert_refused(run("verify", f"{REPOSITORY}@v2"), 6, ("not in the hub's cache",))


def test_pushing_needs_a_token_and_a_branch(
    hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert_refused(run("push", bundle, REPOSITORY, "-q"), 4, (REPOSITORY,))
    assert_refused(run("push", bundle, f"{REPOSITORY}@{'a' * 40}"), 4, ("is a commit",))
    assert hub.repositories == {}


def test_a_signed_bundle_needs_its_card_before(hub: FakeHub, bundle: Path) -> None:
    (bundle / "model.sig").write_text("{}")
    assert_refused(run("push", bundle, REPOSITORY, "-q"), 4, ("README.md", "sign again"))
    assert hub.repositories == {}
    assert run("card", bundle).exit_code == 0
    push(bundle)
    assert "model.sig" in hub.repositories["org/small"].files("main")[1]


def test_what_forbids_derivatives_is_not_pushed(hub: FakeHub, small_bundle: Path, tmp_path: Path) -> None:
    base = {"name": "UNI2-h", "hub": "org/uni2", "license": {"name": "CC-BY-NC-ND-4.0"}}
    about = {**ABOUT, "base_model": {**base, "sha256": "1" * 64}}
    bundle = describe_bundle(small_bundle, tmp_path / "bundle", about)
    assert_refused(
        run("push", bundle, REPOSITORY), 4, ("CC-BY-NC-ND-4.0", "forbids derivatives", "--by-reference")
    )
    unlicensed = describe_bundle(small_bundle, tmp_path / "unlicensed", {**ABOUT, "license": None})
    assert_refused(run("push", unlicensed, REPOSITORY), 4, ("no license", "--license"))
    unnamed = describe_bundle(small_bundle, tmp_path / "unnamed", {**ABOUT, "base_model": base})
    assert_refused(run("push", unnamed, REPOSITORY, "--by-reference"), 4, ("which weights",))
    assert hub.repositories == {}


def test_an_encoder_by_reference_is_joined_again(hub: FakeHub, small_bundle: Path, tmp_path: Path) -> None:
    base = {"name": "UNI2-h", "hub": "org/uni2", "sha256": "1" * 64, "license": {"name": "CC-BY-NC-ND-4.0"}}
    bundle = describe_bundle(small_bundle, tmp_path / "bundle", {**ABOUT, "base_model": base})
    address = push(bundle, "--by-reference")
    _, files = hub.repositories["org/small"].files("main")
    assert "encoder.onnx" not in files and "bank.h5" in files
    assert_refused(
        run("pull", address), 4, ("without the graphs of its encoder", "hf://org/uni2", "complete")
    )
    done = run("complete", address, "--encoder", small_bundle, "--out", tmp_path / "whole")
    assert done.exit_code == 0, done.output
    assert open_bundle(tmp_path / "whole").sha256 == open_bundle(bundle).sha256
    wrong = Path(shutil.copytree(small_bundle, tmp_path / "wrong"))
    (wrong / "encoder.onnx").write_bytes(b"other")
    words = ("complete", address, "--encoder", wrong, "--out", tmp_path / "again")
    assert_refused(run(*words), 4, ("encoder.onnx", "SHA-256 differs", "export it from the same weights"))


def test_infer_by_address_records_the_commit(
    hub: FakeHub, run_inputs: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anndata
    from huggingface_hub import constants

    address = push(bundle)
    maps = []
    for i, location in enumerate((REPOSITORY, REPOSITORY, str(bundle))):
        out = tmp_path / f"{i}.h5ad"
        words = ["--spots", str(run_inputs / "spots.csv"), "--bundle", location, "--out", str(out)]
        done = CliRunner().invoke(
            infer, [str(run_inputs / "slide.tif"), *words, "--no-html", "--no-picture", "-q"]
        )
        assert done.exit_code == 0, done.output
        maps.append(anndata.read_h5ad(out))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    first, again, folder = (m.uns["mclst"]["bundle"] for m in maps)
    assert first["origin"] == again["origin"] == address
    assert "origin" not in folder
    assert (maps[0].X == maps[2].X).all() and (maps[1].X == maps[2].X).all()
    report = json.loads((tmp_path / "0.run.json").read_text())
    assert report["bundle"]["origin"] == address


def test_what_is_no_hub_is_named(hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "route", lambda *request: (200, {}, b"{}"))
    assert_refused(run("pull", REPOSITORY), 4, ("is no hub", "HF_ENDPOINT"))
    assert_refused(run("push", bundle, REPOSITORY, "-q"), 4, ("is no hub",))


def test_addresses() -> None:
    assert str(HubLocation.of("hf://models/org/name@v1.0")) == "hf://org/name@v1.0"
    assert HubLocation.of(f"hf://o/n@{'a' * 40}").is_commit and not HubLocation.of("hf://o/n@abc").is_commit
    for wrong in ("hf://name", "hf://o/n@", "hf://datasets/o/n", "https://o/n", "hf://o/n@a b", "hf://o/n/f"):
        with pytest.raises(ValueError, match="hf://ORG/NAME"):
            HubLocation.of(wrong)
