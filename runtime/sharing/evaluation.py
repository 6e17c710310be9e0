"""Record in a bundle what mclst-eval measured of its maps, which is known only once the bundle is there."""

from __future__ import annotations

import json
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mclst.runtime.atomic import write_atomically
from mclst.runtime.bundle.about import About, Evaluation, Metric
from mclst.runtime.bundle.bundle import MANIFEST, Bundle, open_bundle
from mclst.runtime.errors import BundleError, InputError
from mclst.runtime.sharing.verify import SIGNATURE, check_not_cached

MAX_BYTES = 64 << 20
SECTIONS_NAMED = 40
"""More are counted: an evaluation is one line of a card."""
METRICS = {
    "pcc_acg": ("mean Pearson r per gene (ACG)", "pearsonr"),
    "pcc_heg": ("mean Pearson r of the 50 highest genes (HEG)", "pearsonr"),
    "mse": ("MSE", "mse"),
    "mae": ("MAE", "mae"),
}
"""Name and the hub's id of each measure, by its name in the JSON of mclst-eval."""


def add_evaluation(bundle: Bundle, result: Path, method: str | None = None, url: str | None = None) -> Bundle:
    """Write the scores of held-out sections into a bundle's manifest, in place of an earlier evaluation.

    Parameters
    ----------
    bundle : Bundle
        Opened, of a folder that is not signed.
    result : Path
        JSON of mclst-eval.
    method : str, optional
        Of several methods that it compares.
    url : str, optional
        Where others find the result.

    Returns
    -------
    Bundle
        Opened again; only its manifest has changed.

    Raises
    ------
    BundleError
        If the bundle is signed, or in the hub's cache.
    InputError
        If the file is no result of mclst-eval, or of a section that the bank holds or the training saw.
    """
    check_not_cached(bundle)
    if (bundle.path / SIGNATURE).exists():
        raise BundleError(
            f"{bundle.path} is signed as it is; remove {SIGNATURE}, add the evaluation, and sign it again"
        )
    content = _read(result)
    scores, sections, spots = _scores(content, result, method)
    in_bank = sorted(set(sections) & {section.name for section in bundle.manifest.bank})
    if in_bank:
        raise InputError(
            f"{result} evaluates section {in_bank[0]}, which the bank of {bundle.path} holds; evaluate "
            "sections that it does not hold"
        )
    trained_on = sorted(set(sections) & set(bundle.manifest.trained_on))
    if trained_on:
        raise InputError(
            f"{result} evaluates section {trained_on[0]}, which {bundle.path} was trained on; evaluate others"
        )
    about = bundle.manifest.about or About()
    try:
        evaluation = Evaluation(
            protocol=_protocol(bundle, sections, spots),
            metrics=tuple(
                Metric(name=name, value=scores[key], id=hub_id)
                for key, (name, hub_id) in METRICS.items()
                if key in scores
            ),
            url=url,
            sha256=sha256(result.read_bytes()).hexdigest(),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{result} cannot be recorded: {first['loc'][0]}: {first['msg'].lower()}; correct it"
        ) from error
    about = about.model_copy(update={"evaluation": evaluation})
    manifest = bundle.manifest.model_copy(update={"about": about})
    write_atomically(bundle.path / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
    return open_bundle(bundle.path)


def _protocol(bundle: Bundle, sections: list[str], spots: int) -> str:
    names = f"section{'' if len(sections) == 1 else 's'} {', '.join(sections)}"
    if len(sections) > SECTIONS_NAMED:
        names = f"{len(sections):,} sections"
    held_out = "" if bundle.manifest.retrieval is None else ", not in the bank"
    return f"{names} ({spots:,} spots){held_out}; by mclst-eval"


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004 - caught below
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); give the --json of mclst-eval") from error
    return content


def _scores(
    content: dict[str, Any], path: Path, method: str | None
) -> tuple[dict[str, float], list[str], int]:
    """Mean scores of a method, its sections, and the number of spots that were compared."""
    methods = content.get("methods")
    if not isinstance(methods, dict) or not methods:
        raise InputError(f"{path} is no result of mclst-eval; give its --json")
    if method is None and len(methods) > 1:
        raise InputError(f"{path} compares {', '.join(methods)}; name one with --method")
    if method is not None and method not in methods:
        raise InputError(f"{path} has no method {method!r}, but {', '.join(methods)}; name one of these")
    chosen = methods[method or next(iter(methods))]
    try:
        mean, sections = dict(chosen["mean"]), dict(chosen["sections"])
        scores = {key: float(f"{mean[key]:.6g}") for key in METRICS if isinstance(mean.get(key), float | int)}
        spots = sum(int(section["map_spots"]) for section in sections.values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no result of mclst-eval ({error}); give its --json") from error
    scores = {key: value for key, value in scores.items() if isfinite(value)}
    if not scores or not sections:
        raise InputError(f"{path} holds no scores; evaluate a map with spots and genes that were measured")
    return scores, list(sections), spots
