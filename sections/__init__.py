"""Measured tissue sections and spot tables, read and normalised."""

from __future__ import annotations

from mclst.sections.normalise import NORMALISATIONS, gene_wise, spot_wise
from mclst.sections.reference import (
    choose_sections,
    find_sections,
    match_genes,
    read_gene_list,
    read_section,
)
from mclst.sections.section import Section, SectionError, Spots
from mclst.sections.source import SectionSource
from mclst.sections.spots import read_spots

__all__ = [
    "NORMALISATIONS",
    "Section",
    "SectionError",
    "SectionSource",
    "Spots",
    "choose_sections",
    "find_sections",
    "gene_wise",
    "match_genes",
    "read_gene_list",
    "read_section",
    "read_spots",
    "spot_wise",
]
