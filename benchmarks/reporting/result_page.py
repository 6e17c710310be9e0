"""HTML page of mclst-bench result files: a table per list of results, times with their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mclst.runtime.html_repr import format_value
from mclst.runtime.report.page import elements

SPREAD = frozenset({"median", "min", "max"})
RAW = ("samples", "load")
"""Left out of the page, as are all other lists of numbers."""


def result_page(title: str, documents: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Render the page of `documents`, JSON objects by file name."""
    parts = []
    for name, document in documents.items():
        tables = {key: value for key, value in document.items() if _is_rows(value)}
        facts = {
            key: _plain(value) for key, value in document.items() if key not in tables and _is_short(value)
        }
        results = [_results(elements.humanize(key), value) for key, value in tables.items()]
        parts.append(
            elements.section(
                name, *results, elements.details("Machine, settings, versions", elements.facts(facts))
            )
        )
    created = ", ".join(
        sorted({str(document["created"])[:10] for document in documents.values() if "created" in document})
    )
    return elements.page(title, created, "".join(parts), scripts=[elements.script("tables.js")])


def _results(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One table where the results are flat, else one per result under a heading that identifies it."""
    if not any(_nested(row) for row in rows):
        return _table(title, rows)
    html = ""
    for row in rows:
        nested = _nested(row)
        labels = [
            f"{elements.humanize(key)} {format_value(value)}"
            for key, value in row.items()
            if isinstance(value, str | int)
        ]
        rest = {
            key: value
            for key, value in row.items()
            if key not in nested and not isinstance(value, str | int) and _is_short(value)
        }
        html += f"<h3>{escape(', '.join(labels) or title)}</h3>\n"
        html += "".join(_table(elements.humanize(key), _named(rows)) for key, rows in nested.items())
        html += elements.details("Details", elements.facts(_plain(rest))) if rest else ""
    return html


def _nested(row: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that hold rows: a list of mappings, or a mapping of mappings that are no spreads."""
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


def _named(rows: Any) -> list[dict[str, Any]]:
    return [{"name": name, **one} for name, one in rows.items()] if isinstance(rows, Mapping) else list(rows)


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields; a spread becomes its median and its range."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{prefix}{elements.humanize(key)}"
        if isinstance(value, Mapping) and value.keys() >= SPREAD:
            flat[name] = value["median"]
            flat[f"{name}, range"] = f"{format_value(value['min'])} – {format_value(value['max'])}"
        elif isinstance(value, Mapping) and key not in RAW:
            flat |= _flat(value, f"{name} ")
        elif _is_short(value) and key not in RAW:
            flat[name] = value
    return flat


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Table of rows under a title, with bars behind the first column that has a spread."""
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
