"""Write what README and docs/ say of committed result documents and of the code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mclst.benchmarks.contenders.slide_runs import PUBLISHED
from mclst.benchmarks.harness.measure import paired_ratio
from mclst.benchmarks.reporting.accuracy_tables import heads_table
from mclst.benchmarks.reporting.recipe_tables import (
    engine_table,
    markdown_table,
    measured_table,
    recipe_table,
)
from mclst.benchmarks.reporting.trust_tables import (
    abstention_table,
    changed_scores_table,
    changed_trust_table,
    fifths_table,
    heads_trust_table,
    intervals_table,
    p_values_table,
    structure_table,
)
from mclst.runtime.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "by python -m mclst.benchmarks.reporting.readme_table"
END = "<!-- end of measured -->"
NOT_MEASURED = "[not run](architecture.md#what-has-not-run-on-hardware)"
ON_CPU = "processor"
ON_GPU = "NVIDIA GPU (`make gpu-check`)"

_RUNS, _LATENCY, _CHECK = "mclst-bench-end-to-end/1", "mclst-bench-latency/1", "mclst-gpu-check/1"
_WHOLE = "mclst-bench-command/1"
_RUN_HEAD = ("slide to map", "tiles/s", "× published notebook", "encoder, of peak", "r to the first", "PCC")
_WHOLE_HEAD = (
    "whole process",
    "s, page cache warm",
    "s, cold",
    "less encoding, s",
    "× published notebook",
    "r to the first",
    "PCC",
)
_LATENCY_HEAD = ("encoder alone", "batch 1: p50, ms", "offline: tiles/s", "of roofline", "least cosine")


def documents(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file name, document) of the runs in `folder` that have a table, those of `make gpu-check` included."""
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        nested = [step["document"] for step in content["steps"]] if content.get("schema") == _CHECK else []
        for document in (content, *nested):
            if isinstance(document, dict) and document.get("schema") in (_RUNS, _WHOLE, _LATENCY):
                yield path.name, document


def tables(folder: Path) -> str:
    """Markdown table of each document, with a row for each kind of run that is missing."""
    loaded = list(documents(folder))
    parts = []
    for schema, head, rows_of in (
        (_RUNS, _RUN_HEAD, _run_rows),
        (_WHOLE, _WHOLE_HEAD, _whole_rows),
        (_LATENCY, _LATENCY_HEAD, _latency_rows),
    ):
        chosen = [(name, document) for name, document in loaded if document["schema"] == schema]
        gpu = any(_on_gpu(document) for _, document in chosen)
        shown = [(f"{_caption(name, document)}\n\n", rows_of(document)) for name, document in chosen]
        if schema != _WHOLE:  # of a processor, where it was run
            missing = [] if chosen else [(ON_CPU, NOT_MEASURED)]
            missing += [] if gpu else [(ON_GPU, NOT_MEASURED)]
            shown = shown or [("", [])]
            shown[-1][1].extend(missing)
        parts += [caption + markdown_table(head, rows) for caption, rows in shown if rows]
    return "\n\n".join(parts)


def whole_speed(folder: Path) -> str:
    """Sentences on the whole command of section C4's committed run, beside plain scripts."""
    document, entries = _whole_run(folder)
    auto = entries["mclst auto"]
    scripts = []
    for precision in dict.fromkeys((auto["chosen"].split()[-1], "fp32")):
        plain = [e for name, e in entries.items() if name.startswith("plain") and name.endswith(precision)]
        if plain:
            best = min(plain, key=lambda entry: entry["wall_s"]["median"])
            scripts.append(f"{_seconds(best)} in {precision}")
    return (
        f"Section C4, from the start of the process to map, picture and page: {_seconds(auto)} on "
        f"{document['settings']['threads']} cores of an {_processor(document)}. "
        f"Measuring chose {auto['chosen']}. In fp32: {_seconds(entries['mclst fp32'])}. "
        f"A plain script that saves an array: {', '.join(scripts)}."
    )


def short_speed(folder: Path) -> str:
    """A sentence on the whole command of section C4's committed run, beside the published notebook."""
    _, entries = _whole_run(folder)
    published = entries[PUBLISHED]["samples"]["wall_s"]
    auto, fp32 = (
        f"{paired_ratio(published, entries[name]['samples']['wall_s']):.1f}"
        for name in ("mclst auto", "mclst fp32")
    )
    return (
        f"**Speed.** {auto} times the published notebook, {fp32} times in fp32, whole commands on two "
        "Xeon cores ([docs/performance.md](docs/performance.md))."
    )


def _whole_run(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    document = json.loads((folder / "command-c4-cpu.json").read_text())
    return document, {entry["name"]: entry for entry in document["results"]["warm"]["contenders"]}


def _seconds(entry: Mapping[str, Any]) -> str:
    return f"{entry['wall_s']['median']:.1f} s"


def _processor(document: Mapping[str, Any]) -> str:
    name = re.sub(r"\((R|TM)\)| Processor| CPU.*", "", document["machine"]["cpu"])
    lanes = document["machine"].get("lanes")
    return f"{name} with {lanes}" if lanes else name


def notebook_ratios(folder: Path) -> str:
    """Markdown: the published notebook's time over each contender's, of section C4's committed run."""
    document = json.loads((folder / "end-to-end-c4-cpu.json").read_text())
    notebook = _notebook_samples(document)
    rows = [
        (entry["name"], *(f"{paired_ratio(notebook[key], entry['samples'][key]):.2f}" for key in notebook))
        for entry in document["result"]["contenders"]
        if entry["name"] != PUBLISHED
    ]
    return markdown_table(
        ("× published notebook", "whole run, wall", "CPU", "first tile to last expression"), rows
    )


def batch_ratios(folder: Path) -> str:
    """Markdown: latency over the first contender's, by batch size, of section C4's committed run."""
    document = json.loads((folder / "latency-c4-cpu.json").read_text())
    ratios = {
        (result["name"], of_batch["batch"]): result["latency_to_first"]
        for of_batch in document["batches"]
        for result in of_batch["results"]
    }
    batches = [of_batch["batch"] for of_batch in document["batches"]]
    rows = [
        (name, *(_cell(ratios.get((name, batch)), ".2f") for batch in batches))
        for name in dict.fromkeys(name for name, _ in ratios)
    ]
    head = (f"latency, × {document['batches'][0]['first']}", *(f"batch {batch}" for batch in batches))
    return markdown_table(head, rows)


BLOCKS: dict[str, dict[str, Callable[[Path], str]]] = {
    "README.md": {"measured speed": short_speed},
    "docs/performance.md": {"measured speed": whole_speed, "measured": tables},
    "docs/benchmarks/end-to-end.md": {"measured against the notebook": notebook_ratios},
    "docs/benchmarks/latency.md": {"measured by batch": batch_ratios},
    "docs/encoders.md": {"recipes": recipe_table, "measured encoders": measured_table},
    "docs/engines.md": {"measured engines": engine_table},
    "docs/evaluation.md": {"measured intervals": intervals_table, "measured p-values": p_values_table},
    "docs/reproduction.md": {
        "measured heads": heads_table,
        "measured structure": structure_table,
        "measured robustness": changed_scores_table,
    },
    "docs/trust.md": {
        "measured trust": heads_trust_table,
        "measured abstention": abstention_table,
        "measured fifths": fifths_table,
        "measured changes": changed_trust_table,
    },
}
"""Generated blocks by file: the name in the opening mark, and the function that makes the block."""


def update(text: str, blocks: Mapping[str, str]) -> str:
    """Replace the text between each block's marks; ValueError where a block's marks do not occur once."""
    for name, block in blocks.items():
        begin = f"<!-- {name}: {COMMAND} -->"
        before, *rest = text.split(begin)
        if len(rest) != 1 or END not in rest[0]:
            raise ValueError(f"the text needs {begin!r} once, and {END!r} after it")
        text = f"{before}{begin}\n\n{block}\n\n{END}{rest[0].split(END, 1)[1]}"
    return text


def _notebook_samples(document: Mapping[str, Any]) -> dict[str, list[float]]:
    entries = document["result"]["contenders"]
    return next((entry["samples"] for entry in entries if entry["name"] == PUBLISHED), {})


def _on_gpu(document: Mapping[str, Any]) -> bool:
    if document["schema"] == _LATENCY:
        return any(r["gpu"] and r["ours"] for of_batch in document["batches"] for r in of_batch["results"])
    if document["schema"] == _WHOLE:
        ran = [entry["chosen"].partition(" ")[0] for entry in document["results"]["warm"]["contenders"]]
    else:
        ran = [entry.get("provider") for entry in document["result"]["contenders"] if entry["ours"]]
    return any(provider in ("tensorrt", "tensorrt-rtx", "cuda") for provider in ran)


def _caption(name: str, document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    if document["schema"] == _LATENCY:
        tiles = f"tiles {document['settings']['tiles']}"
    else:
        result = document["result"] if document["schema"] == _RUNS else document["results"]["warm"]
        tiles = f"{result['tiles']:,} tiles of {document['slide']['name']}"
    gpu = f", {machine['gpu']}" if _on_gpu(document) else ""
    return (
        f"{document['bundle']['encoder']}, {tiles}; {machine['cpu']}, "
        f"{document['settings']['threads']} threads{gpu}, "
        f"{document['verdict']} at the start (`benchmarks/results/{name}`):"
    )


def _run_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    entries = document["result"]["contenders"]
    published = _notebook_samples(document).get("wall_s")
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        rate, accuracy = entry["tiles_per_s"], entry.get("against_truth")
        rows.append(
            (
                entry["name"],
                f"{rate['median']:.1f} ({rate['median_low95']:.1f} – {rate['median_high95']:.1f})",
                _cell(
                    None if published is None else paired_ratio(published, entry["samples"]["wall_s"]), ".2f"
                ),
                _cell(entry.get("encoder_of_peak"), ".0%"),
                _cell(entry["equal_to_first"]["pearson"], ".5f"),
                _cell(None if accuracy is None else accuracy["pcc_acg"], ".4f"),
            )
        )
    return rows


def _whole_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    results = document["results"]
    warm, cold = results["warm"], results.get("cold", {"contenders": []})
    in_cold = {entry["name"]: entry["wall_s"]["median"] for entry in cold["contenders"]}
    published = [e["samples"]["wall_s"] for e in warm["contenders"] if e["name"] == PUBLISHED]
    rows: list[tuple[str, ...]] = []
    for entry in warm["contenders"]:
        accuracy = entry.get("against_truth")
        chosen = f" ({entry['chosen']})" if entry["chosen"] else ""
        times = paired_ratio(published[0], entry["samples"]["wall_s"]) if published else None
        rows.append(
            (
                f"{entry['name']}{chosen}",
                f"{entry['wall_s']['median']:.2f}",
                _cell(in_cold.get(entry["name"]), ".2f"),
                f"{entry['overhead_s']['median']:.2f}",
                _cell(times, ".2f"),
                _cell(entry["equal_to_first"]["pearson"], ".5f"),
                _cell(None if accuracy is None else accuracy["pcc_acg"], ".4f"),
            )
        )
    return rows


def _latency_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    offline = {r["name"]: r for r in (document["offline"] or {"results": []})["results"]}
    agreement = document["agreement"]["contenders"]
    names = dict.fromkeys(r["name"] for of_batch in document["batches"] for r in of_batch["results"])
    rows: list[tuple[str, ...]] = []
    for name in names:
        by_batch = {
            of_batch["batch"]: r
            for of_batch in document["batches"]
            for r in of_batch["results"]
            if r["name"] == name
        }
        single, best_rate = by_batch.get(1), offline.get(name)
        best = None if best_rate is None else by_batch.get(best_rate["batch"])
        rows.append(
            (
                name,
                _cell(
                    None if single is None else 1e3 * single["latency_s"]["percentiles"]["p50"]["s"], ".1f"
                ),
                _cell(None if best_rate is None else best_rate["tiles_per_s"]["median"], ".1f"),
                _cell(None if best is None else best["of_roofline"], ".0%"),
                _cell(agreement[name]["cosine_min"] if name in agreement else None, ".5f"),
            )
        )
    return rows


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("%", " %")


def main() -> None:
    """Update the files of BLOCKS."""
    for file, blocks in BLOCKS.items():
        path = ROOT / file
        made = {name: make(ROOT / "benchmarks" / "results") for name, make in blocks.items()}
        write_atomically(path, update(path.read_text(), made).encode())


if __name__ == "__main__":
    main()
