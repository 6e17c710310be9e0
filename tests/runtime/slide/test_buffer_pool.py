"""Memory lent to decoded segments: never lent twice at once, and lent again when nothing looks at it."""

from __future__ import annotations

import gc
import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mclst.runtime.slide.buffer_pool import MOST_FREE_BYTES, BufferPool


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@given(st.lists(st.tuples(st.sampled_from(["lend", "drop", "narrow"]), st.integers(0, 9)), max_size=60))
def test_no_two_that_are_held_share_memory(steps: list[tuple[str, int]]) -> None:
    slabs, held, wrote = BufferPool(48), {}, {}
    for number, (what, key) in enumerate(steps):
        if what == "lend":
            held[key] = slabs.acquire()
            held[key][:] = wrote[key] = number % 251
        elif what == "drop":
            held.pop(key, None)
        elif key in held:  # a view of a view outlives what was lent
            held[key] = held[key].reshape(-1, 1)[:24].T
        for name, array in held.items():
            assert (array == wrote[name]).all()


def test_what_was_let_go_last_is_lent_first() -> None:
    slabs = BufferPool(1 << 16)
    one, other = slabs.acquire(), slabs.acquire()
    at = [address(one), address(other)]
    del one, other
    gc.collect()
    again = [slabs.acquire(), slabs.acquire()]
    assert [address(array) for array in again] == at[::-1]


def test_little_is_kept() -> None:
    slabs = BufferPool(MOST_FREE_BYTES // 4)
    held = [slabs.acquire() for _ in range(9)]
    at = {address(array) for array in held}
    held.clear()
    assert len(slabs._mine()) == 4
    assert {address(slabs.acquire()) for _ in range(4)} <= at


def test_a_thread_has_its_own() -> None:
    slabs = BufferPool(1 << 16)
    at = address(slabs.acquire())
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(address(slabs.acquire())))
    thread.start()
    thread.join()
    assert address(slabs.acquire()) == at != found[0]
