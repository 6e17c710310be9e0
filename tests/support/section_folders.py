"""Folders of measured sections, laid out as their vendors publish them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tifffile
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

BARCODES = [f"{code}-1" for code in ("AAACAAGTATCTCCCA", "AAACAATCTACTAGCA", "AAACACCAATAACTGC")]


def space_ranger(folder: Path, scale: object = 0.2) -> Path:
    """Space Ranger 2's outs/: matrix, positions with a header, scalefactors, the two pictures."""
    spatial = folder / "outs" / "spatial"
    spatial.mkdir(parents=True)
    with h5py.File(folder / "outs" / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(BARCODES, "S18")
        matrix["data"], matrix["indices"] = np.array([1, 2, 3], np.int32), np.array([0, 1, 0], np.int64)
        matrix["indptr"], matrix["shape"] = np.array([0, 1, 2, 3], np.int64), np.array([2, 3], np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array(["ENSG00000141510", "ENSG00000136997"], "S16")
        features["name"] = np.array(["TP53", "MYC"], "S8")
        features["feature_type"] = np.array(["Gene Expression"] * 2, "S16")
    rows = [f"{name},1,{i},{i},{100 * i + 50},{200 * i + 25}" for i, name in enumerate(BARCODES)]
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    (spatial / "tissue_positions.csv").write_text("\n".join([header, *rows]) + "\n")
    factors = {"tissue_hires_scalef": scale, "tissue_lowres_scalef": 0.02,
               "spot_diameter_fullres": 65.0, "fiducial_diameter_fullres": 105.0}  # fmt: skip
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    Image.new("RGB", (120, 90), (200, 120, 170)).save(spatial / "tissue_hires_image.png")
    return folder


def visium_hd(folder: Path, sizes: tuple[int, ...] = (8, 16), mpp: float = 0.5) -> Path:
    """Space Ranger 4's outs/ of Visium HD: binned_outputs by size, and segmented_outputs of three cells.

    A bin's center is at (column + ½, row + ½) bins, turned by 10° about (4000, 3000) px.
    """
    rng = np.random.default_rng(2)
    fine = rng.poisson(0.4, (24, 32, 3))  # counts per 8 µm bin
    for size in sizes:
        side = size // 8
        counts = fine.reshape(24 // side, side, 32 // side, side, 3).sum(axis=(1, 3)).reshape(-1, 3)
        rows, columns = (axis.ravel() for axis in np.indices((24 // side, 32 // side)))
        places = zip(rows, columns, strict=True)
        names = [f"s_{size:03d}um_{row:05d}_{column:05d}-1" for row, column in places]
        square = folder / "outs" / "binned_outputs" / f"square_{size:03d}um"
        (square / "spatial").mkdir(parents=True)
        x, y = hd_center(rows, columns, size, mpp)
        frame = pd.DataFrame(
            {"barcode": names, "in_tissue": 1, "array_row": rows, "array_col": columns,
             "pxl_row_in_fullres": y, "pxl_col_in_fullres": x}
        )  # fmt: skip
        frame.to_parquet(square / "spatial" / "tissue_positions.parquet", index=False)
        factors = {"bin_size_um": float(size), "microns_per_pixel": mpp, "spot_diameter_fullres": size / mpp,
                   "tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.01}  # fmt: skip
        (square / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        kept = counts.sum(axis=1) > 0  # Space Ranger filters bins without counts
        write_matrix(square / "filtered_feature_bc_matrix.h5", np.array(names)[kept], counts[kept])
    segmented = folder / "outs" / "segmented_outputs"
    segmented.mkdir(parents=True)
    cells = [(1, 900.0, 800.0), (2, 950.0, 860.0), (12, 1200.0, 400.0)]
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x - 4, y], [x, y - 4], [x + 4, y], [x, y + 4], [x - 4, y]]],
            },
            "properties": {"cell_id": cell},
        }
        for cell, x, y in cells
    ]
    outlines = {"type": "FeatureCollection", "features": features}
    (segmented / "cell_segmentations.geojson").write_text(json.dumps(outlines))
    barcodes = np.array([f"cellid_{cell:09d}-1" for cell, _, _ in reversed(cells)])
    write_matrix(segmented / "filtered_feature_cell_matrix.h5", barcodes, np.arange(1, 10).reshape(3, 3))
    return folder


def hd_center(rows: Array, columns: Array, size_um: float, mpp: float) -> tuple[Array, Array]:
    u, v = (columns + 0.5) * size_um / mpp, (rows + 0.5) * size_um / mpp
    turn = np.deg2rad(10)
    return 4000 + u * np.cos(turn) - v * np.sin(turn), 3000 + u * np.sin(turn) + v * np.cos(turn)


def write_matrix(path: Path, barcodes: Array, counts: Array) -> None:
    """A 10x matrix: features x barcodes as compressed columns."""
    sparse = sp.csr_matrix(counts)
    genes = counts.shape[1]
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = barcodes.astype("S")
        matrix["data"], matrix["indices"] = sparse.data.astype(np.int32), sparse.indices.astype(np.int64)
        matrix["indptr"] = sparse.indptr.astype(np.int64)
        matrix["shape"] = np.array([genes, len(barcodes)], np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(genes)], "S16")
        features["name"] = np.array([f"GENE{i}" for i in range(genes)], "S8")
        features["feature_type"] = np.array(["Gene Expression"] * genes, "S16")
        features["genome"] = np.array(["GRCh38"] * genes, "S8")


def hest(folder: Path, names: tuple[str, ...] = ("TENX95", "INT1"), mpp: float = 0.2738) -> Path:
    """HEST-1k: st/, wsis/, metadata/ and patches/ of each sample, as `hest` and `hestcore` write them."""
    for part in ("st", "wsis", "metadata", "patches"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    for name in names:
        xy = np.array([[x, y] for y in (150, 350, 550) for x in (180, 420)], np.float64)
        genes = ["TP53", "MYC", "NegControlProbe_00042"]
        sample = ad.AnnData(rng.poisson(3, (6, 3)).astype(np.float32))
        sample.var_names, sample.obs_names = genes, [f"{i // 2:03d}x{i % 2:03d}" for i in range(6)]
        sample.obsm["spatial"] = xy
        sample.obs = pd.DataFrame(
            {"in_tissue": True, "pxl_col_in_fullres": xy[:, 0], "pxl_row_in_fullres": xy[:, 1],
             "array_col": np.arange(6) % 2, "array_row": np.arange(6) // 2},
            index=sample.obs_names,
        )  # fmt: skip
        picture = np.full((70, 60, 3), 230, np.uint8)
        factors = {"tissue_downscaled_fullres_scalef": 0.1, "spot_diameter_fullres": 100.0}
        library = {"images": {"downscaled_fullres": picture}, "scalefactors": factors}
        sample.uns["spatial"] = {"ST": library}
        sample.write_h5ad(folder / "st" / f"{name}.h5ad")
        slide = rng.integers(90, 240, (700, 600, 3), dtype=np.uint8)
        tifffile.imwrite(
            folder / "wsis" / f"{name}.tif", slide, tile=(256, 256), photometric="rgb", compression="jpeg"
        )
        metadata = {"id": name, "pixel_size_um_embedded": 1.0, "pixel_size_um_estimated": mpp,
                    "magnification": "40x", "fullres_px_width": 600, "fullres_px_height": 700}  # fmt: skip
        (folder / "metadata" / f"{name}.json").write_text(json.dumps(metadata))
        write_patches(folder / "patches" / f"{name}.h5", sample.obs_names.to_numpy(str), xy, slide, mpp)
    return folder


def write_patches(path: Path, names: Array, xy: Array, slide: Array, mpp: float, side: int = 64) -> None:
    """A file of `dump_patches`: squares of 0.5 µm/px around positions, reduced by area means."""
    downsample = 0.5 / mpp
    corners = (xy - side * downsample // 2).astype(int)
    src = round(side * downsample)
    patches = [
        np.asarray(
            Image.fromarray(slide[y : y + src, x : x + src]).resize((side, side), Image.Resampling.BOX)
        )
        for x, y in corners
    ]
    with h5py.File(path, "w") as file:
        shape = (len(names), side, side, 3)
        file.create_dataset(
            "img", data=np.stack(patches), maxshape=(None, *shape[1:]), chunks=(1, *shape[1:])
        )
        file["coords"], file["barcode"] = corners, names.astype(object)[:, None]
        for key, value in (
            ("patch_size_src", src), ("patch_size_target", side), ("downsample", downsample),
            ("pixel_size", mpp),
        ):  # fmt: skip
            file["coords"].attrs[key] = file["img"].attrs[key] = value


XENIUM_PIXEL = 0.2125
XENIUM_ALIGNMENT = np.array([[0.02, 1.3, -40.0], [-1.3, 0.02, 1300.0], [0.0, 0.0, 1.0]])
"""A turn by 91°, as 10x's public bundles have them: px of the H&E image → px of the morphology image."""


def xenium(
    folder: Path,
    *,
    cells: int = 12,
    transcripts: int = 4000,
    bytes_names: bool = False,
    genes: tuple[str, str, str] = ("EPCAM", "ERBB2", "PTPRC"),
) -> Path:
    """A bundle of Xenium Onboard Analysis 3: experiment, cells, transcripts, matrix, H&E image and alignment.

    bytes_names: feature names and cell ids as bytes, as version 1 wrote them.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(9)
    experiment = {
        "major_version": 5, "minor_version": 0, "run_name": "run", "region_name": folder.name,
        "panel_name": "Human Breast", "pixel_size": XENIUM_PIXEL, "num_cells": cells,
        "analysis_sw_version": "xenium-3.0.0.15", "instrument_sn": "XETG00001",
        "images": {"morphology_filepath": "morphology.ome.tif"},
    }  # fmt: skip
    (folder / "experiment.xenium").write_text(json.dumps(experiment))
    names = [f"{'abcdefghijklmnop'[i % 16]}aaaaaaa-1" for i in range(cells)]
    extent = 200.0  # µm, along both axes
    centers = rng.uniform(10, extent - 10, (cells, 2))
    controls = ["NegControlProbe_00042", "NegControlCodeword_0500", "UnassignedCodeword_0031"]
    kinds = ["Gene Expression"] * 3 + ["Negative Control Probe", "Negative Control Codeword"]
    kinds.append("Unassigned Codeword")
    counts = rng.poisson(2, (cells, 6))
    write_matrix(folder / "cell_feature_matrix.h5", np.array(names), counts)
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as file:
        features = file["matrix/features"]
        ids = ["ENSG00000119888", "ENSG00000141736", "ENSG00000081237", *controls]
        for name, values in (("name", [*genes, *controls]), ("id", ids), ("feature_type", kinds)):
            del features[name]
            features[name] = np.array(values, "S")
    text = (lambda values: [v.encode() for v in values]) if bytes_names else list
    order = rng.permutation(cells)  # the bundle's own order is the matrix's; any must do
    pd.DataFrame(
        {"cell_id": text([names[i] for i in order]), "x_centroid": centers[order, 0],
         "y_centroid": centers[order, 1], "transcript_counts": counts[order, :3].sum(axis=1),
         "control_probe_counts": 0, "control_codeword_counts": 0, "unassigned_codeword_counts": 0,
         "total_counts": counts[order].sum(axis=1), "cell_area": 60.0, "nucleus_area": 20.0,
         "nucleus_count": 1.0, "segmentation_method": "Segmented by boundary stain"}
    ).to_parquet(folder / "cells.parquet", index=False)  # fmt: skip
    feature = rng.choice([*genes, *controls], transcripts, p=[0.4, 0.3, 0.2, 0.05, 0.03, 0.02])
    pd.DataFrame(
        {"transcript_id": np.arange(transcripts, dtype=np.uint64), "cell_id": "UNASSIGNED",
         "overlaps_nucleus": np.zeros(transcripts, np.uint8), "feature_name": text(feature.tolist()),
         "x_location": rng.uniform(0, extent, transcripts).astype(np.float32),
         "y_location": rng.uniform(0, extent, transcripts).astype(np.float32),
         "z_location": np.float32(15), "qv": rng.choice([40.0, 20.0, 19.9], transcripts).astype(np.float32),
         "fov_name": "A1", "nucleus_distance": np.float32(3), "codeword_index": np.int32(1),
         "codeword_category": "predesigned_gene", "is_gene": np.isin(feature, genes)}
    ).to_parquet(folder / "transcripts.parquet", index=False, row_group_size=1500)  # fmt: skip
    np.savetxt(folder / f"{folder.name}_he_imagealignment.csv", XENIUM_ALIGNMENT, delimiter=",")
    slide = rng.integers(90, 240, (1100, 1200, 3), dtype=np.uint8)
    tifffile.imwrite(
        folder / f"{folder.name}_he_image.ome.tif", slide, tile=(256, 256), photometric="rgb",
        compression="jpeg", metadata={"axes": "YXS"},
    )  # fmt: skip
    return folder


def spatialdata_store(
    path: Path,
    kind: str = "circles",
    *,
    old: bool = False,
    tables: tuple[str, ...] = ("table",),
    regions: tuple[str, ...] = ("spots",),
) -> Any:
    """A SpatialData written by spatialdata itself: turned elements and an image, both in `global`; returned.

    kind: of the annotated elements: circles, polygons, geoarrow (polygons), labels, multiscale (labels) or
    points. old: container format 0.1, in zarr v2; "oldest": with its first format of shapes, too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spatialdata as sd
        from spatialdata._io.format import ShapesFormatV01, SpatialDataContainerFormatV01
        from spatialdata.models import Image2DModel, TableModel
        from spatialdata.transformations import Scale, Sequence, Translation

        rng = np.random.default_rng(4)
        n = 8
        elements: dict[str, Any] = {}
        index: Any = []
        for region in regions:
            elements[region], index = _annotated(kind, rng, n)
        to_global = Sequence([Scale([2.0, 2.0], axes=("x", "y")), Translation([3.0, -5.0], axes=("x", "y"))])
        images = {
            name: Image2DModel.parse(
                picture, dims=("c", "y", "x"), scale_factors=scales, transformations={"global": to_global}
            )
            for name, picture, scales in (
                ("he", rng.integers(90, 240, (3, 120, 140), dtype=np.uint8), [2]),
                ("dapi", np.zeros((1, 300, 300), np.uint8), None),
            )
        }
        made = {}
        for name in tables:
            rows = n * len(regions)
            table = ad.AnnData(sp.csr_matrix(rng.poisson(2, (rows, 3)).astype(np.float32)))
            table.var_names, table.obs_names = ["A1BG", "TP53", "MYC"], [f"spot{i}" for i in range(rows)]
            table.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(3)]
            table.obs["region"] = pd.Categorical(np.repeat(list(regions), n))
            table.obs["shape"] = np.concatenate([np.asarray(index)[rng.permutation(n)] for _ in regions])
            made[name] = TableModel.parse(
                table, region=list(regions), region_key="region", instance_key="shape"
            )
        group = {"labels": "labels", "multiscale": "labels", "points": "points"}.get(kind, "shapes")
        store = sd.SpatialData(images=images, tables=made, **{group: elements})
        formats = [SpatialDataContainerFormatV01()] if old else []
        options: dict[str, Any] = {"sdata_formats": formats} if old else {}
        if kind == "oldest":
            options = {"sdata_formats": [SpatialDataContainerFormatV01(), ShapesFormatV01()]}
        store.write(
            path, **options, **({"shapes_geometry_encoding": "geoarrow"} if kind == "geoarrow" else {})
        )
        return store


def _annotated(kind: str, rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """An element of n instances, turned, and their names."""
    from geopandas import GeoDataFrame
    from shapely import Point
    from spatialdata.models import Labels2DModel, PointsModel, ShapesModel
    from spatialdata.transformations import Affine, Scale

    centers = rng.uniform(20, 60, (n, 2))
    turn = Affine(
        np.array([[0.1, -1.9, 150.0], [1.9, 0.1, 10.0], [0, 0, 1]]),
        input_axes=("x", "y"),
        output_axes=("x", "y"),
    )
    to = {"global": turn, "mm": Scale([1e-3] * 2, axes=("x", "y"))}
    if kind in ("polygons", "geoarrow", "oldest"):
        index: Any = [f"c{i}" for i in range(n)] if kind != "oldest" else np.arange(n)
        frame = GeoDataFrame(geometry=[Point(c).buffer(2) for c in centers], index=index)
        return ShapesModel.parse(frame, transformations=to), index
    if kind in ("labels", "multiscale"):
        raster = np.zeros((80, 70), np.uint32)
        index = 100 + 7 * np.arange(n)
        for i, label in enumerate(index):  # an L in each of 4 x 2 places
            x, y = 3 + 16 * (i % 4), 5 + 40 * (i // 4)
            raster[y : y + 9 + i, x : x + 2] = raster[y : y + 2, x : x + 7 + i % 3] = label
        options = {"scale_factors": [2]} if kind == "multiscale" else {}
        return Labels2DModel.parse(raster, dims=("y", "x"), transformations=to, **options), index
    if kind == "points":
        index = np.arange(n)
        return PointsModel.parse(centers, transformations=to), index
    index = np.arange(n)
    return ShapesModel.parse(centers, geometry=0, radius=2.0, index=index, transformations=to), index
