"""What an export says of a bundle: `--metadata`, `--license`, and what a fitted checkpoint brings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from mclst.runtime.atomic import write_atomically
from mclst.runtime.bundle.about import About, License
from mclst.runtime.bundle.bundle import GENE_TABLE
from mclst.runtime.errors import InputError, ResourceError

MAX_BYTES = 1 << 20
GENE_IDS = "gene_ids"
HUB_PAGE = "huggingface.co/"
SCORES = {
    "pcc_acg": ("mean Pearson r per gene (ACG)", "pearsonr"),
    "pcc_heg": ("mean Pearson r of the 50 highest genes (HEG)", "pearsonr"),
    "mse": ("MSE", "mse"),
}
"""Name and id at the hub of each score of a fit."""
MOST_LISTED = 8
"""Names of sections in a sentence."""


class Metadata:
    """`About` of a bundle, and Ensembl ids by gene name."""

    def __init__(self, about: About, gene_ids: Mapping[str, str]) -> None:
        self.about, self.gene_ids = about, gene_ids


def read_metadata(path: Path | None, license_name: str | None) -> Metadata:
    """Read a YAML file with the fields of `About`, and `gene_ids`: Ensembl ids by gene name.

    Parameters
    ----------
    path : Path, optional
    license_name : str, optional
        Replaces the file's license.

    Returns
    -------
    Metadata

    Raises
    ------
    InputError
        If the file cannot be read or a field is unknown or wrong; names it.
    ResourceError
        If PyYAML is not installed.
    """
    content = {} if path is None else _read(path)
    gene_ids = content.pop(GENE_IDS, {})
    if not isinstance(gene_ids, dict) or not all(
        isinstance(gene, str) and isinstance(name, str) and re.fullmatch(r"[\w.-]{1,60}", name)
        for gene, name in gene_ids.items()
    ):
        raise InputError(f"{path}: {GENE_IDS} is no mapping of gene names to Ensembl ids; correct it")
    for holder in (content, content.get("base_model")):
        if isinstance(holder, dict) and isinstance(holder.get("license"), str):
            holder["license"] = {"name": holder["license"]}
    if isinstance(content.get("citation"), str):
        content["citation"] = [content["citation"]]
    if license_name is not None:
        content["license"] = {"name": license_name}
    try:
        return Metadata(About.model_validate_json(json.dumps(content, default=str)), gene_ids)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(key) for key in first["loc"])
        raise InputError(
            f"{path or '--license'}: {field}: {first['msg'].lower()}; docs/sharing.md lists the fields"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ResourceError(f"--metadata needs PyYAML ({error}); install mclst[export]") from error
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(
                f"{path} is larger than {MAX_BYTES >> 20} MiB and no metadata; give another file"
            )
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as YAML ({reason}); correct it") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path} is no mapping of fields to values; docs/sharing.md lists the fields")
    return content


def complete_about(about: About, checkpoint_metadata: Mapping[str, Any], sections: Sequence[str]) -> About:
    """Add what the checkpoint and the bank say, where the metadata say nothing.

    Parameters
    ----------
    about : About
    checkpoint_metadata : mapping
        Of a checkpoint; `fit` of a fitted one holds its recipe and weights.
    sections : sequence of str
        Names of the sections that the bank or the training has; empty if unknown.
    """
    content = about.model_dump(mode="json", exclude_none=True)
    fit = checkpoint_metadata.get("fit")
    if isinstance(fit, Mapping) and isinstance(fit.get("recipe"), Mapping):
        recipe = fit["recipe"]
        base = {**_base_of_recipe(recipe, fit.get("weights")), **content.get("base_model", {})}
        of_fit = {"recipe": str(recipe["name"]), "head": _head_of(fit), "evaluation": _evaluation_of(fit)}
        known = {name: value for name, value in of_fit.items() if value is not None}
        content = {**known, **content, "base_model": base}
        sections = sections or list(fit.get("sections", ()))
    if sections:
        content["training_data"] = {"sections": len(sections), **content.get("training_data", {})}
    return About.model_validate_json(json.dumps(content))


def _head_of(fit: Mapping[str, Any]) -> dict[str, str] | None:
    """Name and settings of a fitted head, in words."""
    if not fit.get("head"):
        return None
    alpha = fit.get("alpha")
    alphas = [] if alpha is None else [float(value) for value in np.atleast_1d(alpha)]
    bounds = dict.fromkeys(f"{value:.3g}" for value in (min(alphas), max(alphas))) if alphas else ()
    settings = [f"α {' to '.join(bounds)}"] if bounds else []
    if fit.get("weighting") == "similarity":
        settings.append("all spots by similarity")
    elif fit.get("k") is not None:
        settings.append(f"k {fit['k']}")
    views = [float(view) for view in fit.get("views", ())]
    if views not in ([], [1.0]):
        settings.append(f"views {', '.join(f'{view:g}' for view in views)}")
    if fit.get("context_um") is not None:
        settings.append(f"context {float(fit['context_um']):g} µm")
    head = {"name": str(fit["head"])}
    return {**head, "settings": ", ".join(settings)} if settings else head


def _evaluation_of(fit: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a fit's held-out predictions are worth: means over the sections."""
    scores = {name: item for name, item in fit.get("scores", {}).items() if isinstance(item, Mapping)}
    metrics = []
    for field, (name, kind) in SCORES.items():
        values = [float(item[field]) for item in scores.values() if item.get(field) is not None]
        if values:
            metrics.append({"name": name, "value": round(sum(values) / len(values), 6), "id": kind})
    if not metrics:
        return None
    listed = ", ".join(list(scores)[:MOST_LISTED]) + (", …" if len(scores) > MOST_LISTED else "")
    return {
        "protocol": f"mean over the fit's sections {listed}, {fit['folds']}; settings of the head that were "
        "not given were chosen by the same predictions",
        "metrics": metrics,
    }


def _base_of_recipe(recipe: Mapping[str, Any], weights: object) -> dict[str, Any]:
    base: dict[str, Any] = {"name": str(recipe.get("title") or recipe["name"]), "relation": "adapter"}
    source = str(recipe.get("source", ""))
    if source.startswith(HUB_PAGE) and source.count("/") == 2:
        base["hub"] = source.removeprefix(HUB_PAGE)
    if recipe.get("license"):
        base["license"] = {"name": str(recipe["license"])}
    base["redistributable"] = bool(recipe.get("redistributable", False))
    if isinstance(weights, Mapping) and weights.get("sha256"):
        base["sha256"] = str(weights["sha256"])
    return base


def write_gene_table(folder: Path, genes: Sequence[str], gene_ids: Mapping[str, str]) -> None:
    """Write genes.tsv, `gene` and `ensembl_id` in the order of the expression, if any id is known.

    Raises InputError if an id is of a gene that the bundle does not predict.
    """
    unknown = sorted(set(gene_ids) - set(genes))
    if unknown:
        raise InputError(
            f"--metadata: {GENE_IDS} names {unknown[0]}, which is no gene of the checkpoint; correct it"
        )
    if gene_ids:
        lines = ["gene\tensembl_id", *(f"{gene}\t{gene_ids.get(gene, '')}" for gene in genes)]
        write_atomically(folder / GENE_TABLE, ("\n".join(lines) + "\n").encode())


def essentials(about: About, fields: Mapping[str, Any], genes: Sequence[str]) -> dict[str, str]:
    """What an ONNX file says alone: `metadata_props` of each graph.

    Parameters
    ----------
    about : About
    fields : mapping
        Of the manifest: kind, system, tile, normalization.
    genes : sequence of str
    """
    props = {
        "mclst.kind": str(fields["kind"]),
        "mclst.system": str(fields["system"]),
        "mclst.encoder": str(fields["encoder"]["name"]),
        "mclst.tile_px": str(fields["tile"]["size_px"]),
        "mclst.mpp": str(fields["tile"]["mpp"] or "not stated"),
        "mclst.expression": str(fields["normalization"]["expression"]),
        "mclst.genes": str(len(genes)),
        "mclst.genes_sha256": hashlib.sha256("\n".join(genes).encode()).hexdigest(),
        "mclst.checkpoint_sha256": str(fields["checkpoint"]["sha256"]),
        "mclst.license": _name(about.license),
    }
    if about.base_model is not None:
        props["mclst.base_model"] = about.base_model.hub or about.base_model.name
        props["mclst.base_model_license"] = _name(about.base_model.license)
    return props


def _name(terms: License | None) -> str:
    return "not stated" if terms is None else terms.name
