"""Validate the documents of `mclst-bench` whose JSON Schema is published in `docs/schemas/`."""

from __future__ import annotations

from typing import Any

from mclst.benchmarks.schemas.common import Document
from mclst.benchmarks.schemas.end_to_end import EndToEnd
from mclst.benchmarks.schemas.latency import Latency

DOCUMENTS: dict[str, type[Document]] = {"latency": Latency, "end-to-end": EndToEnd}
"""By subcommand."""


def json_schema(name: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of a subcommand's document."""
    schema = DOCUMENTS[name].model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def validated(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return `document` if it fits its schema; raises pydantic.ValidationError."""
    DOCUMENTS[name].model_validate(document)
    return document
