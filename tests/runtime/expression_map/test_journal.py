"""The journal of a stopped run, on a disk that fills up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from mclst.runtime.expression_map.journal import RECORD, Journal, read_journal


def records(*rows: int) -> np.ndarray:
    block = np.zeros(len(rows), RECORD)
    block["row"] = rows
    return block


@pytest.mark.parametrize("written", [0, 1, 100])
def test_a_block_that_did_not_fit_costs_no_row_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    # Some platforms and file systems reserve no room, so a block may end in its middle.
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    journal = Journal.begin(tmp_path / "journal", {"slide": "a"}, 1000)
    journal.append(records(0, 1))

    def full(handle: int, content: memoryview) -> int:
        if len(content) == size and written:
            return write(handle, content[:written])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    values = np.random.default_rng(0).normal(size=(37, 64)).astype(np.float32)
    size = 12 + 4 + 37 * 4 + values.nbytes
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            journal.append_tiles(np.arange(2, 39), values)
    for row in range(2, 40):
        journal.append(records(row))
        state = read_journal(tmp_path / "journal")
        assert state is not None and state[1]["row"].tolist() == list(range(row + 1))
    journal.close()
