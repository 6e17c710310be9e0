"""The document of `mclst-bench end-to-end`, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mclst.benchmarks.schemas.common import (
    Count,
    Document,
    Fresh,
    Part,
    Rate,
    Seconds,
    Share,
    Spread,
)


class Stage(Part):
    """A stage's busy seconds over `lanes` threads, and their share of the run's wall time."""

    busy_s: Seconds
    share: Share
    lanes: Annotated[int, Field(ge=1)]


class StagesStats(Part):
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
    provider: str | None = None
    wall_s: Spread
    cpu_s: Spread
    tiles_per_s: Spread
    stream_tiles_per_s: Spread
    wall_to_first: Rate
    cpu_to_first: Rate
    stream_to_first: Rate
    stages: StagesStats
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
    condition: dict[Literal["before", "after"], dict[str, Any]] | None = None
    slide: dict[str, Any]
    result: WholeRuns
    cold_start: list[Fresh]
