"""`mclst-bench leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.benchmarks.harness.undefined import none_if_undefined
from mclst.runtime.choices import PROVIDERS
from mclst.runtime.click_types import PATH, Finite, refuse_unowned
from mclst.runtime.console import command, say
from mclst.runtime.errors import OutputError


@click.command()
@click.argument("root", type=PATH)
@click.option(
    "--embeddings", type=PATH, help="Features of an encoder: SAMPLE.h5 of HEST or TRIDENT, below a task."
)
@click.option("--bundle", type=PATH, help="Encode the benchmark's patches with this bundle's encoder.")
@click.option(
    "--predictions",
    type=PATH,
    help="Folder of predictions made elsewhere: SAMPLE.h5ad, below TASK/ or fold_K/ if so.",
)
@click.option("--name", help="Name in the row.  [default: of the folder]")
@click.option(
    "--task", "tasks", multiple=True, help="Only this task of HEST-bench; repeatable.  [default: all]"
)
@click.option("--data", type=PATH, help="STP-Bench's folder of st/ and patches/.  [default: ROOT]")
@click.option("--genes", type=PATH, help="JSON list of genes.  [default: the benchmark's]")
@click.option("--components", type=click.IntRange(1), default=256, help="Principal components of the head.")
@click.option(
    "--alpha",
    type=Finite(0, min_open=True),
    help="Penalty of ridge.  [default: as published, 100 / (components × genes)]",
)
@click.option("--jobs", type=click.IntRange(1), default=1, help="Folds at once.")
@click.option("--provider", type=click.Choice(PROVIDERS), default="auto", help="What runs the encoder.")
@click.option(
    "--work",
    type=PATH,
    default=Path("mclst-leaderboard"),
    help="Folder of finished folds and features, to resume from.",
)
@result_options(json="Write all folds and genes; - for stdout.")
@command
def leaderboard(
    root: Path,
    embeddings: Path | None,
    bundle: Path | None,
    predictions: Path | None,
    name: str | None,
    tasks: tuple[str, ...],
    data: Path | None,
    genes: Path | None,
    components: int,
    alpha: float | None,
    jobs: int,
    provider: str,
    work: Path,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Score an encoder or predictions on HEST-bench or STP-Bench at ROOT, and print the leaderboard's row.

    Reads the benchmark's own folds and genes. Features get HEST-bench's head: PCA and ridge regression. The
    row goes to stdout. Re-run the same command to resume an interrupted run.
    """
    sources = [path for path in (embeddings, bundle, predictions) if path is not None]
    if len(sources) != 1:
        raise click.UsageError("give one of --embeddings, --bundle and --predictions")
    if bundle is None:
        refuse_unowned("--bundle", "provider")
    if predictions is not None:
        refuse_unowned("--embeddings and --bundle", "components", "alpha")
    result_files.check()
    from mclst.benchmarks.leaderboard.run import Entry, run_task
    from mclst.benchmarks.leaderboard.score import row
    from mclst.benchmarks.leaderboard.tasks import read_tasks

    read = read_tasks(root, data, genes, tasks)
    for task in read:
        for leak in task.leaks():
            say(f"  LEAK: {leak}", style="bold red")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{work} cannot be created ({error.strerror}); choose another --work") from error
    title = name or sources[0].absolute().name
    session, size_px, fingerprint = None, 0, str(sources[0].absolute())
    if bundle is not None:
        session, size_px, fingerprint = _open_encoder(bundle, provider)
    entry = Entry(title, fingerprint, predictions, embeddings, session, size_px, components, alpha)
    results = {
        task.name: run_task(task, entry, work, jobs=jobs, say=lambda text: say(f"  {text}", quiet=quiet))
        for task in read
    }
    protocol = read[0].protocol
    for task_name, own in results.items():
        note = "each section by itself, then averaged"
        say(f"  {task_name}: mean r {own['pcc_per_section']:.4f} of {note}", quiet=quiet)
    lines = row(title, protocol, results)
    if result_files.json_path is None or str(result_files.json_path) != "-":
        click.echo("\n".join(lines))
    result_files.publish(
        {
            "protocol": protocol,
            "name": title,
            "head": None if predictions is not None else {"components": components, "alpha": alpha},
            "tasks": none_if_undefined(results),
            "row": lines[-1],
        }
    )


def _open_encoder(bundle: Path, provider: str) -> tuple[Any, int, str]:
    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.runtime.providers.opening import EncoderRequest, open_encoder

    opened = open_bundle(bundle)
    request = EncoderRequest(opened.path, opened.encoder("fp32"), "fp32", 32)
    session, _ = open_encoder(provider, request)
    return session, opened.manifest.tile.size_px, opened.sha256
