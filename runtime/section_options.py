"""Options of commands that read measured sections: their slides, and other names of their genes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.runtime.click_types import PATH, add_options

if TYPE_CHECKING:
    from mclst.sections.formats.source import SectionSource


@dataclass(frozen=True)
class SectionFiles:
    """What the user gives beside the sections.

    images: NAME=SLIDE, or tables of them. hires: take Space Ranger's downscaled picture where a section has
    no other. aliases: a table of gene symbols and their other names. bins: see `find_sections`.
    """

    images: tuple[str, ...] = ()
    hires: bool = False
    aliases: Path | None = None
    bins: str | None = None

    def give(
        self,
        sources: Mapping[str, SectionSource],
        folders: Iterable[Path] = (),
        others: Collection[str] = (),
    ) -> dict[str, SectionSource]:
        """Sources with their slides and aliases; folders: where an images.csv is read too.

        others: names of sections that are given their slides elsewhere.

        Raises SectionError as `parse_images` and `with_images` do.
        """
        from mclst.sections.formats.images import parse_images, with_images

        images = parse_images(self.images, folders)
        images = {name: image for name, image in images.items() if name in sources or name not in others}
        sources = with_images(sources, images, hires=self.hires)
        return {name: replace(source, aliases=self.aliases) for name, source in sources.items()}

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files named, for checks that no output replaces an input."""
        from mclst.sections.location import is_address

        slides = [
            Path(slide) for value in self.images if not is_address(slide := value.partition("=")[2] or value)
        ]
        return (*slides, *([] if self.aliases is None else [self.aliases]))


class BinSize(click.ParamType[str]):
    """µm of a bin, pitch and diameter of pseudo-spots, or "cells"."""

    name = "um|um/um|cells"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Accept whole numbers from 1 to 999, as Space Ranger names bins by three digits, or "cells"."""
        text = str(value).strip()
        parts = text.split("/")
        if text == "cells":
            return text
        if len(parts) <= 2 and all(p.isascii() and p.isdigit() and 1 <= int(p) <= 999 for p in parts):
            return "/".join(str(int(part)) for part in parts)
        self.fail(f"{value!r} is neither whole µm from 1 to 999, such as 8 or 100/55, nor cells", param, ctx)


ALIASES = click.option(
    "--gene-aliases",
    type=PATH,
    help="Other names of genes: HGNC's hgnc_complete_set.txt, or columns symbol and alias_symbol.",
)
BINS = click.option(
    "--bin",
    "bins",
    type=BinSize(),
    help="Of Visium HD: µm of a bin, pooled from smaller ones where needed, or the segmented cells. Of "
    "Xenium: the cells, or PITCH or PITCH/DIAMETER in µm of pseudo-spots.  [default: 8; cells of Xenium]",
)
OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--image",
        "images",
        multiple=True,
        metavar="NAME=SLIDE",
        help="Slide of a section, or a .csv with columns section and image; repeatable.  [default: "
        "images.csv of the folder, then files of the section's name]",
    ),
    click.option(
        "--hires",
        is_flag=True,
        help="Take Space Ranger's tissue_hires_image.png, which is coarser, where there is no slide.",
    ),
    ALIASES,
    BINS,
)


def section_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add these options to a click callback, which gets them as `section_files`, a SectionFiles."""

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        files = SectionFiles(
            values.pop("images"), values.pop("hires"), values.pop("gene_aliases"), values.pop("bins")
        )
        return function(section_files=files, **values)

    return add_options(*OPTIONS)(wrapped)
