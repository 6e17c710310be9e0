"""Slides over a Ray cluster: Ray places workers and reports their death; retries are decided here.

Ray's own retries are off: they count a node's death many times, or never end. A task is tried three times in
all. A dead worker is requested anew and gets tasks only once it has answered, which it never does if its node
is gone for good.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from sys import stderr
from typing import Any

from mclst.runtime.choices import ON_CPU
from mclst.runtime.cohort.cluster_worker import Task, Worker, lost
from mclst.runtime.cohort.run import FAILED, SlideOutcome
from mclst.runtime.entry_points import restore_signal_handlers, signal_handlers
from mclst.runtime.errors import BundleError, MclstError, OutputError, ResourceError
from mclst.runtime.expression_map.parts import SlidePart
from mclst.runtime.inference.loaded_model import LoadedModel
from mclst.runtime.inference.model import Model
from mclst.runtime.providers.choice import EncoderChoice
from mclst.runtime.run.job import Job
from mclst.runtime.run.options import RunOptions

ATTEMPTS = 3
PATIENCE_SECONDS = 120.0
"""How long no worker at all may be alive before the cohort fails."""
HEARTBEAT_SECONDS = 5.0
LONGEST_TEMP = 29
"""Ray's sockets add 78 bytes to the temporary folder's path, and the longest path of a socket is 107."""
DYING_SECONDS = 5.0
"""How long a killed worker's files may stay locked."""
KINDS: dict[int, type[MclstError]] = {4: BundleError, 5: OutputError, 6: ResourceError}


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Connect to the Ray cluster at `address`; "auto" starts one here and stops it with the context.

    Telemetry and dashboard are off, and Ray's output goes to stderr. Raises ResourceError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "auto":
        # Read by `import ray`: without it Ray listens on the machine's own address, whatever it is asked for.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise ResourceError("ray is not installed, which --cluster needs; install mclst[cluster]") from error
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    connect = _private_cluster() if address == "auto" else nullcontext({"address": address})
    handlers = signal_handlers()
    with redirect_stdout(stderr), connect as more:
        try:
            ray.init(**options, **more)
        except Exception as error:  # Ray's exceptions at start share no base class
            reason = " ".join(str(error).split())[:200]
            raise ResourceError(
                f"no Ray cluster at {address!r} ({reason}); start one, or use auto"
            ) from error
        restore_signal_handlers(handlers)  # ray.init replaces them
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _private_cluster() -> Iterator[dict[str, Any]]:
    """Options of `ray.init` for a cluster on this machine that other users cannot reach."""
    if (
        not os.path.exists(os.path.expanduser("~/.ray/auth_token"))
        and "RAY_AUTH_TOKEN_PATH" not in os.environ
    ):
        # Ray would write a token that all users can read.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    base = base if len(base) <= LONGEST_TEMP else "/tmp"
    with tempfile.TemporaryDirectory(prefix="mr-", dir=base, ignore_cleanup_errors=True) as private:
        # Ray lets all users write to its folder, so it gets one inside a private folder.
        folder = os.path.join(private, "r")
        yield {
            "address": "local",
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
        }


class Pool:
    """Workers of a cluster: starting, idle and busy."""

    def __init__(
        self,
        ray: Any,
        size: int,
        options: Mapping[str, Any],
        arguments: tuple[Any, ...],
        deadline: float | None = None,
    ) -> None:
        """options: of a Ray actor. arguments: of a Worker. deadline: seconds until a busy one is killed."""
        self._ray = ray
        self._make = ray.remote(Worker).options(max_restarts=0, max_task_retries=0, **options)
        self._arguments = arguments
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task]] = {}
        self._deadline = math.inf if deadline is None else deadline
        self._due: dict[Any, float] = {}
        self._overdue: dict[Any, float] = {}
        self._alive_at = time.monotonic()
        for _ in range(size):
            self._start_worker()

    def _start_worker(self) -> None:
        worker = self._make.remote(*self._arguments)
        self._starting[worker.open.remote()] = worker

    def run(self, tasks: deque[Task]) -> Iterator[tuple[Task, SlideOutcome | int | None, str]]:
        """Yield each of `tasks`, which may grow, with its outcome, or None and the reason if its worker died.

        Raises ResourceError if no worker is alive, and what keeps workers from opening the bundle.
        """
        while tasks or self._busy:
            while tasks and self._idle:
                worker, task = self._idle.pop(), tasks.popleft()
                ref = worker.run.remote(task)
                self._busy[ref] = worker, task
                self._due[ref] = time.monotonic() + self._deadline
            ready = self._wait()
            if self._busy or self._idle:
                self._alive_at = time.monotonic()
            elif time.monotonic() - self._alive_at > PATIENCE_SECONDS:
                raise ResourceError(
                    f"no worker of the cluster has been alive for {PATIENCE_SECONDS:.0f} s; see that nodes "
                    "are up and have what a worker asks for"
                )
            for ref in ready:
                if ref in self._starting:
                    self._accept(ref)
                else:
                    yield self._finish(ref)

    def _wait(self) -> list[Any]:
        """Return what is ready within a heartbeat; kill workers past the deadline.

        A killed worker's task is ready once its files are unlocked.
        """
        now = time.monotonic()
        for ref in [ref for ref, due in self._due.items() if due <= now]:
            if self._ray.wait([ref], timeout=0)[0]:  # it finished meanwhile
                return [ref]
            del self._due[ref]
            self._overdue[ref] = now + DYING_SECONDS
            self._replace(self._busy[ref][0])
        ended = [ref for ref, free in self._overdue.items() if free <= now]
        if ended:
            return ended
        until = min([now + HEARTBEAT_SECONDS, *self._due.values(), *self._overdue.values()])
        pending = [ref for ref in (*self._starting, *self._busy) if ref not in self._overdue]
        if not pending:
            time.sleep(until - now)
            return []
        ready, _ = self._ray.wait(pending, timeout=until - now)
        return list(ready)

    def _accept(self, ref: Any) -> None:
        worker = self._starting.pop(ref)
        try:
            refusal = self._ray.get(ref)
        except self._ray.exceptions.RayError:
            self._replace(worker)
            return
        if refusal is not None:
            sentence, code = refusal
            raise KINDS.get(code, ResourceError)(sentence)
        self._idle.append(worker)

    def _finish(self, ref: Any) -> tuple[Task, SlideOutcome | int | None, str]:
        worker, task = self._busy.pop(ref)
        self._due.pop(ref, None)
        if self._overdue.pop(ref, None) is not None:
            return task, None, f"it took longer than --deadline {self._deadline:g} s"
        try:
            result: SlideOutcome | int = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), MclstError) else None
            if cause is not None:
                raise cause from error
            self._idle.append(worker)
            return task, None, f"{type(error).__name__}: {str(error).splitlines()[-1]}"
        except self._ray.exceptions.RayError as error:
            self._replace(worker)
            return task, None, type(error).__name__
        self._idle.append(worker)
        return task, result, ""

    def _replace(self, worker: Any) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker)
        self._start_worker()


def run_on_cluster(
    ray: Any,
    model: Model,
    jobs: Mapping[str, Job],
    *,
    provider: str,
    cores: int,
    shard_tiles: int | None,
    deadline: float | None,
) -> Iterator[SlideOutcome]:
    """Run each job on a worker, and yield outcomes as they come.

    Parameters
    ----------
    ray : module
        Of `cluster`.
    model : Model
        Of a bundle in a folder that all nodes see.
    jobs : mapping of str to Job
    provider : str
        The encoder's; decides whether a worker takes a GPU or `cores`.
    cores : int
        CPU cores of a worker without a GPU.
    shard_tiles : int, optional
        Slides with more tiles are split into parts and merged when all are done.
    deadline : float, optional
        Seconds an attempt at a slide or part may take.

    Raises
    ------
    ResourceError
        If the cluster has room for no worker, or none stays alive.
    """
    if not jobs:
        return
    assert model.folder is not None, "--cluster and --server exclude each other"
    size, options = _capacity(ray, provider, cores)
    threads = None if "num_gpus" in options else cores
    choice = _choose_encoder(model, next(iter(jobs.values())).options, threads)
    arguments = (model.folder.resolve(), model.sha256, shard_tiles, threads, choice)
    tasks = deque(Task(name, _absolute(job)) for name, job in jobs.items())
    parts_left: dict[str, int] = {}
    failed: set[str] = set()
    attempts: dict[str, int] = dict.fromkeys(jobs, 1)
    for task, result, why in Pool(ray, size, options, arguments, deadline).run(tasks):
        attempts[task.name] = max(attempts[task.name], task.attempt)
        if result is None and task.attempt < ATTEMPTS:
            tasks.append(task.again)
        elif isinstance(result, int):
            parts_left[task.name] = result
            tasks.extendleft(
                replace(task, shard=SlidePart(result, part), attempt=1) for part in reversed(range(result))
            )
        elif task.name not in failed:
            outcome = lost(task, why) if result is None else result
            if outcome.status == FAILED or task.shard is None or task.shard.part is None:
                failed |= {task.name} if outcome.status == FAILED else set()
                yield replace(outcome, map=jobs[task.name].map_path, attempts=attempts[task.name])
                continue
            parts_left[task.name] -= 1
            if not parts_left[task.name]:
                tasks.appendleft(replace(task, shard=SlidePart(task.shard.parts), attempt=1))


def _capacity(ray: Any, provider: str, cores: int) -> tuple[int, dict[str, Any]]:
    """Return how many workers fit into the cluster, and each one's Ray options."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    spread = {"scheduling_strategy": "SPREAD"}
    if gpus and provider not in ON_CPU:
        return gpus, {"num_gpus": 1, "num_cpus": 1, **spread}
    size = sum(int(node.get("CPU", 0)) // cores for node in nodes)
    if not size:
        raise ResourceError(f"no node of the cluster has {cores} CPU cores; give fewer with --cores")
    return size, {"num_cpus": cores, **spread}


def _choose_encoder(model: Model, options: RunOptions, threads: int | None) -> EncoderChoice:
    """Choose for all workers; those with a GPU run fp32 unless told otherwise: nothing is tried here."""
    assert isinstance(model, LoadedModel), "--cluster and --server exclude each other"
    if threads is None:
        return EncoderChoice(options.provider, "fp32" if options.precision == "auto" else options.precision)
    return LoadedModel(model.bundle, threads=threads).choose_encoder(
        options.choice_request(), lambda text: None
    )


def _absolute(job: Job) -> Job:
    """Make all paths absolute, for a process with another working folder."""
    paths: dict[str, Path | None] = {
        name: None if path is None else path.absolute()
        for name, path in (
            ("out", job.map_path), ("spots", job.spots), ("mask", job.mask), ("region", job.region)
        )
    }  # fmt: skip
    slide = job.slide.absolute() if isinstance(job.slide, Path) else job.slide
    return replace(job, slide=slide, **paths)  # type: ignore[arg-type]
