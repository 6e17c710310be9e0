"""Models of Triton's Python backend by themselves, with a stand-in for the module that only Triton has."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.serving.triton_models import RetrievalModel


class Tensor:
    def __init__(self, name: str, values: NDArray[Any]) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> NDArray[Any]:
        return self.values


@pytest.fixture
def bundle(small_bundle: Path) -> Bundle:
    return open_bundle(small_bundle)


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RetrievalModel:
    """Retrieval of residuals, beside a prediction of each gene."""
    backend: Any = ModuleType("triton_python_backend_utils")
    backend.Tensor = Tensor
    backend.TritonError = lambda sentence, code: sentence
    backend.TritonError.INVALID_ARG = 3
    backend.InferenceResponse = lambda output_tensors=(), error=None: SimpleNamespace(
        outputs={tensor.name: tensor.values for tensor in output_tensors}, error=error
    )
    backend.get_input_tensor_by_name = lambda request, name: request[name]
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    manifest = bundle.manifest.model_dump(mode="json")
    manifest["encoder"]["prediction_dim"] = manifest["genes"]
    document = {
        "format": "mclst-server/1",
        "name": "mclst",
        "bundle": {"sha256": bundle.sha256, "manifest": manifest},
        "genes": bundle.genes,
        "precision": "fp32",
        "max_batch": 8,
        "backend": "onnxruntime",
        "files": {"mclst_retrieval/1/bank.h5": manifest["files"]["bank.h5"]},
        "versions": {},
    }
    for part in ("manifest", "retrieval"):
        (tmp_path / f"mclst_{part}" / "1").mkdir(parents=True)
    (tmp_path / "mclst_manifest" / "1" / "server.json").write_text(json.dumps(document))
    shutil.copy(bundle.path / "bank.h5", tmp_path / "mclst_retrieval" / "1")
    served = RetrievalModel()
    served.initialize(
        {"model_repository": str(tmp_path / "mclst_retrieval"), "model_name": "mclst_retrieval"}
    )
    return served


def test_a_prediction_that_is_not_finite_is_refused_alone(bundle: Bundle, model: RetrievalModel) -> None:
    random = np.random.default_rng(3)
    embedding = random.normal(size=(3, 2, 16)).astype(np.float32)
    prediction = random.normal(size=(3, 2, len(bundle.genes))).astype(np.float32)
    encoded = np.concatenate([embedding, prediction], axis=2)
    encoded[1, 1, 16 + 5] = np.nan
    answers = model.execute([{"embedding": Tensor("embedding", values)} for values in encoded])
    assert "row 1 of the prediction holds nan in column 5" in answers[1].error
    alone = Retriever(bundle.bank, bundle.retrieval)
    for i in (0, 2):
        expected = alone.aggregate(embedding[i]).expression + prediction[i]
        np.testing.assert_allclose(answers[i].outputs["expression"], expected, rtol=1e-5, atol=1e-6)
