"""A full-size synthetic case: a DenseNet-121 with random weights, a slide, spots and a bank, as a bundle.

Speed does not depend on the weights; the predictions are meaningless.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch

from mclst.benchmarks.reading.jpeg_slide import write_slide
from mclst.export.bundling import export_bundle
from mclst.export.parity.precisions import PrecisionOptions
from mclst.models.mclstexp import MclSTExp
from mclst.runtime.errors import MclstError

GENES, REFERENCE_SPOTS, SPOTS_ACROSS, TILE_PX, SLIDE_PX = 785, 1600, 32, 224, 4096


def make_case(
    folder: Path,
    *,
    encoder: str = "densenet121",
    genes: int = GENES,
    slide_px: int = SLIDE_PX,
    across: int = SPOTS_ACROSS,
    reference: int = REFERENCE_SPOTS,
    tile_px: int = TILE_PX,
) -> dict[str, object]:
    """Create `model.pt`, `slide.tiff`, `spots.csv` and `mclst-bundle` in `folder`; return what was made.

    The bundle has an fp16 graph where that passes the export's tolerances. Raises MclstError as the export
    does.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    torch.save(MclSTExp(encoder, genes, positions=64).eval().state_dict(), folder / "model.pt")
    write_slide(folder / "slide.tiff", size_px=slide_px)
    centers = np.linspace(tile_px, slide_px - tile_px, across)
    x, y = (axis.ravel() for axis in np.meshgrid(centers, centers))
    pd.DataFrame({"id": [f"s{i}" for i in range(len(x))], "x": x, "y": y}).to_csv(
        folder / "spots.csv", index=False
    )
    measured = anndata.AnnData(
        rng.poisson(2.0, (reference, genes)).astype(np.float32),
        obs=pd.DataFrame(
            {"array_row": np.arange(reference) // 40 % 64, "array_col": np.arange(reference) % 40},
            index=[f"r{i}" for i in range(reference)],
        ),
        var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]),
    )
    measured.obsm["spatial"] = rng.uniform(0, slide_px, (reference, 2))
    measured.write_h5ad(folder / "reference.h5ad")
    summary: dict[str, object] = {"encoder": encoder, "precisions": ["fp32"], "fp16_refused": None}

    def export(precisions: PrecisionOptions) -> None:
        export_bundle(
            folder / "model.pt",
            folder / "mclst-bundle",
            references=[folder / "reference.h5ad"],
            overrides={"tile": {"size_px": tile_px}},
            parity_tiles=8,
            overwrite=True,
            precisions=precisions,
        )

    try:
        export(PrecisionOptions(precisions=("fp16",)))
        summary["precisions"] = ["fp32", "fp16"]
    except MclstError as refusal:
        summary["fp16_refused"] = str(refusal)
        export(PrecisionOptions())
    return summary | {"seconds": time.monotonic() - started}


if __name__ == "__main__":
    case_folder = Path(sys.argv[1])
    case = make_case(case_folder)
    (case_folder / "case.json").write_text(json.dumps(case) + "\n")
