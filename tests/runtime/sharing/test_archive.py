"""A packed bundle: the same bytes, whole again when unpacked, and nothing written from a hostile archive."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from refusals import tree

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.errors import BundleError, OutputError
from mclst.runtime.sharing.archive import copy_bundle, pack, unpack


@pytest.fixture
def archive(small_bundle: Path, tmp_path: Path) -> Path:
    return pack(open_bundle(small_bundle), tmp_path / "small.mclst.zip")


def rewrite(archive: Path, change: Callable[[zipfile.ZipFile, list[zipfile.ZipInfo]], None]) -> Path:
    """Copy the members to a new archive, which `change` adds to."""
    hostile = archive.with_name("hostile.zip")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(hostile, "w") as target:
        for member in source.infolist():
            target.writestr(member, source.read(member))
        change(target, source.infolist())
    return hostile


def refuse(archive: Path, *words: str) -> None:
    out = archive.with_name("out")
    before = set(os.listdir(archive.parent))
    with pytest.raises(BundleError) as caught:
        unpack(archive, out)
    assert set(os.listdir(archive.parent)) == before
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_unpacked_is_what_was_packed(archive: Path, small_bundle: Path, tmp_path: Path) -> None:
    bundle = unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(small_bundle)
    assert bundle.sha256 == open_bundle(small_bundle).sha256


def test_the_same_bundle_gives_the_same_bytes(archive: Path, small_bundle: Path, tmp_path: Path) -> None:
    # Other times, other rights, another order of creation.
    copy = tmp_path / "copy"
    copy.mkdir(mode=0o700)
    for name in sorted(os.listdir(small_bundle), reverse=True):
        shutil.copyfile(small_bundle / name, copy / name)
        (copy / name).chmod(0o600)
        os.utime(copy / name, (1_500_000_000, 1_500_000_000))
    assert pack(open_bundle(copy), tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_companions_travel_and_engines_stay(small_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_bundle, tmp_path / "copy"))
    (copy / "README.md").write_text("# About")
    (copy / "engines" / "key").mkdir(parents=True)
    (copy / "engines" / "key" / "engine.plan").write_bytes(b"plan")
    unpack(pack(open_bundle(copy), tmp_path / "a.zip"), tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "# About"
    assert not (tmp_path / "out" / "engines").exists()


def test_a_link_to_a_file_of_this_machine_is_not_packed(small_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_bundle, tmp_path / "copy"))
    (tmp_path / "id_ed25519").write_text("private")
    (copy / "LICENSE").symlink_to(tmp_path / "id_ed25519")
    for share in (pack, copy_bundle):
        with pytest.raises(BundleError, match=r"LICENSE is a link to .*id_ed25519"):
            share(open_bundle(copy), tmp_path / "a.zip")
        assert not (tmp_path / "a.zip").exists()


def test_a_bundle_with_other_files_is_not_packed(small_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_bundle, tmp_path / "copy"))
    (copy / "notes.txt").write_text("patients")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        pack(open_bundle(copy), tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_an_existing_archive_or_folder_stays(archive: Path, small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"):
        pack(open_bundle(small_bundle), archive)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "../evil.onnx",
        "/etc/evil",
        "a/../../evil",
        "C:\\evil",
        "a\\..\\evil",
        "a//b",
        "./a",
        "a/",
        "\x1b[2J",
        "",
    ],
)
def test_a_name_outside_the_folder_is_refused(archive: Path, name: str) -> None:
    refuse(rewrite(archive, lambda target, _: target.writestr(zipfile.ZipInfo(name), b"x")))


def test_a_link_is_refused(archive: Path) -> None:
    link = zipfile.ZipInfo("LICENSE")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    refuse(
        rewrite(archive, lambda target, _: target.writestr(link, b"/etc/passwd")), "LICENSE", "no plain file"
    )


def test_a_compressed_bomb_is_refused_before_it_unpacks(archive: Path) -> None:
    def bomb(target: zipfile.ZipFile, _: list[zipfile.ZipInfo]) -> None:
        target.writestr("LICENSE", bytes(50_000_000), zipfile.ZIP_DEFLATED, 9)

    refuse(rewrite(archive, bomb), "compressed")


def test_overlapping_members_are_refused(archive: Path) -> None:
    """Many names for the same bytes, as in a bomb without compression."""
    with zipfile.ZipFile(archive, "a") as target:
        encoder = target.getinfo("encoder.onnx")
        for i in range(40):
            other = zipfile.ZipInfo(f"weights{i}")
            other.file_size, other.compress_size, other.CRC = (
                encoder.file_size,
                encoder.file_size,
                encoder.CRC,
            )
            other.header_offset, other.external_attr = encoder.header_offset, encoder.external_attr
            target.filelist.append(other)
            target._didModify = True  # type: ignore[attr-defined]
    refuse(archive, "overlap")


def test_a_name_twice_or_inside_a_file_is_refused(archive: Path) -> None:
    refuse(rewrite(archive, lambda target, _: target.writestr("Bank.h5", b"x")), "twice")
    refuse(rewrite(archive, lambda target, _: target.writestr("bank.h5/x", b"x")), "inside another")


def test_a_file_that_the_manifest_does_not_list_is_refused(archive: Path) -> None:
    refuse(rewrite(archive, lambda target, _: target.writestr("run.py", b"x")), "hostile.zip holds", "run.py")


@pytest.mark.parametrize("name", ["engines/key/engine.plan", "Engines/key/engine.plan"])
def test_an_engine_which_no_signature_covers_is_refused(archive: Path, name: str) -> None:
    refuse(rewrite(archive, lambda target, _: target.writestr(name, b"x")), "engine.plan", "native code")


def test_a_full_disk_is_told_of_the_folder(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OutputError, match=r"out cannot be written \(No space left on device\)"):
        unpack(archive, archive.with_name("out"))
    assert os.listdir(archive.parent) == [archive.name]


def test_what_is_no_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "missing.zip", "missing.zip")
    (tmp_path / "text.zip").write_text("no archive")
    refuse(tmp_path / "text.zip", "no archive of mclst-bundle pack")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    refuse(tmp_path / "empty.zip", "manifest.json")
    (tmp_path / "folder.zip").mkdir()
    refuse(tmp_path / "folder.zip", "folder.zip")


@quick
@given(st.data())
def test_a_changed_byte_is_refused_or_changes_nothing(
    archive: Path, small_bundle: Path, data: st.DataObject
) -> None:
    content = bytearray(archive.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    changed, out = archive.with_name("changed.zip"), archive.with_name("changed")
    changed.write_bytes(content)
    try:
        unpack(changed, out)
        assert tree(out) == tree(small_bundle)  # a time or a comment of the archive was hit
    except BundleError as error:
        assert "\n" not in str(error) and not out.exists()
    finally:
        shutil.rmtree(out, ignore_errors=True)
