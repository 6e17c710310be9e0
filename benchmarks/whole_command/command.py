"""`mclst-bench command`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.cli.bundle_options import bundle_option
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command, progress, say


@click.command(name="command")
@click.argument("slide", type=PATH)
@click.option("--spots", "spots_path", type=PATH, required=True, help="Table of spots, as for mclst-infer.")
@bundle_option
@click.option("--ckpt", type=PATH, help="The bundle's checkpoint; adds the published notebook as a peer.")
@click.option("--truth", type=PATH, help="Measured sections to score each result against.")
@click.option("--section", help="The slide's section in --truth.  [default: by the slide's name]")
@click.option(
    "--repeats", type=click.IntRange(1), default=5, help="Rounds that count; one more precedes them."
)
@click.option(
    "--cold/--no-cold", default=True, help="Also with files dropped from the page cache before each process."
)
@result_options()
@command
def whole_command(
    slide: Path,
    spots_path: Path,
    bundle_path: Path,
    ckpt: Path | None,
    truth: Path | None,
    section: str | None,
    repeats: int,
    cold: bool,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Measure mclst-infer as typed: a whole process from SLIDE to map, picture and page.

    In turn with it, as whole processes too: the published notebook with its imports and picture, and plain
    scripts for ONNX Runtime and OpenVINO, which save an array. `mclst first` meets the bundle for the first
    time and tries what runs it fastest; `mclst auto` remembers all that was tried.
    """
    result_files.check()
    import tempfile

    from mclst.benchmarks.contenders.inputs import check_slide, score_against_truth
    from mclst.benchmarks.encoder.choice import choose_alone
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.whole_command.measure import mclst_process, measure, peers
    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.runtime.resources import available_cores
    from mclst.sections.tables.spots import read_spots

    threads, bundle, spots = available_cores(), open_bundle(bundle_path), read_spots(spots_path)
    check_slide(slide, spots)
    document: dict[str, Any] = new_document("mclst-bench-command/1", threads=threads, bundle=bundle)
    with tempfile.TemporaryDirectory(prefix="mclst-bench-") as temporary:
        folder = Path(temporary)
        ours = partial(mclst_process, slide=slide, spots=spots_path, bundle=bundle_path, folder=folder)
        # Without a folder to keep it in, nothing is remembered.
        first = ours("mclst first", cache=Path("/dev/null/none"), words=())
        processes = [
            ours("mclst auto", cache=folder / "cache", words=()),
            ours("mclst fp32", cache=folder / "cache", words=("--precision", "fp32")),
        ]
        choose_alone(bundle, threads, folder / "cache")
        others, absent = peers(bundle, slide, spots_path, spots, ckpt, folder, threads)
        results = {}
        inputs = [path for path in (slide, spots_path, bundle_path, ckpt) if path is not None]
        files = {"warm": [], **({"cold": inputs} if cold else {})}
        with progress("rounds", repeats * len(files) + 1, quiet=quiet) as advance:
            for name, evicted in files.items():
                # What the first round brings into the page cache and the caches of libraries stays there.
                results[name], expression = measure(
                    [*processes, first, *others], tiles=len(spots), rounds=repeats, cold=evicted,
                    warm_up=int(name == "warm"), on_round=partial(advance, 1),
                )  # fmt: skip
        if truth is not None:
            scores = score_against_truth(bundle, slide, spots, expression, truth, section)
            for result in results.values():
                for entry in result["contenders"]:
                    entry["against_truth"] = scores[entry["name"]]
    document |= {
        "settings": {"rounds": repeats, "warm_up_rounds": 1, "interleaved": True, "threads": threads},
        "slide": {"name": slide.name, "bytes": slide.stat().st_size},
        "results": results,
        "absent": absent,
    }
    if not quiet:
        _show(document)
    result_files.publish(document)


def _show(document: dict[str, Any]) -> None:
    from mclst.benchmarks.harness.tables import show_table, show_unavailable

    machine = document["machine"]
    say(
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_at_start']} at the start: "
        f"{document['verdict']}"
    )
    for cache, result in document["results"].items():
        rows = []
        for entry in result["contenders"]:
            pearson, accuracy = entry["equal_to_first"]["pearson"], entry.get("against_truth")
            wall = entry["wall_s"]
            rows.append(
                (
                    f"{entry['name']} ({entry['chosen']})" if entry["chosen"] else entry["name"],
                    f"{wall['median']:.2f}",
                    f"{wall['min']:.2f}",
                    f"{entry['cpu_s']['median']:.2f}",
                    f"{entry['overhead_s']['median']:.2f}",
                    f"{entry['wall_to_first']:.2f}",
                    f"{entry['cpu_to_first']:.2f}",
                    "-" if pearson is None else f"{pearson:.5f}",
                    "-" if accuracy is None or accuracy["pcc_acg"] is None else f"{accuracy['pcc_acg']:.4f}",
                )
            )
        show_table(
            f"{result['tiles']:,} tiles of {document['slide']['name']}, whole processes, page cache {cache}",
            ("", "wall s", "best", "CPU s", "less encoding", "× first", "× CPU", "r to first", "PCC"),
            rows,
            bold={entry["name"] for entry in result["contenders"] if entry["ours"]},
        )
        if phases := [entry for entry in result["contenders"] if entry["phases_s"]]:
            show_table(
                "seconds of mclst's phases",
                ("", *phases[0]["phases_s"]),
                [
                    (entry["name"], *(f"{seconds['median']:.2f}" for seconds in entry["phases_s"].values()))
                    for entry in phases
                ],
            )
    show_unavailable(document["absent"])
