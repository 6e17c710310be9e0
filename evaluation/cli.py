"""`mclst-eval`: maps beside their measured sections → tables, JSON, figures."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mclst.evaluation.overlap import VENN_SETS
from mclst.runtime.atomic import check_apart, check_writable, write_whole
from mclst.runtime.console import check_json, command, publish_json, say, table
from mclst.runtime.errors import ResourceError
from mclst.sections.normalize import NORMALIZATIONS
from mclst.sections.tables.genes import read_gene_list

if TYPE_CHECKING:
    from mclst.evaluation.evaluate import Evaluation, SectionResult
    from mclst.runtime.expression_map.measured import Pair

Places = dict[tuple[str, str], Path]
"""What a file holds and of which method ("" for all) → its path."""
PATH = click.Path(path_type=Path)
SHOWN_GENES = 10
COLUMNS = {
    "method": "method",
    "section": "section",
    "spots": "spots",
    "pcc_acg": "PCC (ACG)",
    "pcc_heg": "PCC (HEG)",
    "mse": "MSE",
    "mae": "MAE",
    "coexpression": "genes",
    "ari": "ARI",
    "nmi": "NMI",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("maps", metavar="[METHOD=]MAP...", nargs=-1, required=True)
@click.option(
    "--truth", type=PATH, required=True, help="Measured sections: a folder, a .h5ad, a counts table."
)
@click.option(
    "--section",
    "sections",
    multiple=True,
    help="Section a map is of; once per map, in their order.  [default: by the map's name]",
)
@click.option(
    "--normalisation",
    type=click.Choice(tuple(NORMALIZATIONS)),
    help="Of the truth, where the map does not say how its own expression is normalised.",
)
@click.option("--common-genes", is_flag=True, help="Leave out genes of the map that were not measured.")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    metavar="[SECTION=]FILE",
    help="Regions of the tissue: a table of spots and labels, or obs:COLUMN of a .h5ad truth; repeatable.",
)
@click.option(
    "--domains", type=click.IntRange(2), help="Spatial domains to find.  [default: as many as regions]"
)
@click.option("--gene-set", type=PATH, help="Compare methods on these genes alone, such as immune genes.")
@click.option(
    "--least", type=float, help="-log10 p from which a gene counts as predicted.  [default: of 0.05 / genes]"
)
@click.option("--out", "prefix", type=PATH, help="Start of the files' names.  [default: MAP's, with .eval]")
@click.option(
    "--figures", type=click.Choice(("png", "svg", "none")), default="png", help="Kind of the figures."
)
@click.option("--overwrite", is_flag=True, help="Replace files of those names.")
@click.option("--json", "json_path", type=PATH, help="Write everything as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.version_option(package_name="mclst")
@command
def main(
    maps: tuple[str, ...],
    truth: Path,
    sections: tuple[str, ...],
    prefix: Path | None,
    figures: str,
    overwrite: bool,
    json_path: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Say what predicted MAPs are worth against measured sections, by the figures of merit of the mclSTExp paper.

    Several maps are averaged where they are of different sections, and compared where they are named METHOD=MAP.
    Writes the table (.csv), the ranking of the genes (.genes.csv), figures, and a page of all of it (.html) beside the
    map; the table's path is printed on stdout. The truth is normalised as the map says its expression is.
    """
    try:
        from mclst.evaluation.evaluate import DEFINITIONS, evaluate
        from mclst.evaluation.page import MEANING, eval_page
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[eval]") from error
    named = [_named(text) for text in maps]
    methods = list(dict.fromkeys(method for method, _ in named))
    if sections and len(sections) != len(named):
        raise click.UsageError(
            f"there are {len(named)} maps and {len(sections)} --section; give one for each"
        )
    first = named[0][1]
    start = prefix or first.with_name(first.name.removesuffix(".h5ad") + ".eval")
    with_domains = bool(options["domains"] or options["annotations"])
    places = _places(start, figures, methods, with_domains=with_domains)
    for place in places.values():
        check_writable(place, overwrite=overwrite)
    inputs = (truth, options["gene_set"], *(path for _, path in named))
    check_apart(places.values(), inputs)
    check_json(json_path, overwrite=overwrite, inputs=inputs, outputs=places.values())
    pairs, regions = _read(named, truth, sections, options)
    gene_set = options["gene_set"]
    among = None if gene_set is None else read_gene_list(gene_set)
    if options["domains"] and options["domains"] > min(len(pair.spot) for pair in pairs):
        raise click.UsageError(f"--domains {options['domains']} is more than a section has spots")
    found = evaluate(pairs, domains=options["domains"], regions=regions, among=among, least=options["least"])
    drawn: list[tuple[str, str, bytes]] = []
    for what, method, content in _contents(found, places, figures):
        write_whole(places[what, method], content)
        if what in MEANING:
            drawn.append((what, method, content))
    write_whole(places["page", ""], eval_page(found, COLUMNS, drawn, figures))
    _say_found(found, quiet=quiet)
    for line in DEFINITIONS:
        say(f"  {line}", quiet=quiet)
    table([("written", place) for place in places.values()], quiet=quiet)
    if json_path is not None:
        publish_json(json_path, {**found.as_json(), "files": [str(place) for place in places.values()]})
    if json_path is None or str(json_path) != "-":
        click.echo(str(places["table", ""]))


def _named(text: str) -> tuple[str, Path]:
    method, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return "", Path(text)
    if not method or "/" in method:
        raise click.UsageError(f"{text}: a method's name is part of file names; give letters before the =")
    return method, Path(path)


def _places(start: Path, figures: str, methods: list[str], *, with_domains: bool) -> Places:
    endings = {("table", ""): ".csv", ("ranking", ""): ".genes.csv", ("page", ""): ".html"}
    if len(methods) > 1:
        endings["membership", ""] = ".overlap.csv"
    if figures != "none":
        for method in methods:
            tag = f".{method}" if len(methods) > 1 else ""
            endings["genes", method] = f"{tag}.{figures}"
            endings["coexpression", method] = f"{tag}.coexpression.{figures}"
            if with_domains:
                endings["domains", method] = f"{tag}.domains.{figures}"
        if len(methods) > 1:
            endings["upset", ""] = f".overlap.{figures}"
        if len(methods) in VENN_SETS:
            endings["venn", ""] = f".venn.{figures}"
    return {key: start.with_name(start.name + ending) for key, ending in endings.items()}


def _read(
    named: list[tuple[str, Path]], truth: Path, sections: tuple[str, ...], options: dict[str, Any]
) -> tuple[list[Pair], dict[tuple[str, str], NDArray[np.str_]]]:
    from mclst.evaluation.annotation import read_annotation
    from mclst.runtime.expression_map.measured import choose_section, pair_with_truth, read_map

    of_section = dict(_annotation(text) for text in options["annotations"])
    pairs, regions = [], {}
    for i, (method, path) in enumerate(named):
        predicted = read_map(path)
        source = choose_section(predicted, truth, sections[i] if sections else None)
        pair = pair_with_truth(
            predicted,
            source,
            method=method,
            normalisation=options["normalisation"],
            common_genes=options["common_genes"],
        )
        pairs.append(pair)
        what = of_section.get(source.name, of_section.get(""))
        if what is not None:
            regions[method, source.name] = read_annotation(what, source, pair.spot)
    unused = of_section.keys() - {pair.section for pair in pairs} - {""}
    if unused:
        raise click.UsageError(f"--annotation {min(unused)}=… is of a section that no map is of")
    return pairs, regions


def _annotation(text: str) -> tuple[str, str]:
    section, equals, what = text.partition("=")
    return (section, what) if equals and not Path(text).exists() else ("", text)


def _contents(found: Evaluation, places: Places, figures: str) -> Iterator[tuple[str, str, bytes]]:
    """What every file but the page holds, of which method, and its content, one at a time."""
    from mclst.evaluation import figures as draw
    from mclst.evaluation import overlap_figures
    from mclst.evaluation.overlap import membership
    from mclst.runtime.report.figures.style import content as file_of

    of = {method.name: method for method in found.methods}
    sets = {method.name: method.predicted for method in found.methods}
    makers: dict[str, Callable[[str], pd.DataFrame | Figure]] = {
        "table": lambda name: found.table(),
        "ranking": lambda name: found.genes(),
        "membership": lambda name: membership(sets),
        "genes": lambda name: draw.draw_genes(of[name]),
        "coexpression": lambda name: draw.draw_coexpression(of[name]),
        "domains": lambda name: draw.draw_domains(of[name].sections),
        "upset": lambda name: overlap_figures.draw_upset(found.overlap, list(sets)),
        "venn": lambda name: overlap_figures.draw_venn(found.overlap, list(sets)),
    }
    for what, method in places:
        if what == "page":
            continue
        made = makers[what](method)
        if isinstance(made, Figure):
            yield what, method, file_of(made, figures)
        else:
            yield what, method, made.to_csv(index=False, float_format="%.6g").encode()


def _say_found(found: Evaluation, *, quiet: bool) -> None:
    rows = found.table().to_dict(orient="records")
    several = len(found.methods) > 1
    shown = [name for name in COLUMNS if any(name in row for row in rows) and (several or name != "method")]
    cells = [[COLUMNS[name] for name in shown]]
    cells += [[_cell(row.get(name)) for name in shown] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    for line in cells:
        text = "  ".join(
            cell.ljust(wide) if name in ("method", "section") else cell.rjust(wide)
            for cell, wide, name in zip(line, widths, shown, strict=True)
        )
        say(f"  {text.rstrip()}", quiet=quiet)
    for method in found.methods:
        top = method.ranked.head(SHOWN_GENES)
        told = ", ".join(f"{g} {p:.1f}" for g, p in zip(top["gene"], top["minus_log10_p"], strict=True))
        label = f" of {method.name}" if several else ""
        say(f"  surest genes{label} (-log10 p): {told}", quiet=quiet)
        say(
            f"  {len(method.predicted)} genes{label} with r > 0 and -log10 p ≥ {found.least:.2f}", quiet=quiet
        )
        for section in method.sections:
            _say_left_out(section, quiet=quiet)


def _say_left_out(found: SectionResult, *, quiet: bool) -> None:
    pair = found.pair
    counts = [
        (pair.only_in_map, "spots of the map are not in the truth"),
        (pair.only_in_truth, "spots of the truth are not in the map"),
        (pair.without_tile, "spots have no prediction"),
        (pair.left_out_genes, "genes of the map were not measured"),
        (found.score.undefined, "genes are constant in map or truth and have no r"),
    ]
    told = "; ".join(f"{count} {what}" for count, what in counts if count)
    if told:
        say(f"  Note: {pair.section}: {told}; they are left out", quiet=quiet)
    if math.isnan(found.score.pcc_heg):
        say(f"  Note: {pair.section}: PCC (HEG) is undefined, as published, for one of its 50 genes has no r")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
