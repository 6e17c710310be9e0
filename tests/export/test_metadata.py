"""What an export says of a bundle: from YAML, from a fitted checkpoint, in the graphs."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from described_bundle import ABOUT
from hypothesis import given
from hypothesis import strategies as st

from mclst.export.bundling import _describe
from mclst.export.metadata import complete_about, read_metadata
from mclst.runtime.bundle.about import About
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.bundle.onnx_scan import check_graph
from mclst.runtime.errors import InputError

YAML = """\
title: Breast
license: CC-BY-4.0
citation: doi:10.1/abc
base_model: {name: Tiny, hub: org/tiny, license: MIT}
training_data: {organ: breast, sections: 31, patients: 8, mpp: 0.69}
evaluation:
  protocol: patient-wise, 8 folds
  metrics: [{name: mean Pearson r per gene, value: 0.25, id: pearsonr}]
gene_ids: {GENE0: ENSG00000000001, GENE3: ENSG00000000004.2}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "about.yaml").write_text(text)
    return folder / "about.yaml"


def test_fields_are_read(tmp_path: Path) -> None:
    metadata = read_metadata(write(tmp_path, YAML), "Apache-2.0")
    about = metadata.about
    assert about.license is not None and about.license.name == "Apache-2.0"
    assert about.base_model is not None and about.base_model.license is not None
    assert (about.base_model.license.name, about.base_model.relation) == ("MIT", "finetune")
    assert about.training_data is not None and about.training_data.patients == 8
    assert about.evaluation is not None and about.evaluation.metrics[0].value == 0.25
    assert about.citation == ("doi:10.1/abc",) and metadata.gene_ids["GENE0"] == "ENSG00000000001"
    assert read_metadata(None, None).about == About()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("licence: MIT", ("licence", "about.yaml")),
        ("training_data: {sections: many}", ("training_data.sections",)),
        ("training_data: {sections: 0}", ("training_data.sections",)),
        ("base_model: {name: x, sha256: abc}", ("base_model.sha256",)),
        ("base_model: {name: x, hub: not a hub}", ("base_model.hub",)),
        ("evaluation: {protocol: p, metrics: [{name: r, value: .nan}]}", ("evaluation.metrics.0.value",)),
        ("- a\n- b", ("no mapping",)),
        ("a: [", ("cannot be read as YAML",)),
        ("title: !!python/object/apply:os.system ['true']", ("cannot be read as YAML",)),
        ("gene_ids: [ENSG1]", ("gene_ids",)),
        ("gene_ids: {A: 'E\\nF'}", ("gene_ids",)),
        ("", ("no mapping",)),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        read_metadata(write(tmp_path, text), None)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml"):
        read_metadata(tmp_path / "none.yaml", None)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_metadata(path, None)
    except InputError as error:
        assert "\n" not in str(error)


FIT: dict[str, Any] = {
    "recipe": {
        "name": "uni2-h", "title": "UNI2-h", "license": "CC-BY-NC-ND-4.0", "redistributable": False,
        "source": "huggingface.co/MahmoodLab/UNI2-h",
    },
    "weights": {"name": "model.safetensors", "sha256": "a" * 64},
    "sections": {"A1": 300, "B1": 280},
    "head": "blend", "alpha": 316.2, "k": 50, "weighting": "uniform",
    "views": [0.5, 1.0], "context_um": 300.0,
    "folds": "leaving one section out (2 sections)",
    "scores": {
        "A1": {"pcc_acg": 0.2, "pcc_heg": 0.5, "mse": 0.8, "mae": 0.7},
        "B1": {"pcc_acg": 0.3, "pcc_heg": None, "mse": 1.0, "mae": 0.7},
    },
}  # fmt: skip


def test_a_fitted_checkpoint_brings_its_recipe() -> None:
    about = complete_about(About(), {"fit": FIT}, [])
    base = about.base_model
    assert base is not None and base.license is not None
    assert (about.recipe, base.name, base.hub) == ("uni2-h", "UNI2-h", "MahmoodLab/UNI2-h")
    assert (base.license.name, base.redistributable, base.sha256) == ("CC-BY-NC-ND-4.0", False, "a" * 64)
    assert about.training_data is not None and about.training_data.sections == 2


def test_a_fitted_checkpoint_brings_its_head_and_its_held_out_scores() -> None:
    about = complete_about(About(), {"fit": FIT}, [])
    assert about.head is not None and about.head.name == "blend"
    assert about.head.settings == "α 316, k 50, views 0.5, 1, context 300 µm"
    assert about.evaluation is not None
    # The mean over the sections that have the score.
    assert [(metric.id, metric.value) for metric in about.evaluation.metrics] == [
        ("pearsonr", 0.25),
        ("pearsonr", 0.5),
        ("mse", 0.9),
    ]
    assert "A1, B1, leaving one section out (2 sections)" in about.evaluation.protocol
    own = About.model_validate_json('{"evaluation": {"protocol": "another patient"}}')
    kept = complete_about(own, {"fit": FIT}, []).evaluation
    assert kept is not None and kept.protocol == "another patient" and not kept.metrics
    # A pipeline of scikit-learn has no held-out predictions.
    bare = {
        **FIT,
        "head": "scikit-learn",
        "scores": {},
        "alpha": None,
        "k": None,
        "views": [1.0],
        "context_um": None,
    }
    about = complete_about(About(), {"fit": bare}, [])
    assert about.evaluation is None and about.head is not None and about.head.settings is None


def test_what_the_maker_says_goes_first() -> None:
    given_about = About.model_validate_json(
        '{"base_model": {"name": "UNI2", "license": {"name": "own"}}, "training_data": {"sections": 3}}'
    )
    about = complete_about(given_about, {"fit": FIT}, ["A1"])
    assert about.base_model is not None and about.base_model.license is not None
    assert (about.base_model.name, about.base_model.license.name) == ("UNI2", "own")
    assert about.base_model.hub == "MahmoodLab/UNI2-h"
    assert about.training_data is not None and about.training_data.sections == 3


def test_graphs_carry_the_essentials(small_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    bundle = open_bundle(small_bundle)
    fields = bundle.manifest.model_dump(mode="json")
    metadata = read_metadata(write(tmp_path, YAML), None)
    about = _describe(folder, SimpleNamespace(metadata={}), fields, metadata)  # type: ignore[arg-type]
    assert about["training_data"]["organ"] == "breast"

    before, after = (onnxruntime.InferenceSession(path / "encoder.onnx") for path in (small_bundle, folder))
    props = after.get_modelmeta().custom_metadata_map
    assert (props["mclst.license"], props["mclst.base_model"], props["mclst.mpp"]) == (
        "CC-BY-4.0",
        "org/tiny",
        "not stated",
    )
    digest = hashlib.sha256("\n".join(bundle.genes).encode()).hexdigest()
    assert (props["mclst.genes"], props["mclst.genes_sha256"]) == ("12", digest)
    assert before.get_modelmeta().custom_metadata_map == {}
    # onnx's own reader and checker see the same graph.
    stamped = onnx.load(folder / "encoder.onnx")
    onnx.checker.check_model(stamped, full_check=True)
    assert stamped.graph == onnx.load(small_bundle / "encoder.onnx").graph
    check_graph(folder / "encoder.onnx", [])

    lines = (folder / "genes.tsv").read_text().splitlines()
    assert lines[:3] == ["gene\tensembl_id", "GENE0\tENSG00000000001", "GENE1\t"] and len(lines) == 13
    unknown = read_metadata(write(tmp_path, "gene_ids: {TP53: ENSG00000141510}"), None)
    with pytest.raises(InputError, match="TP53"):
        _describe(folder, SimpleNamespace(metadata={}), fields, unknown)  # type: ignore[arg-type]


def test_the_example_of_the_tests_is_valid() -> None:
    import json

    assert About.model_validate_json(json.dumps(ABOUT)).title == "Breast, small"
