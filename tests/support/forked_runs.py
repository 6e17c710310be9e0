"""Fork server for runs of `mclst-infer`: children share its imports and have their own limits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tifffile
from synthetic_slides import tissue

DEFAULT_SIGHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
"""First line of a child process: under nohup it would inherit that SIGHUP is ignored."""

HASHED_AT_ONCE = """
from mclst.runtime.run.hashes import SlideHash
SlideHash.ready = property(lambda self: bool(self.result()))
"""
"""For `before`: the rows that a run keeps do not depend on when a thread has hashed the slide."""

IMPORTS = (
    "anndata.io",
    "faiss",
    "h5py",
    "imagecodecs",
    "onnxruntime",
    "openslide",
    "pyarrow",
    "scipy.ndimage",
    "scipy.spatial",
    "simplejpeg",
    "tifffile",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "mclst.runtime.slide.openslide_reader",
    "mclst.runtime.slide.picture",
    "mclst.runtime.slide.tiff",
    "mclst.kernels.cpu",
    "mclst.runtime.cohort.report",
    "mclst.runtime.cohort.table",
    "mclst.runtime.cohort.run",
    "mclst.runtime.inference.loaded_model",
    "mclst.runtime.serving.served_model",
    "rich.console",
)
"""What the server imports once, for all its children, where it is installed."""

_SERVER = rf"""
import contextlib, importlib, json, os, resource, signal, sys, time
from mclst.runtime.cli import infer
from mclst.runtime.run import encoded_tiles

encoded_tiles.KEEP_SECONDS = float("inf")  # as in conftest.py
for name in {IMPORTS}:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
"""

_SERVER += r"""
def child(request):
    os.chdir(request["folder"])
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(request["stdout"], write), 1)
    os.dup2(os.open(request["stderr"], write), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request["memory_mb"]:
        # As many threads, which take addresses each, on a machine of many cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (request["memory_mb"] << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if request["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], request["file_bytes"]))
    sys.argv = ["mclst-infer", *request["words"]]
    exec(request["before"], globals())
    infer.main()

def run(request):
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            child(request)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    while True:
        exited, status, usage = os.wait4(pid, os.WNOHANG)
        if exited:
            code, peak_mb = os.waitstatus_to_exitcode(status), usage.ru_maxrss >> 10
            return {"code": code, "peak_mb": peak_mb, "timed_out": False}
        if time.monotonic() - started > request["seconds"]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"code": -9, "peak_mb": 0, "timed_out": True}
        time.sleep(0.005)

print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """Exit code of a run, negative for a signal, and its output."""

    code: int
    stdout: str
    stderr: str
    peak_mb: int
    timed_out: bool


class ForkServer:
    """A process with everything imported that forks a child for each run; a context manager."""

    def __init__(self, *prefix: str) -> None:
        """prefix: a command that starts the process, such as `unshare`."""
        self._prefix = prefix

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [*self._prefix, sys.executable, "-c", DEFAULT_SIGHUP + _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.communicate()

    def run(
        self,
        folder: Path,
        *words: str,
        log_dir: Path,
        memory_mb: int = 0,
        file_bytes: int | None = None,
        seconds: float = 900,
        before: str = "",
        stdout: str = "",
    ) -> Ended:
        """Run `mclst-infer words` in `folder`.

        log_dir: an empty folder for stdout and stderr. memory_mb: limit beyond what the imports take, with
        two cores at most.
        file_bytes: the longest file that may be written. before: Python code run in the child first.
        stdout: a file or device instead of the one in `log_dir`.
        """
        out, err = (str(log_dir / name) for name in ("stdout", "stderr"))
        request = {
            "folder": str(folder),
            "words": words,
            "stdout": stdout or out,
            "stderr": err,
            "memory_mb": memory_mb,
            "file_bytes": file_bytes,
            "seconds": seconds,
            "before": before,
        }
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Ended(
            stdout="" if stdout else Path(out).read_text(),
            stderr=Path(err).read_text(errors="replace"),
            **answer,
        )


WORDS = ("slide.tif", "--spots", "spots.csv", "--no-picture", "--workers", "2", "-q")
"""Arguments for a run in the folder that `write_inputs` makes."""


def write_inputs(folder: Path, bundle: Path) -> Path:
    """slide.tif (0.5 µm/px), spots.csv (600 spots) and mclst-bundle all valid."""
    shutil.copytree(bundle, folder / "mclst-bundle")
    tifffile.imwrite(
        folder / "slide.tif", tissue(), photometric="rgb", tile=(64, 64), compression="zlib",
        resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None,
    )  # fmt: skip
    rows = [f"s{i},{20 + 7 * (i % 50)},{20 + 9 * (i // 50)}" for i in range(600)]
    (folder / "spots.csv").write_text("id,x,y\n" + "\n".join(rows) + "\n")
    return folder


def tree(folder: Path) -> dict[str, object]:
    """Every file by its content, every link by its target."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def assert_one_sentence(ended: Ended, code: int, words: str = "") -> None:
    """Assert that it exited with `code`, one sentence that contains `words`, and nothing on stdout."""
    assert not ended.timed_out, "it hangs"
    assert ended.code == code, (ended.code, ended.stderr[-2000:])
    sentence = ended.stderr.strip()
    assert sentence.startswith("Error: ") and "\n" not in sentence and "Traceback" not in sentence, (
        ended.stderr
    )
    assert words in sentence and len(sentence) < 1000, sentence
    assert ended.stdout == ""
