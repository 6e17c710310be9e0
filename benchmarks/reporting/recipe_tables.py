"""Tables of docs/encoders.md: the recipes by family, and what `mclst-bench recipes` measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mclst.models.recipes import pathology
from mclst.models.recipes.find import RECIPES
from mclst.models.recipes.recipe import Recipe

HEAD = ("`--encoder`", "encoder", "input", "tissue", "normalization", "features", "parameters", "license")
MEASURED_HEAD = (
    *("encoder", "graph, MiB", "export, s", "export's peak, GiB", "run's peak, GiB"),
    *("largest difference", "tiles/s"),
)
ENGINE_HEAD = ("encoder", "precision", "graph, MiB", "engine, MiB", "build, s", "peak, GiB")
RESULT = "recipes-cpu.json"
NORMALIZATIONS = (
    ("ImageNet", pathology.IMAGENET),
    ("0.5 / 0.5", pathology.HALF),
    ("CLIP", pathology.CLIP),
    ("H-optimus", pathology.OPTIMUS),
    ("Hibou", pathology.HIBOU),
)


def recipe_table(folder: Path) -> str:
    """Markdown: a table per family, with the notes of its encoders; `folder` is not read."""
    parts = []
    for family in dict.fromkeys(recipe.family for recipe in RECIPES.values()):
        members = [recipe for recipe in RECIPES.values() if recipe.family == family]
        notes = [f"- {r.title}: {r.note}" for r in members if r.note]
        parts.append(f"### {family}\n\n{markdown_table(HEAD, [_row(recipe) for recipe in members])}")
        if notes:
            parts.append("\n".join(notes))
    return "\n\n".join(parts)


def measured_table(folder: Path) -> str:
    """Markdown: each encoder of the committed run of `mclst-bench recipes` in `folder`."""
    document = json.loads((folder / RESULT).read_text())
    rows = [
        (
            RECIPES[result["name"]].title,
            f"{result['graph_mib']:,}",
            f"{result['export_seconds']:.0f}",
            f"{result['export_peak_mib'] / 1024:.1f}",
            f"{result['run_peak_mib'] / 1024:.1f}",
            f"{result['relative_difference']:.1e}",
            f"{result['tiles_per_second']:.2f}",
        )
        for result in _by_size(document)
    ]
    batch = f"batches of {document['settings']['batch_size']}"
    return f"{batch.capitalize()}; {_machine(document)}:\n\n{markdown_table(MEASURED_HEAD, rows)}"


def engine_table(folder: Path) -> str:
    """Markdown: the engines of the same run."""
    document = json.loads((folder / RESULT).read_text())
    built = [(result, engine) for result in _by_size(document) for engine in result.get("engines", [])]
    rows = [
        (
            RECIPES[result["name"]].title,
            engine["precision"],
            f"{engine['graph_mib']:,}",
            f"{engine['engine_mib']:,}",
            f"{engine['seconds']:.0f}",
            f"{engine['peak_mib'] / 1024:.1f}",
        )
        for result, engine in built
    ]
    ((library, targets, batch),) = {(e["library"], tuple(e["targets"]), e["max_batch"]) for _, e in built}
    text = f"{library}, one engine for {' and '.join(targets)}, batches up to {batch}; {_machine(document)}"
    return f"{text}:\n\n{markdown_table(ENGINE_HEAD, rows)}"


def _by_size(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(document["results"], key=lambda result: result["parameters"])


def _machine(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    busy = {result.get("measured", document)["verdict"] for result in document["results"]} != {"quiet"}
    beside = "; other work ran beside it, and times include its turns" if busy else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_mib'] / 1024:.0f} GiB{beside} "
        f"(`benchmarks/results/{RESULT}`)"
    )


def _row(recipe: Recipe) -> tuple[str, ...]:
    resize = "" if recipe.resize_px == recipe.tile_px else f"{recipe.resize_px} → "
    normalization = next(
        (name for name, c in NORMALIZATIONS if (c["mean"], c["std"]) == (recipe.mean, recipe.std)), "own"
    )
    pooling = {"network": "", "cls": "class token", "mean": "mean", "cls+mean": "class token + mean"}
    terms = [recipe.license, *(["registration"] if recipe.gated else [])]
    return (
        f"`{recipe.name}`",
        f"[{recipe.title}](https://{recipe.source})" if "/" in recipe.source else recipe.title,
        f"{resize}{recipe.tile_px} px",
        "–" if recipe.fov_um is None else f"{recipe.fov_um:g} µm",
        normalization,
        f"{recipe.width}{f', {pooling[recipe.pooling]}' if pooling[recipe.pooling] else ''}",
        f"{recipe.parameters / 1e6:,.1f} M",
        f"{', '.join(terms)}{'' if recipe.redistributable else ' ✗'}",
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; short rows end with empty cells."""
    first, *rest = (f"| {' | '.join([*line, *[''] * (len(head) - len(line))])} |" for line in (head, *rows))
    return "\n".join((first, f"|{'---|' * len(head)}", *rest))
