"""No command ends in a traceback over a path, whichever of its options names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from all_commands import command_of, commands, is_path, others, spelled
from click.testing import CliRunner
from refusals import tree

ODD = (".", "", "..", "/", "folder", "other/x", "absent/new\nline", "a" * 300)
"""No name, a folder, a file taken for a folder, a folder that is missing, more than a name may have."""
WITHIN_TEXT = ("maps", "baseline_maps", "annotations", "images", "encoder", "groups")
"""Parameters that are paths in part, or sometimes."""


@pytest.mark.parametrize("name", [*commands()])
def test_a_path_that_cannot_be_is_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("other").write_text("precious")
    root, *parts = name.split()
    for parameter in command_of(name).params:
        if not is_path(parameter) and parameter.name not in WITHIN_TEXT:
            continue
        option = spelled(parameter)
        for odd in ODD:
            if parameter.name == "folder" and os.path.isdir(Path(odd)):
                continue  # mclst-bench scale would take it
            own = [option, odd] if option.startswith("-") else [odd]
            words = [*parts, *own, *others(f"{name} {option}", name, option)]
            done = CliRunner().invoke(command_of(root), words)
            assert done.exit_code in (2, 4, 5, 6) and "Traceback" not in done.output, (words, done.output)
            assert "\nError: " in f"\n{done.stderr}" and not done.stdout, (words, done.output)
            assert sorted(os.listdir()) == ["folder", "other"], words
    assert tree(tmp_path) == {"other": b"precious"}
