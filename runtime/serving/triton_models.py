"""Models of NVIDIA Triton's Python backend: retrieval, the check of a regression, the manifest.

Each `model.py` of the repository names one of these classes. `triton_python_backend_utils` exists only inside
Triton.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.retriever import Retriever, fastest_on_cpu
from mclst.runtime.bundle.bank import read_bank
from mclst.runtime.bundle.bundle import BANK
from mclst.runtime.errors import BundleError
from mclst.runtime.hashing import file_sha256
from mclst.runtime.serving.server_manifest import (
    EFFECTIVE_K,
    EMBEDDING,
    EXPRESSION,
    MANIFEST,
    NEAREST,
    Served,
    inner_model,
    read_served,
)
from mclst.runtime.versions import installed_versions

DOCUMENT = "server.json"
"""`Served` as exported, in the folder of `NAME_manifest`; the server sets retriever and versions."""

ENCODED = "encoded"
"""A regression encoder's output, before the check."""

VERSION = "1"
"""Version of every model: a repository is written whole, never updated."""

EncoderRequest = Any
Response = Any


class RetrievalModel:
    """`embedding` [n, D + P] → `expression` [n, G], `nearest_distance`, `effective_k` [n, 1]; float32."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bank; raise if its bytes have changed, so that the model does not load."""
        repository, served = _served(args)
        bank = inner_model(served.name, "retrieval") + f"/{VERSION}/{BANK}"
        _check_file(repository, served, bank)
        settings = served.bundle.manifest.retrieval
        assert settings is not None, "a bundle of this kind has these"
        self._width = served.bundle.manifest.encoder.embedding_dim
        self._retrieve = Retriever(read_bank(repository / bank), settings.spec(), fastest_on_cpu())

    def execute(self, requests: list[EncoderRequest]) -> list[Response]:
        """Run all requests in one retrieval; each separately if one is invalid."""
        queries = [_input(request, EMBEDDING) for request in requests]
        try:
            outputs = self._expression(np.concatenate(queries))
        except ValueError:
            return [self._alone(embeddings) for embeddings in queries]
        ends = np.cumsum([len(embeddings) for embeddings in queries])
        parts = [np.split(values, ends[:-1]) for values in outputs.values()]
        return [_response(dict(zip(outputs, rows, strict=True))) for rows in zip(*parts, strict=True)]

    def _alone(self, embeddings: NDArray[np.float32]) -> Response:
        try:
            return _response(self._expression(embeddings))
        except ValueError as error:
            return _refusal(str(error))

    def _expression(self, encoded: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        result = self._retrieve.aggregate(np.ascontiguousarray(encoded[:, : self._width]))
        prediction = encoded[:, self._width :]
        return {
            EXPRESSION: result.expression + prediction if prediction.shape[1] else result.expression,
            NEAREST: result.nearest[:, None],
            EFFECTIVE_K: result.effective_k[:, None],
        }


class DirectModel:
    """`encoded` float32 [n, G], or [n, D + G], of a regression's encoder → `expression`, if finite."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the number of genes."""
        self._genes = len(_served(args)[1].genes)

    def execute(self, requests: list[EncoderRequest]) -> list[Response]:
        """Check each request."""
        return [self._checked(_input(request, ENCODED)) for request in requests]

    def _checked(self, encoded: NDArray[np.float32]) -> Response:
        expression = encoded[:, -self._genes :]
        bad = np.argwhere(~np.isfinite(expression))
        if len(bad):
            row, gene = bad[0]
            return _refusal(
                f"row {row} of the expression holds {expression[row, gene]} in column {gene}; export the "
                "bundle again"
            )
        return _response({EXPRESSION: expression})


class ManifestModel:
    """`ask` int32 [1] → `manifest` bytes [1]: `Served` of this repository, as JSON."""

    def initialize(self, args: dict[str, str]) -> None:
        """Hash the whole repository; raise if a byte has changed."""
        repository, served = _served(args)
        for name in served.files:
            _check_file(repository, served, name)
        retrieves = served.bundle.manifest.kind == "retrieval"
        update = {"versions": installed_versions(), "retriever": fastest_on_cpu() if retrieves else None}
        self._document = served.model_copy(update=update).model_dump_json().encode()

    def execute(self, requests: list[EncoderRequest]) -> list[Response]:
        """Answer every request with the manifest."""
        return [_response({MANIFEST: np.array([self._document], np.object_)}) for _ in requests]


def _served(args: dict[str, str]) -> tuple[Path, Served]:
    """Return the repository's folder and manifest; args: Triton's description of a model."""
    model = Path(args["model_repository"])
    name = args["model_name"].rsplit("_", 1)[0]
    document = model.parent / inner_model(name, "manifest") / VERSION / DOCUMENT
    try:
        return model.parent, read_served(document.read_bytes(), str(document))
    except OSError as error:
        raise BundleError(f"{document} cannot be read ({error.strerror}); export it again") from error


def _check_file(repository: Path, served: Served, name: str) -> None:
    path, record = repository / name, served.files[name]
    try:
        actual = path.stat().st_size, file_sha256(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); export the repository again") from error
    if actual != (record.bytes, record.sha256):
        raise BundleError(f"{path} is not what was exported (SHA-256 differs); export the repository again")


def _input(request: EncoderRequest, name: str) -> NDArray[Any]:
    import triton_python_backend_utils as pb

    array: NDArray[Any] = pb.get_input_tensor_by_name(request, name).as_numpy()
    return array


def _response(outputs: dict[str, NDArray[Any]]) -> Response:
    import triton_python_backend_utils as pb

    tensors = [pb.Tensor(name, np.ascontiguousarray(values)) for name, values in outputs.items()]
    return pb.InferenceResponse(output_tensors=tensors)


def _refusal(sentence: str) -> Response:
    """Refuse with HTTP 400 or gRPC's INVALID_ARGUMENT."""
    import triton_python_backend_utils as pb

    return pb.InferenceResponse(error=pb.TritonError(sentence, pb.TritonError.INVALID_ARG))
