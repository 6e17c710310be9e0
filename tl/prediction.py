"""Predict the expression at the spots of an AnnData from its slide."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.errors import InputError
from mclst.runtime.report.files import Files
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.predict import predict as predict_map
from mclst.runtime.sharing.hub import bundle_folder
from mclst.runtime.slide.open import open_slide
from mclst.sections.columns import Columns
from mclst.sections.section import Spots

if TYPE_CHECKING:
    from anndata import AnnData


def predict(
    adata: AnnData,
    slide: str | Path,
    bundle: str | Path | Bundle = "mclst-bundle",
    *,
    spatial_key: str = "spatial",
    key_added: str = "mclst",
    copy: bool = False,
    **options: Any,
) -> AnnData | None:
    """Predict expression at the spots of `adata`, as mclst-infer does.

    Parameters
    ----------
    adata : AnnData
        `obsm[spatial_key]` holds each spot's center x, y in px of the slide's level 0, as scanpy and squidpy
        read it.
    slide : str or Path
        The slide.
    bundle : str, Path or Bundle
        A folder, hf://ORG/NAME@REVISION, or an opened bundle.
    spatial_key : str
        Key of the positions.
    key_added : str
        Key of what is added.
    copy : bool
        Return a copy instead of changing `adata`.
    options : dict
        Fields of `RunOptions`, such as `provider` or `mpp`.

    Returns
    -------
    AnnData or None
        None unless `copy`. Adds `obsm[key_added]`, a DataFrame [spots, genes] of float32 with a row of NaN
        where no tile could be read; what the map says of each spot as `obs[key_added + "_nearest_distance"]`,
        `"_effective_k"`, `"_outside"` and so on; intervals, if asked for, as `obsm[key_added + "_low"]` and
        `"_high"`; and `uns[key_added]`, what the map records of its origin. Its `"genes"` is a DataFrame of
        what the map says of each gene, such as `reliable`.

    Raises
    ------
    InputError, ResourceError
        As `mclst.runtime.predict`; also if `adata` has no positions.
    """
    import anndata

    target = adata.copy() if copy else adata
    chosen = RunOptions(
        **{"resume": False, "picture": False, "report": False, "files": Files(html=False), **options}
    )
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle_folder(bundle))
    with tempfile.TemporaryDirectory(prefix="mclst-") as folder, open_slide(slide) as image:
        run = predict_map(opened, image, _spots(target, spatial_key), Path(folder) / "map.h5ad", chosen)
        result = anndata.read_h5ad(run.map_path)
    intervals = {f"{key_added}_{name}": layer for name, layer in result.layers.items()}
    for key, values in {key_added: result.X, **intervals}.items():
        target.obsm[key] = pd.DataFrame(values, index=target.obs_names, columns=list(result.var_names))
    for column, values in result.obs.items():
        target.obs[f"{key_added}_{column}"] = values.to_numpy()
    target.uns[key_added] = dict(result.uns["mclst"])
    if len(result.var.columns):
        target.uns[key_added]["genes"] = result.var
    return target if copy else None


def _spots(adata: AnnData, key: str) -> Spots:
    """The spots of `obsm[key]`, in order; raises InputError if there are none."""
    if key not in adata.obsm:
        raise InputError(f"adata has no obsm[{key!r}]; give the spots' x, y in level-0 px, or spatial_key")
    xy = np.asarray(adata.obsm[key], np.float64)
    if xy.ndim != 2 or xy.shape[1] < 2 or not len(xy):
        raise InputError(f"obsm[{key!r}] is {list(xy.shape)}, not x, y of each spot; correct it")
    xy = xy[:, :2]
    bad = np.flatnonzero(~(np.isfinite(xy).all(axis=1) & (xy >= 0).all(axis=1)))
    if len(bad):
        name = adata.obs_names[bad[0]]
        raise InputError(f"obsm[{key!r}] of {name!r} is {xy[bad[0]].tolist()}, no position in px; correct it")
    names = [str(name) for name in adata.obs_names]
    if len(set(names)) != len(names):
        raise InputError("obs_names are not unique; call adata.obs_names_make_unique()")
    return Spots(
        path=Path("adata"),
        variant="AnnData",
        id=np.asarray(names, dtype=np.str_),
        xy_px=np.ascontiguousarray(xy),
        array_xy=None,
        row=np.arange(1, len(names) + 1),
        columns=Columns(range(len(names))),
        spot_diameter_px=None,
        coordinates=f"obsm[{key!r}]",
    )
