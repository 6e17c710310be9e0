"""What every page has in common: one HTML file that needs nothing else, its style, tables and figures."""

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
PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
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
<footer><p>mclst $version. This page is one file and asks the network for nothing.</p></footer>
</body>
</html>
"""
)


def page(title: str, subtitle: str, main: str, *, scripts: Sequence[str] = ()) -> bytes:
    """A whole page. title, subtitle: text; main: HTML; scripts: JavaScript, run in this order."""
    style = (BROWSER / "page.css").read_text(encoding="utf-8")
    told = f"<p>{escape(subtitle)}</p>" if subtitle else ""
    inline = "".join(f"<script>\n{_inert(script)}\n</script>\n" for script in scripts)
    return PAGE.substitute(
        title=escape(title), subtitle=told, main=main, style=style, scripts=inline, version=version("mclst")
    ).encode()


def script(name: str) -> str:
    """A script of the pages' own."""
    return (BROWSER / name).read_text(encoding="utf-8")


def data(name: str, content: str, kind: str = "text/plain") -> str:
    """Data inside the page, JSON or base64, for a script to find as the element `name`."""
    inert = content.replace("<", "\\u003c")
    return f'<script type="{kind}" id="{escape(name)}">{inert}</script>\n'


def _inert(script: str) -> str:
    """JavaScript that cannot close the element it stands in: both occur in strings alone, which stay the same."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def section(title: str, *parts: str) -> str:
    """A titled part of a page."""
    return f'<section class="text"><h2>{escape(title)}</h2>\n{"".join(parts)}</section>\n'


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>\n"


def table(
    rows: Iterable[Mapping[str, Any]], *, label: str, sortable: bool = False, bars: str | None = None
) -> str:
    """A table of rows with the same keys, its first row's; numbers are set flush right, None and NaN as a dash.

    bars: a column of numbers from 0 on, each with a bar behind it, the largest as long as its cell.
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
        share = 100 * row[name] / longest
        return f' style="background:linear-gradient(90deg,var(--bar) {share:.1f}%,transparent 0)"'

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
    """A picture with what it shows; kind: `png` or `svg`."""
    source = base64.b64encode(content).decode("ascii")
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return (
        f'<figure><img alt="{escape(caption)}" src="data:{mime};base64,{source}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def details(title: str, *parts: str) -> str:
    """A part that opens when it is asked for, and in print."""
    return f"<details><summary>{escape(title)}</summary>\n{''.join(parts)}</details>\n"


def facts(tree: Mapping[str, Any], title: str = "") -> str:
    """A nested mapping as lists of terms: what is no mapping first, then a heading for each that is one."""
    plain = {key: value for key, value in tree.items() if not isinstance(value, Mapping)}
    told = f"<h3>{escape(title)}</h3>" if title else ""
    if plain:
        terms = "".join(
            f"<dt>{escape(words(key))}</dt><dd>{escape(format_value(value))}</dd>"
            for key, value in plain.items()
        )
        told += f"<dl>{terms}</dl>\n"
    elif title and not tree:
        return ""
    nested = ((key, value) for key, value in tree.items() if isinstance(value, Mapping))
    return told + "".join(facts(value, words(key)) for key, value in nested)


def words(key: str) -> str:
    """A field's name as words."""
    return str(key).replace("_", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
