"""Models of NVIDIA Triton's Python backend: retrieval, the check of a regression, the manifest.

Each `model.py` of the repository names one of these classes. `triton_python_backend_utils` exists only inside
Triton.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.retriever import Retriever, fastest_on_cpu
from mclst.runtime.bundle.bank import read_bank
from mclst.runtime.bundle.bundle import BANK
from mclst.runtime.bundle.calibration import check_record, read_calibration
from mclst.runtime.bundle.manifest import CALIBRATION
from mclst.runtime.errors import BundleError
from mclst.runtime.hashing import file_sha256
from mclst.runtime.serving.server_manifest import (
    ASK,
    DISTANCE,
    EFFECTIVE_K,
    EMBEDDING,
    EXPRESSION,
    MANIFEST,
    NEAREST,
    PART_BYTES,
    SECTION_SHARE,
    Served,
    inner_model,
    read_served,
)
from mclst.runtime.trust.calibration import Calibration
from mclst.runtime.trust.measures import PlacedResult, add_section_columns, split_section_columns
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
    """`embedding` [n, D + P] → `expression` [n, G] and the outputs [n, 1] of `Served.outputs`; float32."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read bank and calibration; raise if a byte has changed, so that the model does not load."""
        repository, served = _served(args)
        bank = read_bank(_checked_file(repository, served, f"{served.readout}/{VERSION}/{BANK}"))
        settings = served.bundle.manifest.retrieval
        assert settings is not None, "a bundle of this kind has these"
        self._width = served.bundle.manifest.encoder.embedding_dim
        self._genes = len(served.genes)
        self._calibration = _calibration(repository, served)
        if SECTION_SHARE in served.outputs:
            bank = replace(bank, expression=add_section_columns(bank.expression, bank.section))
        self._retrieve = Retriever(bank, settings.spec(), fastest_on_cpu())

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
        embedding, prediction = np.split(encoded, [self._width], axis=1)
        _check_finite(prediction, "prediction")
        result = self._retrieve.aggregate(np.ascontiguousarray(embedding))
        result = split_section_columns(result, self._genes)
        outputs = {
            EXPRESSION: result.expression + prediction if prediction.shape[1] else result.expression,
            NEAREST: result.nearest[:, None],
            EFFECTIVE_K: result.effective_k[:, None],
        }
        if self._calibration is not None:
            outputs[DISTANCE] = self._calibration.distances(embedding)[:, None]
        if isinstance(result, PlacedResult) and result.section_share is not None:
            outputs[SECTION_SHARE] = result.section_share[:, None]
        return outputs


class DirectModel:
    """`encoded` float32 [n, G], or [n, D + G], of a regression's encoder → `expression`, if finite; of a
    calibrated one also `distance`.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read the number of genes, and the calibration."""
        repository, served = _served(args)
        self._genes = len(served.genes)
        self._width = served.bundle.manifest.encoder.embedding_dim
        self._calibration = _calibration(repository, served)

    def execute(self, requests: list[EncoderRequest]) -> list[Response]:
        """Check each request."""
        return [self._checked(_input(request, ENCODED)) for request in requests]

    def _checked(self, encoded: NDArray[np.float32]) -> Response:
        first = encoded.shape[1] - self._genes
        try:
            _check_finite(encoded[:, :first], "embedding")
            _check_finite(encoded[:, first:], "expression")
        except ValueError as error:
            return _refusal(str(error))
        outputs = {EXPRESSION: encoded[:, first:]}
        if self._calibration is not None:
            outputs[DISTANCE] = self._calibration.distances(encoded[:, : self._width])[:, None]
        return _response(outputs)


class ManifestModel:
    """`ask` int32 [1] → `manifest` bytes [1]: `Served` of this repository as JSON, or a part of its
    calibration.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Hash the whole repository; raise if a byte has changed."""
        repository, served = _served(args)
        for name in served.files:
            _checked_file(repository, served, name)
        self._calibration = b""
        if served.calibrated:
            self._calibration = (repository / _calibration_file(served)).read_bytes()
        retrieves = served.bundle.manifest.kind == "retrieval"
        update = {"versions": installed_versions(), "retriever": fastest_on_cpu() if retrieves else None}
        self._document = served.model_copy(update=update).model_dump_json().encode()

    def execute(self, requests: list[EncoderRequest]) -> list[Response]:
        """Answer every request with what it asks for."""
        return [self._part(int(_input(request, ASK).flat[0])) for request in requests]

    def _part(self, number: int) -> Response:
        parts = -(-len(self._calibration) // PART_BYTES)
        if not 0 <= number <= parts:
            return _refusal(f"{ASK} is {number} and there are {parts} parts; ask for 0 to {parts}")
        start = PART_BYTES * (number - 1)
        content = self._calibration[start : start + PART_BYTES] if number else self._document
        return _response({MANIFEST: np.array([content], np.object_)})


def _served(args: dict[str, str]) -> tuple[Path, Served]:
    """Return the repository's folder and manifest; args: Triton's description of a model."""
    model = Path(args["model_repository"])
    name = args["model_name"].rsplit("_", 1)[0]
    document = model.parent / inner_model(name, "manifest") / VERSION / DOCUMENT
    try:
        return model.parent, read_served(document.read_bytes(), str(document))
    except OSError as error:
        raise BundleError(f"{document} cannot be read ({error.strerror}); export it again") from error


def _calibration_file(served: Served) -> str:
    return f"{served.readout}/{VERSION}/{CALIBRATION}"


def _calibration(repository: Path, served: Served) -> Calibration | None:
    """Return the repository's calibration, ready for distances; None without one."""
    if not served.calibrated:
        return None
    path, manifest = _checked_file(repository, served, _calibration_file(served)), served.bundle.manifest
    values = read_calibration(path, genes=manifest.genes, dim=manifest.encoder.embedding_dim)
    values.search  # noqa: B018 - prepared before the first request
    return check_record(values, manifest, path)


def _checked_file(repository: Path, served: Served, name: str) -> Path:
    path, record = repository / name, served.files[name]
    try:
        actual = path.stat().st_size, file_sha256(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); export the repository again") from error
    if actual != (record.bytes, record.sha256):
        raise BundleError(f"{path} is not what was exported (SHA-256 differs); export the repository again")
    return path


def _check_finite(values: NDArray[np.float32], part: str) -> None:
    """Raise ValueError naming row and column of what is not finite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"row {row} of the {part} holds {values[row, column]} in column {column}; export the bundle again"
        )


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
