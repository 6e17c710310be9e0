"""Export a map as a SpatialData zarr store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from mclst.runtime.atomic import AtomicFolder
from mclst.runtime.errors import OutputError, needs_extra
from mclst.runtime.expression_map.reader import Map

MARK = "zarr.json"
"""Identifies a store that may be overwritten."""
REGION, IMAGE, TABLE = "spots", "tissue", "expression"


def write_store(expression_map: Map, path: Path, *, overwrite: bool) -> None:
    """Write a map as a zarr folder, atomically; loads all expression into memory.

    The coordinate system "global" is level-0 px. Spots are the shapes `spots`: circles, or squares of a grid.
    The tissue is the image `tissue`, expression the table `expression`.

    Parameters
    ----------
    expression_map : Map
    path : Path
    overwrite : bool
        Whether to replace a store.

    Raises
    ------
    ResourceError
        If spatialdata is not installed.
    OutputError
        If the folder cannot be written.
    """
    with needs_extra("spatialdata"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spatialdata import SpatialData
    with AtomicFolder(path, mark=MARK, overwrite=overwrite) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = SpatialData(
            images={IMAGE: _image(expression_map)},
            shapes={REGION: _shapes(expression_map)},
            tables={TABLE: _table(expression_map)},
        )
        try:
            folder.part.rmdir()  # spatialdata refuses an existing folder
            store.write(folder.part)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror or error}); free space") from error
        folder.publish()


def _image(expression_map: Map) -> Any:
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    to_level0 = Scale([1 / expression_map.image_scale, 1 / expression_map.image_scale], axes=("x", "y"))
    image = np.moveaxis(expression_map.image, 2, 0)
    return Image2DModel.parse(
        image, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={"global": to_level0}
    )


def _shapes(expression_map: Map) -> Any:
    from geopandas import GeoDataFrame
    from shapely import box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    transformations = {"global": Identity()}
    radius = expression_map.spot_diameter_px / 2
    if not expression_map.on_grid:
        index = np.arange(len(expression_map.xy_px))
        return ShapesModel.parse(
            expression_map.xy_px, geometry=0, radius=radius, index=index, transformations=transformations
        )
    x, y = expression_map.xy_px.T
    squares = GeoDataFrame(geometry=box(x - radius, y - radius, x + radius, y + radius))
    return ShapesModel.parse(squares, transformations=transformations)


def _table(expression_map: Map) -> Any:
    from spatialdata.models import TableModel

    table = anndata.AnnData(
        np.asarray(expression_map.expression[:], np.float32),
        obs=expression_map.table.assign(region=REGION, spot_id=np.arange(len(expression_map.xy_px))),
        obsm={"spatial": expression_map.xy_px},
        uns={"mclst": dict(expression_map.provenance)} if expression_map.provenance else {},
    )
    table.var_names = list(expression_map.genes)
    table.obs["region"] = table.obs["region"].astype("category")
    return TableModel.parse(table, region=REGION, region_key="region", instance_key="spot_id")
