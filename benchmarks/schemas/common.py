"""What the JSON documents of `mclst-bench` share, field by field.

Times are seconds, rates are per second, memory is bytes, clocks are MHz; what could not be found out is null.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mclst.benchmarks.harness.tables import verdict

if TYPE_CHECKING:
    from mclst.runtime.bundle.bundle import Bundle

Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """Base: unknown fields are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Machine(Part):
    """What a run was taken on."""

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


class Spread(Part):
    """Of samples; the interval of the median is by the bootstrap."""

    n: Annotated[int, Field(ge=1)]
    min: float
    median: float
    mean: float
    max: float
    std: Share
    median_low95: float
    median_high95: float


class SidePeaks(Part):
    """A processor's or device's measured peaks: operations a second by precision, bytes a second of a large copy."""

    operations_per_s: dict[str, Rate | None]
    bytes_per_s: Rate


class MeasuredPeaks(Part):
    """Of the host and, where there is one, the CUDA device."""

    host: SidePeaks
    cuda: SidePeaks | None


class BundleSummary(Part):
    """The bundle a run used, by the hash of its manifest."""

    sha256: str
    system: str
    encoder: str
    tile_px: Count


class Absent(Part):
    """A contender that did not run, and why."""

    name: str
    why: str


class Fresh(Part):
    """A fresh process up to its first result: seconds of each step, and its peak memory after some more work."""

    provider: str
    precision: str
    steps_s: dict[str, Seconds]
    first_result_s: Seconds
    peak_rss_bytes: Count


class Memory(Part):
    """A contender alone in a process of its own: resident bytes before it was opened, and at their peak; or why not."""

    name: str
    before_bytes: Count | None = None
    peak_rss_bytes: Count | None = None
    why: str = ""


class Document(Part):
    """What every document has. verdict: `busy` where the load at the start was over half the cores."""

    created: str
    machine: Machine
    peaks: MeasuredPeaks
    verdict: Literal["quiet", "busy"]
    bundle: BundleSummary
    absent: list[Absent]
    memory: list[Memory] = []


def new_document(
    schema: str, started: datetime, where: dict[str, Any], threads: int, bundle: Bundle | None = None
) -> dict[str, Any]:
    """What a document begins with: when and where it was taken, whether the machine was quiet, and the bundle.

    where: `machine.describe()`. started: of the run, in UTC.
    """
    found: dict[str, Any] = {
        "schema": schema,
        "created": started.isoformat(timespec="seconds"),
        "machine": where,
        "verdict": verdict(where["load_at_start"], threads),
    }
    if bundle is not None:
        m = bundle.manifest
        found["bundle"] = {
            "sha256": bundle.sha256,
            "system": m.system,
            "encoder": m.encoder.name,
            "tile_px": m.tile.size_px,
        }
    return found
