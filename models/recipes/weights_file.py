"""Read a file of weights without executing anything in it."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from mclst.runtime.errors import CheckpointError

FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.")
"""Packages whose classes HisToGene's and THItoGene's checkpoints reference."""


def read_weights_file(path: Path, option: str = "--ckpt") -> dict[str, Any]:
    """Read a .pt, .pth, .bin, .ckpt or .safetensors file as a dict of tensors and plain values.

    `option` is what messages call it by.

    Raises
    ------
    CheckpointError
        If the file is no checkpoint, is damaged, or needs arbitrary unpickling.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{path} is not a file; give {option} the file itself")
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if not head:
            raise CheckpointError(f"{path} is empty; copy the checkpoint again")
        if head.startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull")
        if head.lstrip()[:1] == b"<":
            raise CheckpointError(f"{path} is a web page, not a checkpoint; download the file itself")
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
            return _read_safetensors(path)
        return _read_torch(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check the file") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(safetensors.torch.load_file(path))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is a damaged safetensors file ({error}); copy it again") from error


def check_archive(path: Path) -> bool:
    """Whether the file is torch's zip layout; CheckpointError if it is damaged or a zip bomb."""
    if not zipfile.is_zipfile(path):
        return False
    # Tensors are stored uncompressed, so the content cannot be much larger than the file.
    max_bytes = 1.1 * path.stat().st_size + (1 << 20)
    try:
        with zipfile.ZipFile(path) as members:
            unpacked = sum(member.file_size for member in members.infolist())
            # torch.load does not verify the checksums of the archive.
            if unpacked <= max_bytes and (damaged := members.testzip()):
                raise CheckpointError(
                    f"{path} is damaged: {damaged} does not have its checksum; copy the checkpoint again"
                )
    except (zipfile.BadZipFile, NotImplementedError, zlib.error, EOFError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint ({error}); copy it again") from error
    if unpacked > max_bytes:
        raise CheckpointError(f"{path} would unpack to more than it holds, as no checkpoint does; refused")
    return True


def _read_torch(path: Path) -> dict[str, Any]:
    is_archive = check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; unreadable files are refused below
            with torch.serialization.safe_globals(_placeholders(path) if is_archive else []):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and "unsupported class" not in str(error).lower():
            raise CheckpointError(
                f"{path} is not a checkpoint; give a .pt, .ckpt or .safetensors file"
            ) from error
        raise CheckpointError(
            f"{path} needs arbitrary unpickling, which could run any program, and is refused; "
            "save its state dict alone (torch.save(model.state_dict(), …)) or convert it to safetensors"
        ) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        safetensors.SafetensorError,  # torch forwards files named .safetensors
    ) as error:
        expected = "a whole checkpoint" if is_archive else "a checkpoint"
        raise CheckpointError(
            f"{path} is not {expected}; copy the .pt, .ckpt or .safetensors file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict()"
        )
    return content


class _Placeholder:
    """Inert stand-in for a framework class; ignores its arguments and state."""

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _placeholders(path: Path) -> list[Any]:
    """Map Lightning's classes in a checkpoint to placeholders; Lightning itself is never imported."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(_Placeholder, name) for name in names if name.startswith(FRAMEWORKS)]
