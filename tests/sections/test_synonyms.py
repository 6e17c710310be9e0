"""Genes by symbol, Ensembl id with or without version, or an older name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from section_folders import space_ranger

from mclst.sections.errors import SectionError
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.section import Section
from mclst.sections.tables.genes import counts_notes, gene_columns, match_genes
from mclst.sections.tables.synonyms import read_aliases, stable_id, synonyms_of

COUNTS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def write_h5ad(path: Path, var: pd.DataFrame) -> Section:
    obs = pd.DataFrame(index=["s1", "s2"])
    ad.AnnData(COUNTS[:, : len(var)], obs=obs, var=var, obsm={"spatial": np.ones((2, 2))}).write_h5ad(path)
    return read_section(find_sections(path)[path.stem])


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("ENSG00000141510", "ENSG00000141510"),
        ("ENSG00000141510.18", "ENSG00000141510"),
        ("ENSMUSG00000059552.7", "ENSMUSG00000059552"),
        ("ENSG00000182378.15_PAR_Y", None),
        ("ENSG0000014151", None),
        ("TP53", None),
    ],
)
def test_an_ensembl_id_has_no_version(name: str, id: str | None) -> None:
    assert stable_id(name) == id


def test_a_space_ranger_section_answers_to_its_ids(tmp_path: Path) -> None:
    section = read_section(find_sections(space_ranger(tmp_path / "P1"))["P1"])
    by_symbol = match_genes(section, ["MYC", "TP53"])
    np.testing.assert_array_equal(match_genes(section, ["ENSG00000136997.21", "ENSG00000141510"]), by_symbol)
    assert counts_notes(section, ["MYC"]) == []
    (note,) = counts_notes(section, ["ENSG00000136997", "TP53"])
    assert "1 of the model's genes have another name in section P1: ENSG00000136997 is MYC" in note
    (note,) = counts_notes(replace(section, counts=section.counts * np.float32(0.5)), ["MYC"])
    assert "section P1 (filtered_feature_bc_matrix.h5, counts) holds values that are not whole counts" in note


def test_ids_in_the_index_and_symbols_beside(tmp_path: Path) -> None:
    index = ["ENSG00000141510.18", "ENSG00000136997.21", "ENSG00000000001.1"]
    var = pd.DataFrame({"feature_name": ["TP53", "MYC", None]}, index=index)
    section = write_h5ad(tmp_path / "S.h5ad", var)
    np.testing.assert_array_equal(match_genes(section, ["MYC", "ENSG00000141510"]), COUNTS[:, [1, 0]])
    assert gene_columns(section, ["ABC", "TP53"]).tolist() == [-1, 0]


def test_a_name_of_two_genes_leads_to_neither() -> None:
    assert synonyms_of(["A", "B", "C"], [["X", "X", "Y"]]) == {"Y": 2}
    assert synonyms_of(["A", "B"], [["B", ""]]) == {}, "a name of a column is no synonym of another"


def test_hgncs_table_gives_older_names(tmp_path: Path) -> None:
    path = tmp_path / "hgnc_complete_set.txt"
    path.write_text(
        "hgnc_id\tsymbol\tname\talias_symbol\tprev_symbol\n"
        'HGNC:1\tMARCHF1\t"membrane"\t"RNF171|MARCH-I"\tMARCH1\n'
        "HGNC:2\tSEPTIN1\t\t\tSEPT1\n"
        "HGNC:3\tAAA\t\tSHARED\t\nHGNC:4\tBBB\t\tSHARED|AAA\t\n"
    )
    groups = read_aliases(path)
    assert groups["MARCHF1"] == ("MARCHF1", "RNF171", "MARCH-I", "MARCH1")
    assert groups["AAA"] == ("AAA",) and groups["BBB"] == ("BBB",), "SHARED and AAA tell nothing apart"
    genes = ["MARCH1", "SEPTIN1", "BBB"]
    assert synonyms_of(genes, groups=groups) == {"MARCHF1": 0, "RNF171": 0, "MARCH-I": 0, "SEPT1": 1}
    assert synonyms_of(["MARCHF1", "MARCH1"], groups=groups) == {}, "two of one group cannot be told apart"


@pytest.mark.parametrize("content", ["a\tb\n1\t2\n", "", "symbol\nA\n", "\x00"])
def test_another_table_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(SectionError, match=r"t\.txt"):
        read_aliases(tmp_path / "t.txt")


def test_what_is_missing_is_counted_and_listed(tmp_path: Path) -> None:
    section = write_h5ad(tmp_path / "S.h5ad", pd.DataFrame(index=["A", "B", "C"]))
    wanted = [f"G{i}" for i in range(30)]
    with pytest.raises(SectionError) as refusal:
        match_genes(section, [*wanted, "A"])
    text = str(refusal.value)
    assert "lacks 30 of the model's 31 genes" in text and "G19 and 10 more" in text
    assert "--gene-aliases" in text


def test_two_names_of_one_gene_are_refused(tmp_path: Path) -> None:
    var = pd.DataFrame({"gene_ids": ["ENSG00000141510", "x", "y"]}, index=["TP53", "B", "C"])
    section = write_h5ad(tmp_path / "S.h5ad", var)
    with pytest.raises(SectionError, match="TP53 and ENSG00000141510 of the model both are gene TP53"):
        match_genes(section, ["TP53", "ENSG00000141510"])
