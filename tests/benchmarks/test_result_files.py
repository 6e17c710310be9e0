"""Result files: an output that would be lost is refused before the work."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mclst.benchmarks.cli import COMMANDS, main
from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.console import command


@click.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--keep", type=click.Path(path_type=Path))
@result_options(plot="Draw it (PNG).")
@command
def measuring(slide: Path, keep: Path | None, result_files: ResultFiles, quiet: bool) -> None:
    """Print when the work is done."""
    result_files.check((slide,), (keep,))
    click.echo("worked", err=True)
    result_files.publish({"quiet": quiet}, lambda: b"png")


@pytest.fixture
def slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slide.png").write_bytes(b"pixels")
    return tmp_path / "slide.png"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--json", "slide.png", "--overwrite"], "is an input"),
        (["--plot", "slide.png", "--overwrite"], "is an input"),
        (["--json", "-", "--plot", "./slide.png", "--overwrite"], "is an input"),
        (["--plot", "slide.png"], "exists"),
        (["--json", "r", "--plot", "r"], "written twice"),
        (["--plot", "r", "--keep", "r"], "written twice"),
        (["--plot", "no/r.png"], "no"),
    ],
)
def test_what_would_be_lost_is_refused_before_the_work(slide: Path, words: list[str], says: str) -> None:
    done = CliRunner().invoke(measuring, [slide.name, *words])
    assert done.exit_code == 5 and says in done.stderr and "worked" not in done.stderr
    assert slide.read_bytes() == b"pixels" and list(slide.parent.iterdir()) == [slide]


def test_results_are_written_to_the_named_files(slide: Path) -> None:
    done = CliRunner().invoke(measuring, [slide.name, "--json", "r.json", "--plot", "r.png", "-q"])
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads(Path("r.json").read_text()) == {"quiet": True}
    assert Path("r.png").read_bytes() == b"png"
    again = CliRunner().invoke(measuring, [slide.name, "--json", "r.json"])
    assert again.exit_code == 5
    assert json.loads(CliRunner().invoke(measuring, [slide.name, "--json", "-"]).stdout) == {"quiet": False}
    assert CliRunner().invoke(measuring, [slide.name]).exit_code == 0


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"page"}))
def test_every_benchmark_has_the_same_three(name: str) -> None:
    done = CliRunner().invoke(main, [name, "-h"])
    words = " ".join(done.output.split())
    assert done.exit_code == 0 and "--json PATH" in words and "- for stdout" in words
    assert "--overwrite Replace existing files." in words
    assert "-q, --quiet Print nothing but errors." in words
