"""Schema of the document of `mclst-bench end-to-end`."""

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
)


class Stage(StrictModel):
    """Busy seconds of a stage over `lanes` threads, and their share of the run's wall time."""

    busy_s: Seconds
    share: Share
    lanes: Annotated[int, Field(ge=1)]


class StageSummary(StrictModel):
    """overlap: busy seconds of all stages over wall seconds. bound: the stage that limits the run time."""

    wall_s: Seconds
    stages: dict[str, Stage | None]
    overlap: Share
    bound: str
    bound_share: Share
    elsewhere_s: Seconds


class Difference(StrictModel):
    """Difference of a contender's expression from the first's."""

    spots: Count
    max_abs: float
    q999_abs: float
    nrmse: float | None = None
    pearson: float | None
    genes_compared: Count
    pearson_per_gene_mean: float | None
    pearson_per_gene_min: float | None
    pearson_per_gene_median: float | None


class Accuracy(StrictModel):
    """Accuracy of a map against the measured section."""

    spots: Count
    pcc_acg: float | None
    pcc_heg: float | None
    mse: float | None
    mae: float | None


class SlideRun(StrictModel):
    """A contender from slide to map; samples are by round."""

    name: str
    ours: bool
    provider: str | None = None
    wall_s: Spread
    cpu_s: Spread
    tiles_per_s: Spread
    stream_tiles_per_s: Spread
    wall_to_first: Rate
    cpu_to_first: Rate
    stream_to_first: Rate
    stages: StageSummary
    equal_to_first: Difference
    against_truth: Accuracy | None = None
    encoder_operations_per_s: Rate | None = None
    encoder_of_peak: Share | None = None
    samples: dict[Literal["wall_s", "cpu_s", "stream_s"], list[Seconds]]


class SlideRuns(StrictModel):
    """All contenders of `mclst-bench end-to-end`."""

    tiles: Count
    first: str
    contenders: list[SlideRun]
    load: list[float | None]
    encoder_operations_per_tile: float | None


class EndToEnd(Document):
    """A document of `mclst-bench end-to-end`."""

    schema_: Literal["mclst-bench-end-to-end/1"] = Field(alias="schema")
    settings: dict[str, Any]
    condition: dict[Literal["before", "after"], dict[str, Any]] | None = None
    slide: dict[str, Any]
    result: SlideRuns
    cold_start: list[ColdStart]
