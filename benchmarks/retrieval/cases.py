"""The retrievals that are measured, as published: shapes and settings. Imports nothing slow."""

from __future__ import annotations

from dataclasses import dataclass

from mclst.kernels.definition.spec import RetrievalSpec

COLUMNS = 256
KINDS = ("clustered", "contrastive")
"""Kinds of synthetic embeddings; see `synthetic.Source`."""


@dataclass(frozen=True)
class Case:
    """Shape of a bank (m rows, d columns, genes) and the setting it is used with."""

    name: str
    m: int
    genes: int
    spec: RetrievalSpec
    d: int = COLUMNS


# M: the most spots left when one section is held out. k: the published scripts', and the paper's where it
# differs.
CASES = {
    case.name: case
    for case in (
        Case("her2st-l1", 11_372, 785, RetrievalSpec(k=200, distance="l1")),
        Case("her2st-l2", 11_372, 785, RetrievalSpec(k=200, distance="l2")),
        Case("cscc-k600", 8_209, 171, RetrievalSpec(k=600, distance="l2")),
        Case("cscc-k200", 8_209, 171, RetrievalSpec(k=200, distance="l2")),
        Case("visium-k2400", 24_787, 685, RetrievalSpec(k=2400, distance="l2")),
        Case("visium-k200", 24_787, 685, RetrievalSpec(k=200, distance="l2")),
    )
}
