"""Repeatable runs from a slide's file to expression: mclst and the published notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np

from mclst.benchmarks.contenders.base import F32
from mclst.benchmarks.contenders.published_baseline import PublishedNotebook
from mclst.benchmarks.harness.stages import Stages, stages_of_run
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.report.files import Files
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.predict import predict
from mclst.runtime.slide.open import open_slide
from mclst.sections.section import Spots

PUBLISHED = "published notebook"


class MclstRun:
    """`mclst-infer` with one setting, from slide to map on disk, without picture, page and report."""

    def __init__(self, bundle: Bundle, slide: Path, spots: Spots, folder: Path, **options: Any) -> None:
        """Prepare runs of `predict` with `options`, among them `workers` and `batch_size`."""
        self._inputs = (bundle, slide, spots)
        self._out, self.options = folder / f"{len(list(folder.iterdir()))}.h5ad", options
        self._out.touch()
        self.stages: list[Stages] = []
        self.streams: list[float] = []
        self.provider = ""

    def __call__(self) -> None:
        """Run once; keep its times and its provider."""
        bundle, path, spots = self._inputs
        with open_slide(path) as slide:
            run = predict(
                bundle,
                slide,
                spots,
                self._out,
                RunOptions(
                    overwrite=True,
                    picture=False,
                    report=False,
                    files=Files(html=False),
                    cache=False,
                    **self.options,
                ),
            )
        self.provider = run.provider
        self.stages.append(stages_of_run(run.seconds, workers=self.options["workers"]))
        self.streams.append(run.seconds["stream"])

    def expression(self) -> F32:
        """Expression float32 [n, G] of the last run, in the order of the spots."""
        return np.asarray(anndata.read_h5ad(self._out).X, dtype=np.float32)


class BaselineRun:
    """The published notebook, from the slide's path to the expression in memory."""

    provider = "cpu"

    def __init__(self, notebook: PublishedNotebook, slide: Path, spots: Spots) -> None:
        self._inputs = (notebook, slide, spots)
        self.stages: list[Stages] = []
        self.streams: list[float] = []
        self._expression: F32 | None = None

    def __call__(self) -> None:
        """Run once; keep its times."""
        notebook, slide, spots = self._inputs
        self._expression, clock = notebook.run(slide, spots.xy_px)
        total = clock.pop("total")
        self.stages.append(
            Stages(
                {"decode": clock["decode"] + clock["read"], **{n: clock[n] for n in ("encode", "retrieve")}},
                total,
                {},
            )
        )
        self.streams.append(total - clock["decode"])

    def expression(self) -> F32:
        """Expression float32 [n, G] of the last run."""
        assert self._expression is not None, "run first"
        return self._expression
