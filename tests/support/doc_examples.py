"""Code blocks of README and docs/, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click

from mclst.runtime.entry_points import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMAND = re.compile(r"^(mclst(-[a-z]+)?|pip|make|python|docker|export|sbatch|nextflow|sudo) ", re.MULTILINE)
"""How a line of a shell block begins."""
FENCE = re.compile(
    r"(?:^<!-- (?P<marker>not run|run by): (?P<reason>[^>]+?) -->\n)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SPAN = re.compile(r"`(mclst-[a-z]+(?: [^`\n]*)?)`")
OPTION = re.compile(r"(?<!\S)--?[a-z][\w-]*")


@dataclass(frozen=True)
class Block:
    """A fenced block: marker is "not run", "run by" or empty; reason what follows it."""

    page: Path
    line: int
    language: str
    text: str
    marker: str
    reason: str

    @property
    def is_shell(self) -> bool:
        """Whether it holds commands, and not a file or what a command prints."""
        return self.language in ("", "bash") and COMMAND.search(self.text) is not None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command: continued lines joined, comments dropped."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, match.start("text")),
            match["language"],
            match["text"],
            match["marker"] or "",
            match["reason"] or "",
        )
        for match in FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def main_of(program: str) -> click.Command:
    """The click command that a console script runs."""
    command: click.Command = import_module(COMMANDS[program][0]).main
    return command


def innermost(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The command that `words` name, down to the subcommand; its parent context; the words left for it."""
    program, *rest = words
    command = main_of(program)
    context = click.Context(command, info_name=program, **command.context_settings)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        inner = command.get_command(context, rest[0])
        assert inner is not None, f"{shlex.join(words)}: there is no {program} {rest[0]}"
        command, rest = inner, rest[1:]
        context = click.Context(command, parent=context)
    return command, context, rest


def options_of(command: click.Command) -> set[str]:
    """Every spelling of its options that `--help` shows, and --help."""
    shown = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return {name for name in shown if name.startswith("-")} | {"-h", "--help"}


def every_option() -> set[str]:
    """The options of all commands and subcommands."""
    commands = [main_of(program) for program in COMMANDS]
    for group in list(commands):
        if isinstance(group, click.Group):
            context = click.Context(group)
            inner = [group.get_command(context, name) for name in group.list_commands(context)]
            commands += [command for command in inner if command is not None]
    return set().union(*map(options_of, commands))
