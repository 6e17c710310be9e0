"""Schema of the document of `mclst-bench latency`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mclst.benchmarks.schemas.common import (
    ColdStart,
    Count,
    Document,
    Rate,
    Seconds,
    Share,
    Spread,
    StrictModel,
    Unavailable,
)

DeviceStage = Literal["copy up", "encode", "copy down"]


class Percentile(StrictModel):
    """A percentile, its 95 % interval by order statistics, and whether n meets MLPerf's count."""

    s: Seconds
    low95: Seconds
    high95: Seconds
    mlperf: bool


class LatencyStats(StrictModel):
    """Statistics of all queries, none dropped; not_told: percentiles that need more queries, and how many."""

    n: Annotated[int, Field(ge=1)]
    mean: Seconds
    std: Share
    cv: Share
    min: Seconds
    max: Seconds
    percentiles: dict[Literal["p50", "p90", "p95", "p99"], Percentile]
    not_told: dict[Literal["p50", "p90", "p95", "p99"], Count]


class WarmUp(StrictModel):
    """Warm-up of a contender, and whether its times had settled."""

    queries: Count
    seconds: Seconds
    settled: bool


class QueryResult(StrictModel):
    """A contender at one batch size. of_roofline: the roofline time over the mean latency.

    device_s: device stages of each query, timed by events; null where there are none.
    """

    name: str
    ours: bool
    gpu: bool
    precision: str
    latency_s: LatencyStats
    tiles_per_s: Rate
    latency_to_first: Rate
    cpu_s_per_tile: Seconds
    joules_per_tile: dict[str, float] | None
    warm_up: WarmUp | None
    roofline_s: Seconds | None
    of_roofline: Share | None
    device_s: dict[DeviceStage, LatencyStats] | None = None
    samples: dict[Literal["query_s", "round_mean_s", "copy up_s", "encode_s", "copy down_s"], list[Seconds]]


class BatchResult(StrictModel):
    """All contenders at one batch size."""

    batch: Annotated[int, Field(ge=1)]
    scenario: Literal["single-stream", "batch"]
    first: str
    results: list[QueryResult]
    failed: Annotated[list[Unavailable], Field(default_factory=list)]
    load: list[float | None]


class OfflineResult(StrictModel):
    """A contender in MLPerf's offline scenario, at its best batch."""

    name: str
    ours: bool
    batch: Annotated[int, Field(ge=1)]
    tiles_per_s: Spread
    wall_to_first: Rate
    cpu_to_first: Rate
    samples: dict[Literal["wall_s", "cpu_s"], list[Seconds]]


class Offline(StrictModel):
    """MLPerf's offline scenario: all tiles at once."""

    tiles: Count
    first: str
    load: list[float | None]
    results: list[OfflineResult]


class Work(StrictModel):
    """Operations and bytes of a graph at one batch size."""

    precision: str
    batch: Annotated[int, Field(ge=1)]
    products: Count
    other: Count
    weight_bytes: Count
    tile_bytes: Count
    between_bytes: Count
    least_bytes: Count
    by_operator: dict[str, Count]


class Prediction(StrictModel):
    """Bound for a device by its data sheet; not a measurement."""

    kind: Literal["bound"]
    device: str
    device_name: str
    precision: str
    batch: Annotated[int, Field(ge=1)]
    at_least_s: Seconds
    at_most_tiles_per_s: Rate
    limited_by: Literal["arithmetic", "memory", "link"]
    seconds: dict[Literal["arithmetic", "memory", "link"], Seconds]
    source: str


class Window(StrictModel):
    """A time window of a sustained run."""

    at_s: Seconds
    tiles_per_s: Rate
    watts: dict[str, float] | None
    condition: dict[str, Any]


class Sustained(StrictModel):
    """Continuous work; throttled: signs of throttling."""

    name: str
    batch: Annotated[int, Field(ge=1)]
    windows: list[Window]
    tiles_per_s: Spread
    last_to_first: Rate
    throttled: list[str]


class Choice(StrictModel):
    """What mclst-infer would choose here by its own short measuring, beside what this benchmark measured.

    tried: tiles/s by that measuring. slower_by: share by which the chosen one is slower than the fastest of
    mclst's settings, at `batch`. within_limit: whether that is at most 5 %; None in older documents.
    """

    chosen: str
    fastest: str
    batch: Annotated[int, Field(ge=1)]
    tried: dict[str, float]
    chosen_tiles_per_s: Rate
    fastest_tiles_per_s: Rate
    slower_by: float
    within_limit: bool | None = None


class Agreement(StrictModel):
    """Difference of each contender's embeddings from the reference's."""

    reference: str
    contenders: dict[str, dict[Literal["cosine_min", "max_abs_share"], float]]


class Energy(StrictModel):
    """Meters that were read, and why the others were not."""

    meters: list[dict[Literal["name", "covers"], str]]
    not_available: dict[str, str]


class Latency(Document):
    """A document of `mclst-bench latency`."""

    schema_: Literal["mclst-bench-latency/1"] = Field(alias="schema")
    condition: dict[Literal["before", "after"], dict[str, Any]]
    settings: dict[str, Any]
    work: list[Work]
    batches: list[BatchResult]
    choice: Choice | None = None
    offline: Offline | None
    sustained: Sustained | None
    agreement: Agreement
    versions: dict[str, dict[str, str]]
    fresh: list[ColdStart]
    energy: Energy
    predictions: list[Prediction]
