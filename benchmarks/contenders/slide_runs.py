"""One way from a slide's file to expression, to be run over and over: mclst's, and the published notebook's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.contenders.published_baseline import PublishedNotebook
from mclst.benchmarks.harness.stages import Stages, of_run
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.report.files import Files
from mclst.runtime.run.predict import predict
from mclst.runtime.slide.open import open_slide
from mclst.sections.section import Spots

F32 = NDArray[np.float32]
PUBLISHED = "published notebook"


class MclstRun:
    """`mclst-infer` on one setting, from the slide's path to the map on disk; no picture, no page, no report."""

    def __init__(self, bundle: Bundle, slide: Path, spots: Spots, folder: Path, **how: Any) -> None:
        """how: options of `predict`; `workers` and `batch_size` must be among them."""
        self._given = (bundle, slide, spots)
        self._out, self.how = folder / f"{len(list(folder.iterdir()))}.h5ad", how
        self._out.touch()
        self.stages: list[Stages] = []
        self.streams: list[float] = []
        self.provider = ""

    def __call__(self) -> None:
        """Run once, and keep its times and what ran the encoder."""
        bundle, path, spots = self._given
        with open_slide(path) as slide:
            run = predict(
                bundle,
                slide,
                spots,
                self._out,
                overwrite=True,
                picture=False,
                report=False,
                files=Files(html=False),
                **self.how,
            )
        self.provider = run.provider
        self.stages.append(of_run(run.seconds, workers=self.how["workers"]))
        self.streams.append(run.seconds["stream"])

    def expression(self) -> F32:
        """float32 [n, G] of the run before, in the order of the spots."""
        return np.asarray(anndata.read_h5ad(self._out).X, dtype=np.float32)


class BaselineRun:
    """The published notebook, from the slide's path to the expression in memory."""

    provider = "cpu"

    def __init__(self, notebook: PublishedNotebook, slide: Path, spots: Spots) -> None:
        self._given = (notebook, slide, spots)
        self.stages: list[Stages] = []
        self.streams: list[float] = []
        self._found: F32 | None = None

    def __call__(self) -> None:
        """Run once, and keep its times."""
        notebook, slide, spots = self._given
        self._found, clock = notebook.run(slide, spots.xy_px)
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
        """float32 [n, G] of the run before."""
        assert self._found is not None, "it has run"
        return self._found
