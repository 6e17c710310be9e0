"""What an error is told as, and the exit code it has."""

from __future__ import annotations

import pytest

from mclst.runtime.errors import DEFECT, describe_error


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


def test_a_library_that_is_missing_is_a_defect() -> None:
    missing = ImportError("libcudart.so.13: cannot open shared object file: No such file or directory")
    assert describe_error(missing)[1] == DEFECT
