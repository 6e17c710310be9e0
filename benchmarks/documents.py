"""The JSON documents of `mclst-bench`, field by field; `docs/schemas/` holds the same as JSON Schema.

Times are seconds, rates are per second, memory is bytes, clocks are MHz; what could not be found out is null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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


class BundleTold(Part):
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


class Document(Part):
    """What every document has. verdict: `busy` where the load at the start was over half the cores."""

    created: str
    machine: Machine
    peaks: MeasuredPeaks
    verdict: Literal["quiet", "busy"]
    bundle: BundleTold
    absent: list[Absent]


class Stage(Part):
    """A stage's busy seconds over `lanes` threads, and their share of the run's wall time."""

    busy_s: Seconds
    share: Share
    lanes: Annotated[int, Field(ge=1)]


class StagesTold(Part):
    """overlap: busy seconds of all stages over wall seconds. bound: the stage no run of this work can be shorter than."""

    wall_s: Seconds
    stages: dict[str, Stage | None]
    overlap: Share
    bound: str
    bound_share: Share
    elsewhere_s: Seconds


class Equality(Part):
    """Expression of one contender against the first's."""

    spots: Count
    max_abs: float
    q999_abs: float
    pearson: float | None
    genes_compared: Count
    pearson_per_gene_mean: float | None
    pearson_per_gene_min: float | None
    pearson_per_gene_median: float | None


class AgainstTruth(Part):
    """A map's worth against the measured section."""

    spots: Count
    pcc_acg: float | None
    pcc_heg: float | None
    mse: float | None
    mae: float | None


class WholeRun(Part):
    """A contender from slide to map; samples are by round."""

    name: str
    ours: bool
    wall_s: Spread
    cpu_s: Spread
    tiles_per_s: Spread
    stream_tiles_per_s: Spread
    wall_to_first: Rate
    cpu_to_first: Rate
    stream_to_first: Rate
    stages: StagesTold
    equal_to_first: Equality
    against_truth: AgainstTruth | None = None
    encoder_operations_per_s: Rate | None = None
    encoder_of_peak: Share | None = None
    samples: dict[Literal["wall_s", "cpu_s", "stream_s"], list[Seconds]]


class WholeRuns(Part):
    """All contenders of `mclst-bench end-to-end`."""

    tiles: Count
    first: str
    contenders: list[WholeRun]
    load: list[float | None]
    encoder_operations_per_tile: float | None


class EndToEnd(Document):
    """A document of `mclst-bench end-to-end`."""

    schema_: Literal["mclst-bench-end-to-end/1"] = Field(alias="schema")
    settings: dict[str, Any]
    slide: dict[str, Any]
    result: WholeRuns
    cold_start: list[Fresh]


class Percentile(Part):
    """With its 95 % interval by order statistics, and whether n is what MLPerf asks for at this percentile."""

    s: Seconds
    low95: Seconds
    high95: Seconds
    mlperf: bool


class LatencyTold(Part):
    """Of all queries, none left out; not_told: percentiles that need more queries, and how many."""

    n: Annotated[int, Field(ge=1)]
    mean: Seconds
    std: Share
    cv: Share
    min: Seconds
    max: Seconds
    percentiles: dict[Literal["p50", "p90", "p95", "p99"], Percentile]
    not_told: dict[Literal["p50", "p90", "p95", "p99"], Count]


class WarmUpTold(Part):
    """How a contender was warmed up, and whether its times had settled."""

    queries: Count
    seconds: Seconds
    settled: bool


class QueryResult(Part):
    """A contender at one batch size. of_roofline: the least time at measured peaks over the mean latency."""

    name: str
    ours: bool
    gpu: bool
    precision: str
    latency_s: LatencyTold
    tiles_per_s: Rate
    latency_to_first: Rate
    cpu_s_per_tile: Seconds
    joules_per_tile: dict[str, float] | None
    warm_up: WarmUpTold | None
    roofline_s: Seconds | None
    of_roofline: Share | None
    samples: dict[Literal["query_s", "round_mean_s"], list[Seconds]]


class OfBatch(Part):
    """All contenders at one batch size."""

    batch: Annotated[int, Field(ge=1)]
    scenario: Literal["single-stream", "batch"]
    first: str
    results: list[QueryResult]
    load: list[float | None]


class OfflineResult(Part):
    """A contender in MLPerf's offline scenario, at its best batch."""

    name: str
    ours: bool
    batch: Annotated[int, Field(ge=1)]
    tiles_per_s: Spread
    wall_to_first: Rate
    cpu_to_first: Rate
    samples: dict[Literal["wall_s", "cpu_s"], list[Seconds]]


class Offline(Part):
    """MLPerf's offline scenario: all tiles at once."""

    tiles: Count
    first: str
    load: list[float | None]
    results: list[OfflineResult]


class Work(Part):
    """What a graph asks for at one batch size, counted from the graph."""

    precision: str
    batch: Annotated[int, Field(ge=1)]
    products: Count
    other: Count
    weight_bytes: Count
    tile_bytes: Count
    between_bytes: Count
    least_bytes: Count
    by_operator: dict[str, Count]


class Prediction(Part):
    """A bound for a device by its data sheet; nothing was measured there."""

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


class Window(Part):
    """Some seconds of a sustained run."""

    at_s: Seconds
    tiles_per_s: Rate
    watts: dict[str, float] | None
    condition: dict[str, Any]


class Sustained(Part):
    """Work without a pause; throttled: signs that clocks fell or a GPU was held back."""

    name: str
    batch: Annotated[int, Field(ge=1)]
    windows: list[Window]
    tiles_per_s: Spread
    last_to_first: Rate
    throttled: list[str]


class Agreement(Part):
    """How far each contender's embeddings are from the reference's."""

    reference: str
    contenders: dict[str, dict[Literal["cosine_min", "max_abs_share"], float]]


class Energy(Part):
    """The meters that were read, and why the others were not."""

    meters: list[dict[Literal["name", "covers"], str]]
    not_available: dict[str, str]


class Latency(Document):
    """A document of `mclst-bench latency`."""

    schema_: Literal["mclst-bench-latency/1"] = Field(alias="schema")
    condition: dict[Literal["before", "after"], dict[str, Any]]
    settings: dict[str, Any]
    work: list[Work]
    batches: list[OfBatch]
    offline: Offline | None
    sustained: Sustained | None
    agreement: Agreement
    versions: dict[str, dict[str, str]]
    fresh: list[Fresh]
    energy: Energy
    predictions: list[Prediction]


DOCUMENTS: dict[str, type[Document]] = {"latency": Latency, "end-to-end": EndToEnd}
"""By subcommand."""


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a subcommand's document."""
    found = DOCUMENTS[name].model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def checked(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """The same content, after it was found to be what its schema says; pydantic's ValidationError where it is not."""
    DOCUMENTS[name].model_validate(content)
    return content
