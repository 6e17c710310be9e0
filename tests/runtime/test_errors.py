"""What an error is told as, and the exit code it has."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import pytest

from mclst.runtime.errors import DEFECT, describe_error, say_how_in_a_clone


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
