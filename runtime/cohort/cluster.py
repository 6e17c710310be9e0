"""Slides over a cluster, by Ray: it places workers and says when one is gone; what is tried again is decided here.

Ray's own retries count a node's death many times over or never end, so they are off. A task whose worker or node dies is
tried again, three times in all; a worker that is gone is asked for anew, and takes tasks only once it has answered, since
where a node is gone for good it never will.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from sys import stderr
from typing import Any

from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.cohort.cluster_worker import Task, Worker, lost
from mclst.runtime.cohort.run import FAILED, SlideOutcome
from mclst.runtime.errors import BundleError, MclstError, OutputError, ResourceError
from mclst.runtime.expression_map.parts import SlidePart
from mclst.runtime.inference.providers import ON_CPU
from mclst.runtime.run.job import Job

ATTEMPTS = 3
PATIENCE_SECONDS = 120.0
"""How long no worker at all may be alive before the cohort is given up."""
HEARTBEAT_SECONDS = 5.0
DYING_SECONDS = 5.0
"""How long the files of a worker that was ended may stay locked."""
KINDS: dict[int, type[MclstError]] = {4: BundleError, 5: OutputError, 6: ResourceError}


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Ray, joined to the cluster at `address`, or with "auto" started on this machine alone and ended with the context.

    Ray's telemetry and dashboard are off, and what it prints goes to stderr. Raises ResourceError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ResourceError("ray is not installed, which --cluster needs; install mclst[cluster]") from error
    from mclst.runtime.console import raise_on_signals

    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == "auto":
        options |= {"address": "local", "include_dashboard": False}
    else:
        options["address"] = address
    with redirect_stdout(stderr):
        try:
            ray.init(**options)
        except Exception as error:  # Ray's exceptions at its start share no base class
            reason = " ".join(str(error).split())[:200]
            raise ResourceError(
                f"no Ray cluster at {address!r} ({reason}); start one, or use auto"
            ) from error
        raise_on_signals()  # Ray puts a handler of its own in their place
        try:
            yield ray
        finally:
            ray.shutdown()


class Pool:
    """Workers of a cluster: those that were asked for, those that are idle, and those at work."""

    def __init__(
        self,
        ray: Any,
        size: int,
        options: Mapping[str, Any],
        arguments: tuple[Any, ...],
        deadline: float | None = None,
    ) -> None:
        """options: of a Ray actor. arguments: of a Worker. deadline: seconds after which one at work is ended."""
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
            self._ask_for_one()

    def _ask_for_one(self) -> None:
        worker = self._make.remote(*self._arguments)
        self._starting[worker.open.remote()] = worker

    def run(self, tasks: deque[Task]) -> Iterator[tuple[Task, SlideOutcome | int | None, str]]:
        """Each of `tasks`, which may grow, with its outcome; or None and why, where its worker is gone.

        Raises ResourceError where no worker lives, BundleError or what else keeps workers from opening the bundle.
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
                    f"no worker of the cluster has been alive for {PATIENCE_SECONDS:.0f} s; see that nodes are up and "
                    "have what a worker asks for"
                )
            for ref in ready:
                if ref in self._starting:
                    self._welcome(ref)
                else:
                    yield self._finish(ref)

    def _wait(self) -> list[Any]:
        """What is ready, within a heartbeat; workers past the deadline are ended, and ready once their files are free."""
        now = time.monotonic()
        for ref in [ref for ref, due in self._due.items() if due <= now]:
            if self._ray.wait([ref], timeout=0)[0]:  # it has ended while nobody looked
                return [ref]
            del self._due[ref]
            self._overdue[ref] = now + DYING_SECONDS
            self._replace(self._busy[ref][0])
        ended = [ref for ref, free in self._overdue.items() if free <= now]
        if ended:
            return ended
        until = min([now + HEARTBEAT_SECONDS, *self._due.values(), *self._overdue.values()])
        asked = [ref for ref in (*self._starting, *self._busy) if ref not in self._overdue]
        if not asked:
            time.sleep(until - now)
            return []
        ready, _ = self._ray.wait(asked, timeout=until - now)
        return list(ready)

    def _welcome(self, ref: Any) -> None:
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
            return task, None, f"longer at it than --deadline {self._deadline:g} s"
        try:
            found: SlideOutcome | int = self._ray.get(ref)
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
        return task, found, ""

    def _replace(self, worker: Any) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker)
        self._ask_for_one()


def run_on_cluster(
    ray: Any,
    bundle: Bundle,
    jobs: Mapping[str, Job],
    settings: Mapping[str, Any],
    *,
    cores: int,
    shard_tiles: int | None,
    deadline: float | None,
) -> Iterator[SlideOutcome]:
    """Each job on a worker of the cluster, in the order they end; a worker per GPU, or per `cores` CPU cores.

    shard_tiles: slides of more tiles are split into parts, which are merged when all of them are there. deadline: s that
    an attempt at a slide or part may take.
    Raises ResourceError where the cluster has room for no worker, and as `Pool.run` does.
    """
    size, options = _room(ray, str(settings["provider"]), cores)
    threads = None if "num_gpus" in options else cores
    arguments = (bundle.path.resolve(), bundle.sha256, dict(settings), shard_tiles, threads)
    tasks = deque(Task(name, _absolute(job)) for name, job in jobs.items())
    parts_left: dict[str, int] = {}
    failed: set[str] = set()
    attempts: dict[str, int] = dict.fromkeys(jobs, 1)
    for task, found, why in Pool(ray, size, options, arguments, deadline).run(tasks):
        attempts[task.name] = max(attempts[task.name], task.attempt)
        if found is None and task.attempt < ATTEMPTS:
            tasks.append(task.again)
        elif isinstance(found, int):
            parts_left[task.name] = found
            tasks.extendleft(
                replace(task, share=SlidePart(found, part), attempt=1) for part in reversed(range(found))
            )
        elif task.name not in failed:
            outcome = lost(task, why) if found is None else found
            if outcome.status == FAILED or task.share is None or task.share.part is None:
                failed |= {task.name} if outcome.status == FAILED else set()
                yield replace(outcome, map=jobs[task.name].map_path, attempts=attempts[task.name])
                continue
            parts_left[task.name] -= 1
            if not parts_left[task.name]:
                tasks.appendleft(replace(task, share=SlidePart(task.share.parts), attempt=1))


def _room(ray: Any, provider: str, cores: int) -> tuple[int, dict[str, Any]]:
    """How many workers fit into the cluster, and what each asks for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    spread = {"scheduling_strategy": "SPREAD"}
    if gpus and provider not in ON_CPU:
        return gpus, {"num_gpus": 1, "num_cpus": 1, **spread}
    size = sum(int(node.get("CPU", 0)) // cores for node in nodes)
    if not size:
        raise ResourceError(f"no node of the cluster has {cores} CPU cores; give fewer with --cores")
    return size, {"num_cpus": cores, **spread}


def _absolute(job: Job) -> Job:
    """The same for another process, whose working folder is another."""
    places: dict[str, Path | None] = {
        name: None if place is None else place.absolute()
        for name, place in (("out", job.map_path), ("spots", job.spots), ("mask", job.mask))
    }
    return replace(job, slide=job.slide.absolute(), **places)  # type: ignore[arg-type]
