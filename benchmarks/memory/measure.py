"""Peak memory of dense maps: a whole run in a process of its own for each number of tiles."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from mclst.benchmarks.harness.subprocess_json import call_in_subprocess
from mclst.runtime.bundle.bank import Bank, bank_bytes
from mclst.runtime.bundle.bundle import BANK, ENCODER, BundleDraft, open_bundle
from mclst.runtime.errors import ResourceError, SlideError
from mclst.runtime.resources import peak_bytes
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.predict import predict
from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.grid import Grid, make_grid
from mclst.runtime.tiling.tissue import TissueMask

TILE_PX, WIDTH, BANK_ROWS = 224, 16, 2000
LIMIT_MIB = 2048


def synthetic_bundle(folder: Path, genes: int, tile_px: int = TILE_PX) -> Path:
    """Write a bundle whose encoder is one matrix product, and return `folder`; a million tiles take minutes.

    Memory that grows with the number of tiles does not depend on the encoder; the encoder's own comes on top.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper, save
    except ImportError as error:
        raise ResourceError("onnx is not installed; install mclst[export], or give --bundle") from error

    rng = np.random.default_rng(0)
    values = rng.normal(0, 1e-3, (tile_px * tile_px * 3, WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["tiles"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["embedding"]),
        ],
        "projection",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["N", tile_px, tile_px, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", WIDTH])],
        [
            numpy_helper.from_array(values, "weights"),
            numpy_helper.from_array(np.array([-1, len(values)]), "shape"),
        ],
    )
    names = np.array([f"GENE{i}" for i in range(genes)])
    bank = Bank(
        rng.normal(size=(BANK_ROWS, WIDTH)).astype(np.float32),
        rng.random((BANK_ROWS, genes), np.float32), names,
        np.array([f"s{i}" for i in range(BANK_ROWS)]), np.array(["made up"] * BANK_ROWS),
    )  # fmt: skip
    with BundleDraft(folder, overwrite=False) as draft:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        save(model, draft.part / ENCODER)
        (draft.part / BANK).write_bytes(bank_bytes(bank))
        draft.seal(
            kind="retrieval", system="mclstexp", encoder={"name": "projection", "embedding_dim": WIDTH},
            tile={"size_px": tile_px}, preprocessing={}, genes=genes, genes_from="made up",
            retrieval={
                "k": 200, "rank": "cosine", "distance": "l2", "weighting": "inverse-square",
                "temperature": 1.0,
            },
            normalization={"input": "none", "expression": "none"},
            bank=[{"name": "made up", "spots": BANK_ROWS}],
            checkpoint={"name": "none", "sha256": "0" * 64}, versions={},
        )  # fmt: skip
    return folder


def grid_of(slide: Slide, n: int) -> Grid:
    """Grid of about `n` tiles over the whole slide, background included; SlideError if there is none."""
    mpp = slide.mpp or 1.0
    stride_px = float(np.sqrt(slide.width_px * slide.height_px / n))
    everywhere = TissueMask(np.ones((1, 1), np.bool_), "everywhere")
    grid = make_grid(slide, stride_px * mpp, mpp, everywhere)
    if not 0.8 * n <= len(grid.spots) <= 1.25 * n:
        raise SlideError(f"{slide.path} is too small for about {n:,} tiles; give fewer")
    return grid


def measure_in_subprocess(slide: Path, bundle: Path, n: int, workers: int, folder: Path) -> dict[str, Any]:
    """Predict about `n` tiles in a fresh process, outputs in `folder`; raises as `call_in_subprocess` does.

    Returns tiles, genes, peak_mib (resident, whole process), open_mib (libraries, bundle and slide),
    spots_mib (with the table of spots), seconds and map_mib.
    """
    return call_in_subprocess(
        predict_tiles, task=f"a run over {n:,} tiles", advice="give fewer tiles",
        slide_path=slide, bundle_path=bundle, n=n, workers=workers, folder=folder,
    )  # fmt: skip


def memory_png(results: list[dict[str, Any]]) -> bytes:
    """PNG of peak memory against the number of tiles, with the memory before the run."""
    # Imported here: libraries count as memory before the run.
    from mclst.runtime.report.figures.chart import add_legend, new_chart
    from mclst.runtime.report.figures.style import OURS, PALETTE, figure_bytes

    facts = f"dense maps of {results[0]['genes']} genes, a process each"
    figure, (axes,) = new_chart("Memory of a run", facts, 4.6)
    tiles = [result["tiles"] for result in results]
    lines = (
        ("peak_mib", "o-", OURS, "peak of the whole run"),
        ("open_mib", "o:", PALETTE["gray"], "libraries, bundle, slide"),
    )
    for key, style, color, label in lines:
        axes.plot(tiles, [result[key] for result in results], style, color=color, label=label)
    axes.axhline(LIMIT_MIB, color=PALETTE["vermillion"], linewidth=0.8, linestyle="--")
    axes.annotate("2 GiB", (tiles[0], LIMIT_MIB), va="bottom", fontsize=9, color=PALETTE["vermillion"])
    axes.set_xscale("log")
    axes.set_ylim(0, 1.15 * max(LIMIT_MIB, *(result["peak_mib"] for result in results)))
    axes.set_xlabel("tiles")
    axes.set_ylabel("resident memory, MiB")
    add_legend(figure, *axes.get_legend_handles_labels(), columns=2)
    return figure_bytes(figure)


def predict_tiles(slide_path: str, bundle_path: str, n: int, workers: int, folder: str) -> dict[str, Any]:
    """Predict about `n` tiles; see `measure_in_subprocess`."""
    bundle = open_bundle(bundle_path)
    with open_slide(slide_path) as slide:
        open_mib = peak_bytes() >> 20
        grid = grid_of(slide, n)
        spots_mib, started = peak_bytes() >> 20, time.monotonic()
        out = Path(folder) / "map.h5ad"
        options = RunOptions(provider="cpu", workers=workers, mpp=slide.mpp or 1.0, cache=False)
        run = predict(bundle, slide, grid, out, options)
        seconds = time.monotonic() - started
    return {
        "tiles": run.spots,
        "genes": len(bundle.genes),
        "peak_mib": peak_bytes() >> 20,
        "open_mib": open_mib,
        "spots_mib": spots_mib,
        "seconds": round(seconds, 1),
        "map_mib": out.stat().st_size >> 20,
    }
