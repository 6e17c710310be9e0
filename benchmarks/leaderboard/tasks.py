"""Folds and genes of a benchmark's task, as its own files give them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from mclst.runtime.errors import InputError

HEST_GENES = "var_50genes.json"
STP_GENES = "hmhvg_200genes.json"


@dataclass(frozen=True)
class Task:
    """A task: cross-validation over samples.

    Attributes
    ----------
    protocol : "hest" or "stp"
    name : str
    genes : tuple of str
    folds : tuple of (train, test)
        Sample names.
    expression, patches : mapping of sample to Path
        AnnData of counts, and HDF5 of tiles, which need not exist.
    cases : mapping of sample to case
        Patients, where the files name them.
    """

    protocol: Literal["hest", "stp"]
    name: str
    genes: tuple[str, ...]
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    expression: Mapping[str, Path]
    patches: Mapping[str, Path]
    cases: Mapping[str, str]

    def leaks(self) -> Iterator[str]:
        """Say which fold has a sample or a case on both sides."""
        for number, (train, test) in enumerate(self.folds):
            for what, of in (("sample", {s: s for s in (*train, *test)}), ("case", self.cases)):
                shared = {of[s] for s in train if s in of} & {of[s] for s in test if s in of}
                if shared:
                    yield f"{self.name}, fold {number}: {what} {min(shared)} is in training and test"


def read_tasks(root: Path, data: Path | None, genes: Path | None, chosen: tuple[str, ...]) -> list[Task]:
    """Read the tasks of a folder.

    Parameters
    ----------
    root : Path
        HEST-bench: a task, or a folder of tasks, each with `splits/train_0.csv`, `splits/test_0.csv`, … STP-
        Bench: a folder with `ids.csv`, with columns sample_id, fold_0, …
    data : Path, optional
        STP-Bench's folder of `st/` and `patches/`. Default: `root`.
    genes : Path, optional
        JSON with a list `genes`. Default: the benchmark's own.
    chosen : tuple of str
        Only these tasks; all if empty.

    Returns
    -------
    list of Task

    Raises
    ------
    InputError
        If a file is missing or has another form.
    """
    # Not Path.is_file and Path.is_dir, which raise for a name that is too long.
    if os.path.isfile(root / "ids.csv"):
        tasks = [_read_stp(root, data or root, genes)]
    else:
        inside = root.glob("*/splits") if os.path.isdir(root) else ()
        folders = [root] if os.path.isdir(root / "splits") else sorted(path.parent for path in inside)
        if not folders:
            raise InputError(
                f"{root} is no benchmark: give a folder with splits/ (HEST-bench), a folder of such, or one "
                "with ids.csv (STP-Bench)"
            )
        unknown = set(chosen) - {folder.name for folder in folders}
        if unknown:
            raise InputError(
                f"{root} has no task {min(unknown)}; there are {', '.join(f.name for f in folders)}"
            )
        tasks = [_read_hest(folder, genes) for folder in folders if not chosen or folder.name in chosen]
    return tasks


def _read_hest(folder: Path, genes: Path | None) -> Task:
    numbers = sorted(
        int(m[1]) for p in (folder / "splits").iterdir() if (m := re.fullmatch(r"test_(\d+)\.csv", p.name))
    )
    if not numbers:
        raise InputError(f"{folder / 'splits'} holds no test_0.csv; download the task's splits again")
    folds, expression, patches = [], {}, {}
    for number in numbers:
        sides = []
        for side in ("train", "test"):
            path = folder / "splits" / f"{side}_{number}.csv"
            table = _table(path, ("sample_id", "patches_path", "expr_path"))
            sides.append(tuple(table["sample_id"].tolist()))
            for row in table.itertuples():
                patches[str(row.sample_id)] = folder / str(row.patches_path)
                expression[str(row.sample_id)] = folder / str(row.expr_path)
        folds.append((sides[0], sides[1]))
    listed = _genes(genes or folder / HEST_GENES)
    return Task("hest", folder.name, listed, tuple(folds), expression, patches, {})


def _read_stp(root: Path, data: Path, genes: Path | None) -> Task:
    table = _table(root / "ids.csv", ("sample_id",))
    columns = sorted(
        (c for c in map(str, table.columns) if re.fullmatch(r"fold_\d+", c)), key=lambda c: int(c[5:])
    )
    if not columns:
        raise InputError(f"{root / 'ids.csv'} has no column fold_0; let STP-Bench split the samples first")
    samples = table["sample_id"].tolist()
    folds = []
    for column in columns:
        side = table[column].str.casefold()
        if not side.isin(("train", "test")).all():
            raise InputError(
                f"{root / 'ids.csv'}: column {column} has another word than train and test; correct it"
            )
        folds.append((tuple(table["sample_id"][side == "train"]), tuple(table["sample_id"][side == "test"])))
    folder = data / "st" if (data / "st").is_dir() else data / "adata"
    cases = dict(zip(samples, table["case_id"], strict=True)) if "case_id" in table else {}
    return Task(
        "stp",
        f"{root.parent.name}/{root.name}" if root.parent.name else root.name,
        _genes(genes or root / STP_GENES),
        tuple(folds),
        {s: folder / f"{s}.h5ad" for s in samples},
        {s: data / "patches" / f"{s}.h5" for s in samples},
        cases,
    )


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} cannot be read ({reason}); download the benchmark's splits again"
        ) from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}; download the benchmark's splits again")
    return table


def _genes(path: Path) -> tuple[str, ...]:
    try:
        genes = json.loads(path.read_text(encoding="utf-8"))["genes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no list of genes ({type(error).__name__}); give --genes") from error
    if not isinstance(genes, list) or not genes or not all(isinstance(gene, str) for gene in genes):
        raise InputError(f"{path}: genes is no list of names; give --genes")
    return tuple(genes)
