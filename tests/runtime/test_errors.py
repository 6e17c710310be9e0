"""What an error is told as, and the exit code it has."""

from __future__ import annotations

import errno
from pathlib import Path

import imagecodecs
import pytest

from mclst.runtime.errors import (
    DEFECT,
    OutputError,
    ResourceError,
    describe_error,
    say_how_in_a_clone,
    write_error,
)
from mclst.runtime.expression_map.row_writer import RowWriter


@pytest.mark.parametrize(
    "words",
    [
        "/lib/_backend_agg.so: failed to map segment from shared object",
        "libopenblas.so.0: cannot allocate memory in static TLS block",
        "libopenblas.so.0: cannot map zero-fill pages: Cannot allocate memory",
    ],
)
def test_a_library_that_finds_no_memory_is_no_defect(words: str) -> None:
    sentence, code = describe_error(ImportError(words, name="matplotlib"))
    assert code == 6 and "memory is too small to load a library (matplotlib)" in sentence


@pytest.mark.parametrize(
    "error",
    [
        imagecodecs.DelayedImportError("deflate_encode"),
        ImportError("/lib/_deflate.so: cannot open shared object file: Too many open files"),
    ],
    ids=["a codec", "a library"],
)
def test_a_library_that_no_file_is_left_to_open_is_no_defect(error: ImportError) -> None:
    sentence, code = describe_error(error)
    assert code == 6 and "deflate" in sentence and "raise its limits (ulimit -a)" in sentence


# What libraries were seen to raise under a limit of memory.
OUT_OF_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError("Can't synchronously write data (memory allocation failed for chunk)"),
    ValueError("Unable to synchronously create dataset (memory allocation failed)"),
    RuntimeError("std::bad_alloc"),
    OSError("_cpu.abi3.so: failed to map segment from shared object"),
    imagecodecs.Jpeg8Error("Insufficient memory (case 4)"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_lack_of_memory_is_told_as_that_whoever_says_it(error: Exception) -> None:
    assert describe_error(error)[1] == ResourceError.exit_code
    told = write_error(Path("a.h5ad"), error)
    assert isinstance(told, ResourceError) and str(told).startswith(
        "a.h5ad is not written, for this machine's"
    )


def test_a_map_that_finds_no_memory_is_no_fault_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise OUT_OF_MEMORY[2]

    writer = RowWriter(tmp_path / "a.h5ad", (1, 1))
    rows = writer._lock(0)
    monkeypatch.setattr(rows, "resume", exhausted)
    with writer, pytest.raises(ResourceError, match="memory is too small"):
        writer.resume({})


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError("Can't write data (file write failed)")],
)
def test_a_full_disk_is_no_lack_of_memory(error: OSError) -> None:
    told = write_error(Path("a.h5ad"), error)
    assert isinstance(told, OutputError) and str(told).startswith("a.h5ad cannot be written (")


def test_a_library_that_is_missing_is_a_defect() -> None:
    missing = ImportError("libcudart.so.13: cannot open shared object file: No such file or directory")
    assert describe_error(missing)[1] == DEFECT


def test_a_clone_is_told_how_it_gets_an_extra(tmp_path: Path) -> None:
    sentence = "sklearn is not installed; install mclst[eval]"
    assert say_how_in_a_clone(sentence, tmp_path) == sentence
    (tmp_path / "pyproject.toml").touch()
    assert f"{sentence} (in this clone: pip install -e '{tmp_path}[eval]')" == say_how_in_a_clone(
        sentence, tmp_path
    )
    assert say_how_in_a_clone("k is 5 and the bank has 3 rows", tmp_path).endswith("rows")
