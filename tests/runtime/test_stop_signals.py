"""A stop signal ends a command: amid an import, where Python swallows exceptions, beside busy threads."""

from __future__ import annotations

import subprocess
import sys

import pytest
from forked_runs import DEFAULT_SIGHUP

LONG_SECONDS = 1200
"""What a stopped command would wait for, and none does: half of it is given to it in all."""

CODES = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated"), "SIGHUP": (143, "terminated")}

BEGINS = """
import os, signal, sys, time
import click
from mclst.runtime import console
"""
"""What every command below begins with."""

PLAYED = """
class Played:
    now = 0.0
    def monotonic(self):
        return self.now

console.time = played = Played()
"""
"""The clock by which a signal counts as another one, or as one more of the first."""

SWALLOWED = """
class Swallows:
    def __del__(self):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(0)  # the handler runs here, and Python ignores what it raises

@click.command()
@console.command
def main():
    Swallows()
    time.sleep(LONG)

main([])
"""


@pytest.mark.parametrize("name", CODES)
def test_a_signal_whose_exception_python_swallows_stops_the_command(name: str) -> None:
    assert_stopped(run(SWALLOWED, name), name)


STUCK = f"""
{PLAYED}
@click.command()
@console.command
def main():
    for _ in range(2):
        try:
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
            time.sleep(LONG)
        except BaseException:
            played.now += console.CLEANUP_SECONDS
    print("stuck", flush=True)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(LONG)

main([])
"""


@pytest.mark.parametrize("name", CODES)
def test_the_third_signal_ends_a_command_that_is_stuck(name: str) -> None:
    assert_stopped(run(STUCK, name), name, "stuck\n")


IMPORTING = """
import _imp, importlib, importlib._bootstrap

class Locks:
    def __getattr__(self, name):
        return getattr(_imp, name)

    def acquire_lock(self):
        _imp.acquire_lock()
        importlib._bootstrap._imp = _imp
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(0)  # the handler runs here, while the lock of all imports is held

@click.command()
@console.command
def main():
    try:
        importlib._bootstrap._imp = Locks()
        importlib.import_module("colorsys")
        time.sleep(LONG)
    finally:
        print("colorsys" in sys.modules, _imp.lock_held())

main([])
"""


@pytest.mark.parametrize("name", CODES)
def test_a_signal_amid_an_import_stops_the_command_after_it(name: str) -> None:
    assert_stopped(run(IMPORTING, name), name, "True False\n")


FAILS = IMPORTING.replace("time.sleep(LONG)", "raise ValueError('it failed')").replace(
    'print("colorsys" in sys.modules, _imp.lock_held())', "pass"
)


def test_a_signal_amid_an_import_counts_more_than_an_error_after_it() -> None:
    assert_stopped(run(FAILS, "SIGTERM"), "SIGTERM")


ENDED = """
from mclst.runtime.entry_points import exit_now, install_signal_handlers

install_signal_handlers(exit_now)

@click.command()
@console.command
def main():
    @click.get_current_context().call_on_close
    def close():
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(LONG)

main([])
"""


@pytest.mark.parametrize("name", CODES)
def test_a_signal_after_a_command_ends_the_process_at_once(name: str) -> None:
    assert_stopped(run(ENDED, name), name)


CLEANING_UP = f"""
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
    assert_stopped(run(CLEANING_UP), "SIGTERM", "cleaned up\n")


BUSY = """
import threading, types
from mclst.runtime import entry_points

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
    assert_stopped(run(BUSY, name), name, "cleaned up\n")


def assert_stopped(ended: subprocess.CompletedProcess[str], name: str, stdout: str = "") -> None:
    code, word = CODES[name]
    assert (ended.returncode, ended.stdout) == (code, stdout), ended.stderr
    assert ended.stderr.startswith(f"Error: {word}; ") and ended.stderr.count("\n") == 1, ended.stderr


def run(source: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DEFAULT_SIGHUP + BEGINS + source.replace("LONG", str(LONG_SECONDS)), *words],
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS / 2,
        check=False,
    )
