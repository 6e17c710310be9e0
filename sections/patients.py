"""The patient in a section's name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mclst.sections.errors import SectionError

PATIENT = r"^(.*?)[\s_.-]*\d+$"
"""What stands before the number at the end: C of C4, TNBC of TNBC_3."""


def patient_of(name: str, patient: str = PATIENT) -> str:
    """Patient in a section's name: the first group of the regular expression `patient`, or its match.

    Raises SectionError where the name does not match.
    """
    match = re.search(patient, name)
    if match is None:
        raise SectionError(
            f"section {name} does not match --patient {patient!r}; give an expression that does"
        )
    return match[1] if match.re.groups else match[0]


def known_patients(names: Sequence[str], patient: str | None = None) -> dict[str, str]:
    """Patients of those sections whose names tell them; empty if the names do not tell any apart.

    Without an expression, `PATIENT` is tried: names such as 151673 hold no patient. Raises SectionError if an
    expression is given and a name does not match it.
    """
    if patient is not None:
        return {name: patient_of(name, patient) for name in names}
    matches = {name: re.search(PATIENT, name) for name in names}
    return {name: match[1] for name, match in matches.items() if match is not None and match[1]}
