"""What a bundle says about itself, in words: for `info` and for the card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mclst.runtime.bundle.about import About, License
from mclst.runtime.bundle.bundle import GENE_TABLE, MANIFEST, PARITY, Bundle
from mclst.runtime.bundle.titles import model_title
from mclst.runtime.errors import BundleError

UNKNOWN = "not stated"

KINDS = {
    "retrieval": "expression averaged over the nearest reference spots",
    "regression": "expression straight from the network, tile by tile",
    "slide": "expression from all spots of a slide together",
}
UNITS = {
    "spot-wise": "log10(1 + 10,000 × share of the spot's counts)",
    "gene-wise": "log10(1 + 10,000 × share of the gene's counts in its section)",
    "median-log1p": "ln(1 + counts scaled to the section's median total)",
    "log-share": "ln of the share of the spot's counts",
    "none": "as measured",
}
MAX_PARITY_BYTES = 4 << 20


@dataclass(frozen=True)
class Facts:
    """A bundle in words; each text is one line.

    Attributes
    ----------
    about : About
        The manifest's, empty if it has none.
    rows : list of (str, str)
        Name and value, for one screen.
    parity : dict
        Content of parity.json.
    """

    bundle: Bundle
    about: About
    rows: list[tuple[str, str]]
    parity: dict[str, Any]

    @property
    def title(self) -> str:
        """Name for people."""
        m = self.bundle.manifest
        return self.about.title or f"{model_title(m)}, {m.genes} genes"


def expression_unit(bundle: Bundle, about: About) -> str:
    """Return the unit of the bundle's expression."""
    name = bundle.manifest.normalization.expression
    known = UNITS.get(name)
    return about.gene_unit or (f"{name}: {known}" if known else name)


def describe_license(terms: License | None) -> str:
    """Return a license with its address."""
    if terms is None:
        return UNKNOWN
    return terms.name + (f" ({terms.url})" if terms.url else "")


def read_parity(bundle: Bundle) -> dict[str, Any]:
    """Read parity.json; raises BundleError if the bundle has none, or none that can be read."""
    path = bundle.path / PARITY
    if PARITY not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path / MANIFEST} lists no {PARITY}, so nothing shows that the bundle gives what its "
            "checkpoint gives; export the bundle again"
        )
    try:
        if path.stat().st_size > MAX_PARITY_BYTES:
            raise ValueError(f"it has more than {MAX_PARITY_BYTES >> 20} MiB")
        parity = json.loads(path.read_bytes())
        if not isinstance(parity, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004 - caught below
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
    return parity


def describe(bundle: Bundle) -> Facts:
    """Collect what a bundle says about itself.

    Parameters
    ----------
    bundle : Bundle

    Returns
    -------
    Facts

    Raises
    ------
    BundleError
        If parity.json or the genes cannot be read.
    """
    m, about = bundle.manifest, bundle.manifest.about or About()
    parity = read_parity(bundle)
    rows = [
        ("what", f"{model_title(m)}: {KINDS[m.kind]}"),
        *_head(about),
        ("genes", f"{m.genes}: {_some(bundle.genes)}"),
        ("gene ids", gene_ids(bundle)),
        ("unit", expression_unit(bundle, about)),
        ("tile", _tile(bundle)),
        *_bank(bundle),
        ("trained on", training_data(about)),
        ("evaluated", evaluation(about)),
        ("calibration", calibration(bundle)),
        ("parity", describe_parity(parity)),
        ("precisions", ", ".join(bundle.precisions)),
        ("for", about.intended_use or UNKNOWN),
        ("not for", about.out_of_scope or UNKNOWN),
        ("license", describe_license(about.license)),
        ("base model", base_model(about)),
        ("citation", "; ".join(about.citation) or UNKNOWN),
        ("checkpoint", f"{m.checkpoint.name}, SHA-256 {m.checkpoint.sha256[:16]}…"),
        ("files", _files(bundle)),
        ("SHA-256", bundle.sha256),
    ]
    return Facts(bundle, about, [(name, " ".join(value.split())) for name, value in rows], parity)


def _head(about: About) -> list[tuple[str, str]]:
    head = about.head
    return [] if head is None or head.settings is None else [("head", f"{head.name}, {head.settings}")]


def _some(genes: list[str], most: int = 6) -> str:
    return ", ".join(genes[:most]) + (", …" if len(genes) > most else "")


def gene_ids(bundle: Bundle) -> str:
    """Say for how many genes the bundle holds an Ensembl id."""
    ids = bundle.gene_ids
    if ids is None:
        return UNKNOWN
    return f"Ensembl ids of {sum(map(bool, ids))} of {len(ids)}, in {GENE_TABLE}"


def _tile(bundle: Bundle) -> str:
    tile = bundle.manifest.tile
    if tile.mpp is None:
        return f"{tile.size_px} px of the slide's level 0; µm/px {UNKNOWN}"
    return f"{tile.size_px} px at {tile.mpp:g} µm/px, {tile.size_px * tile.mpp:g} µm wide"


def _bank(bundle: Bundle) -> list[tuple[str, str]]:
    m = bundle.manifest
    if m.retrieval is None:
        return []
    names = _some([section.name for section in m.bank], 8)
    sections = f"{len(m.bank)} section" + ("s" if len(m.bank) != 1 else "")
    return [("reference", f"{m.bank_rows:,} spots of {sections}: {names}; k {m.retrieval.k}")]


def training_data(about: About) -> str:
    """Describe the training data in a line."""
    data = about.training_data
    if data is None:
        return UNKNOWN
    parts = [
        *(getattr(data, name) for name in ("source", "species", "organ", "platform", "stain", "scanner")),
        None if data.mpp is None else f"{data.mpp:g} µm/px",
        _count(data.sections, "section"),
        _count(data.patients, "patient"),
    ]
    return ", ".join(part for part in parts if part) or UNKNOWN


def _count(number: int | None, thing: str) -> str | None:
    return None if number is None else f"{number:,} {thing}{'' if number == 1 else 's'}"


def evaluation(about: About) -> str:
    """Describe the evaluation in a line."""
    result = about.evaluation
    if result is None:
        return UNKNOWN
    figures = ", ".join(f"{metric.name} {metric.value:.4g}" for metric in result.metrics)
    return f"{figures}; {result.protocol}" if figures else result.protocol


def calibration(bundle: Bundle) -> str:
    """Describe what stands behind the intervals and verdicts of a map in a line."""
    record = bundle.manifest.calibration
    if record is None:
        return "none: maps come without intervals and verdicts"
    return (
        f"{_count(record.spots, 'spot')} of {_count(record.sections, 'section')} in "
        f"{_count(record.groups, 'group')}, each predicted without {record.left_out}"
    )


def base_model(about: About) -> str:
    """Describe the network that the bundle starts from in a line."""
    base = about.base_model
    if base is None:
        return UNKNOWN
    where = f", hf://{base.hub}" + (f"@{base.revision}" if base.revision else "") if base.hub else ""
    return f"{base.name}{where}, license {describe_license(base.license)}, {base.relation}"


def describe_parity(parity: dict[str, Any]) -> str:
    """Describe how well export and checkpoint agree in a line; figures that are not there are left out."""
    if parity.get("passed") is not True:
        return "not proved"
    figures = []
    expression = parity.get("expression")
    if isinstance(expression, dict):
        largest, r = expression.get("max_abs"), expression.get("pearson_per_gene_mean")
        if isinstance(largest, float | int):
            figures.append(f"expression within {largest:.1e} of the checkpoint's")
        if isinstance(r, float | int):
            figures.append(f"mean r per gene {r:.6f}")
    tiles = parity.get("tiles")
    if isinstance(tiles, dict) and figures:
        figures.append(f"on {tiles.get('count')} tiles of {tiles.get('source')}")
    return "proved: " + ", ".join(figures) if figures else "proved, without figures"


def _files(bundle: Bundle) -> str:
    records = bundle.manifest.files
    size = sum(record.bytes for record in records.values())
    return f"{len(records)}, {size / 1e6:,.1f} MB: {', '.join(records)}"
