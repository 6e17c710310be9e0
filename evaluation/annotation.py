"""A pathologist's regions: a label per spot, from a table or from the truth's own obs."""

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

UNLABELLED = frozenset({"", "nan", "none", "na", "undetermined", "unlabelled", "unlabeled"})
ID_COLUMNS = ("id", "barcode", "spot", "spot_id")
LABEL_COLUMNS = ("label", "annotation", "region", "cluster", "domain")
OBS = "obs:"


def read_annotation(what: str, source: SectionSource, spot: NDArray[np.str_]) -> NDArray[np.str_]:
    """The label of each of `spot`, str [n], "" where there is none.

    what: `obs:COLUMN` of an AnnData truth, or a table with a column of labels and either spot names or, as published
    for HER2+, array coordinates x and y that are rounded to `XxY`.
    Raises InputError where no spot has a label, or the table is not of that form.
    """
    labels = _of_obs(what, source) if what.startswith(OBS) else _of_table(Path(what))
    found = np.array([labels.get(name, "") for name in spot.tolist()], dtype=np.str_)
    if not (found != "").any():
        raise InputError(f"{what} labels none of the spots of section {source.name}; check their names")
    return found


def _of_obs(what: str, source: SectionSource) -> dict[str, str]:
    column = what.removeprefix(OBS)
    if source.format != "h5ad":
        raise InputError(
            f"--annotation {what} needs a truth in .h5ad; {source.path} is none, so give a table"
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
        raise InputError(f"{path} has no column of labels; call it {' or '.join(LABEL_COLUMNS[:3])}")
    own = next((names[name] for name in ID_COLUMNS if name in names), None)
    if own is not None:
        return _labels(table[own].tolist(), table[label].tolist())
    if {"x", "y"} <= names.keys():
        xy = [pd.to_numeric(table[names[axis]], errors="coerce") for axis in ("x", "y")]
        placed = np.isfinite(xy[0]) & np.isfinite(xy[1])
        x, y = (np.rint(values[placed]).astype(int).tolist() for values in xy)
        return _labels([f"{a}x{b}" for a, b in zip(x, y, strict=True)], table.loc[placed, label].tolist())
    return _labels(table.iloc[:, 0].tolist(), table[label].tolist())


def _labels(names: list[str], labels: list[str]) -> dict[str, str]:
    return {
        name.strip(): label.strip()
        for name, label in zip(names, labels, strict=True)
        if label.strip().casefold() not in UNLABELLED
    }
