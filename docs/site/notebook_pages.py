"""Hooks of mkdocs: each notebook is a page of the site, its code in blocks, without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def page_of(notebook: dict[str, Any]) -> str:
    """Markdown of a notebook."""
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    return "\n\n".join(
        f"```python\n{text}\n```" if kind == "code" else text for kind, text in zip(kinds, cells, strict=True)
    )


def on_files(files: Files, config: Any) -> Files:
    """Add a page beside each notebook, which stays to be downloaded."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            name = Path(file.src_uri).name
            page = page_of(json.loads(file.content_string))
            page += f"\n\n[Download this notebook]({name}){{ download={name} }}\n"
            files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=page))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links between pages to the notebook's page; only its own download leads to the file."""
    return markdown.replace(".ipynb)\n", ".md)\n").replace(".ipynb),", ".md),").replace(".ipynb).", ".md).")
