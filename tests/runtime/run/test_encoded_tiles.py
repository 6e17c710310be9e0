"""What a slow encoder has computed outlives a killed run; the clock is played, and nothing sleeps."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from forked_runs import HASHED_AT_ONCE, ForkServer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from numpy.typing import NDArray
from small_model import fast_graph, fast_regression
from synthetic_slides import tissue

from mclst.runtime.bundle.bundle import SLIDE_GRAPH, BundleDraft
from mclst.runtime.cli.infer import main
from mclst.runtime.encoder.cpu_stages import CpuSession, CpuStages
from mclst.runtime.expression_map.journal import MEASURED, RECORD, Journal, read_journal, read_tiles
from mclst.runtime.run import context, encoded_tiles
from mclst.runtime.run.encoded_tiles import KEEP_SECONDS

SPOTS, BATCH, GENES = 600, 16, 5
SECONDS_PER_BATCH = 4
MOST_LOST = 15 // SECONDS_PER_BATCH * BATCH
"""Tiles that 15 seconds of the played clock encode."""
KILLED_IN_BATCH = 22
WORDS = (
    "slide.tif",
    "--spots",
    "spots.csv",
    "--any-stain",
    "--no-picture",
    "--no-html",
    "--provider",
    "cpu",
    "-q",
)

SLOW_AND_KILLED = f"""
{HASHED_AT_ONCE}
from mclst.runtime.encoder.cpu_stages import CpuStages
from mclst.runtime.run import encoded_tiles

class Played:
    now = 0.0
    def monotonic(self):
        return self.now

encoded_tiles.time = played = Played()
encoded_tiles.KEEP_SECONDS = {KEEP_SECONDS}
encode, batches = CpuStages.encode, []

def encode_slowly(self, slot, n, after):
    batches.append(n)
    if len(batches) == {KILLED_IN_BATCH}:
        os.kill(os.getpid(), signal.SIGKILL)
    encode(self, slot, n, after)
    played.now += {SECONDS_PER_BATCH}

CpuStages.encode = encode_slowly
"""


def regression(folder: Path, small_bundle: Path) -> None:
    fast_regression(folder, GENES)


def with_neighborhood(folder: Path, small_bundle: Path) -> None:
    fast_regression(folder, GENES, embedding=3, radius_um=20.0)


def retrieval(folder: Path, small_bundle: Path) -> None:
    shutil.copytree(small_bundle, folder)


def over_the_slide(folder: Path, small_bundle: Path) -> None:
    """A network in which each spot's expression depends on all others."""
    from onnx import TensorProto, helper, numpy_helper, save

    fast_regression(folder.with_name("tiles"), GENES)
    manifest = json.loads((folder.with_name("tiles") / "manifest.json").read_text())
    nodes = [
        helper.make_node("ReduceMean", ["embedding"], ["mean"], axes=[0]),
        helper.make_node("Sub", ["embedding", "mean"], ["centered"]),
        helper.make_node("Cast", ["position"], ["place"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["place", "w"], ["of_place"]),
        helper.make_node("Add", ["centered", "of_place"], ["expression"]),
    ]
    graph = helper.make_graph(
        nodes,
        "slide",
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", GENES]),
            helper.make_tensor_value_info("position", TensorProto.INT64, ["N", 2]),
        ],
        [helper.make_tensor_value_info("expression", TensorProto.FLOAT, ["N", GENES])],
        [numpy_helper.from_array(np.ones((2, GENES), np.float32), "w")],
    )
    with BundleDraft(folder, overwrite=False) as draft:
        shutil.copy(folder.with_name("tiles") / "genes.txt", draft.part)
        fast_graph(draft.part / "encoder.onnx", "embedding", GENES)
        save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
            draft.part / SLIDE_GRAPH,
        )
        manifest.update(
            kind="slide",
            system="histogene",
            encoder={"name": "one-product", "embedding_dim": GENES},
            slide_network={"heads": 1, "depth": 1, "positions": 64},
        )
        draft.seal(**{name: value for name, value in manifest.items() if name not in ("format", "files")})


KINDS = {
    "regression": regression,
    "neighborhood": with_neighborhood,
    "retrieval": retrieval,
    "over the slide": over_the_slide,
}


@pytest.fixture
def place(tmp_path: Path, small_bundle: Path, request: pytest.FixtureRequest) -> Path:
    """slide.tif, spots.csv with array coordinates, and a mclst-bundle of the kind asked for."""
    tifffile.imwrite(
        tmp_path / "slide.tif", tissue(), photometric="rgb", tile=(64, 64), metadata=None,
        resolution=(20000, 20000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    lines = [f"s{i},1,{i // 50},{i % 50},{20 + 9 * (i // 50)},{20 + 7 * (i % 50)}" for i in range(SPOTS)]
    head = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    (tmp_path / "spots.csv").write_text("\n".join([head, *lines]) + "\n")
    KINDS[getattr(request, "param", "regression")](tmp_path / "mclst-bundle", small_bundle)
    return tmp_path


def run(*words: str) -> None:
    done = CliRunner().invoke(main, [*WORDS, *words])
    assert done.exit_code == 0, done.output


def values(path: Path) -> dict[str, NDArray[Any]]:
    result = anndata.read_h5ad(path)
    own = [name for name in ("nearest_distance", "effective_k") if name in result.obs]
    return {"X": result.X, **{name: result.obs[name].to_numpy() for name in own}}


@contextmanager
def counting_tiles() -> Iterator[list[int]]:
    """Tiles of each batch that is encoded meanwhile."""
    encode, batches = CpuStages.encode, []

    def counted(stages: CpuStages, slot: int, n: int, after: Any) -> None:
        batches.append(n)
        encode(stages, slot, n, after)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuStages, "encode", counted)
        yield batches


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_killed_run_over_a_slow_encoder_loses_15_seconds_at_most(
    place: Path, log_dir: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    run("--out", "whole.h5ad")
    killed = fork_server.run(place, *WORDS, log_dir=log_dir, before=SLOW_AND_KILLED)
    assert killed.code == -signal.SIGKILL, killed.stderr
    with counting_tiles() as batches:
        run()
    encoded_before = (KILLED_IN_BATCH - 1) * BATCH
    kept = SPOTS - sum(batches)
    assert encoded_before - MOST_LOST <= kept <= encoded_before
    report = json.loads(Path("slide.run.json").read_text())
    assert report["run"]["carried_on"] == kept
    whole, resumed = values(Path("whole.h5ad")), values(Path("slide.h5ad"))
    assert whole.keys() == resumed.keys()
    for name, expected in whole.items():
        assert np.array_equal(expected, resumed[name]), name
    assert not list(place.glob(".slide*"))


class Played:
    """A clock that each encoded batch moves on."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, hashed_at_once: None) -> Played:
    played, encode = Played(), CpuStages.encode

    def encode_slowly(stages: CpuStages, slot: int, n: int, after: Any) -> None:
        encode(stages, slot, n, after)
        played.now += SECONDS_PER_BATCH

    monkeypatch.setattr(encoded_tiles, "time", played)
    monkeypatch.setattr(encoded_tiles, "KEEP_SECONDS", KEEP_SECONDS)
    monkeypatch.setattr(CpuStages, "encode", encode_slowly)
    return played


def stop_after(tiles: int, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Run until that many tiles are encoded; return what the run then says."""
    real, count = encoded_tiles.EncodedTiles.keep, 0

    def keep(self: Any, ring: Any) -> None:
        nonlocal count
        real(self, ring)
        count += BATCH
        if count >= tiles:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoded_tiles.EncodedTiles, "keep", keep)
        done = CliRunner().invoke(main, [*WORDS, *words])
    assert done.exit_code == 130, done.output
    return done.stderr


def test_an_interrupted_run_says_how_many_tiles_it_keeps(
    place: Path, slow: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    said = stop_after(20 * BATCH, monkeypatch)
    assert f"{20 * BATCH} of {SPOTS} spots are kept" in said
    done = CliRunner().invoke(main, [word for word in WORDS if word != "-q"])
    assert done.exit_code == 0 and f"{20 * BATCH} more tiles of the stopped run are encoded" in done.stderr


def test_the_embeddings_of_a_resumed_run_serve_the_next(
    place: Path, slow: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MCLST_CACHE", str(place / "cache"))
    monkeypatch.setenv("MCLST_FEATURE_CACHE_GB", "1")
    stop_after(20 * BATCH, monkeypatch)
    run()
    with counting_tiles() as batches:
        run("--out", "next.h5ad")
    assert not batches
    assert np.array_equal(values(Path("next.h5ad"))["X"], values(Path("slide.h5ad"))["X"])


def test_values_of_another_run_are_not_taken(
    place: Path, slow: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    stop_after(20 * BATCH, monkeypatch)
    with counting_tiles() as batches:
        run("--batch-size", "8")
    assert sum(batches) == SPOTS


def test_the_batch_that_a_stopped_run_chose_is_kept(
    place: Path, slow: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with monkeypatch.context() as patch:
        patch.setattr(CpuSession, "heavy", True)
        patch.setattr(context, "prompt_batch", lambda *_: 4)
        stop_after(20 * BATCH, monkeypatch)
    with counting_tiles() as batches:
        run()
    assert max(batches) == 4 and sum(batches) == SPOTS - 20 * 4


def test_a_full_disk_ends_the_keeping_and_not_the_run(
    place: Path, slow: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    run("--out", "whole.h5ad")
    real = os.posix_fallocate

    def full(handle: int, offset: int, size: int) -> None:
        if offset and os.readlink(f"/proc/self/fd/{handle}").endswith(".slide.h5ad.journal"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    run()
    report = json.loads(Path("slide.run.json").read_text())
    told = [
        note for note in report["run"]["notes"] if "can no longer be kept (No space left on device)" in note
    ]
    assert len(told) == 1
    assert np.array_equal(values(Path("slide.h5ad"))["X"], values(Path("whole.h5ad"))["X"])


blocks = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), st.lists(st.integers(0, 30), min_size=1, max_size=9)),
        st.tuples(st.just("tiles"), st.lists(st.integers(0, 30), min_size=1, max_size=9, unique=True)),
    ),
    max_size=6,
)


@quick
@given(
    written=blocks, measured=st.booleans(), width=st.integers(1, 5), cut=st.floats(0, 1), flip=st.floats(0, 1)
)
def test_a_journal_gives_back_the_tiles_before_its_damage(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[str, list[int]]],
    measured: bool,
    width: int,
    cut: float,
    flip: float,
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    record = MEASURED if measured else RECORD
    rng = np.random.default_rng(len(written))
    journal = Journal.begin(path, {"k": "3"}, 31, record)
    ends = [os.lseek(journal._handle, 0, os.SEEK_CUR)]
    after: list[tuple[dict[int, bytes], list[int]]] = [({}, [])]
    for kind, rows in written:
        tiles, records = dict(after[-1][0]), list(after[-1][1])
        if kind == "rows":
            block = np.zeros(len(rows), record)
            block["row"] = rows
            journal.append(block)
            records += rows
        else:
            encoded = rng.normal(size=(len(rows), width)).astype(np.float32)
            journal.append_tiles(np.array(rows), encoded)
            tiles.update(zip(rows, map(bytes, encoded), strict=True))
        ends.append(os.lseek(journal._handle, 0, os.SEEK_CUR))
        after.append((tiles, records))
    journal.close()
    wanted = rng.random(31) < 0.7

    def check(tiles: dict[int, bytes], records: list[int], end: int) -> None:
        fingerprint, result, at = read_journal(path) or pytest.fail("not read")
        assert fingerprint == {"k": "3"} and result["row"].tolist() == records and at == end
        rows, encoded = read_tiles(path, wanted, width)
        expected = {row: content for row, content in tiles.items() if wanted[row]}
        assert dict(zip(rows.tolist(), map(bytes, encoded), strict=True)) == expected
        assert rows.tolist() == sorted(expected) and encoded.shape == (len(rows), width)

    check(*after[-1], ends[-1])
    assert not len(read_tiles(path, wanted, width + 1)[0]), "of another encoder"
    content = bytearray(path.read_bytes()[: ends[-1]])
    at = min(ends[0] + int(flip * (ends[-1] - ends[0])), ends[-1] - 1)
    stop = ends[0] + int(cut * (ends[-1] - ends[0]))
    if at >= ends[0]:
        content[at] ^= 0xFF
    path.write_bytes(content[:stop])
    intact = max(number for number, end in enumerate(ends) if end <= stop and (end <= at or not number))
    check(*after[intact], ends[intact])
