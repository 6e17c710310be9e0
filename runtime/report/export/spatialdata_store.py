"""Export a map as a SpatialData zarr store."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from mclst.runtime.atomic import AtomicFolder
from mclst.runtime.errors import MclstError, OutputError, needs_extra, write_error
from mclst.runtime.expression_map.reader import Map
from mclst.sections.errors import pass_out_of_memory

MARK = "zarr.json"
"""Identifies a store that may be overwritten."""
REGION, IMAGE, TABLE = "spots", "tissue", "expression"
KEYS = ("region", "spot_id")
"""Columns of the table that join it to the shapes."""
VALID = re.compile(r"(?!__|_index$|\.{1,2}$)[\w.-]+")
"""Names of columns as spatialdata 0.7 takes them (`check_valid_dataframe_column_name`)."""
MAX_NAME_BYTES = 200
"""A column is a folder, whose name has at most 255 bytes."""


def write_store(expression_map: Map, path: Path, *, overwrite: bool) -> tuple[str, ...]:
    """Write a map as a zarr folder, atomically; loads all expression into memory.

    The coordinate system "global" is level-0 px. Spots are the shapes `spots`: circles, or squares of a grid.
    The tissue is the image `tissue`, expression the table `expression`, with the intervals as layers.
    Columns of `obs` and `var` are called as `column_names` says.

    Parameters
    ----------
    expression_map : Map
    path : Path
    overwrite : bool
        Whether to replace a store.

    Returns
    -------
    tuple of str
        Notes for the user.

    Raises
    ------
    ResourceError
        If spatialdata is not installed.
    OutputError
        If the folder cannot be written, or spatialdata refuses what the map holds.
    """
    with needs_extra("spatialdata"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spatialdata import SpatialData
    with AtomicFolder(path, mark=MARK, overwrite=overwrite) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            store = SpatialData(
                images={IMAGE: _image(expression_map)},
                shapes={REGION: _shapes(expression_map)},
                tables={TABLE: _table(expression_map)},
            )
            folder.part.rmdir()  # spatialdata refuses an existing folder
            store.write(folder.part)
        except MclstError:
            raise
        except OSError as error:
            raise write_error(path, error) from error
        except Exception as error:  # of names and values it cannot store, nearly every type
            pass_out_of_memory(error)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise OutputError(
                f"{path} cannot be written, for spatialdata refuses it ({reason}); leave out --spatialdata"
            ) from error
        folder.publish()
    return tuple(_notes(expression_map, path.name))


def column_names(names: Iterable[str], reserved: Iterable[str] = ()) -> list[str]:
    """Names that spatialdata takes: of letters, digits, `_`, `.` and `-`, no two alike but for case.

    Anything else becomes `_`; what would be there twice, or is reserved, gets the suffix _2.
    """
    unique: list[str] = []
    taken = set(reserved)
    for name in names:
        valid = name if VALID.fullmatch(name) else re.sub(r"[^\w.-]+", "_", name).strip("_.") or "column"
        short = valid.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        candidate, number = short, 1
        while candidate.lower() in taken:
            number += 1
            candidate = f"{short}_{number}"
        taken.add(candidate.lower())
        unique.append(candidate)
    return unique


def _notes(expression_map: Map, folder: str) -> Iterable[str]:
    renamed = [
        (name, other)
        for columns, reserved in ((expression_map.obs, KEYS), (expression_map.var, ()))
        for name, other in zip(columns, column_names(columns, reserved), strict=True)
        if name != other
    ]
    if renamed:
        (name, other), count = renamed[0], len(renamed)
        columns = "column is" if count == 1 else "columns are"
        yield f"{count} {columns} renamed in {folder}, as spatialdata needs: {name} to {other}"


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

    obs, var = expression_map.table, expression_map.gene_table
    obs = obs.set_axis(column_names(map(str, obs.columns), KEYS), axis=1)
    region, spot_id = KEYS
    obs[region], obs[spot_id] = pd.Categorical([REGION] * len(obs)), np.arange(len(obs))
    table = anndata.AnnData(
        np.asarray(expression_map.expression[:], np.float32),
        obs=obs,
        var=var.set_axis(column_names(map(str, var.columns)), axis=1),
        layers={name: layer[:] for name, layer in expression_map.layers.items()},
        obsm={"spatial": expression_map.xy_px},
        uns={"mclst": dict(expression_map.provenance)} if expression_map.provenance else {},
    )
    table.var_names = list(expression_map.genes)
    return TableModel.parse(table, region=REGION, region_key=region, instance_key=spot_id)
