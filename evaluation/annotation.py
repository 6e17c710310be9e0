"""Read annotated tissue regions: a label per spot, from a table or the truth's obs."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.runtime.errors import InputError
from mclst.sections.formats.source import SectionSource
from mclst.sections.tables.delimited import detect_delimiter
from mclst.sections.tables.text_file import read_text

UNLABELED = frozenset({"", "nan", "none", "na", "undetermined", "unlabelled", "unlabeled"})
ID_COLUMNS = ("id", "barcode", "spot", "spot_id")
LABEL_COLUMNS = ("label", "annotation", "region", "cluster", "domain")
OBS = "obs:"


def read_annotation(annotation: str, source: SectionSource, spot: NDArray[np.str_]) -> NDArray[np.str_]:
    """Labels of the spots, str [n], "" for spots without a label.

    annotation: `obs:COLUMN` of an AnnData truth, or a table with labels and either spot names or, as
    published for HER2+, array coordinates x and y, which are rounded to `XxY`. Raises InputError if no spot
    has a label, or the table has another form.
    """
    labels = _of_obs(annotation, source) if annotation.startswith(OBS) else _of_table(Path(annotation))
    result = np.array([labels.get(name, "") for name in spot.tolist()], dtype=np.str_)
    if not (result != "").any():
        raise InputError(f"{annotation} labels none of the spots of section {source.name}; check their names")
    return result


def _of_obs(annotation: str, source: SectionSource) -> dict[str, str]:
    column = annotation.removeprefix(OBS)
    if source.format != "h5ad":
        raise InputError(
            f"--annotation {annotation} needs a truth in .h5ad, and {source.path} is not; give a table"
        )
    obs = anndata.read_h5ad(source.path, backed="r").obs
    if column not in obs:
        raise InputError(f"{source.path} has no obs column {column!r}; there are {', '.join(obs.columns)}")
    return _labels(obs.index.astype(str).tolist(), obs[column].astype(str).tolist())


def _of_table(path: Path) -> dict[str, str]:
    text = read_text(path, may_be_gzip=True)
    try:
        lines = text.splitlines()
        table = pd.read_csv(path, sep=detect_delimiter(lines[0]), dtype=str, keep_default_na=False)
    except (ValueError, IndexError) as error:
        raise InputError(
            f"{path} is not a table with a header ({error}); give one of spots and labels"
        ) from error
    names = {str(name).strip().casefold(): name for name in table.columns}
    label = next((names[name] for name in LABEL_COLUMNS if name in names), None)
    if label is None:
        raise InputError(f"{path} has no column of labels; name it {' or '.join(LABEL_COLUMNS[:3])}")
    ids = next((names[name] for name in ID_COLUMNS if name in names), None)
    if ids is not None:
        return _labels(table[ids].tolist(), table[label].tolist())
    if {"x", "y"} <= names.keys():
        xy = [pd.to_numeric(table[names[axis]], errors="coerce") for axis in ("x", "y")]
        finite = np.isfinite(xy[0]) & np.isfinite(xy[1])
        x, y = (np.rint(values[finite]).astype(int).tolist() for values in xy)
        return _labels([f"{a}x{b}" for a, b in zip(x, y, strict=True)], table.loc[finite, label].tolist())
    return _labels(table.iloc[:, 0].tolist(), table[label].tolist())


def _labels(names: list[str], labels: list[str]) -> dict[str, str]:
    return {
        name.strip(): label.strip()
        for name, label in zip(names, labels, strict=True)
        if label.strip().casefold() not in UNLABELED
    }
