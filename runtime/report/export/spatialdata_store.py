"""A map as a SpatialData zarr store: spots as circles or squares, the tissue image, the table of expression."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from mclst.runtime.atomic import AtomicFolder
from mclst.runtime.errors import OutputError, ResourceError
from mclst.runtime.expression_map.reader import Map

MARK = "zarr.json"
REGION, IMAGE, TABLE = "spots", "tissue", "expression"


def write_store(found: Map, out: Path, *, overwrite: bool) -> Path:
    """Write a map to the folder `out`, whole or not at all; returns `out`.

    All lies in the coordinate system "global", level-0 px: spots as shapes `spots`, the picture as the image `tissue`,
    expression as the table `expression`, whose obs name their spot. The whole expression is held in memory.
    Raises ResourceError where spatialdata is not installed, OutputError where `out` cannot be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from spatialdata import SpatialData
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[spatialdata]") from error
    with AtomicFolder(out, mark=MARK, overwrite=overwrite) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = SpatialData(
            images={IMAGE: _image(found)}, shapes={REGION: _shapes(found)}, tables={TABLE: _table(found)}
        )
        try:
            folder.part.rmdir()  # spatialdata makes its folder itself, and takes no other
            held.write(folder.part)
        except OSError as error:
            raise OutputError(f"{out} cannot be written ({error.strerror or error}); free space") from error
        return folder.publish()


def _image(found: Map) -> Any:
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    back = Scale([1 / found.image_scale, 1 / found.image_scale], axes=("x", "y"))
    image = np.moveaxis(found.image, 2, 0)
    return Image2DModel.parse(
        image, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={"global": back}
    )


def _shapes(found: Map) -> Any:
    from geopandas import GeoDataFrame
    from shapely import box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    here = {"global": Identity()}
    radius = found.spot_diameter_px / 2
    if not found.on_grid:
        index = np.arange(len(found.xy_px))
        return ShapesModel.parse(found.xy_px, geometry=0, radius=radius, index=index, transformations=here)
    x, y = found.xy_px.T
    squares = GeoDataFrame(geometry=box(x - radius, y - radius, x + radius, y + radius))
    return ShapesModel.parse(squares, transformations=here)


def _table(found: Map) -> Any:
    from spatialdata.models import TableModel

    table = anndata.AnnData(
        np.asarray(found.expression[:], np.float32),
        obs=found.table.assign(region=REGION, spot_id=np.arange(len(found.xy_px))),
        obsm={"spatial": found.xy_px},
        uns={"mclst": dict(found.provenance)} if found.provenance else {},
    )
    table.var_names = list(found.genes)
    table.obs["region"] = table.obs["region"].astype("category")
    return TableModel.parse(table, region=REGION, region_key="region", instance_key="spot_id")
