"""Embeddings kept between runs: the map is the one of a run that encodes, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import tifffile
from described_bundle import ABOUT, describe_bundle
from numpy.typing import NDArray
from synthetic_slides import tissue

from mclst.runtime import Run, RunOptions, open_bundle, open_slide, predict
from mclst.runtime.report.files import Files
from mclst.runtime.tiling.tiles import Tiles

SPOTS = 600


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCLST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MCLST_FEATURE_CACHE_GB", "1")
    return tmp_path


def run(
    inputs: Path,
    out: Path,
    bundle: Path | None = None,
    *,
    advance: Callable[[int], None] = lambda n: None,
    **options: Any,
) -> Run:
    chosen: dict[str, Any] = {"provider": "cpu", "precision": "fp32", "any_stain": True, **options}
    plain = RunOptions(picture=False, report=False, files=Files(html=False), overwrite=True, **chosen)
    with open_slide(inputs / "slide.tif") as slide:
        opened = open_bundle(bundle or inputs / "mclst-bundle")
        return predict(opened, slide, inputs / "spots.csv", out, plain, advance=advance)


def content(done: Run) -> NDArray[np.float32]:
    """Everything of a map that the embeddings decide."""
    adata = anndata.read_h5ad(done.map_path)
    columns = [adata.obs[name] for name in ("nearest_distance", "effective_k") if name in adata.obs]
    return np.column_stack([adata.X, *columns])


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "features").glob("*"))


def test_another_k_bank_or_license_needs_no_encoder(folder: Path, run_inputs: Path) -> None:
    first = run(run_inputs, folder / "a.h5ad")
    assert (first.reused, len(kept(folder))) == (0, 1)
    again = run(run_inputs, folder / "b.h5ad")
    assert (again.reused, again.tiles_per_second("encode"), again.seconds["encode"]) == (SPOTS, 0.0, 0.0)
    np.testing.assert_array_equal(content(again), content(first))
    retrieval = {"k": 3, "weighting": "uniform"}
    other = run(run_inputs, folder / "c.h5ad", retrieval=retrieval)
    plain = run(run_inputs, folder / "d.h5ad", retrieval=retrieval, cache=False)
    assert (other.reused, plain.reused) == (SPOTS, 0) and any("--no-cache" in note for note in other.notes)
    np.testing.assert_array_equal(content(other), content(plain))
    assert np.abs(content(other) - content(first)).max() > 0.01
    licensed = describe_bundle(run_inputs / "mclst-bundle", folder / "licensed", ABOUT)
    assert run(run_inputs, folder / "e.h5ad", licensed).reused == SPOTS
    assert len(kept(folder)) == 1


def test_what_decides_an_embedding_is_encoded_again(folder: Path, run_inputs: Path) -> None:
    own = Path(shutil.copytree(run_inputs, folder / "own"))
    run(own, folder / "map.h5ad")
    assert run(own, folder / "map.h5ad", batch_size=8).reused == 0
    lines = (own / "spots.csv").read_text().splitlines()
    (own / "spots.csv").write_text("\n".join([*lines[:-1], "last,99,98"]) + "\n")
    moved = run(own, folder / "map.h5ad")
    assert moved.reused == 0
    # The same name, size of pixels and spots, and other tissue.
    tifffile.imwrite(own / "slide.tif", tissue(seed=5), photometric="rgb", tile=(64, 64), compression="zlib",
                     resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None)  # fmt: skip
    changed = run(own, folder / "map.h5ad")
    assert changed.reused == 0 and len(kept(folder)) == 4
    plain = run(own, folder / "plain.h5ad", cache=False)
    np.testing.assert_array_equal(content(changed), content(plain))


def test_a_damaged_file_is_encoded_again(folder: Path, run_inputs: Path) -> None:
    expected = content(run(run_inputs, folder / "map.h5ad"))
    (path,) = kept(folder)
    damaged = bytearray(path.read_bytes())
    damaged[9000] ^= 64
    path.write_bytes(damaged)
    done = run(run_inputs, folder / "map.h5ad")
    assert done.reused == 0
    np.testing.assert_array_equal(content(done), expected)
    assert run(run_inputs, folder / "map.h5ad").reused == SPOTS


def test_a_neighborhood_and_a_prediction_come_from_kept_values(folder: Path, run_inputs: Path) -> None:
    small_model = pytest.importorskip("small_model")
    bundle = small_model.fast_regression(folder / "bundle", 5, embedding=3, radius_um=20.0)
    first = run(run_inputs, folder / "a.h5ad", bundle)
    again = run(run_inputs, folder / "b.h5ad", bundle)
    assert (first.reused, again.reused) == (0, SPOTS)
    np.testing.assert_array_equal(content(again), content(first))


def test_tiles_that_cannot_be_read_are_tried_again(
    folder: Path, run_inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Tiles._read_some

    def fail_once(self: Tiles, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> list[tuple[int, str]]:
        failed = read(self, rows, out)
        return [*failed, (7, "the network file system is away")] if 7 in rows else failed

    with monkeypatch.context() as patch:
        patch.setattr(Tiles, "_read_some", fail_once)
        assert len(run(run_inputs, folder / "map.h5ad").failed) == 1
    assert kept(folder) == []
    whole = run(run_inputs, folder / "map.h5ad")
    assert whole.failed == () and whole.reused == 0


def test_a_resumed_run_uses_what_is_kept(folder: Path, run_inputs: Path) -> None:
    class Stop(Exception):
        pass

    expected = content(run(run_inputs, folder / "whole.h5ad"))

    def stop(count: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(run_inputs, folder / "map.h5ad", advance=stop)
    done = run(run_inputs, folder / "map.h5ad")
    assert (done.resumed, done.reused) == (512, SPOTS - 512)
    np.testing.assert_array_equal(content(done), expected)


def test_a_slide_that_changes_meanwhile_is_not_kept(
    folder: Path, run_inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mclst.runtime.errors import SlideError
    from mclst.runtime.run.hashes import SlideHash

    def changed(self: SlideHash) -> None:
        raise SlideError("the slide changed")

    monkeypatch.setattr(SlideHash, "check_unchanged", changed)
    with pytest.raises(SlideError, match="changed"):
        run(run_inputs, folder / "map.h5ad")
    assert kept(folder) == []


def test_gene_ids_of_the_bundle_are_in_var(tmp_path: Path, run_inputs: Path) -> None:
    bundle = Path(shutil.copytree(run_inputs / "mclst-bundle", tmp_path / "bundle"))
    genes = open_bundle(bundle).genes
    table = "gene\tensembl_id\n" + "".join(
        f"{gene}\t{'' if i == 1 else f'ENSG{i:011d}'}\n" for i, gene in enumerate(genes)
    )
    (bundle / "genes.tsv").write_text(table)
    manifest = json.loads((bundle / "manifest.json").read_text())
    from hashlib import sha256

    manifest["files"]["genes.tsv"] = {"bytes": len(table), "sha256": sha256(table.encode()).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    var = anndata.read_h5ad(run(run_inputs, tmp_path / "map.h5ad", bundle).map_path).var
    assert list(var["gene_ids"][:3]) == ["ENSG00000000000", "", "ENSG00000000002"]
    assert list(var.index) == genes
