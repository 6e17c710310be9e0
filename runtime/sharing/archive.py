"""A bundle in one file for transport: a ZIP archive without compression, the same for the same bundle."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from mclst.runtime.atomic import atomic_file, check_writable, writing
from mclst.runtime.bundle.bundle import MANIFEST, Bundle, BundleDraft, open_bundle
from mclst.runtime.bundle.manifest import ENGINES
from mclst.runtime.errors import BundleError
from mclst.runtime.sharing.verify import check_no_extra_files, companions

SUFFIX = ".mclst.zip"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a ZIP archive can hold."""
PLAIN = stat.S_IFREG | 0o644
MAX_MEMBERS = 10_000
NAME = re.compile(r"(?:[\w][\w.-]*/){0,3}\.?[\w][\w.-]*", re.ASCII)
BLOCK_BYTES = 1 << 20
GET_AGAIN = "get the archive again, or do not use it"


def pack(bundle: Bundle, path: Path, *, overwrite: bool = False) -> Path:
    """Write a bundle and its companions to one file; engines stay out.

    Parameters
    ----------
    bundle : Bundle
        Opened, so verified.
    path : Path
        The archive. Equal bundles give equal bytes: names are sorted, times and rights are fixed.
    overwrite : bool
        Replace an existing archive.

    Returns
    -------
    Path

    Raises
    ------
    BundleError
        If the folder holds other files, or a file changes meanwhile.
    OutputError
        If the archive exists or cannot be written.
    """
    check_no_extra_files(bundle)
    check_writable(path, overwrite=overwrite)
    names = sorted({*bundle.manifest.files, *companions(bundle.path)})
    with (
        atomic_file(path) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, strict_timestamps=True) as archive,
    ):
        for name in (MANIFEST, *names):
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system, info.external_attr = 3, PLAIN << 16
            source = bundle.path / name
            info.file_size = source.stat().st_size
            with source.open("rb") as file, archive.open(info, "w") as member:
                shutil.copyfileobj(file, member, BLOCK_BYTES)
        bundle.check_unchanged()
    return path


def unpack(path: Path, out: Path, *, overwrite: bool = False) -> Bundle:
    """Write an archive's bundle to a folder, after verifying it; nothing is left of one that is refused.

    Parameters
    ----------
    path : Path
        Archive of `pack`.
    out : Path
        Folder to write.
    overwrite : bool
        Replace a bundle at `out`.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
        If this is no such archive: a member outside the folder, a link, a compressed or encrypted member, an
        engine, one twice, more than the archive's own bytes; or if its bundle is refused.
    OutputError
        If `out` exists or cannot be written.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(path, members)
            with BundleDraft(out, overwrite=overwrite) as draft:
                for member in members:
                    with archive.open(member) as source:
                        _add(draft, member.filename, source)
                _check(draft, path)
                draft.publish()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        raise BundleError(f"{path} is no archive of mclst-bundle pack ({error}); {GET_AGAIN}") from error
    except OSError as error:
        # Of the archive; a full disk keeps its own sentence.
        if error.filename != str(path):
            raise
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); give the file of mclst-bundle pack"
        ) from error
    return open_bundle(out)


def copy_bundle(bundle: Bundle, out: Path, *, overwrite: bool = False) -> Bundle:
    """Copy a bundle and its companions to a folder of plain files; raises OutputError as BundleDraft does."""
    names = (MANIFEST, *bundle.manifest.files, *companions(bundle.path))
    sources = {name: bundle.path / name for name in names}
    return join_files(sources, bundle.path, out, overwrite=overwrite)


def join_files(sources: Mapping[str, Path], origin: Path, out: Path, *, overwrite: bool = False) -> Bundle:
    """Write a bundle of files that lie elsewhere, by name; origin: for messages.

    Raises BundleError if one cannot be read or is another, OutputError as BundleDraft does.
    """
    with BundleDraft(out, overwrite=overwrite) as draft:
        for name, source in sources.items():
            try:
                file = source.open("rb")
            except OSError as error:
                raise BundleError(
                    f"{source} cannot be read ({error.strerror or error}); get the bundle again"
                ) from error
            with file:
                _add(draft, name, file)
        _check(draft, origin)
        draft.publish()
    return open_bundle(out)


def _check(draft: BundleDraft, origin: Path) -> None:
    """Raise BundleError, which names `origin` in place of the draft, if it is no whole bundle."""
    try:
        check_no_extra_files(open_bundle(draft.part))
    except BundleError as error:
        raise BundleError(str(error).replace(str(draft.part), str(origin))) from error


def _add(draft: BundleDraft, name: str, source: IO[bytes]) -> None:
    target = draft.part / name
    with writing(draft.path, option="another --out"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise BundleError unless every member is a plain file within the folder and the archive's own bytes."""
    if len(members) > MAX_MEMBERS:
        raise BundleError(f"{path} holds {len(members):,} files, more than any bundle; {GET_AGAIN}")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        if not NAME.fullmatch(name) or ".." in name.split("/"):
            raise BundleError(f"{path} holds {name!r}, which is no name within a bundle; {GET_AGAIN}")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or member.is_dir():
            raise BundleError(f"{path} holds {name!r}, which is no plain file; {GET_AGAIN}")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise BundleError(
                f"{path} holds {name!r} compressed or encrypted, as mclst-bundle pack never does; {GET_AGAIN}"
            )
        if name.split("/")[0].casefold() == ENGINES:
            raise BundleError(
                f"{path} holds {name!r}, an engine: native code, which pack leaves out; {GET_AGAIN}"
            )
        # On file systems that ignore case, one would overwrite the other.
        if name.casefold() in seen:
            raise BundleError(f"{path} holds {name!r} twice; {GET_AGAIN}")
        seen.add(name.casefold())
    for name in seen:
        if any(str(parent) in seen for parent in PurePosixPath(name).parents):
            raise BundleError(f"{path} holds {name!r} inside another file; {GET_AGAIN}")
    declared, held = sum(member.file_size for member in members), path.stat().st_size
    if declared > held:
        raise BundleError(
            f"{path} declares {declared:,} bytes and holds {held:,}: its files overlap; {GET_AGAIN}"
        )
    if MANIFEST.casefold() not in seen:
        raise BundleError(f"{path} holds no {MANIFEST}, so no bundle; {GET_AGAIN}")
