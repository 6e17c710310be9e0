"""`README.md` of a bundle: a model card of the Hugging Face hub, with its YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from mclst.runtime.bundle.about import About
from mclst.runtime.sharing.facts import UNKNOWN, Facts, describe_license, expression_unit
from mclst.runtime.sharing.licenses import hub_identifier

GENES_SHOWN = 2_000
PLAIN = re.compile(r"[a-z][a-z0-9.-]*[a-z0-9]", re.IGNORECASE)
RESERVED = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
"""Words that YAML reads as something else than text."""
OUT_OF_SCOPE = (
    "Diagnosis and treatment: nothing here was validated for patients. Tissue, stains, scanners and scales "
    "other than those of the training data."
)


def card(facts: Facts, location: str) -> str:
    """Write a model card.

    Parameters
    ----------
    facts : Facts
    location : str
        Where readers get the bundle, for the command to run it: a folder or hf://org/name.

    Returns
    -------
    str
        Markdown behind a YAML header. What is not known says "not stated".
    """
    return f"---\n{yaml_text(_metadata(facts))}---\n\n" + "\n".join(_body(facts, location)) + "\n"


def _metadata(facts: Facts) -> dict[str, Any]:
    """The header, in the order of the hub's documentation."""
    about, m = facts.about, facts.bundle.manifest
    header: dict[str, Any] = {**_license(about), "library_name": "mclst"}
    header["pipeline_tag"] = "image-feature-extraction"
    header["tags"] = ["histology", "spatial-transcriptomics", "gene-expression", "onnx", m.system]
    base, data = about.base_model, about.training_data
    if base is not None and base.hub:
        header["base_model"], header["base_model_relation"] = base.hub, base.relation
    source = "" if data is None else (data.source or "")
    if source.startswith("hf://datasets/"):
        header["datasets"] = [source.removeprefix("hf://datasets/")]
    result = about.evaluation
    if result is None or not result.metrics:
        return header
    ids = [metric.id or metric.name for metric in result.metrics]
    header["metrics"] = sorted({metric.id for metric in result.metrics if metric.id})
    header["model-index"] = [
        {
            "name": facts.title,
            "results": [
                {
                    "task": {"type": "image-feature-extraction"},
                    "dataset": {"type": source or "unpublished", "name": result.protocol},
                    "metrics": [
                        {"type": kind, "name": metric.name, "value": metric.value}
                        for kind, metric in zip(ids, result.metrics, strict=True)
                    ],
                }
            ],
        }
    ]
    if not header["metrics"]:
        del header["metrics"]
    return header


def _license(about: About) -> dict[str, str]:
    terms = about.license
    if terms is None:
        return {}
    known = hub_identifier(terms)
    if known is not None:
        return {"license": known}
    header = {"license": "other", "license_name": terms.name}
    return {**header, "license_link": terms.url} if terms.url else header


def yaml_text(content: dict[str, Any], indent: str = "") -> str:
    """Write block YAML; texts that are no plain words are quoted as in JSON, which YAML includes."""
    lines = []
    for key, value in content.items():
        if value == [] or value == {}:
            lines.append(f"{indent}{key}: {'[]' if value == [] else '{}'}\n")
        elif isinstance(value, list):
            lines.append(f"{indent}{key}:\n")
            for item in value:
                inner = f"{indent}  "
                text = yaml_text(item, inner) if isinstance(item, dict) else f"{inner}{_scalar(item)}\n"
                lines.append(f"{indent}- {text[len(inner) :]}")
        elif isinstance(value, dict):
            lines.append(f"{indent}{key}:\n{yaml_text(value, f'{indent}  ')}")
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: str | float) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in RESERVED:
        return value
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        # YAML 1.1 takes 5e-05 for text, and 5.0e-05 for a number.
        return text if "." in text else text.replace("e", ".0e")
    # JSON writes what is beyond 16 bits as two escapes, YAML as one.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _body(facts: Facts, location: str) -> Iterator[str]:
    about, m = facts.about, facts.bundle.manifest
    values = dict(facts.rows)
    yield f"# {_text(facts.title)}"
    yield ""
    yield (
        "Predicts gene expression from H&E-stained tissue. A bundle of mclst: ONNX graphs with the "
        "preprocessing inside, hashed, and proved against the checkpoint. A prediction is not a measurement."
    )
    yield ""
    yield "| | |\n|---|---|"
    for name, value in facts.rows:
        yield f"| {name} | {_text(value)} |"
    yield "\n## Run it\n"
    yield f"```\n{_command(facts, location)}\n```\n"
    yield (
        "Needs mclst with the extra `cpu`, and `hub` for a location that begins with `hf://`. The map, "
        "`slide.h5ad`, opens in scanpy; `slide.html` beside it opens in a browser."
    )
    yield "\n## Intended use\n"
    yield _text(about.intended_use or UNKNOWN)
    yield "\n## Out of scope\n"
    yield _text(about.out_of_scope or OUT_OF_SCOPE)
    yield "\n## How good it is\n"
    yield f"- Evaluation: {_text(values['evaluated'])}"
    if about.evaluation is not None and about.evaluation.url:
        yield f"- Full result: {_text(about.evaluation.url)}"
    yield f"- Export against checkpoint: {_text(values['parity'])}"
    yield f"- Calibration: {_text(values['calibration'])}"
    yield "\n## Training data\n"
    yield from _training(about)
    yield "\n## Genes\n"
    yield f"{m.genes} genes; unit of the expression: {_text(expression_unit(facts.bundle, about))}."
    yield "\n<details><summary>All genes</summary>\n"
    genes = facts.bundle.genes
    yield _text(", ".join(genes[:GENES_SHOWN]) + (", …" if len(genes) > GENES_SHOWN else ""))
    yield "\n</details>"
    yield "\n## License and citation\n"
    yield f"- License: {_text(describe_license(about.license))}"
    yield f"- Base model: {_text(values['base model'])}"
    for citation in about.citation or (UNKNOWN,):
        yield f"- Cite: {_text(citation)}"
    yield "\n## Check it\n"
    yield f"```\nmclst-bundle verify {location}\n```\n"
    yield f"SHA-256 of `manifest.json`, which holds those of all files: `{facts.bundle.sha256}`"


def _training(about: About) -> Iterator[str]:
    data = about.training_data
    for field in (
        "source",
        "species",
        "organ",
        "platform",
        "stain",
        "scanner",
        "mpp",
        "sections",
        "patients",
    ):
        value = None if data is None else getattr(data, field)
        name = "µm/px" if field == "mpp" else field
        yield f"- {name}: {UNKNOWN if value is None else _text(str(value))}"


def _command(facts: Facts, location: str) -> str:
    spots = "--grid 100" if facts.bundle.manifest.tile.mpp else "--spots spots.csv"
    return f"mclst-infer slide.svs {spots} --bundle {location}"


def _text(text: str) -> str:
    """One line of Markdown that shows `text` and is nothing else: no HTML, links, tables or emphasis."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|":
        line = line.replace(mark, f"\\{mark}")
    return line
