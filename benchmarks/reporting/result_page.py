"""Results of mclst-bench as a page: any of its JSON files, each list of results a table, times with their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mclst.runtime.html_repr import format_value
from mclst.runtime.report.page import elements

SPREAD = frozenset({"median", "min", "max"})
RAW = ("samples", "load")
"""These stay in the JSON, as do all other lists of numbers."""


def result_page(title: str, contents: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The page. contents: name of a file → its JSON object."""
    parts = []
    for name, content in contents.items():
        tables = {key: value for key, value in content.items() if _is_rows(value)}
        facts = {
            key: _plain(value) for key, value in content.items() if key not in tables and _is_short(value)
        }
        inside = [_results(elements.words(key), value) for key, value in tables.items()]
        parts.append(
            elements.section(
                name, *inside, elements.details("Machine, settings, versions", elements.facts(facts))
            )
        )
    created = ", ".join(
        sorted({str(content["created"])[:10] for content in contents.values() if "created" in content})
    )
    return elements.page(title, created, "".join(parts), scripts=[elements.script("tables.js")])


def _results(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One table where the results are flat, else one per result, with what it is of above its own rows."""
    if not any(_inner(row) for row in rows):
        return _table(title, rows)
    told = ""
    for row in rows:
        inner = _inner(row)
        of = [
            f"{elements.words(key)} {format_value(value)}"
            for key, value in row.items()
            if isinstance(value, str | int)
        ]
        rest = {
            key: value
            for key, value in row.items()
            if key not in inner and not isinstance(value, str | int) and _is_short(value)
        }
        told += f"<h3>{escape(', '.join(of) or title)}</h3>\n"
        told += "".join(_table(elements.words(key), _named(found)) for key, found in inner.items())
        told += elements.details("What it is of", elements.facts(_plain(rest))) if rest else ""
    return told


def _inner(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a result holds rows in: a list of mappings, or a mapping of mappings that are no spreads."""
    return {
        key: value
        for key, value in row.items()
        if (_is_rows(value) and value)
        or (
            isinstance(value, Mapping)
            and value
            and all(isinstance(one, Mapping) and not one.keys() >= SPREAD for one in value.values())
        )
    }


def _named(found: Any) -> list[dict[str, Any]]:
    return (
        [{"name": name, **one} for name, one in found.items()] if isinstance(found, Mapping) else list(found)
    )


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Fields and fields of fields side by side; a spread as its median, with the range beside it."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{before}{elements.words(key)}"
        if isinstance(value, Mapping) and value.keys() >= SPREAD:
            flat[name] = value["median"]
            flat[f"{name}, range"] = f"{format_value(value['min'])} – {format_value(value['max'])}"
        elif isinstance(value, Mapping) and key not in RAW:
            flat |= _flat(value, f"{name} ")
        elif _is_short(value) and key not in RAW:
            flat[name] = value
    return flat


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows side by side under their title, a bar behind the first figure that has a spread."""
    flat = [_flat(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    bars = next((name for name in names if f"{name}, range" in names), None)
    table = [{name: row.get(name) for name in names} for row in flat]
    return f"<h4>{escape(title)}</h4>\n" + elements.table(table, label=title, sortable=True, bars=bars)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _is_short(value: Any) -> bool:
    return not isinstance(value, list) or all(isinstance(one, str) for one in value)


def _plain(value: Any) -> Any:
    return (
        {key: _plain(one) for key, one in value.items() if _is_short(one)}
        if isinstance(value, Mapping)
        else value
    )
