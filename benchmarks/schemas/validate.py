"""The JSON documents of `mclst-bench` whose schema is published, in `docs/schemas/`."""

from __future__ import annotations

from typing import Any

from mclst.benchmarks.schemas.common import Document
from mclst.benchmarks.schemas.end_to_end import EndToEnd
from mclst.benchmarks.schemas.latency import Latency

DOCUMENTS: dict[str, type[Document]] = {"latency": Latency, "end-to-end": EndToEnd}
"""By subcommand."""


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a subcommand's document."""
    found = DOCUMENTS[name].model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def checked(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """The same content, after it was found to be what its schema says; pydantic's ValidationError where it is not."""
    DOCUMENTS[name].model_validate(content)
    return content
