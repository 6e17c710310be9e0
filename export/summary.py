"""Summary of an export for the terminal."""

from __future__ import annotations

from typing import Any

from mclst.runtime.bundle.bundle import Bundle


def summarize(bundle: Bundle, parity: dict[str, Any]) -> list[tuple[str, Any]]:
    """Describe a bundle and its parity.json as rows of a table."""
    m, retrieval = bundle.manifest, bundle.manifest.retrieval
    output = f"{m.encoder.embedding_dim}-d embedding" if m.kind != "regression" else "expression"
    if m.kind == "retrieval" and m.encoder.prediction_dim:
        output += " and expression"
    if m.neighborhood is not None:
        output += f", averaged over {m.neighborhood.radius_um:g} µm"
    rows: list[tuple[str, Any]] = [
        ("bundle", bundle.path),
        ("encoder", f"{m.encoder.name}, {m.tile.size_px} px tiles, {output}"),
    ]
    if retrieval is not None:
        spots = f"{m.bank_rows} spots of {len(m.bank)} sections"
        weights = f"distance {retrieval.distance}, weighting {retrieval.weighting}"
        rows += [
            ("bank", f"{spots}, {m.genes} genes in the order of {m.genes_from}"),
            ("retrieval", f"k {retrieval.k}, rank {retrieval.rank}, {weights}"),
        ]
    else:
        rows.append(("genes", f"{m.genes}, straight from the network, in the order of {m.genes_from}"))
    if m.slide_network is not None:
        graph = m.slide_network.graph
        about = f", graph of {graph.neighbors} neighbors, prune {graph.prune}" if graph else ""
        rows.append(("slide", f"depth {m.slide_network.depth}, {m.slide_network.heads} heads{about}"))
    embedding = f"embedding within {parity['embedding']['max_abs']:.1e}, " if "embedding" in parity else ""
    tiles = f"{parity['tiles']['count']} tiles of {parity['tiles']['source']}"
    difference = f"{embedding}expression within {parity['expression']['max_abs']:.1e}"
    rows.append(("parity", f"{difference} of the checkpoint on {tiles}"))
    rows += [(name, _describe_precision(record)) for name, record in parity["precisions"].items()]
    rows += [(name, f"left out: {reason}") for name, reason in parity["left_out"].items()]
    return rows


def _describe_precision(record: dict[str, Any]) -> str:
    r = record["expression"]["pearson_per_gene_mean"]
    parts = ["Pearson r per gene " + ("undefined" if r is None else f"{r:.5f}")]
    if "neighbours" in record:
        parts.append(f"overlap of the 50 nearest {record['neighbours']['overlap_at_50']:.3f}")
    if "embedding" in record:
        parts.append(f"cosine at least {record['embedding']['cosine_min']:.5f}")
    if "measured" in record:
        parts.append(f"r against the measured {record['measured']['change']:+.5f}")
    return ", ".join(parts)
