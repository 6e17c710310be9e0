"""What a command prints."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mclst.runtime.console import check_json, command, say, table
from mclst.runtime.errors import InputError, OutputError

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b31m\nb\r\u202ec"
ESCAPED = r"a\x1b]0;title\x07\x1b[2J\x9b31m\nb\r\u202ec"


def test_l4_escape_sequences_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"Note: {HOSTILE}")
    say("Größe 2 µm → “é”, 组织")
    table([("spot", HOSTILE)])
    assert capsys.readouterr().err == f"Note: {ESCAPED}\nGröße 2 µm → “é”, 组织\n  spot  {ESCAPED}\n"


@pytest.mark.parametrize(("error", "code"), [(InputError(HOSTILE), 4), (ZeroDivisionError(HOSTILE), 1)])
def test_l4_errors_are_printed_as_text(error: Exception, code: int) -> None:
    @click.command()
    @command
    def fails() -> None:
        raise error

    result = CliRunner().invoke(fails)
    assert result.exit_code == code and r"\x1b[2J" in result.stderr
    assert not {"\x1b", "\x9b", "\x07", "\r"} & set(result.stderr)


def test_a_json_that_cannot_be_written_names_its_own_option(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="choose another --json"):
        check_json(tmp_path / "missing" / "x.json", overwrite=False)
