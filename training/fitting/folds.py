"""Which sections are left out together when a fit is judged."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import InputError
from mclst.sections.patients import known_patients

PATIENT = "patient"
QUARTERS = 4


@dataclass(frozen=True)
class Block:
    """Spots that are left out together.

    section: number of their section. rows: int64 [n], in the section. fold: what is left out with them.
    """

    section: int
    rows: NDArray[np.int64]
    fold: str


@dataclass(frozen=True)
class Folds:
    """Blocks of all sections, in their order, and how they were made, for people."""

    blocks: tuple[Block, ...]
    text: str

    @property
    def names(self) -> list[str]:
        """Folds in the order of their first block."""
        return list(dict.fromkeys(block.fold for block in self.blocks))

    @property
    def fewest_left(self) -> int:
        """Fewest spots that are left when one fold is left out."""
        sizes = [sum(len(self.blocks[number].rows) for number in self.numbers(fold)) for fold in self.names]
        return sum(sizes) - max(sizes)

    def numbers(self, fold: str) -> list[int]:
        """Numbers of the blocks of a fold."""
        return [number for number, block in enumerate(self.blocks) if block.fold == fold]


def read_groups(path: Path, sections: Sequence[str]) -> dict[str, str]:
    """Read a table of section and group, one a line, separated by a tab or comma.

    Raises InputError if the file cannot be read or a section has no group, or two.
    """
    groups: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give --groups patient or a table") from error
    lines = text.splitlines()
    for number, row in enumerate(csv.reader(lines, delimiter="\t" if "\t" in text else ","), 1):
        if not row:
            continue
        if len(row) != 2 or not row[0].strip() or not row[1].strip():
            raise InputError(f"{path}, line {number}: {lines[number - 1]!r} is not a section and its group")
        name, group = row[0].strip(), row[1].strip()
        if groups.setdefault(name, group) != group:
            raise InputError(f"{path}, line {number}: section {name} is in two groups; name it once")
    missing = [name for name in sections if name not in groups]
    if missing:
        raise InputError(f"{path} has no group for section {missing[0]}; add a line for it")
    return {name: groups[name] for name in sections}


def make_folds(
    sections: Sequence[str], xy_px: Sequence[NDArray[np.float64]], groups: str | Path | None = None
) -> Folds:
    """Choose what is left out together.

    Parameters
    ----------
    sections : sequence of str
        Names.
    xy_px : sequence of float64 [n, 2]
        Spots of each.
    groups : "patient" or Path, optional
        Sections of one patient, by their names or a table; each section alone by default.

    Returns
    -------
    Folds
        Quarters of the section where there is one section only; sections where there is one group only.

    Raises
    ------
    InputError
        If the table of groups cannot be used, or a lone section has too few spots to divide.
    """
    if groups is None:
        of = {name: name for name in sections}
    elif groups == PATIENT:
        known = known_patients(sections)
        of = {name: known.get(name, name) for name in sections}
    else:
        of = read_groups(Path(groups), sections)
    if len(sections) == 1:
        return _quarters(sections[0], xy_px[0])
    blocks = [
        Block(i, np.arange(len(xy)), of[name])
        for i, (name, xy) in enumerate(zip(sections, xy_px, strict=True))
    ]
    count = len({*of.values()})
    if count == 1:
        blocks = [Block(block.section, block.rows, sections[block.section]) for block in blocks]
        text = f"leaving one section out; all are of one group, {of[sections[0]]}"
        return Folds(tuple(blocks), text)
    what = "section" if groups is None else PATIENT if groups == PATIENT else "group"
    return Folds(tuple(blocks), f"leaving one {what} out ({count} {what}s)")


def patient_note(sections: Sequence[str], groups: str | Path | None) -> str:
    """What a user should know who leaves sections out of whose patients others stay; "" if there are none."""
    patients = known_patients(sections).values()
    if groups is not None or not 1 < len(set(patients)) < len(patients):
        return ""
    return (
        "a section is predicted by heads that saw others of its patient; --groups patient leaves all of a "
        "patient's out"
    )


def _quarters(section: str, xy: NDArray[np.float64]) -> Folds:
    """Quarters of a section: strips across its longer side, so that most neighbors stay together."""
    axis = int(np.argmax(np.ptp(xy, axis=0)))
    parts = np.array_split(np.argsort(xy[:, axis], kind="stable"), QUARTERS)
    if min(len(part) for part in parts) < 2:
        raise InputError(f"section {section} has {len(xy)} spots, too few to fit on; add sections")
    blocks = tuple(Block(0, np.sort(part), f"quarter {i + 1} of {section}") for i, part in enumerate(parts))
    return Folds(
        blocks,
        "leaving a quarter of the only section out, which says little about another section: add sections",
    )
