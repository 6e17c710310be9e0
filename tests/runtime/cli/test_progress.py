"""Progress where there is no terminal: a line every ten seconds, with the rate and what is left."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mclst.runtime.console import LINE_SECONDS, progress
from mclst.runtime.run.options import most_bad_tiles


def test_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("mclst.runtime.console.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("mclst.runtime.console.LINE_SECONDS", LINE_SECONDS)
    lines: list[str] = []
    monkeypatch.setattr("mclst.runtime.console.say", lambda text, **options: lines.append(text))
    with progress("tiles", 1000) as advance:
        for _ in range(100):
            now[0] += 1.0
            advance(10)
    assert len(lines) == 9 and " ".join(lines[0].split()) == "100 of 1,000 tiles, 10.0/s, 0:01:30 left"
    lines.clear()
    with progress("tiles", 1000, quiet=True) as advance:
        now[0] += 100
        advance(10)
    assert lines == []


@pytest.mark.parametrize(
    ("limit", "tiles", "most"),
    [
        ("1%", 24, 1),
        ("1%", 100, 1),
        ("1%", 101, 2),
        ("0%", 50, 0),
        ("0", 50, 0),
        ("7", 50, 7),
        (3, 1, 3),
        ("2.5 %", 80, 2),
    ],
)
def test_how_many_tiles_may_be_bad(limit: int | str, tiles: int, most: int) -> None:
    assert most_bad_tiles(limit, tiles) == most


@pytest.mark.parametrize("limit", ["", "-1", "1.5", "200%", "x", "1 % 2", "nan", "1e3"])
def test_what_is_no_limit(limit: str) -> None:
    with pytest.raises(ValueError, match="neither a number of tiles nor a share"):
        most_bad_tiles(limit, 10)
