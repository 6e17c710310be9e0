"""Memory lent to decoded segments: never lent twice at once, and lent again when nothing looks at it."""

from __future__ import annotations

import gc
import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mclst.runtime.slide.buffer_pool import MOST_FREE_BYTES, Slabs


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@given(st.lists(st.tuples(st.sampled_from(["lend", "drop", "narrow"]), st.integers(0, 9)), max_size=60))
def test_no_two_that_are_held_share_memory(steps: list[tuple[str, int]]) -> None:
    slabs, held, wrote = Slabs(48), {}, {}
    for number, (what, key) in enumerate(steps):
        if what == "lend":
            held[key] = slabs.lend()
            held[key][:] = wrote[key] = number % 251
        elif what == "drop":
            held.pop(key, None)
        elif key in held:  # a view of a view outlives what was lent
            held[key] = held[key].reshape(-1, 1)[:24].T
        for name, array in held.items():
            assert (array == wrote[name]).all()


def test_what_was_let_go_last_is_lent_first() -> None:
    slabs = Slabs(1 << 16)
    one, other = slabs.lend(), slabs.lend()
    at = [address(one), address(other)]
    del one, other
    gc.collect()
    again = [slabs.lend(), slabs.lend()]
    assert [address(array) for array in again] == at[::-1]


def test_little_is_kept() -> None:
    slabs = Slabs(MOST_FREE_BYTES // 4)
    held = [slabs.lend() for _ in range(9)]
    at = {address(array) for array in held}
    held.clear()
    assert len(slabs._mine()) == 4
    assert {address(slabs.lend()) for _ in range(4)} <= at


def test_a_thread_has_its_own() -> None:
    slabs = Slabs(1 << 16)
    at = address(slabs.lend())
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(address(slabs.lend())))
    thread.start()
    thread.join()
    assert address(slabs.lend()) == at != found[0]
