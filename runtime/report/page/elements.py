"""HTML shared by all pages: the self-contained skeleton, sections, tables, figures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from mclst.runtime.html_repr import format_value, is_missing

BROWSER = Path(__file__).resolve().parent / "browser"
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
PAGE = Template(
    f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="generator" content="mclst $version">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style</style>
$scripts</head>
<body>
<header><h1>$title</h1>$subtitle</header>
<main>
$main
</main>
<footer><p>mclst $version. This file is self-contained and makes no network requests.</p></footer>
</body>
</html>
"""
)


def page(title: str, subtitle: str, main: str, *, scripts: Sequence[str] = ()) -> bytes:
    """Render a page. title, subtitle: text; main: HTML; scripts: JavaScript, run in this order."""
    return PAGE.substitute(
        title=escape(title),
        subtitle=f"<p>{escape(subtitle)}</p>" if subtitle else "",
        main=main,
        style=script("page.css"),
        scripts="".join(f"<script>\n{_escape_script(code)}\n</script>\n" for code in scripts),
        version=version("mclst"),
    ).encode()


def script(name: str) -> str:
    """Read a file of the `browser` folder."""
    return (BROWSER / name).read_text(encoding="utf-8")


def data(name: str, content: str, kind: str = "text/plain") -> str:
    """Embed JSON or base64 as the element with id `name`."""
    inert = content.replace("<", "\\u003c")
    return f'<script type="{kind}" id="{escape(name)}">{inert}</script>\n'


def _escape_script(code: str) -> str:
    """Keep JavaScript from closing its element; these sequences occur only in strings, which stay equal."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def section(title: str, *parts: str) -> str:
    """Render a titled section."""
    return f'<section class="text"><h2>{escape(title)}</h2>\n{"".join(parts)}</section>\n'


def paragraph(text: str) -> str:
    """Render a paragraph of text."""
    return f"<p>{escape(text)}</p>\n"


def lead(text: str) -> str:
    """Render the sentence that a page begins with."""
    return f'<p class="lead">{escape(text)}</p>\n'


def notice(text: str, *, alarm: bool = False) -> str:
    """Render a paragraph that stands out; alarm: in red."""
    kind, role = ("notice alarm", "alert") if alarm else ("notice", "note")
    return f'<p class="{kind}" role="{role}">{escape(text)}</p>\n'


def table(
    rows: Iterable[Mapping[str, Any]], *, label: str, sortable: bool = False, bars: str | None = None
) -> str:
    """Render a table.

    Parameters
    ----------
    rows : iterable of mappings
        All with the keys of the first. Numbers are right-aligned; None and NaN are dashes.
    label : str
        Accessible name.
    sortable : bool
        Whether a click on a heading sorts; needs `tables.js`.
    bars : str, optional
        A column of numbers >= 0 drawn with bars.
    """
    rows = list(rows)
    names = list(rows[0]) if rows else []
    numeric = {
        name for name in names if all(_is_number(row.get(name)) or is_missing(row.get(name)) for row in rows)
    }
    longest = max((row[bars] for row in rows if bars in numeric and _is_number(row.get(bars))), default=0)

    def cell(tag: str, name: str, inner: str, style: str = "") -> str:
        return f"<{tag}{' class=number' if name in numeric else ''}{style}>{inner}</{tag}>"

    def bar(row: Mapping[str, Any], name: str) -> str:
        if name != bars or not longest or not _is_number(row.get(name)):
            return ""
        percent = 100 * row[name] / longest
        return f' style="background:linear-gradient(90deg,var(--bar) {percent:.1f}%,transparent 0)"'

    head = "".join(cell("th", name, escape(name)) for name in names)
    body = "".join(
        "<tr>"
        + "".join(cell("td", name, escape(format_value(row.get(name))), bar(row, name)) for name in names)
        + "</tr>\n"
        for row in rows
    )
    mark = " data-sortable" if sortable else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table{mark}>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def figure(content: bytes, caption: str, *, kind: str = "png") -> str:
    """Embed a figure with its caption; kind: `png` or `svg`."""
    source = base64.b64encode(content).decode("ascii")
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return (
        f'<figure><img alt="{escape(caption)}" src="data:{mime};base64,{source}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def details(title: str, *parts: str) -> str:
    """Render a collapsed part."""
    return f"<details><summary>{escape(title)}</summary>\n{''.join(parts)}</details>\n"


def facts(tree: Mapping[str, Any], title: str = "") -> str:
    """Render a nested mapping as description lists: plain values first, then a heading per nested mapping."""
    plain = {key: value for key, value in tree.items() if not isinstance(value, Mapping)}
    if title and not tree:
        return ""
    html = f"<h3>{escape(title)}</h3>" if title else ""
    if plain:
        terms = "".join(
            f"<dt>{escape(humanize(key))}</dt><dd>{escape(format_value(value))}</dd>"
            for key, value in plain.items()
        )
        html += f"<dl>{terms}</dl>\n"
    nested = ((key, value) for key, value in tree.items() if isinstance(value, Mapping))
    return html + "".join(facts(value, humanize(key)) for key, value in nested)


def humanize(key: str) -> str:
    """Turn a field name into words."""
    return str(key).replace("_", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
