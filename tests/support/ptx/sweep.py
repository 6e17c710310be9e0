"""Kernels without one of their barriers, or of their waits for copies, each in turn."""

from __future__ import annotations

import ctypes
from typing import Any

from ptx.build import PtxDriver
from ptx.parsing import Instruction, Kernel, read_kernels


def orderings(kernel: Kernel) -> list[int]:
    """Lines of a kernel's barriers and waits, from its first instruction as 1."""
    instructions = [s for s in kernel.statements if isinstance(s, Instruction)]
    first = instructions[0].line - 1
    return [
        s.line - first
        for s in instructions
        if s.opcode[0] == "bar" or s.opcode[:3] == ("cp", "async", "wait_group")
    ]


class SweepDriver(PtxDriver):
    """Launches a kernel once without each of its barriers and waits, then as it is.

    unseen: by kernel, those whose absence has been no race and no failure so far; shared between drivers.
    """

    def __init__(self, ptx: str, unseen: dict[str, list[int]]) -> None:
        super().__init__(ptx, watched=True)
        self._unseen = unseen

    @classmethod
    def all_of(cls, ptx: str) -> dict[str, list[int]]:
        """All barriers and waits of a module."""
        return {kernel.name: orderings(kernel) for kernel in read_kernels(ptx)}

    def launch(self, kernel: str, *arguments: Any, **options: Any) -> None:
        before = {address: ctypes.string_at(address, self.sizes[address]) for address in self.allocated}
        for line in list(self._unseen[kernel]):
            self.calls.ptx_plant(kernel.encode(), line, 0)
            self.calls.ptx_watch(1)
            failed = False
            try:
                super().launch(kernel, *arguments, **options)
            except AssertionError:
                failed = True
            if failed or self.conflicts():
                self._unseen[kernel].remove(line)
            for address, content in before.items():
                ctypes.memmove(address, content, len(content))
        self.calls.ptx_plant(b"", 0, 0)
        self.calls.ptx_watch(1)
        super().launch(kernel, *arguments, **options)
        assert self.conflicts() == []
