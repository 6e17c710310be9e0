"""What a run adds to a map so that its reader knows what to trust; X stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.contract import ProviderError
from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.errors import InputError, ResourceError, SlideError
from mclst.runtime.expression_map.layers import MakeLayers
from mclst.runtime.expression_map.row_file import RowFile
from mclst.runtime.inference.model import Model, describe_location
from mclst.runtime.run.options import RunOptions, most_bad_tiles
from mclst.runtime.trust.calibration import Calibration
from mclst.runtime.trust.measures import MeasuredResult, PlacedResult
from mclst.runtime.trust.stain import Stain
from mclst.runtime.trust.verdict import Verdict, judge
from mclst.sections.location import SlideLocation
from mclst.sections.normalization_names import NON_NEGATIVE

OWN_COLUMNS = ("distance_percentile", "outside", "expected_error", "section_share")
OLD_REPOSITORY = "its server's repository was exported without the calibration; export it again"
RELIABLE_R = 0.3
"""A gene is reliable if 9 of 10 new sections are expected to exceed this r."""


@dataclass(frozen=True)
class RunTrust:
    """What is known of a run's model and slide.

    calibration: None without one. stain: of the slide, None if not measured. kept: columns of the genes that
    are written, None for all. genes: their names. why_not: why nothing is calibrated, "" for the bundle.
    least: no expression of the model's units is below it.
    """

    options: RunOptions
    calibration: Calibration | None
    stain: Stain | None
    genes: list[str]
    kept: NDArray[np.int64] | None = None
    why_not: str = ""
    least: float = -np.inf

    @property
    def measured(self) -> bool:
        """Whether rows are measured beside their expression."""
        return self.calibration is not None

    @cached_property
    def of_genes(self) -> dict[str, NDArray[Any]]:
        """Columns of `var`; none without a calibration."""
        if self.calibration is None:
            return {}
        level = RELIABLE_R if self.options.reliable is None else self.options.reliable
        kept = slice(None) if self.kept is None else self.kept
        columns = {
            "expected_r": self.calibration.expected_r,
            "low_r": self.calibration.low_r,
            "reliable": self.calibration.reliable(level),
            "expected_rmse": self.calibration.error,
        }
        return {name: values[kept] for name, values in columns.items()}

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Names of the columns that `columns` adds to `obs`."""
        return () if self.calibration is None else OWN_COLUMNS

    def measure(self, values: NDArray[np.float32], result: RetrievalResult) -> RetrievalResult:
        """Add what is known of some spots to their result, and leave out genes that are not written.

        values: float32 [b, embedding | prediction], the encoder's.
        """
        expression = result.expression if self.kept is None else result.expression[:, self.kept]
        if self.calibration is None:
            return result
        distance, share = None, None
        if isinstance(result, PlacedResult):
            distance, share = result.distance, result.section_share
        if distance is None:
            distance = self.calibration.distances(values[:, : self.calibration.projection.shape[0]])
        if share is None:
            share = np.full(len(expression), np.nan, np.float32)
        return MeasuredResult(
            np.ascontiguousarray(expression),
            result.nearest,
            result.effective_k,
            result.neighbors,
            distance=distance,
            expected_error=self.calibration.spot_errors(result.expression),
            section_share=share,
        )

    def of_slide(self, rows: RowFile) -> SlideTrust:
        """Return what the finished rows of a slide say."""
        if self.calibration is None:
            return SlideTrust(self, rows, None)
        percentile = self.calibration.percentiles(np.nan_to_num(rows.distance, nan=0.0))
        percentile[np.isnan(rows.distance)] = np.nan
        return SlideTrust(self, rows, percentile)


@dataclass(frozen=True)
class SlideTrust:
    """What a run's rows say of its slide.

    percentile: float32 [n], share of held-out spots that are nearer than each spot, NaN without a prediction;
    None without a calibration.
    """

    run: RunTrust
    rows: RowFile
    percentile: NDArray[np.float32] | None

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of `obs`, NaN for spots without a prediction, which are not called outside.

        Spots outside have no expected error: it holds for tissue like that of the held-out spots.
        """
        calibration = self.run.calibration
        if self.percentile is None or calibration is None:
            return {}
        rows, outside = self.rows, self.percentile > self.run.options.outside_level
        error = np.where(outside, np.float32(np.nan), rows.expected_error)
        columns = dict(
            zip(self.run.own_columns, (self.percentile, outside, error, rows.section_share), strict=True)
        )
        if not calibration.ranks_spots:
            del columns["expected_error"]
        if np.isnan(rows.section_share).all():
            del columns["section_share"]
        return columns

    def layers(self) -> MakeLayers | None:
        """What makes the layers `low` and `high`; None unless intervals are asked for."""
        run, calibration, percent = self.run, self.run.calibration, self.run.options.intervals
        if calibration is None or self.percentile is None or percent is None:
            return None
        level = _level(calibration, percent)
        outside = ~(self.percentile <= run.options.outside_level)
        chosen = calibration if run.kept is None else calibration.of_genes(run.kept)

        def make(block: slice, expression: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            distance = np.nan_to_num(self.rows.distance[block])
            return chosen.interval(expression, distance, outside[block], level, least=run.least)

        return make

    def judge(self, slide: SlideLocation) -> Verdict:
        """Judge the slide; SlideError if more spots are outside than `max_outside` tolerates."""
        run, options = self.run, self.run.options
        known = None if self.percentile is None else self.percentile[~np.isnan(self.percentile)]
        verdict = judge(run.calibration, known, options.outside_level, run.stain, run.why_not)
        limit, share = options.max_outside, verdict.outside_share
        if limit is not None and share is not None and known is not None:
            outside, most = round(share * len(known)), most_bad_tiles(limit, len(known))
            if outside > most:
                raise SlideError(
                    f"{slide}: {outside:,} of {len(known):,} spots are outside what the model was calibrated "
                    f"on, more than --max-outside {limit} allows; give another slide, or allow more"
                )
        return verdict


def open_trust(model: Model, options: RunOptions, stain: Stain | None) -> RunTrust:
    """Open what a model knows of its errors.

    Raises
    ------
    InputError
        If an option needs a calibration and there is none, or no gene is reliable enough.
    ResourceError
        If distances cannot be computed on this machine.
    """
    calibration, genes = model.calibration, model.genes
    if calibration is None:
        left_out = model.manifest.calibration is not None
        for name in ("intervals", "reliable", "max_outside"):
            if getattr(options, name) is not None:
                cure = "export its repository again" if left_out else "export one with held-out sections"
                raise InputError(
                    f"--{name.replace('_', '-')} needs a calibrated bundle, and {describe_location(model)} "
                    f"is not calibrated; {cure}, or leave the option out"
                )
        return RunTrust(options, None, stain, genes, why_not=OLD_REPOSITORY if left_out else "")
    if not model.server:
        try:
            calibration.search  # noqa: B018 - refused before the work
        except ProviderError as error:
            raise ResourceError(str(error)) from error
    if options.intervals is not None:
        _level(calibration, options.intervals)
    least = 0.0 if model.manifest.normalization.expression in NON_NEGATIVE else -np.inf
    if options.reliable is None:
        return RunTrust(options, calibration, stain, genes, least=least)
    kept = np.flatnonzero(calibration.reliable(options.reliable))
    if not len(kept):
        best = float(np.nanmax(calibration.low_r, initial=-1.0))
        raise InputError(
            f"no gene of {describe_location(model)} reaches r {options.reliable:g} in 9 of 10 new sections; "
            f"the best reaches {best:.2f}: give a lower --reliable"
        )
    return RunTrust(options, calibration, stain, [genes[i] for i in kept], kept, least=least)


def _level(calibration: Calibration, percent: int) -> int:
    near = np.flatnonzero(np.abs(calibration.levels * 100 - percent) < 0.5)
    if not len(near):
        levels = ", ".join(f"{level:.0%}" for level in calibration.levels)
        raise InputError(
            f"the bundle is calibrated for intervals of {levels}, not {percent} %; choose one of these"
        )
    return int(near[0])
