"""The console commands from their first moment on: a signal is answered, whatever is being imported."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from forked_runs import DEFAULT_SIGHUP

SCRIPTS: dict[str, str] = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())[
    "project"
]["scripts"]

STOPPED_AT_IMPORT = """
import importlib.abc, os, signal, sys, threading

when, number, script, *words = sys.argv[1:]

class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        # Other threads may import beside this one.
        if name == when and threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), getattr(signal, number))
        return None

sys.meta_path.insert(0, Stop())
module, function = script.split(":")
sys.argv[1:] = words or ["--help"]
getattr(__import__(module, fromlist=[function]), function)()
"""


def run(source: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DEFAULT_SIGHUP + source, *words],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_signal_while_a_command_starts_is_one_sentence(script: str) -> None:
    done = run(STOPPED_AT_IMPORT, "click", "SIGINT", SCRIPTS[script])
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr.startswith("Error: interrupted; ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
@pytest.mark.parametrize("module", ["numpy._core._multiarray_umath", "mclst.runtime.inference.loaded_model"])
@pytest.mark.slow
def test_a_signal_amid_the_imports_of_mclst_infer(name: str, code: int, module: str) -> None:
    done = run(STOPPED_AT_IMPORT, module, name, SCRIPTS["mclst-infer"], "slide.tif", "--spots", "spots.csv")
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


def test_nothing_slow_stands_before_the_signals_are_heeded() -> None:
    done = run("import mclst.runtime.entry_points, sys; print(*sys.modules)")
    assert not {name.split(".")[0] for name in done.stdout.split()} & {
        "numpy",
        "click",
        "rich",
        "pandas",
        "anndata",
    }


ENDS = """
import atexit, sys, threading, time, types
from mclst.runtime import entry_points

def main():
    said = threading.Event()
    def late():
        said.wait()
        time.sleep(0.2)
        print("a thread's line")
    threading.Thread(target=late).start()
    atexit.register(print, "the end")
    print("a line", end=" ")
    print("an error", file=sys.stderr, end="")
    said.set()
    sys.exit({code})

sys.modules["ends"] = types.SimpleNamespace(main=main)
entry_points.COMMANDS["mclst-infer"] = ("ends", "")
entry_points.infer()
"""


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [("", 0, ""), ("0", 0, ""), ("4", 4, ""), ("'a message'", 1, "a message\n")],
)
def test_a_command_ends_as_python_ends(code: str, status: int, error: str) -> None:
    done = run(ENDS.replace("{code}", code))
    assert done.returncode == status and done.stderr == f"an error{error}"
    assert done.stdout == "a line a thread's line\nthe end\n"


def test_output_that_cannot_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", ENDS.replace("{code}", "0")],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )  # fmt: skip
    assert done.returncode == 120 and "No space left" in done.stderr


def test_a_run_under_nohup_goes_on_when_its_terminal_is_gone() -> None:
    source = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from mclst.runtime.entry_points import install_signal_handlers
install_signal_handlers(lambda number, frame: os._exit(number))
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert run(source).returncode == 15


def test_the_package_gives_its_names_on_demand() -> None:
    package = importlib.import_module("mclst.runtime")
    assert all(getattr(package, name).__name__ == name for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
