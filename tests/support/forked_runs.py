"""Runs of `mclst-infer`, each in a process of its own that shares the imports: cheap enough for a campaign of faults.

A child has its own limits of memory, file size and time; how it ends, a signal included, is told as it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import tifffile
from small_model import fast_bundle
from synthetic_slides import tissue

_SERVER = r"""
import json, os, resource, signal, sys, time
import anndata.io, faiss, h5py, imagecodecs, onnxruntime, openslide, pyarrow, scipy.ndimage, scipy.spatial, simplejpeg, tifffile
from PIL import JpegImagePlugin, PngImagePlugin
from mclst.runtime import cli, openslide_reader, pillow_reader, tiff
import mclst.kernels.cpu

def child(asked):
    os.chdir(asked["folder"])
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, asked["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
                                (2, asked["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(name, flags), number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if asked["memory_mb"]:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (asked["memory_mb"] << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if asked["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file_bytes"], asked["file_bytes"]))
    sys.argv = ["mclst-infer", *asked["words"]]
    exec(asked["before"], globals())
    cli.main()

def run(asked):
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            child(asked)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush(), sys.stderr.flush()
            except OSError:
                pass
            os._exit(code)
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return {"code": os.waitstatus_to_exitcode(status), "peak_mb": usage.ru_maxrss >> 10, "timed_out": False}
        if time.monotonic() - began > asked["seconds"]:
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
    """How a run ended: its exit code, negative where a signal ended it, and what it said."""

    code: int
    stdout: str
    stderr: str
    peak_mb: int
    timed_out: bool


class Forked:
    """A process that has everything imported and forks a child for each run; a context manager."""

    def __init__(self, *prefix: str) -> None:
        """prefix: a command that starts the process, such as `unshare`."""
        self._prefix = prefix

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [*self._prefix, sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.communicate(timeout=60)

    def run(
        self,
        folder: Path,
        *words: str,
        said: Path,
        memory_mb: int = 0,
        file_bytes: int | None = None,
        seconds: float = 60,
        before: str = "",
        stdout: str = "",
    ) -> Ended:
        """Run `mclst-infer words` in `folder`; said: an empty folder for what it says.

        memory_mb: beyond what the imports take. file_bytes: the longest file that may be written. before: Python run
        in the child first, which may break what it likes. stdout: a file or device in place of one of `said`.
        """
        out, err = (str(said / name) for name in ("stdout", "stderr"))
        asked: dict[str, Any] = {
            "folder": str(folder), "words": words, "stdout": stdout or out, "stderr": err, "memory_mb": memory_mb,
            "file_bytes": file_bytes, "seconds": seconds, "before": before,
        }  # fmt: skip
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        found = json.loads(self._server.stdout.readline())
        told = Path(out).read_text() if not stdout else ""
        return Ended(
            found["code"], told, Path(err).read_text(errors="replace"), found["peak_mb"], found["timed_out"]
        )


WORDS = ("slide.tif", "--spots", "spots.csv", "--no-picture", "--workers", "2", "-q")
"""The short form over the folder that `write_sound` makes."""


def write_sound(folder: Path, bundle: Path) -> Path:
    """slide.tif (0.5 µm/px), spots.csv (600 spots) and mclst-bundle with a fast encoder, all as they should be."""
    fast_bundle(bundle, folder / "mclst-bundle")
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
    """It ended by itself with `code`, one sentence that holds `words`, and nothing on stdout."""
    assert not ended.timed_out, "it hangs"
    assert ended.code == code, (ended.code, ended.stderr[-2000:])
    sentence = ended.stderr.strip()
    assert sentence.startswith("Error: ") and "\n" not in sentence and "Traceback" not in sentence, (
        ended.stderr
    )
    assert words in sentence and len(sentence) < 1000, sentence
    assert ended.stdout == ""
