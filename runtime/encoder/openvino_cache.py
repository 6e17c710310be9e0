"""Encoders that OpenVINO has compiled, kept in the user's cache: a fifth of the time to open them again.

OpenVINO's own cache takes a damaged file for right and then predicts other values, so these carry a SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mclst.kernels.definition.user_cache import cache_folder, read_own, store_own
from mclst.runtime.hashing import file_sha256

MAX_GRAPH_BYTES = 256 << 20
"""Larger graphs take long to hash and much room; they are compiled each time."""
MAX_CACHE_BYTES = 1 << 30
DIGEST_BYTES = hashlib.sha256().digest_size


def compile_graph(
    ov: Any, core: Any, graph: Path, settings: Mapping[str, Any], *, content: bytes | None = None
) -> Any:
    """Compile an ONNX graph for the CPU, or load what was compiled of it before.

    Parameters
    ----------
    ov, core
        The package and its `Core`.
    graph : Path
    settings : mapping
        OpenVINO's properties.
    content : bytes, optional
        The graph, in place of the file's.

    Returns
    -------
    openvino.CompiledModel

    Raises
    ------
    RuntimeError
        What OpenVINO raises for a graph it cannot read or compile.
    """
    source = graph if content is None else content
    if graph.stat().st_size > MAX_GRAPH_BYTES or graph.with_name(f"{graph.name}.data").exists():
        return core.compile_model(core.read_model(source), "CPU", settings)
    sha256 = file_sha256(graph) if content is None else hashlib.sha256(content).hexdigest()
    path = cache_folder() / "openvino" / f"{_key(ov, core, sha256, settings)}.blob"
    content = read_own(path) or b""
    digest, blob = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if blob and hashlib.sha256(blob).digest() == digest:
        with suppress(RuntimeError):  # of an OpenVINO that says it is the same and is not
            return core.import_model(blob, "CPU", settings)
    model = core.compile_model(core.read_model(source), "CPU", settings)
    blob = model.export_model().getvalue()
    if store_own(path, hashlib.sha256(blob).digest() + blob):
        _remove_oldest(path.parent)
    return model


def _key(ov: Any, core: Any, graph_sha256: str, settings: Mapping[str, Any]) -> str:
    """All that a compiled model depends on, as one hash."""
    processor = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    parts = [graph_sha256, ov.__version__, processor, dict(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _remove_oldest(folder: Path) -> None:
    """Keep the newest models, together at most MAX_CACHE_BYTES."""
    with suppress(OSError):  # another process removes too
        kept = 0
        for path in sorted(folder.glob("*.blob"), key=lambda path: path.stat().st_mtime, reverse=True):
            kept += path.stat().st_size
            if kept > MAX_CACHE_BYTES:
                path.unlink(missing_ok=True)
