"""The bundle: opened only as it was exported; what is wrong with it is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profile import quick
from small_model import fast_regression

from mclst.runtime.bundle.bundle import BundleDraft, open_bundle
from mclst.runtime.bundle.manifest import Settings, read_manifest
from mclst.runtime.errors import BundleError, OutputError
from mclst.runtime.hashing import file_sha256


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


def refuse(path: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        _ = open_bundle(path).bank
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.slow
def test_manifest_says_what_shaped_the_bundle(exported_bundle: Path) -> None:
    bundle = open_bundle(exported_bundle)
    m = bundle.manifest
    assert (m.format, m.system, m.encoder.name, m.encoder.embedding_dim) == (
        "mclst-bundle/2",
        "mclstexp",
        "resnet18",
        16,
    )
    assert (m.tile.size_px, m.tile.mpp, m.tile.pad) == (32, None, (0, 0, 0))
    assert m.kind == "retrieval" and m.slide_network is None and m.spot_encoder and m.context
    assert (m.spot_encoder.heads, m.spot_encoder.depth) == (8, 2)
    assert (m.context.spots, m.context.sentences, m.context.positions) == (32, "file", "array")
    assert (m.normalization.input, m.normalization.expression) == ("spot-wise", "gene-wise")
    spec = bundle.retrieval
    assert (spec.k, spec.rank, spec.distance, spec.weighting) == (10, "cosine", "l1", "inverse-square")
    assert [(s.name, s.spots) for s in m.bank] == [("A1", 24), ("A2", 24)]
    assert set(m.files) == {"encoder.onnx", "bank.h5", "calibration.h5", "parity.json"}
    assert {"mclst", "torch", "onnx"} <= set(m.versions)
    assert m.files["bank.h5"].sha256 == file_sha256(exported_bundle / "bank.h5")
    assert bundle.bank.embedding.shape == (48, 16) and list(bundle.bank.genes) == [
        f"GENE{i}" for i in range(12)
    ]
    parity = json.loads((exported_bundle / "parity.json").read_text())
    assert parity["passed"] and parity["tiles"] == {"source": "section A1, A2", "count": 8}
    assert parity["embedding"]["cosine_min"] > 0.99999 and parity["expression"]["genes_compared"] == 12


def test_defaults_are_the_published_ones() -> None:
    defaults = Settings()
    assert defaults.retrieval.model_dump() == {
        "k": 200, "rank": "cosine", "distance": "l1", "weighting": "inverse-square", "temperature": 1.0,
    }  # fmt: skip
    assert defaults.context.model_dump() == {"spots": 32, "sentences": "file", "positions": "array"}
    assert (defaults.heads, defaults.tile.size_px, defaults.preprocessing.channels) == (8, 224, "rgb")


@pytest.mark.parametrize("name", ["encoder.onnx", "bank.h5", "parity.json"])
@settings(quick, max_examples=5)
@given(share=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_one_changed_bit_is_enough(bundle: Path, name: str, share: float, bit: int) -> None:
    path = bundle / name
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[int(share * len(whole))] ^= 1 << bit
    path.write_bytes(bytes(changed))
    refuse(bundle, name, "not the file that was exported")
    path.write_bytes(whole)
    open_bundle(bundle)


def test_missing_parts_are_named(bundle: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "nothing", "not a bundle", "mclst-export")
    (bundle / "bank.h5").unlink()
    refuse(bundle, "bank.h5", "cannot be read")
    (bundle / "manifest.json").unlink()
    refuse(bundle, "manifest.json", "not a whole bundle")


def test_links_out_of_the_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "bank.h5", tmp_path / "elsewhere.h5")
    (bundle / "bank.h5").symlink_to(tmp_path / "elsewhere.h5")
    refuse(bundle, "bank.h5", "not a plain file")
    edit(bundle, lambda m: m.update(files={"../elsewhere.h5": m["files"]["bank.h5"], **m["files"]}))
    refuse(bundle, "outside the bundle")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "folder/" + "é" * 128])
def test_a_name_that_no_file_can_have_is_refused(bundle: Path, name: str) -> None:
    edit(bundle, lambda m: m.update(files={name: m["files"]["bank.h5"], **m["files"]}))
    refuse(bundle, "manifest.json", "as no file is named")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format="mclst-bundle/3"), ("mclst-bundle/3", "upgrade")),
        (lambda m: m.update(format="mclst-bundle/0"), ("mclst-bundle/0", "export the bundle again")),
        (lambda m: m.pop("format"), ("not a bundle's manifest",)),
        (lambda m: m["retrieval"].update(k=0), ("retrieval.k",)),
        (lambda m: m.update(kind="regression"), ("retrieval does not belong in a regression bundle",)),
        (lambda m: m.update(retrieval=None), ("retrieval is missing in a retrieval bundle",)),
        (lambda m: m.update(kind="oracle"), ("kind",)),
        (lambda m: m["retrieval"].update(k="10"), ("retrieval.k",)),
        (lambda m: m["retrieval"].update(rank="chebyshev"), ("retrieval.rank",)),
        (lambda m: m["tile"].update(mpp=-1.0), ("tile.mpp",)),
        (lambda m: m.pop("genes"), ("genes",)),
        (lambda m: m.update(surprise=1), ("surprise",)),
        (lambda m: m.update(genes=11), ("bank.h5", "the manifest says")),
        (lambda m: m["bank"].pop(), ("bank.h5", "the manifest says")),
        (lambda m: m["files"].pop("encoder.onnx"), ("does not list encoder.onnx",)),
        (lambda m: m["encoder"].update(prediction_dim=11), ("gives 11 values for 12 genes",)),
        (lambda m: m.update(neighborhood={"radius_um": 0.0}), ("neighborhood.radius_um",)),
    ],
)  # fmt: skip
def test_a_manifest_that_is_wrong_is_refused(
    bundle: Path, change: Callable[[Any], None], words: tuple[str, ...]
) -> None:
    edit(bundle, change)
    refuse(bundle, "manifest.json", *words) if words[0] != "bank.h5" else refuse(bundle, *words)


def test_version_1_opens_as_version_2_without_the_new_fields(bundle: Path) -> None:
    older = open_bundle(bundle).manifest
    assert (older.format, older.encoder.prediction_dim, older.neighborhood) == ("mclst-bundle/1", 0, None)
    edit(bundle, lambda m: m.update(format="mclst-bundle/2"))
    newer = open_bundle(bundle).manifest
    assert newer == older.model_copy(update={"format": "mclst-bundle/2"})
    assert newer.graph_dim == newer.encoder.embedding_dim
    edit(bundle, lambda m: m.update(neighborhood={"radius_um": 150.0}))
    edit(bundle, lambda m: m["encoder"].update(prediction_dim=m["genes"]))
    wider = open_bundle(bundle).manifest
    assert wider.graph_dim == 2 * (wider.encoder.embedding_dim + wider.genes)


def test_the_log_share_of_an_earlier_version_is_refused(bundle: Path, tmp_path: Path) -> None:
    """Of values that mclst made; a published network gives what its authors trained it to."""
    for part in ("input", "expression"):
        names = {"input": "none", "expression": "none", part: "log-share"}
        edit(bundle, methodcaller("update", {"normalisation": names}))
        refuse(bundle, "manifest.json", "log-share of an earlier version", "make the bundle again")
        edit(bundle, lambda m: m["normalisation"].update(log_share_of="measured genes"))
        assert len(open_bundle(bundle).bank.genes) == 12
    network = fast_regression(tmp_path / "network", 5)
    edit(network, lambda m: m["normalization"].pop("log_share_of"))
    assert open_bundle(network).manifest.normalization.of_earlier_version
    edit(network, lambda m: m.update(system="fitted"))
    with pytest.raises(BundleError, match="earlier version"):
        open_bundle(network)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"format": 1}', "[" * 100_000, '{"format": "mclst-bundle/1", "format": "x"}',
     '{"a": NaN}', "9" * 6000, "\x00", "é"],
)  # fmt: skip
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError) as caught:
        read_manifest(tmp_path / "manifest.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_draft_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with BundleDraft(tmp_path / "new", overwrite=False) as draft:
            (draft.part / "encoder.onnx").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_only_a_bundle_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="add --overwrite"):
        BundleDraft(bundle, overwrite=False)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"has no manifest\.json"):
        BundleDraft(other, overwrite=True)
    assert (other / "chapter.txt").read_text() == "years of work"
    before = set(tmp_path.iterdir())
    fields = json.loads((bundle / "manifest.json").read_text())
    with BundleDraft(bundle, overwrite=True) as draft:
        for name in ("encoder.onnx", "bank.h5"):
            shutil.copy(bundle / name, draft.part)
        draft.seal(**{name: value for name, value in fields.items() if name not in ("format", "files")})
    assert set(tmp_path.iterdir()) == before
    assert set(open_bundle(bundle).manifest.files) == {"encoder.onnx", "bank.h5"}


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        BundleDraft(tmp_path / "new", overwrite=False)


@pytest.mark.slow
def test_embeddings_in_the_bank_are_those_of_its_sections(exported_bundle: Path) -> None:
    bank = open_bundle(exported_bundle).bank
    assert sorted(set(bank.section)) == ["A1", "A2"]
    assert np.isfinite(bank.embedding).all() and bank.expression.min() >= 0
