"""Runs of full size, each in a process of its own that reports its peak resident memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness.subprocess_json import call_in_subprocess
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.report.files import Files
from mclst.runtime.resources import peak_bytes
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.predict import predict
from mclst.runtime.slide.open import open_slide
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.tables.spots import read_spots


def measure_cells(slide: Path, bundle: Path, cells: Path, workers: int, out: Path) -> dict[str, Any]:
    """Predict at GeoJSON cells, with picture, page and outlines for QuPath; ResourceError where that fails.

    Returns cells, genes, peak_mib (resident, whole process), open_mib (libraries, bundle, slide), spots_mib
    (with the cells' centers), seconds_spots, seconds, tiles_per_second, and sizes of map, page and GeoJSON.
    """
    return call_in_subprocess(
        predict_cells, task="a run over the cells", advice="give fewer --cells",
        slide_path=slide, bundle_path=bundle, cells=cells, workers=workers, out=out,
    )  # fmt: skip


def measure_bins(folder: Path, um: int) -> dict[str, Any]:
    """Read 2 µm bins pooled to `um`; ResourceError where that fails.

    Returns bins of the file, spots and entries after pooling, peak_mib, open_mib and seconds.
    """
    return call_in_subprocess(
        pool_bins, task="pooling the bins", advice="give fewer --bins", folder=folder, um=um
    )


def predict_cells(slide_path: str, bundle_path: str, cells: str, workers: int, out: str) -> dict[str, Any]:
    """Predict at the cells; see `measure_cells`."""
    bundle, path = open_bundle(bundle_path), Path(out)
    with open_slide(slide_path) as slide:
        open_mib, began = peak_bytes() >> 20, time.monotonic()
        spots = read_spots(cells)
        spots_mib, started = peak_bytes() >> 20, time.monotonic()
        options = RunOptions(
            provider="cpu", workers=workers, any_stain=True, cache=False, files=Files(geojson=True)
        )
        run = predict(bundle, slide, spots, path, options)
        seconds = time.monotonic() - started
    sizes = {
        f"{name}_mib": path.with_suffix(suffix).stat().st_size >> 20
        for name, suffix in (("map", ".h5ad"), ("page", ".html"), ("geojson", ".geojson"))
    }
    return {
        "cells": run.spots,
        "genes": len(bundle.genes),
        "peak_mib": peak_bytes() >> 20,
        "open_mib": open_mib,
        "spots_mib": spots_mib,
        "seconds_spots": round(started - began, 1),
        "seconds": round(seconds, 1),
        "tiles_per_second": round(run.tiles_per_second("total")),
        **sizes,
    }


def pool_bins(folder: str, um: int) -> dict[str, Any]:
    """Read and pool the bins; see `measure_bins`."""
    open_mib, started = peak_bytes() >> 20, time.monotonic()
    (source,) = find_sections(folder, str(um)).values()
    section = read_section(source)
    seconds = time.monotonic() - started
    return {
        "um": um,
        "spots": len(section),
        "entries": int(section.counts.nnz),
        "counts": float(section.counts.sum(dtype=float)),
        "peak_mib": peak_bytes() >> 20,
        "open_mib": open_mib,
        "seconds": round(seconds, 1),
    }
