"""A bundle's precisions on one slide: what each keeps of the fp32 expression and of the measured one, and its speed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness import machine
from mclst.benchmarks.harness.measure import in_turns, ratio, spread
from mclst.benchmarks.harness.result_files import ResultFiles, result_options
from mclst.benchmarks.schemas.common import new_document
from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.cli.bundle_options import bundle_option
from mclst.runtime.console import command, progress, say
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import InputError, ResourceError, SlideError
from mclst.runtime.expression_map.measured import Predicted, choose_section, pair_with_truth
from mclst.runtime.inference.providers import PROVIDERS, EncoderRequest, open_encoder, open_session
from mclst.runtime.inference.readout import open_readout
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.accuracy import score
from mclst.sections.section import Spots
from mclst.sections.tables.spots import read_spots

PATH = click.Path(path_type=Path)
AT_ONCE = 16


def open_precisions(
    bundle: Bundle, provider: str, spare: Path
) -> tuple[dict[str, Session], dict[str, str], dict[str, str]]:
    """The encoder in each precision of `bundle`; how each runs; and why one does not run as it is.

    Where the provider has no bf16, its numbers come from an fp32 graph, written to `spare`, that rounds every bf16
    result. Raises as `open_encoder` does of fp32.
    """
    sessions: dict[str, Session] = {}
    how: dict[str, str] = {}
    passed: dict[str, str] = {}
    for precision in bundle.precisions:
        request = EncoderRequest(bundle.path, bundle.encoder(precision), precision, AT_ONCE)
        try:
            sessions[precision], _ = open_encoder(provider, request)
            how[precision] = sessions[precision].provider
        except ResourceError as error:
            if precision == "fp32":
                raise
            passed[precision] = str(error)
            if precision == "bf16":
                sessions[precision] = _rounded(bundle, spare / "rounded.onnx")
                how[precision] = "cpu, rounded"
    return sessions, how, passed


def _rounded(bundle: Bundle, path: Path) -> Session:
    try:
        import onnx

        from mclst.export.onnx.fp16 import to_half
        from mclst.export.onnx.graph import save
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[export,cpu]") from error
    save(to_half(onnx.load(bundle.encoder()), "bf16", rounded=True).model, path)
    return open_session(path, "cpu")


def read_tiles(bundle: Bundle, slide: Path, spots: Spots) -> NDArray[np.uint8]:
    """Every spot's tile, uint8 [n, S, S, 3], in the table's order; SlideError where one cannot be read."""
    tile = bundle.manifest.tile
    pixels = np.empty((len(spots), tile.size_px, tile.size_px, 3), np.uint8)
    with open_slide(slide) as opened:
        shape = TileShape(tile.size_px, tile.mpp, tile.pad)
        for batch in Tiles(opened, spots.xy_px, shape, batch_size=AT_ONCE, workers=2):
            if batch.failed:
                raise SlideError(f"{slide}: {batch.failed[0][1]}; give a slide whose tiles can all be read")
            pixels[batch.rows] = batch.tiles
    return pixels


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
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Figures by precision; `timed` tiles are encoded by all of them in turns, `rounds` times.

    Against fp32: `mclst.export.parity.compare`'s figures. Against the measured section: those of `mclst-eval`.
    """
    from mclst.export.parity.compare import compare, compare_expression

    pixels = read_tiles(bundle, slide, spots)
    with TemporaryDirectory() as spare:
        sessions, how, passed = open_precisions(bundle, provider, Path(spare))
        given: dict[str, NDArray[np.float32]] = {}
        expression: dict[str, NDArray[np.float32]] = {}
        for precision, session in sessions.items():
            parts = [session.encode(pixels[i : i + AT_ONCE]) for i in range(0, len(pixels), AT_ONCE)]
            given[precision] = np.concatenate(parts)
            readout = open_readout(bundle, None, spots, session.provider, precision=precision)
            expression[precision] = readout.predict_expression(
                np.arange(len(spots)), given[precision]
            ).expression
        timings = {name: session for name, session in sessions.items() if name not in passed}
        some = pixels[:timed]
        taken = in_turns(
            {name: partial(_encode_all, session, some) for name, session in timings.items()},
            rounds,
            done=done,
        )
    found: dict[str, Any] = {}
    for precision in sessions:
        if bundle.manifest.retrieval is not None:
            figures = compare(given["fp32"], given[precision], bundle.bank, bundle.manifest.retrieval)
        else:
            figures = {"expression": compare_expression(expression["fp32"], expression[precision])}
        entry: dict[str, Any] = {"runs_as": how[precision], "against_fp32": figures}
        if truth is not None:
            entry["against_measured"] = _score(bundle, slide, spots, expression[precision], truth, section)
        if precision in taken.samples:
            samples = taken.samples[precision]
            entry["tiles_per_second"] = spread([len(some) / s for s in samples.wall_s])
            entry["cpu_ms_per_tile"] = spread([1e3 * s / len(some) for s in samples.cpu_s])
            entry["times_fp32"] = ratio(samples.wall_s, taken.samples["fp32"].wall_s)
        found[precision] = entry
    return {
        "tiles": len(pixels),
        "timed_tiles": len(some),
        "precisions": found,
        "not_as_it_is": passed,
        "load": taken.load,
    }


def _encode_all(session: Session, pixels: NDArray[np.uint8]) -> None:
    for start in range(0, len(pixels), AT_ONCE):
        session.encode(pixels[start : start + AT_ONCE])


def _score(
    bundle: Bundle,
    slide: Path,
    spots: Spots,
    expression: NDArray[np.float32],
    truth: Path,
    section: str | None,
) -> dict[str, float]:
    predicted = Predicted(
        path=slide,
        spot=spots.id.astype(np.str_),
        genes=np.asarray(bundle.genes, np.str_),
        expression=expression.astype(np.float64),
        xy_px=spots.xy_px,
        slide=(slide.stem,),
        normalisation=bundle.manifest.normalisation.expression,
    )
    pair = pair_with_truth(predicted, choose_section(predicted, truth, section))
    of = score(pair.predicted, pair.truth)
    return {"pcc_acg": of.pcc_acg, "pcc_heg": of.pcc_heg, "mse": of.mse, "mae": of.mae}


@click.command(context_settings={"show_default": True})
@click.argument("slide", type=PATH)
@click.option(
    "--spots", "spots_path", type=PATH, required=True, help="Table of spots, as mclst-infer takes it."
)
@bundle_option
@click.option("--truth", type=PATH, help="Measured sections: how well each precision predicts them.")
@click.option("--section", help="Section of --truth the slide is of.  [default: told by name]")
@click.option("--provider", type=click.Choice(PROVIDERS), default="auto", help="What runs the encoders.")
@click.option("--timed-tiles", type=click.IntRange(1), default=64, help="Tiles whose encoding is timed.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Rounds.")
@result_options()
@command
def precision(
    slide: Path,
    spots_path: Path,
    bundle_path: Path,
    truth: Path | None,
    section: str | None,
    provider: str,
    timed_tiles: int,
    repeats: int,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """What a bundle's fp16, bf16 and int8 encoders keep of its fp32 one at the spots of SLIDE, and what they cost."""
    result_files.check((slide, spots_path, bundle_path, truth))
    started, where = datetime.now(UTC), machine.describe()
    bundle = open_bundle(bundle_path)
    if len(bundle.precisions) == 1:
        raise InputError(f"{bundle_path} has an fp32 encoder alone; export it with --precision fp16,int8")
    with progress("rounds", repeats + 1, quiet=quiet) as advance:
        found = measure(
            bundle,
            slide,
            read_spots(spots_path),
            truth,
            section,
            provider=provider,
            rounds=repeats,
            timed=timed_tiles,
            done=partial(advance, 1),
        )
    m = bundle.manifest
    about = {
        "system": m.system,
        "encoder": m.encoder.name,
        "tile_px": m.tile.size_px,
        "bank_spots": m.bank_rows,
    }
    _show(found, quiet=quiet)
    content = {
        **new_document("mclst-bench-precision/1", started, where, where["cores"]),
        "slide": slide.name,
        "bundle": {**about, "checkpoint_sha256": m.checkpoint.sha256},
        "results": found,
    }
    result_files.publish(lambda: content)


def _show(found: dict[str, Any], *, quiet: bool) -> None:
    """A line per precision."""
    say(f"{found['tiles']} tiles, against fp32:", quiet=quiet)
    for line in rows(found):
        say("  " + "".join(cell.ljust(10) for cell in line).rstrip(), quiet=quiet)
    for name, why in found["not_as_it_is"].items():
        say(f"  {name} does not run as it is: {why}", quiet=quiet)


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The table, its heading first: precision, r per gene, overlap at 50 and k, cosine, PCC measured, tiles/s, × fp32."""
    lines = [["", "r/gene", "top 50", "top k", "cosine", "PCC ACG", "PCC HEG", "CPU ms", "× fp32"]]
    for precision, entry in found["precisions"].items():
        kept, truth = entry["against_fp32"], entry.get("against_measured", {})
        near, embedding = kept.get("neighbours", {}), kept.get("embedding", {})
        cost = entry.get("cpu_ms_per_tile", {})
        cells = (
            (kept["expression"]["pearson_per_gene_mean"], ".4f"),
            (near.get("overlap_at_50"), ".3f"),
            (near.get("overlap_mean"), ".3f"),
            (embedding.get("cosine_min"), ".4f"),
            (truth.get("pcc_acg"), ".4f"),
            (truth.get("pcc_heg"), ".4f"),
            (cost.get("median"), ".1f"),
            (entry.get("times_fp32"), ".2f"),
        )
        lines.append([precision, *("–" if value is None else format(value, form) for value, form in cells)])
    return lines
