"""A stop signal ends a command even if its exception is swallowed or threads stay busy (findings L1, L2)."""

from __future__ import annotations

import subprocess
import sys

import pytest
from forked_runs import DEFAULT_SIGHUP

LONG_SECONDS = 1200
"""What a stopped command would wait for, and none does: half of it is given to it in all."""

CODES = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated"), "SIGHUP": (143, "terminated")}

PLAYED = """
class Played:
    now = 0.0
    def monotonic(self):
        return self.now

console.time = played = Played()
"""
"""The clock by which a signal counts as another one, or as one more of the first."""

SWALLOWED = f"""
import os, signal, sys, time
import click
from mclst.runtime import console
{PLAYED}
signals, number = int(sys.argv[1]), getattr(signal, sys.argv[2])

class Swallows:
    def __del__(self):
        os.kill(os.getpid(), number)
        time.sleep(0)  # the handler runs here, and Python ignores what it raises

@click.command()
@console.command
def main():
    for _ in range(signals - 1):
        Swallows()
        played.now += console.CLEANUP_SECONDS
    print("swallowed", flush=True)
    if signals == 3:
        Swallows()
    else:
        os.kill(os.getpid(), number)
    time.sleep(LONG)

main([])
"""


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("signals", [2, 3])
def test_l2_a_signal_whose_exception_was_swallowed_is_not_the_last(signals: int, name: str) -> None:
    code, word = CODES[name]
    ended = run(SWALLOWED, str(signals), name)
    assert ended.returncode == code and ended.stdout == "swallowed\n"
    assert ended.stderr.count("Exception ignored in") == signals - 1
    assert ended.stderr.splitlines()[-1].startswith(f"Error: {word}; ")


CLEANING_UP = f"""
import os, signal, sys, time
import click
from mclst.runtime import console
{PLAYED}
@click.command()
@console.command
def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LONG)
    finally:
        for _ in range(5):
            played.now += 0.9
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        print("cleaned up", flush=True)

main([])
"""


def test_l2_more_signals_do_not_break_into_the_cleanup() -> None:
    ended = run(CLEANING_UP)
    assert ended.returncode == 143 and ended.stdout == "cleaned up\n"
    assert ended.stderr.startswith("Error: terminated; ") and ended.stderr.count("\n") == 1


BUSY = """
import os, signal, sys, threading, time, types
import click
from mclst.runtime import console, entry_points

@click.command()
@console.command
def main():
    threading.Thread(target=time.sleep, args=(LONG,)).start()
    try:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(LONG)
    finally:
        print("cleaned up")

name = sys.argv[1]
module = sys.modules["stopped"] = types.ModuleType("stopped")
module.main = lambda: main([])
entry_points.COMMANDS["mclst-infer"] = ("stopped", "")
entry_points.infer()
"""


@pytest.mark.parametrize("name", CODES)
def test_l1_a_stopped_command_does_not_wait_for_its_threads(name: str) -> None:
    code, word = CODES[name]
    ended = run(BUSY, name)
    assert ended.returncode == code and ended.stdout == "cleaned up\n"
    assert ended.stderr.startswith(f"Error: {word}; ") and ended.stderr.count("\n") == 1


def run(source: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DEFAULT_SIGHUP + source.replace("LONG", str(LONG_SECONDS)), *words],
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS / 2,
        check=False,
    )
