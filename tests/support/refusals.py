"""A command that refuses: one sentence, an exit code, nothing written."""

from __future__ import annotations

from pathlib import Path

from click.testing import Result


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(done: Result, code: int, words: tuple[str, ...]) -> None:
    assert done.exit_code == code, done.output
    assert done.stdout == "" and "Traceback" not in done.stderr
    sentence = done.stderr.strip()
    assert sentence.startswith("Error: ") and "\n" not in sentence
    for word in words:
        assert word in sentence, sentence
