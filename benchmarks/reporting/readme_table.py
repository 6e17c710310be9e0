"""The README's tables of speed, from the committed documents: `python -m mclst.benchmarks.reporting.readme_table` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mclst.benchmarks.contenders.slide_runs import PUBLISHED
from mclst.benchmarks.harness.measure import ratio
from mclst.runtime.atomic import write_whole

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = (
    "<!-- measured: by python -m mclst.benchmarks.reporting.readme_table -->",
    "<!-- end of measured -->",
)
NOT_MEASURED = "**not run yet**"
ON_CPU = "processor"
ON_GPU = "NVIDIA GPU (`make gpu-check`)"

_RUNS, _LATENCY, _CHECK = "mclst-bench-end-to-end/1", "mclst-bench-latency/1", "mclst-gpu-check/1"
_RUN_HEAD = ("slide to map", "tiles/s", "× published notebook", "encoder, of peak", "r to the first", "PCC")
_LATENCY_HEAD = ("encoder alone", "batch 1: p50, ms", "offline: tiles/s", "of roofline", "least cosine")


def documents(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file's name, document) of every end-to-end and latency run there, those inside a `make gpu-check` too."""
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        inside = [step["document"] for step in content["steps"]] if content.get("schema") == _CHECK else []
        for found in (content, *inside):
            if isinstance(found, dict) and found.get("schema") in (_RUNS, _LATENCY):
                yield path.name, found


def tables(folder: Path) -> str:
    """Markdown: a table for each document; where a kind of run, or a GPU, has none, a row says so."""
    found = list(documents(folder))
    parts = []
    for schema, head, rows_of in (
        (_RUNS, _RUN_HEAD, _of_runs),
        (_LATENCY, _LATENCY_HEAD, _of_latency),
    ):
        held = [(name, document) for name, document in found if document["schema"] == schema]
        gpu = any(_on_gpu(document) for _, document in held)
        for name, document in held:
            parts.append(f"{_taken_on(name, document)}\n\n{_table(head, rows_of(document))}")
        missing = [] if held else [(ON_CPU, NOT_MEASURED)]
        missing += [] if gpu else [(ON_GPU, NOT_MEASURED)]
        if missing and held:
            parts[-1] += _lines(missing, len(head))
        elif missing:
            parts.append(_table(head, missing))
    return "\n\n".join(parts)


def written(readme: str, folder: Path) -> str:
    """The README with what stands between its marks made anew; ValueError where the marks are not there once."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"the README needs one {BEGIN!r} and one {END!r}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables(folder)}\n\n{END}{rest.split(END)[1]}"


def _on_gpu(document: Mapping[str, Any]) -> bool:
    if document["schema"] == _LATENCY:
        return any(r["gpu"] and r["ours"] for of_batch in document["batches"] for r in of_batch["results"])
    return any(
        entry["ours"] and entry.get("provider") in ("tensorrt", "tensorrt-rtx", "cuda")
        for entry in document["result"]["contenders"]
    )


def _taken_on(name: str, document: Mapping[str, Any]) -> str:
    where = document["machine"]
    what = (
        f"{document['result']['tiles']:,} tiles of {document['slide']['name']}"
        if document["schema"] == _RUNS
        else f"tiles {document['settings']['tiles']}"
    )
    gpu = f", {where['gpu']}" if _on_gpu(document) else ""
    return (
        f"{document['bundle']['encoder']}, {what}; {where['cpu']}, {document['settings']['threads']} threads{gpu}, "
        f"{document['verdict']} at the start (`benchmarks/results/{name}`):"
    )


def _of_runs(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    entries = document["result"]["contenders"]
    published = next((e["samples"]["wall_s"] for e in entries if e["name"] == PUBLISHED), None)
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        rate, worth = entry["tiles_per_s"], entry.get("against_truth")
        rows.append(
            (
                entry["name"],
                f"{rate['median']:.1f} ({rate['median_low95']:.1f} – {rate['median_high95']:.1f})",
                _cell(None if published is None else ratio(published, entry["samples"]["wall_s"]), ".2f"),
                _cell(entry.get("encoder_of_peak"), ".0%"),
                _cell(entry["equal_to_first"]["pearson"], ".5f"),
                _cell(None if worth is None else worth["pcc_acg"], ".4f"),
            )
        )
    return rows


def _of_latency(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    offline = {r["name"]: r for r in (document["offline"] or {"results": []})["results"]}
    near = document["agreement"]["contenders"]
    names = dict.fromkeys(r["name"] for of_batch in document["batches"] for r in of_batch["results"])
    rows: list[tuple[str, ...]] = []
    for name in names:
        by_batch = {
            of_batch["batch"]: r
            for of_batch in document["batches"]
            for r in of_batch["results"]
            if r["name"] == name
        }
        alone, all_at_once = by_batch.get(1), offline.get(name)
        best = None if all_at_once is None else by_batch.get(all_at_once["batch"])
        rows.append(
            (
                name,
                _cell(None if alone is None else 1e3 * alone["latency_s"]["percentiles"]["p50"]["s"], ".1f"),
                _cell(None if all_at_once is None else all_at_once["tiles_per_s"]["median"], ".1f"),
                _cell(None if best is None else best["of_roofline"], ".0%"),
                _cell(near[name]["cosine_min"] if name in near else None, ".5f"),
            )
        )
    return rows


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("%", " %")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"| {' | '.join(head)} |\n|{'---|' * len(head)}{_lines(rows, len(head))}"


def _lines(rows: Sequence[Sequence[str]], width: int) -> str:
    return "".join(f"\n| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in rows)


def main() -> None:
    """Write the README's tables."""
    path = ROOT / "README.md"
    write_whole(path, written(path.read_text(), ROOT / "benchmarks" / "results").encode())


if __name__ == "__main__":
    main()
