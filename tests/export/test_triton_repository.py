"""`mclst-export --triton`: files, configs read back by protobuf, and refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import onnx
import pytest
from click.testing import CliRunner, Result
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from small_model import GENES, TILE_PX, Small, fast_regression

from mclst.export.cli import main
from mclst.export.triton import repository as triton_repository
from mclst.export.triton.config import Enum, pbtxt
from mclst.export.triton.repository import Serving, write_repository
from mclst.runtime import open_bundle
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt.engine_cache import graph_sha256, this_platform
from mclst.runtime.encoder.tensorrt.manifest import EngineKey
from mclst.runtime.errors import BundleError, InputError, OutputError, ResourceError
from mclst.runtime.serving.probe import main as probe
from mclst.runtime.serving.server_manifest import Served, read_served

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed; install mclst[server]")
from tritonclient.grpc.model_config_pb2 import ModelConfig

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "server.json"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
GPU = Gpu(name="Made-up RTX", compute_capability="8.6", driver="580.1")


@pytest.fixture(scope="module")
def bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("served") / "bundle"))


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def config(repository: Path, model: str) -> Any:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def shapes(tensors: Any) -> dict[str, tuple[int, list[int]]]:
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in tensors}


UINT8, INT32, FP32, STRING = 2, 8, 11, 13


def test_a_retrieval_bundle_becomes_four_models(bundle: Path, tmp_path: Path) -> None:
    result = run("--bundle", bundle, "--triton", tmp_path / "repo", "--max-batch", 8)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'repo'}\n"
    repo = tmp_path / "repo"
    assert sorted(path.name for path in repo.iterdir()) == [
        "mclst",
        "mclst_encoder",
        "mclst_manifest",
        "mclst_retrieval",
    ]
    tiles = {"tiles": (UINT8, [TILE_PX, TILE_PX, 3])}
    outputs = {"expression": (FP32, [GENES]), "nearest_distance": (FP32, [1]), "effective_k": (FP32, [1])}
    ensemble = config(repo, "mclst")
    assert (ensemble.platform, ensemble.max_batch_size) == ("ensemble", 8)
    assert (shapes(ensemble.input), shapes(ensemble.output)) == (tiles, outputs)
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["mclst_encoder", "mclst_retrieval"]
    assert dict(steps[0].output_map) == {"embedding": "encoded"}
    assert dict(steps[1].input_map) == {"embedding": "encoded"}
    encoder = config(repo, "mclst_encoder")
    assert (encoder.backend, encoder.max_batch_size) == ("onnxruntime", 8)
    assert (shapes(encoder.input), shapes(encoder.output)) == (tiles, {"embedding": (FP32, [16])})
    assert encoder.dynamic_batching.default_queue_policy.max_queue_size == 32
    assert [warm.batch_size for warm in encoder.model_warmup] == [1, 8]
    retrieval = config(repo, "mclst_retrieval")
    assert (retrieval.backend, shapes(retrieval.output)) == ("python", outputs)
    manifest = config(repo, "mclst_manifest")
    assert manifest.max_batch_size == 0 and shapes(manifest.input) == {"ask": (INT32, [1])}
    assert shapes(manifest.output) == {"manifest": (STRING, [1])}
    for path in repo.glob("*/1/model.py"):
        compile(path.read_text(), path, "exec")
    assert (repo / "mclst" / "1").is_dir()


def test_the_server_manifest_matches_its_schema(bundle: Path, tmp_path: Path) -> None:
    repo = write_repository(open_bundle(bundle), tmp_path / "repo", Serving("her2", max_batch=4))
    content = (repo / "her2_manifest" / "1" / "server.json").read_bytes()
    document = json.loads(content)
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(document, schema)
    assert schema == {"$schema": DRAFT, **Served.model_json_schema()}
    served = read_served(content, "here")
    assert served.bundle.sha256 == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert served.bundle.manifest == open_bundle(bundle).manifest
    assert list(served.genes) == [f"GENE{i}" for i in range(GENES)]
    for name, copied in {
        "her2_encoder/1/model.onnx": "encoder.onnx",
        "her2_retrieval/1/bank.h5": "bank.h5",
    }.items():
        assert (repo / name).read_bytes() == (bundle / copied).read_bytes()
        assert served.files[name].sha256 == hashlib.sha256((bundle / copied).read_bytes()).hexdigest()
    assert len(served.files) == 2 and served.retriever is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "mclst-server/2"}, "format"),
        ({"genes": ["A"] * GENES}, "names 1 genes"),
        ({"genes": ["A" * 1001, *(f"G{i}" for i in range(1, GENES))]}, "a name of 1,001 characters"),
        ({"gene_ids": ["\0"] * GENES}, "a name with a nul"),
        ({"max_batch": 0}, "max_batch"),
        ({"more": 1}, "more"),
        ({"bundle": None}, "bundle"),
    ],
)
def test_an_invalid_server_manifest_names_its_field(
    bundle: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    repo = write_repository(open_bundle(bundle), tmp_path / "repo")
    document = json.loads((repo / "mclst_manifest" / "1" / "server.json").read_text()) | change
    with pytest.raises(InputError, match=rf"^http://lab:8000: .*{message}"):
        read_served(json.dumps(document).encode(), "http://lab:8000")
    with pytest.raises(InputError, match="http://lab:8000"):
        read_served(b"\xff{", "http://lab:8000")


def test_a_regression_bundle_becomes_three_models(tmp_path: Path) -> None:
    bundle = fast_regression(tmp_path / "bundle", 5)
    assert run("--bundle", bundle, "--triton", tmp_path / "repo").exit_code == 0
    ensemble, direct = config(tmp_path / "repo", "mclst"), config(tmp_path / "repo", "mclst_direct")
    assert shapes(ensemble.output) == shapes(direct.output) == {"expression": (FP32, [5])}
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["mclst_encoder", "mclst_direct"]
    assert dict(steps[0].output_map) == {"expression": "encoded"}
    assert dict(steps[1].input_map) == {"encoded": "encoded"}


@given(
    st.text(), st.integers(0, 2**31 - 1), st.lists(st.tuples(st.text(), st.text()), max_size=4), st.booleans()
)
def test_any_config_is_read_back_by_protobuf(
    name: str, batch: int, parameters: list[tuple[str, str]], ordered: bool
) -> None:
    written = pbtxt(
        {
            "name": name,
            "max_batch_size": batch,
            "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters],
            "dynamic_batching": {"preserve_ordering": ordered, "preferred_batch_size": [1, 2]},
            "input": [{"name": "x", "data_type": Enum("TYPE_FP32"), "dims": [3, -1]}],
        }
    )
    read = text_format.Parse(written, ModelConfig())
    assert (read.name, read.max_batch_size, read.dynamic_batching.preserve_ordering) == (name, batch, ordered)
    assert {key: value.string_value for key, value in read.parameters.items()} == dict(parameters)
    assert list(read.dynamic_batching.preferred_batch_size) == [1, 2]
    assert list(read.input[0].dims) == [3, -1] and read.input[0].data_type == FP32


def test_a_checkpoint_becomes_bundle_and_repository(small: Small, tmp_path: Path) -> None:
    words = [
        "--ckpt",
        small.ckpt,
        "--reference",
        small.folder,
        "--out",
        tmp_path / "bundle",
        "--parity-tiles",
        4,
        "--tile-px",
        TILE_PX,
        "--k",
        10,
        "--precision",
        "fp32",
        "--json",
        "-",
        "-q",
    ]
    result = run(*words, "--triton", tmp_path / "repo", "--triton-name", "her2")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["bundle"], report["triton"]) == (str(tmp_path / "bundle"), str(tmp_path / "repo"))
    served = read_served((tmp_path / "repo" / "her2_manifest" / "1" / "server.json").read_bytes(), "here")
    assert served.bundle.sha256 == open_bundle(tmp_path / "bundle").sha256
    again = run(*words, "--triton", tmp_path / "repo")
    assert again.exit_code == 5 and "exists; choose another --triton" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bundle", "b"], "--bundle belongs to --triton"),
        (["--ckpt", "c", "--triton-name", "x"], "--triton-name belongs to --triton"),
        (["--triton", "r"], "Missing option '--ckpt'"),
        (["--bundle", "b", "--triton", "r", "--ckpt", "c"], "--ckpt is of an export"),
        (["--bundle", "b", "--triton", "r", "--k", "3"], "--k is of an export"),
        (["--bundle", "b", "--triton", "r", "--engine", "tensorrt-rtx"], "no backend for tensorrt-rtx"),
        (["--bundle", "b", "--triton", "r", "--triton-name", "../x"], "'../x' is not a name"),
        (
            ["--ckpt", "c", "--triton", "r", "--precision", "int8", "--triton-precision", "fp16"],
            "needs --precision fp16",
        ),
    ],
)
def test_options_that_do_not_belong_together(words: list[str], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and message in result.stderr


def test_what_cannot_be_served_leaves_nothing(
    bundle: Path, exported_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "repo"
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    assert run("--bundle", tmp_path / "none", "--triton", repo).exit_code == 4
    result = run("--bundle", bundle, "--triton", repo, "--triton-precision", "int8")
    assert result.exit_code == 4 and "has no encoder in int8 but in fp32" in result.stderr
    result = run("--bundle", bundle, "--triton", tmp_path / "no" / "repo")
    assert result.exit_code == 5 and "make it first" in result.stderr
    for words in ((bundle,), (bundle, "--overwrite"), (bundle / "models",)):
        result = run("--bundle", bundle, "--triton", *words)
        assert result.exit_code == 5 and "choose another" in result.stderr and open_bundle(bundle)
    holds = write_repository(open_bundle(bundle), tmp_path / "holds")
    inner = Path(shutil.copytree(bundle, holds / "bundle"))
    result = run("--bundle", inner, "--triton", holds, "--overwrite")
    assert result.exit_code == 5 and "holds" in result.stderr and open_bundle(inner)
    shutil.rmtree(holds)
    (damaged / "bank.h5").write_bytes(b"spoilt")
    result = run("--bundle", damaged, "--triton", repo)
    assert result.exit_code == 4 and "bank.h5" in result.stderr
    result = run("--bundle", bundle, "--triton", repo, "--engine", "tensorrt")
    assert result.exit_code == 6 and "tensorrt" in result.stderr.lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]


def test_a_full_disk_leaves_the_old_repository(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = write_repository(open_bundle(bundle), tmp_path / "repo")
    before = {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()}
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if target.name == "bank.h5":
            raise OSError(28, "No space left on device", str(target))
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        write_repository(open_bundle(bundle), repo, overwrite=True)
    assert {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: target.write_bytes(b"half"))
    with pytest.raises(BundleError, match="changed while it was being read"):
        write_repository(open_bundle(bundle), repo, overwrite=True)
    assert {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    write_repository(open_bundle(bundle), repo, Serving(max_batch=2), overwrite=True)
    assert config(repo, "mclst").max_batch_size == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    with pytest.raises(OutputError, match="not overwritten"):
        write_repository(open_bundle(bundle), tmp_path / "mine", overwrite=True)


def test_external_weights_are_copied(bundle: Path, tmp_path: Path) -> None:
    """The export of a network beyond protobuf's 2 GB writes them."""
    large = shutil.copytree(bundle, tmp_path / "large")
    graph = onnx.load(large / "encoder.onnx")
    onnx.save(
        graph,
        large / "encoder.onnx",
        save_as_external_data=True,
        location="encoder.onnx.data",
        size_threshold=1024,
    )
    manifest = json.loads((large / "manifest.json").read_text())
    for name in ("encoder.onnx", "encoder.onnx.data"):
        content = (large / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (large / "manifest.json").write_text(json.dumps(manifest))
    repo = write_repository(open_bundle(large), tmp_path / "repo")
    onnx.checker.check_model(repo / "mclst_encoder" / "1" / "model.onnx")
    assert (
        "mclst_encoder/1/encoder.onnx.data"
        in read_served((repo / "mclst_manifest" / "1" / "server.json").read_bytes(), "here").files
    )


def test_an_engine_of_this_machine_is_served_instead_of_the_graph(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arbitrary bytes replace an engine, since its content is not read here."""
    from mclst.runtime.encoder.tensorrt.build import BuiltEngine
    from mclst.runtime.encoder.tensorrt.engine_cache import make_engine
    from mclst.runtime.encoder.tensorrt.library import Library

    copied = shutil.copytree(bundle, tmp_path / "bundle")
    library = Library("tensorrt", None, "10.3.0")
    monkeypatch.setattr(triton_repository, "load_library", lambda flavor: library)
    monkeypatch.setattr(triton_repository, "CudaDevice", lambda: SimpleNamespace(gpu=GPU))
    with pytest.raises(ResourceError, match="there is none yet"):
        write_repository(open_bundle(copied), tmp_path / "repo", Serving(tensorrt=True))
    key = EngineKey(
        onnx_sha256=graph_sha256(copied / "encoder.onnx"),
        precision="fp32",
        flavor="tensorrt",
        version="10.3.0",
        max_batch=16,
        gpu=GPU,
        platform=this_platform(),
    )
    built = BuiltEngine(b"an engine", "embedding", TILE_PX, {"FLOAT": 3}, 0.1)
    monkeypatch.setattr("mclst.runtime.encoder.tensorrt.engine_cache.build_engine", lambda *_, **__: built)
    make_engine(copied, copied / "encoder.onnx", key, library, must_store=True)
    with pytest.raises(ResourceError, match="takes up to 16 tiles at once and 64 are needed"):
        write_repository(open_bundle(copied), tmp_path / "repo", Serving(tensorrt=True))
    repo = write_repository(open_bundle(copied), tmp_path / "repo", Serving(tensorrt=True, max_batch=16))
    encoder = config(repo, "mclst_encoder")
    assert encoder.backend == "tensorrt" and encoder.instance_group[0].kind == 1
    assert [path.name for path in (repo / "mclst_encoder" / "1").iterdir()] == ["model.plan"]
    assert (repo / "mclst_encoder" / "1" / "model.plan").read_bytes() == b"an engine"
    monkeypatch.setattr(
        triton_repository, "CudaDevice", lambda: SimpleNamespace(gpu=replace(GPU, driver="581.2"))
    )
    with pytest.raises(ResourceError, match="under driver"):
        write_repository(open_bundle(copied), repo, Serving(tensorrt=True, max_batch=16), overwrite=True)


@pytest.mark.parametrize(
    ("code", "body", "exit_code", "message"),
    [
        (503, b"{}", 0, "its queue is full"),
        (500, b'{"error": "Stub process is not healthy"}', 6, "answers mclst_manifest with 500"),
        (200, b"[1", 6, "does not answer mclst_manifest"),
        (200, b"[]", 4, "the document"),
    ],
)
def test_the_probe_distinguishes_a_busy_from_a_dead_server(
    code: int, body: bytes, exit_code: int, message: str
) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = CliRunner().invoke(probe, [f"http://127.0.0.1:{server.server_port}/", "--timeout", "300"])
        server.shutdown()
    assert result.exit_code == exit_code and message in " ".join(result.stderr.split())
    assert CliRunner().invoke(probe, ["grpc://lab:8001"]).exit_code == 2
