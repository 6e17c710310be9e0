"""A slide on the command line: a path, or an address such as s3://bucket/slide.svs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mclst.sections.location import RemoteLocation, SlideLocation, slide_location


class SlideArgument(click.ParamType[SlideLocation]):
    """A path or an address; other schemes are wrong usage."""

    name = "slide"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SlideLocation:
        """Text → a path or an address."""
        if isinstance(value, Path | RemoteLocation):
            return value
        try:
            return slide_location(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
