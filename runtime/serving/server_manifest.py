"""A server's manifest: the JSON document of its model `NAME_manifest`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from mclst.runtime.bundle.manifest import FileRecord, Manifest, describe_unusable
from mclst.runtime.bundle.strict_model import StrictModel
from mclst.runtime.encoder.session import INPUT
from mclst.runtime.errors import InputError

TILES, EMBEDDING, EXPRESSION = INPUT, "embedding", "expression"
NEAREST, EFFECTIVE_K = "nearest_distance", "effective_k"
"""Tensors, named like those of the encoder's graph and the columns of a map."""
DISTANCE, SECTION_SHARE = "distance", "section_share"
"""Tensors of a calibrated bundle, named like the fields of `MeasuredResult`."""

ASK, MANIFEST = "ask", "manifest"
"""Input (int32 [1]) and output (bytes [1]) of `NAME_manifest`: 0 asks for the document, 1, 2, ... for that
part of the calibration."""
PART_BYTES = 2 << 20
"""Length of each part of a calibration but the last."""

MAX_ANSWER_BYTES = 16 << 20
"""Longest answer a client reads: four times REQUEST_BYTES, which bounds the tensors, for headers and
documents.
"""

SERVABLE = ("retrieval", "regression")
"""Kinds of bundle that predict tile by tile."""

NAME = r"^[a-z][a-z0-9_-]{0,40}$"
"""A server's name, the prefix of its models' names."""


def inner_model(name: str, part: str) -> str:
    """Return `mclst_manifest` for `mclst` and `manifest`; parts: manifest, encoder, retrieval, direct."""
    return f"{name}_{part}"


class ServedBundle(StrictModel):
    """A bundle; sha256: of its manifest.json."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    manifest: Manifest


class Served(StrictModel):
    """Everything a client needs to know, without the bank.

    name: of the model from `tiles` uint8 [n, S, S, 3] to `expression` float32 [n, G] and, with retrieval,
    `nearest_distance` and `effective_k` float32 [n, 1]; calibrated: whether also to `distance` float32 [n, 1]
    and, of a bank of 2 to 64 sections, `section_share` float32 [n, 1]. genes: the G names; gene_ids: their
    Ensembl ids, "" where there is none, null if none is known. precision: of the encoder.
    max_batch: largest n. backend: runtime of the encoder. files: of the repository, by path. retriever: null
    without retrieval. versions: of packages on the server.
    """

    format: Literal["mclst-server/1"]
    name: str = Field(pattern=NAME)
    bundle: ServedBundle
    genes: tuple[str, ...]
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    max_batch: int = Field(ge=1, le=4096)
    backend: Literal["onnxruntime", "tensorrt"]
    files: dict[str, FileRecord]
    retriever: str | None = None
    versions: dict[str, str]
    gene_ids: tuple[str, ...] | None = None
    calibrated: bool = False

    @property
    def outputs(self) -> dict[str, int]:
        """Width of each output, by name, in the order of a client's columns."""
        manifest = self.bundle.manifest
        names = [NEAREST, EFFECTIVE_K] if manifest.kind == "retrieval" else []
        if self.calibrated:
            names += [DISTANCE, SECTION_SHARE] if manifest.tells_section_shares else [DISTANCE]
        return {EXPRESSION: len(self.genes), **dict.fromkeys(names, 1)}

    @property
    def readout(self) -> str:
        """Name of the model after the encoder."""
        retrieves = self.bundle.manifest.kind == "retrieval"
        return inner_model(self.name, "retrieval" if retrieves else "direct")

    @model_validator(mode="after")
    def _fits_its_bundle(self) -> Self:
        manifest = self.bundle.manifest
        if manifest.kind not in SERVABLE:
            raise ValueError(f"a {manifest.kind} bundle has no expression tile by tile")
        if manifest.earlier_units:
            raise ValueError("its bundle has the log-share of an earlier version")
        if self.calibrated and manifest.calibration is None:
            raise ValueError("it is calibrated and its bundle is not")
        if len(self.genes) != manifest.genes or len(set(self.genes)) != len(self.genes):
            raise ValueError(f"it names {len(set(self.genes))} genes and its bundle has {manifest.genes}")
        if self.gene_ids is not None and len(self.gene_ids) != manifest.genes:
            raise ValueError(
                f"it has {len(self.gene_ids)} gene ids and its bundle has {manifest.genes} genes"
            )
        if unusable := describe_unusable((*self.genes, *(self.gene_ids or ()))):
            raise ValueError(f"it holds {unusable}")
        return self


def read_served(content: bytes, origin: str) -> Served:
    """Parse a manifest from `origin`, a URL or path; raise InputError naming the invalid field."""
    try:
        return Served.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InputError(
            f"{origin}: {field}: {first['msg'].lower()}; give the server a repository that this version's "
            "mclst-export --triton wrote"
        ) from error


def check_servable(kind: str, name: str, *, neighborhood: bool = False) -> None:
    """Raise InputError if the system `name` of `kind` does not predict tile by tile."""
    if neighborhood:
        raise InputError(
            f"{name}, which averages over neighboring spots, so a server of tiles cannot run it; leave "
            "--triton out, or fit without --context"
        )
    if kind not in SERVABLE:
        raise InputError(
            f"{name}, which predicts from all spots of a slide together, so a server of tiles cannot run it; "
            "leave --triton out and run mclst-infer where the bundle is"
        )
