"""A section's slide: named, listed in a table, found by its name, or Space Ranger's downscaled picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from section_folders import space_ranger

from mclst.sections.errors import SectionError
from mclst.sections.formats.images import missing_image, parse_images, read_image_table, with_images
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.formats.source import SectionSource


def test_without_a_slide_the_places_and_both_ways_out_are_named(tmp_path: Path) -> None:
    source = find_sections(space_ranger(tmp_path / "P1"))["P1"]
    assert source.image is None
    text = missing_image(source)
    for words in (str(tmp_path / "P1" / "outs"), str(tmp_path), "--image P1=SLIDE", "--hires"):
        assert words in text
    (tmp_path / "P1" / "outs" / "spatial" / "tissue_hires_image.png").unlink()
    assert "--hires" not in missing_image(source)


@pytest.mark.parametrize(
    "name",
    ["P1/outs/P1.tif", "P1/P1_tissue_image.btf", "P1_image.tif", "images/P1.ome.tif", "P1.svs"],
)
def test_slides_are_found_by_the_sections_name(tmp_path: Path, name: str) -> None:
    space_ranger(tmp_path / "P1")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert find_sections(tmp_path / "P1")["P1"].image == (tmp_path / name).absolute()


@pytest.mark.parametrize("outs", ["", "outs"])
def test_positions_without_counts_are_told(tmp_path: Path, outs: str) -> None:
    folder = space_ranger(tmp_path / "P1")
    (folder / "outs/filtered_feature_bc_matrix.h5").unlink()
    with pytest.raises(SectionError, match=r"positions of spots and no counts; copy filtered_feature_bc_mat"):
        find_sections(folder / outs)


@pytest.mark.parametrize(("name", "scale"), [("hires", 0.25), ("lowres", 0.02)])
def test_space_rangers_own_picture_is_scaled_where_it_is_named(
    tmp_path: Path, name: str, scale: float
) -> None:
    sources = find_sections(space_ranger(tmp_path / "P1", 0.25))
    picture = tmp_path / f"P1/outs/spatial/tissue_{name}_image.png"
    picture.touch()
    section = read_section(with_images(sources, {"P1": picture})["P1"])
    assert section.image == picture and section.image_scale == scale
    full = np.array([[25, 50], [225, 150], [425, 250]])
    np.testing.assert_allclose(section.xy_px, full * scale)  # type: ignore[arg-type]
    other = tmp_path / picture.name
    other.touch()
    assert with_images(sources, {"P1": other})["P1"].image_scale == 1.0


def test_hires_scales_the_positions(tmp_path: Path) -> None:
    sources = find_sections(space_ranger(tmp_path / "P1", 0.25))
    full = read_section(sources["P1"])
    (scaled,) = with_images(sources, {}, hires=True).values()
    section = read_section(scaled)
    assert full.xy_px is not None and section.xy_px is not None and section.image is not None
    assert section.image.name == "tissue_hires_image.png" and section.image_scale == 0.25
    np.testing.assert_allclose(full.xy_px, [[25, 50], [225, 150], [425, 250]])
    np.testing.assert_allclose(section.xy_px, full.xy_px / 4)


def test_a_slide_comes_before_the_downscaled_picture(tmp_path: Path) -> None:
    sources = find_sections(space_ranger(tmp_path / "P1"))
    slide = tmp_path / "any name.tif"
    slide.touch()
    source = with_images(sources, {"P1": slide}, hires=True)["P1"]
    assert source.image == slide and source.image_scale == 1.0


@pytest.mark.parametrize("scale", [None, 0, -0.2, 1.5, "0.2", True, float("nan")])
def test_a_scale_that_is_none_is_refused(tmp_path: Path, scale: object) -> None:
    sources = find_sections(space_ranger(tmp_path / "P1", scale))
    with pytest.raises(SectionError, match="tissue_hires_scalef is"):
        with_images(sources, {}, hires=True)


def test_tables_are_read_and_the_command_line_wins(tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    table.write_text("Section;Image\nA1;slides/a.svs\n\nB1;/elsewhere/b.svs\n")
    assert read_image_table(table) == {"A1": tmp_path / "slides/a.svs", "B1": Path("/elsewhere/b.svs")}
    assert parse_images(["A1=x=y.svs"], [tmp_path]) == {
        "A1": Path("x=y.svs"),
        "B1": Path("/elsewhere/b.svs"),
    }
    assert parse_images([str(table)]) == read_image_table(table)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\nA1,x\n", "no columns section and image"),
        ("section,image\nA1,\n", "line 2 lacks its section or its image"),
        ("section,image\nA1,x\nA1,y\n", "line 3: section A1 is there twice"),
        ("section,image\nA1\n", "line 2 lacks"),
        ("", "empty"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(SectionError, match=words):
        read_image_table(tmp_path / "t.csv")


def test_what_is_neither_a_name_nor_a_table_is_refused(tmp_path: Path) -> None:
    for value in ("A1", "=x.svs", "A1=", str(tmp_path / "absent.csv")):
        with pytest.raises(SectionError, match="neither NAME=SLIDE nor a table"):
            parse_images([value])
    with pytest.raises(SectionError, match="two slides of section A"):
        parse_images(["A=x", "A=y"])
    source = SectionSource("A", "h5ad", tmp_path / "A.h5ad")
    with pytest.raises(SectionError, match="section B, which does not exist; there are A"):
        with_images({"A": source}, {"B": tmp_path})
    with pytest.raises(SectionError, match=r"no\.tif: the image of section A does not exist"):
        with_images({"A": source}, {"A": tmp_path / "no.tif"})


@quick
@given(st.binary(max_size=200))
def test_any_bytes_give_a_table_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    path.write_bytes(content)
    try:
        read_image_table(path)
    except SectionError as error:
        assert str(path) in str(error)
