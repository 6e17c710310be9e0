"""Whole processes from slide to expression, each started afresh, interleaved."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mclst.benchmarks.contenders.base import F32
from mclst.benchmarks.contenders.inputs import expression_difference, open_notebook
from mclst.benchmarks.contenders.slide_runs import PUBLISHED
from mclst.benchmarks.harness.measure import PeerUnavailable, summarize, summarize_runs, time_interleaved
from mclst.runtime.bundle.bundle import BANK, Bundle
from mclst.runtime.errors import ResourceError
from mclst.runtime.features.cache import VARIABLE
from mclst.runtime.providers.instruction_sets import instructions_of
from mclst.runtime.slide.detect_format import detect_format
from mclst.sections.section import Spots

TIMEOUT_S = 1800


@dataclass
class Process:
    """A command line that is run, and what it leaves.

    out: its map (.h5ad) or array (.npy). ours: whether it is mclst. cache: the user's cache it runs with.
    encode_s: seconds of encoding, by run. phases: of ours, the seconds of each phase, by run.
    """

    name: str
    command: list[str]
    out: Path
    ours: bool
    cache: Path
    encode_s: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    chosen: str = ""

    def __call__(self) -> None:
        """Run it once; raises ResourceError if it fails."""
        environment = {**os.environ, "MCLST_CACHE": str(self.cache), VARIABLE: "0"}
        # pip compiles what it installs; the warm-up round does so for a working tree.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        try:
            done = subprocess.run(
                self.command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ResourceError(f"{self.name} took more than {TIMEOUT_S} s; measure without it") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ResourceError(f"{self.name} failed with status {done.returncode} ({last[:200]})")
        if not self.ours:
            self.encode_s.append(float(json.loads(done.stdout.splitlines()[-1])["encode_s"]))
            return
        report = json.loads(done.stdout)
        self.encode_s.append(float(report["seconds"]["encode"]))
        self.phases.append(report["phases"])
        self.chosen = f"{report['provider']} {report['precision']}"

    def expression(self) -> F32:
        """Expression float32 [n, G] that the last run wrote, in the order of the spots."""
        if self.out.suffix == ".npy":
            return np.asarray(np.load(self.out), np.float32)
        import anndata

        return np.asarray(anndata.read_h5ad(self.out).X, np.float32)


def mclst_process(
    name: str, slide: Path, spots: Path, bundle: Path, folder: Path, cache: Path, words: Sequence[str]
) -> Process:
    """`mclst-infer` as typed, with map, picture, page, report and what it tells its user."""
    out = folder / f"{name.replace(' ', '-')}.h5ad"
    code = "from mclst.runtime.entry_points import infer; infer()"
    command = [sys.executable, "-c", code, slide, "--spots", spots, "--bundle", bundle, "--out", out]
    return Process(name, [*map(str, command), "--overwrite", "--json", "-", *words], out, True, cache)


def peers(
    bundle: Bundle, slide: Path, spots_path: Path, spots: Spots, ckpt: Path | None, folder: Path, threads: int
) -> tuple[list[Process], list[dict[str, str]]]:
    """Return the notebook and the plain scripts, and those that cannot run here with the reason."""

    def notebook() -> Process:
        open_notebook(bundle, ckpt, slide, threads)  # raises what keeps it from running
        out = folder / "notebook.npy"
        words = {
            "bundle": bundle.path,
            "ckpt": ckpt,
            "slide": slide,
            "spots": spots_path,
            "out": out,
            "threads": threads,
        }
        return Process(PUBLISHED, _module("notebook", words), out, False, folder / "unused")

    def script(library: str, precision: str) -> Callable[[], Process]:
        def make() -> Process:
            spec = bundle.manifest.retrieval
            if spec is None or (spec.rank, spec.weighting) != ("cosine", "inverse-square"):
                raise PeerUnavailable("the script retrieves by cosine and weighs by d⁻²")
            if bundle.manifest.tile.mpp is not None or detect_format(slide) not in ("jpeg", "png"):
                raise PeerUnavailable("the script crops pictures, at level 0 as they are")
            if find_spec(library) is None:
                raise PeerUnavailable(f"{library} is not installed")
            if precision not in bundle.precisions or instructions_of("openvino", precision) is None:
                raise PeerUnavailable(f"{precision} is not in the bundle, or not of this processor")
            centers, out = folder / "centers.csv", folder / f"{library}-{precision}.npy"
            np.savetxt(centers, spots.xy_px, delimiter=",")
            words = {
                "library": library,
                "precision": precision,
                "graph": bundle.encoder(precision),
                "bank": bundle.path / BANK,
                "picture": slide,
                "centers": centers,
                "out": out,
                "size": bundle.manifest.tile.size_px,
                "k": spec.k,
                "order": {"l1": 1, "l2": 2}[spec.distance],
            }
            name = f"plain {library} {precision}"
            return Process(name, _module("plain_script", words), out, False, folder / "unused")

        return make

    makers = {
        PUBLISHED: notebook,
        "plain onnxruntime fp32": script("onnxruntime", "fp32"),
        "plain openvino fp32": script("openvino", "fp32"),
        "plain openvino bf16": script("openvino", "bf16"),
        "plain openvino int8": script("openvino", "int8"),
    }
    processes, absent = [], []
    for name, make in makers.items():
        try:
            processes.append(make())
        except PeerUnavailable as error:
            absent.append({"name": name, "why": str(error)})
    return processes, absent


def _module(name: str, options: Mapping[str, object]) -> list[str]:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", f"mclst.benchmarks.whole_command.{name}", *words]


def evict(paths: Sequence[Path]) -> None:
    """Ask the kernel to drop files from its page cache; without effect where it cannot."""
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            with suppress(OSError, AttributeError):
                handle = os.open(file, os.O_RDONLY)
                try:
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(handle)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(
    processes: Sequence[Process],
    *,
    tiles: int,
    rounds: int,
    warm_up: int = 1,
    cold: Sequence[Path] = (),
    on_round: Callable[[], object] = lambda: None,
) -> tuple[dict[str, Any], dict[str, F32]]:
    """Run every process `rounds` times, interleaved, after `warm_up` uncounted rounds.

    cold: files to drop from the page cache before each process; () for a warm cache. Returns, by contender:
    wall and CPU seconds of the whole process, tiles per second, wall less encoding, those of mclst's phases,
    ratios to the first, and the difference of its expression from the first's; and the expressions
    float32 [n, G].
    """
    runs: dict[str, Callable[[], object]] = {}
    for process in processes:
        process.encode_s.clear()
        process.phases.clear()

        def run(process: Process = process) -> None:
            evict(cold)
            process()

        runs[process.name] = run
    timed = time_interleaved(runs, rounds, warm_up=warm_up, on_round=on_round, cpu_clock=_children_cpu)
    expression = {process.name: process.expression() for process in processes}
    first = processes[0].name
    contenders = []
    for process in processes:
        samples = timed.samples[process.name]
        encode, phases = process.encode_s[-rounds:], process.phases[-rounds:]
        contenders.append(
            {
                "name": process.name,
                "ours": process.ours,
                "chosen": process.chosen,
                **summarize_runs(samples, timed.samples[first], tiles),
                "overhead_s": summarize([w - e for w, e in zip(samples.wall_s, encode, strict=True)]),
                "phases_s": {name: summarize([run[name] for run in phases]) for name in (phases or [{}])[0]},
                "equal_to_first": expression_difference(expression[first], expression[process.name]),
                "samples": {"wall_s": samples.wall_s, "cpu_s": samples.cpu_s, "encode_s": encode},
            }
        )
    return {"tiles": tiles, "first": first, "contenders": contenders, "load": timed.load}, expression
