"""What a bundle says about itself: read back by PyYAML and by the hub's own card reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from described_bundle import ABOUT, describe_bundle
from hypothesis import given
from hypothesis import strategies as st

from mclst.runtime.bundle.about import About, License
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.errors import BundleError
from mclst.runtime.sharing.card import RESERVED, card, yaml_text
from mclst.runtime.sharing.facts import describe
from mclst.runtime.sharing.licenses import check_may_publish, forbids_derivatives, hub_identifier


@pytest.fixture
def described(small_bundle: Path, tmp_path: Path) -> Path:
    return describe_bundle(small_bundle, tmp_path / "bundle")


def header(text: str) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_hub_reads_the_header(described: Path) -> None:
    from huggingface_hub import ModelCard

    data: Any = ModelCard(card(describe(open_bundle(described)), "hf://org/name")).data
    assert (data.license, data.library_name) == ("apache-2.0", "mclst")
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("org/tiny", "finetune")
    assert data.datasets == ["org/her2st"] and data.metrics == ["pearsonr"]
    assert data.eval_results is not None
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("pearsonr", 0.25)
    assert result.dataset_name == "section B1 held out"


def test_the_card_says_what_it_is_good_for(described: Path) -> None:
    text = card(describe(open_bundle(described)), "hf://org/name")
    for words in (
        "# Breast, small", "mclst-infer slide.svs --spots spots.csv --bundle hf://org/name",
        "Research on breast tissue.", "Diagnosis.", "mean Pearson r per gene 0.25", "doi:10.1/abc",
        "H&amp;E", "- scanner: not stated", "- sections: 2", "GENE11", "48 spots of 2 sections",
    ):  # fmt: skip
        assert words in text
    assert open_bundle(described).sha256 in text


def test_what_is_not_known_is_not_stated(small_bundle: Path) -> None:
    facts = describe(open_bundle(small_bundle))
    rows = dict(facts.rows)
    for name in ("trained on", "evaluated", "for", "not for", "license", "base model", "citation"):
        assert rows[name] == "not stated"
    names = header(card(facts, "mclst-bundle"))
    assert "license" not in names and "base_model" not in names and "metrics" not in names


def test_a_text_of_a_stranger_stays_text(small_bundle: Path, tmp_path: Path) -> None:
    hostile = "x\n---\nlicense: mit\n# <script>alert(1)</script> [a](javascript:b) | `c` \x1b[2J true: yes"
    about = {**ABOUT, "title": hostile, "license": {"name": hostile, "url": hostile}, "intended_use": hostile}
    text = card(describe(open_bundle(describe_bundle(small_bundle, tmp_path / "bundle", about))), "b")
    assert header(text)["license"] == "other" and header(text)["license_name"] == hostile
    body = text.split("\n---\n", 1)[1]
    assert "<script" not in body and "[a](" not in body and "\x1b" not in body
    assert sum(line.startswith("# ") for line in body.splitlines()) == 1


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{2,8}", fullmatch=True).filter(lambda key: key not in RESERVED),
        st.text(st.characters(exclude_categories=["Cs"]))
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.integers(),
        min_size=1,
    )
)
def test_any_value_is_read_back_from_the_yaml(content: dict[str, Any]) -> None:
    import yaml

    assert yaml.safe_load(yaml_text({**content, "list": [content]})) == {**content, "list": [content]}


@pytest.mark.parametrize(
    ("name", "hub", "forbidden"),
    [
        ("Apache-2.0", "apache-2.0", False),
        ("GPL-3.0-only", "gpl-3.0", False),
        ("CC-BY-NC-ND-4.0", "cc-by-nc-nd-4.0", True),
        ("CC-BY-ND-4.0", "cc-by-nd-4.0", True),
        ("CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0", False),
        ("No Derivatives, see the repository", None, True),
        ("LicenseRef-Indiana", None, False),
    ],
)
def test_licenses(name: str, hub: str | None, forbidden: bool) -> None:
    assert hub_identifier(License(name=name)) == hub
    assert forbids_derivatives(License(name=name)) is forbidden


def test_what_may_not_be_published() -> None:
    check_may_publish(About.model_validate_json('{"license": {"name": "MIT"}}'), "b")
    with pytest.raises(BundleError, match="no license"):
        check_may_publish(About(), "b")
    base = (
        '{"license": {"name": "MIT"}, "base_model": {"name": "UNI", "license": {"name": "CC-BY-NC-ND-4.0"}}}'
    )
    with pytest.raises(BundleError, match=r"base model, CC-BY-NC-ND-4\.0, forbids derivatives"):
        check_may_publish(About.model_validate_json(base), "b")
