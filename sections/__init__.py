"""Measured tissue sections and spot tables, read and normalized."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mclst.sections.columns import Columns
    from mclst.sections.errors import SectionError
    from mclst.sections.formats.reference import choose_sections, find_sections, read_section
    from mclst.sections.formats.source import SectionSource
    from mclst.sections.normalization_names import NORMALIZATION_NAMES
    from mclst.sections.normalize import (
        NORMALIZATIONS,
        SectionTotals,
        gene_wise,
        log_share,
        median_log1p,
        normalize,
        spot_wise,
    )
    from mclst.sections.section import Section, Spots
    from mclst.sections.tables.genes import match_genes, read_gene_list
    from mclst.sections.tables.spots import read_spots

__all__ = [
    "NORMALIZATIONS",
    "NORMALIZATION_NAMES",
    "Columns",
    "Section",
    "SectionError",
    "SectionSource",
    "SectionTotals",
    "Spots",
    "choose_sections",
    "find_sections",
    "gene_wise",
    "log_share",
    "match_genes",
    "median_log1p",
    "normalize",
    "read_gene_list",
    "read_section",
    "read_spots",
    "spot_wise",
]

# Resolved on first use: `import mclst.sections` must not pull in numpy or pandas.
_MODULES = {
    "Columns": "mclst.sections.columns",
    "NORMALIZATIONS": "mclst.sections.normalize",
    "NORMALIZATION_NAMES": "mclst.sections.normalization_names",
    "Section": "mclst.sections.section",
    "SectionError": "mclst.sections.errors",
    "SectionSource": "mclst.sections.formats.source",
    "SectionTotals": "mclst.sections.normalize",
    "Spots": "mclst.sections.section",
    "choose_sections": "mclst.sections.formats.reference",
    "find_sections": "mclst.sections.formats.reference",
    "gene_wise": "mclst.sections.normalize",
    "log_share": "mclst.sections.normalize",
    "match_genes": "mclst.sections.tables.genes",
    "median_log1p": "mclst.sections.normalize",
    "normalize": "mclst.sections.normalize",
    "read_gene_list": "mclst.sections.tables.genes",
    "read_section": "mclst.sections.formats.reference",
    "read_spots": "mclst.sections.tables.spots",
    "spot_wise": "mclst.sections.normalize",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
