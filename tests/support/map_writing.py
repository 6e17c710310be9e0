"""What a map writer is given in tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.expression_map.writer import MapWriter
from mclst.sections.columns import Columns
from mclst.sections.section import Spots

IMAGE = np.random.default_rng(0).integers(0, 255, (120, 90, 3), dtype=np.uint8)


def spots_of(n, table=None, array=True):
    columns = 6
    xy = np.stack([np.arange(n) % columns, np.arange(n) // columns], axis=1)
    return Spots(
        path=Path("spots.csv"),
        variant="made up",
        id=np.array([f"{x}x{y}" for x, y in xy]),
        xy_px=xy * 100.5 + 60.25,
        array_xy=xy.astype(np.int64) if array else None,
        row=np.arange(2, n + 2),
        columns=Columns(range(n), {"selected": np.ones(n, np.int64)}) if table is None else Columns.of(table),
        spot_diameter_px=None,
        coordinates="x, y",
    )


def genes_of(count):
    return [f"GENE{i}" for i in range(count)]


def publish(writer, *, image=IMAGE, image_scale=0.1, library_id="slide", **changes):
    writer.put_tissue(image, image_scale, library_id)
    return writer.publish(**{"spot_diameter_px": 55.0, "run": {"k": 200}, **changes})


def write_all(path, expression, *, spots=None, overwrite=False, **changes):
    n, count = expression.shape
    with MapWriter(path, genes=genes_of(count), spots=spots or spots_of(n), overwrite=overwrite) as writer:
        writer.write(
            np.arange(n), RetrievalResult(expression, np.arange(n, dtype=np.float32), np.ones(n, np.float32))
        )
        return publish(writer, **changes)
