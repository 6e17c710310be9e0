"""Fields that the JSON documents of `mclst-bench` share.

Times are seconds, rates are per second, memory is bytes, clocks are MHz; unknown values are null.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class StrictModel(BaseModel):
    """Base: unknown fields are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Machine(StrictModel):
    """The machine of a run."""

    cpu: str | None
    cores: Annotated[int, Field(ge=1)]
    lanes: str | None
    memory_mib: int | None
    gpu: str | None
    system: str
    python: str
    versions: dict[str, str]
    commit: str | None
    omp_num_threads: str | None
    load_at_start: float | None


class Spread(StrictModel):
    """Statistics of samples; the interval of the median is by the bootstrap."""

    n: Annotated[int, Field(ge=1)]
    min: float
    median: float
    mean: float
    max: float
    std: Share
    median_low95: float
    median_high95: float


class DevicePeaks(StrictModel):
    """Measured peaks of a processor or device: operations by precision and bytes of a copy, per second."""

    operations_per_s: dict[str, Rate | None]
    bytes_per_s: Rate


class MeasuredPeaks(StrictModel):
    """Peaks of the host and of the CUDA device, where there is one."""

    host: DevicePeaks
    cuda: DevicePeaks | None


class BundleSummary(StrictModel):
    """The bundle of a run, by the hash of its manifest."""

    sha256: str
    system: str
    encoder: str
    tile_px: Count


class Unavailable(StrictModel):
    """A contender that did not run, and why."""

    name: str
    why: str


class ColdStart(StrictModel):
    """A fresh process: seconds of each step up to its first result, and its peak memory."""

    provider: str
    precision: str
    steps_s: dict[str, Seconds]
    first_result_s: Seconds
    peak_rss_bytes: Count


class PeakMemory(StrictModel):
    """Resident bytes of a contender's own process before it opened and at the peak, or why it failed."""

    name: str
    before_bytes: Count | None = None
    peak_rss_bytes: Count | None = None
    why: str = ""


class Document(StrictModel):
    """Fields of every document. verdict: `busy` where the load at the start exceeded half the cores."""

    created: str
    machine: Machine
    peaks: MeasuredPeaks
    verdict: Literal["quiet", "busy"]
    bundle: BundleSummary
    absent: list[Unavailable]
    memory: list[PeakMemory] = []
