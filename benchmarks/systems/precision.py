"""Precisions of a bundle on one slide: difference from fp32, accuracy, and speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.contenders.inputs import real_tiles, score_against_truth
from mclst.benchmarks.harness.measure import paired_ratio, summarize, time_interleaved
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import ResourceError, needs_extra
from mclst.runtime.inference.readout import open_readout
from mclst.runtime.providers.opening import EncoderRequest, open_encoder, open_session
from mclst.sections.section import Spots

BATCH = 16


def open_precisions(
    bundle: Bundle, provider: str, folder: Path
) -> tuple[dict[str, Session], dict[str, str], dict[str, str]]:
    """Sessions by precision, what runs each, and why a precision does not run natively.

    Without native bf16, an fp32 graph in `folder` rounds every result. Raises ResourceError if fp32 fails.
    """
    sessions: dict[str, Session] = {}
    runs_as: dict[str, str] = {}
    emulated: dict[str, str] = {}
    for precision in bundle.precisions:
        request = EncoderRequest(bundle.path, bundle.encoder(precision), precision, BATCH)
        try:
            sessions[precision], _ = open_encoder(provider, request)
            runs_as[precision] = sessions[precision].provider
        except ResourceError as error:
            if precision == "fp32":
                raise
            emulated[precision] = str(error)
            if precision == "bf16":
                sessions[precision] = _rounded(bundle, folder / "rounded.onnx")
                runs_as[precision] = "cpu, rounded"
    return sessions, runs_as, emulated


def _rounded(bundle: Bundle, path: Path) -> Session:
    with needs_extra("export,cpu"):
        import onnx

        from mclst.export.onnx.fp16 import to_half
        from mclst.export.onnx.graph import save
    save(to_half(onnx.load(bundle.encoder()), "bf16", rounded=True).model, path)
    return open_session(path, "cpu")


def measure(
    bundle: Bundle,
    slide: Path,
    spots: Spots,
    truth: Path | None,
    section: str | None,
    *,
    provider: str,
    rounds: int,
    timed: int,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Compare precisions with fp32 and with the measured section in `truth`; time `timed` tiles.

    The figures against fp32 are those of `mclst.export.parity.compare`, against the section those of
    `mclst-eval`.
    """
    from mclst.export.parity.compare import compare, compare_expression

    pixels = real_tiles(bundle, slide, spots, complete=True)
    with TemporaryDirectory() as folder:
        sessions, runs_as, emulated = open_precisions(bundle, provider, Path(folder))
        embeddings: dict[str, NDArray[np.float32]] = {}
        expression: dict[str, NDArray[np.float32]] = {}
        for precision, session in sessions.items():
            parts = [session.encode(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
            embeddings[precision] = np.concatenate(parts)
            readout = open_readout(bundle, None, spots, session.provider, precision=precision)
            expression[precision] = readout.predict_expression(
                np.arange(len(spots)), embeddings[precision]
            ).expression
        native = {name: session for name, session in sessions.items() if name not in emulated}
        timed_tiles = pixels[:timed]
        times = time_interleaved(
            {name: partial(_encode_all, session, timed_tiles) for name, session in native.items()},
            rounds,
            on_round=on_round,
        )
    scores = {} if truth is None else score_against_truth(bundle, slide, spots, expression, truth, section)
    results: dict[str, Any] = {}
    for precision in sessions:
        if bundle.manifest.retrieval is not None:
            figures = compare(
                embeddings["fp32"], embeddings[precision], bundle.bank, bundle.manifest.retrieval
            )
        else:
            figures = {"expression": compare_expression(expression["fp32"], expression[precision])}
        entry: dict[str, Any] = {"runs_as": runs_as[precision], "against_fp32": figures}
        if truth is not None:
            entry["against_measured"] = {m: value for m, value in scores[precision].items() if m != "spots"}
        if precision in times.samples:
            samples = times.samples[precision]
            entry["tiles_per_second"] = summarize([len(timed_tiles) / s for s in samples.wall_s])
            entry["cpu_ms_per_tile"] = summarize([1e3 * s / len(timed_tiles) for s in samples.cpu_s])
            entry["times_fp32"] = paired_ratio(samples.wall_s, times.samples["fp32"].wall_s)
        results[precision] = entry
    return {
        "tiles": len(pixels),
        "timed_tiles": len(timed_tiles),
        "precisions": results,
        "not_as_it_is": emulated,
        "load": times.load,
    }


def _encode_all(session: Session, pixels: NDArray[np.uint8]) -> None:
    for start in range(0, len(pixels), BATCH):
        session.encode(pixels[start : start + BATCH])
