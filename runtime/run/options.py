"""Options of a run, made once and handed down unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.errors import InputError

if TYPE_CHECKING:
    from mclst.runtime.inference.model import Model
    from mclst.runtime.providers.candidates import ChoiceRequest
    from mclst.runtime.report.files import Files

RETRIEVAL_OPTIONS = tuple(RetrievalSpec.__dataclass_fields__)
_SAME_MAP = {"changes_map": False}
_LATER = {"later": True}
"""Counts only if it is not the default: maps from before the option are still of the same options."""


class RetrievalError(InputError):
    """Retrieval options that exclude each other."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a slide is predicted.

    Parameters
    ----------
    provider : str
        What runs the encoder: "auto" or one of `mclst-infer --list-providers`.
    precision : str
        Precision of the encoder: one the bundle was exported in, or "auto" for the fastest measured here.
    retriever : str
        What computes the retrieval: "auto" or a provider of `Retriever`.
    retrieval : mapping
        Fields of `RetrievalSpec` that override the bundle's, such as ``{"k": 50}``.
    batch_size : int
        Most tiles encoded at once; fewer on a CPU where they would take over 5 s, or more memory than the
        `memory_budget`.
    memory_budget : int, optional
        Memory to stay within, in bytes.
    mpp : float, optional
        µm/px of level 0, overriding the slide's metadata.
    genes : tuple of str
        Genes of a grid to write as a pyramidal OME-TIFF.
    max_bad_tiles : int or str
        Unreadable tiles tolerated: a count, or a share such as "1%", rounded up.
    any_stain : bool
        Predict slides that are not stained with H&E, too.
    outside_level : float
        A spot is outside if this share of the calibrated spots, 0 to 1, is nearer to the training's.
    max_outside : str or int, optional
        Spots outside that are tolerated: a count, or a share such as "30%"; more are refused.
    intervals : int, optional
        Percent that intervals cover, 80 or 90; the map gets the layers `low` and `high`.
    reliable : float, optional
        Write only genes whose r exceeds this in 9 of 10 new sections.
    build : bool
        Build a missing TensorRT engine and keep it in the bundle.
    cache : bool
        Keep embeddings for the next run of the slide, and use kept ones.
    workers : int
        Reading threads.
    overwrite, resume : bool
        Replace an existing map; resume a stopped run of the same inputs and options.
    picture, report : bool
        Write `.genes.png` and `.run.json` next to the map.
    files : Files, optional
        Further files to make from the map; by default the HTML page.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    provider: str = "auto"
    precision: str = "auto"
    retriever: str = "auto"
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 16
    memory_budget: int | None = None
    mpp: float | None = None
    genes: tuple[str, ...] = ()
    max_bad_tiles: int | str = "1%"
    any_stain: bool = field(default=False, metadata=_SAME_MAP)
    outside_level: float = field(default=0.95, metadata=_LATER)
    max_outside: int | str | None = field(default=None, metadata=_SAME_MAP)
    intervals: int | None = field(default=None, metadata=_LATER)
    reliable: float | None = field(default=None, metadata=_LATER)
    build: bool = field(default=True, metadata=_SAME_MAP)
    cache: bool = field(default=True, metadata=_SAME_MAP)
    workers: int = field(default=2, metadata=_SAME_MAP)
    overwrite: bool = field(default=False, metadata=_SAME_MAP)
    resume: bool = field(default=True, metadata=_SAME_MAP)
    picture: bool = field(default=True, metadata=_SAME_MAP)
    report: bool = field(default=True, metadata=_SAME_MAP)
    files: Files | None = field(default=None, metadata=_SAME_MAP)

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "memory_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value!r}; give a whole number of 1 or more")
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise InputError(f"mpp is {self.mpp!r}; give a positive number of µm per pixel")
        for name in self.retrieval:
            if name not in RETRIEVAL_OPTIONS:
                raise InputError(
                    f"there is no retrieval option {name!r}; choose from {', '.join(RETRIEVAL_OPTIONS)}"
                )
        for name in ("max_bad_tiles", "max_outside"):
            try:
                most_bad_tiles(getattr(self, name) or 0, 1)
            except ValueError as error:
                raise InputError(f"{name}: {error}") from error
        if not 0 < self.outside_level < 1:
            raise InputError(f"outside_level is {self.outside_level!r}; give a share between 0 and 1")
        if self.reliable is not None and not -1 < self.reliable < 1:
            raise InputError(f"reliable is {self.reliable!r}; give an r between -1 and 1")

    def choice_request(self) -> ChoiceRequest:
        """Return what may be chosen where the provider or the precision is "auto"."""
        from mclst.runtime.providers.candidates import ChoiceRequest

        return ChoiceRequest(
            self.provider,
            self.precision,
            self.batch_size,
            build=self.build,
            # What is tried stays in memory's peak, from which a budget is reckoned.
            measure=self.memory_budget is None,
        )

    def for_model(self, model: Model) -> RunOptions:
        """Replace the encoder's settings by those that the model dictates, if it does.

        Raises InputError if another precision is asked for than a server has.
        """
        fixed = model.encoder_settings
        if fixed is None:
            alone = self.precision == "auto" and len(model.precisions) == 1
            return replace(self, precision=model.precisions[0]) if alone else self
        if self.precision not in ("auto", fixed.precision):
            raise InputError(
                f"{model.server} computes in {fixed.precision} and this run asks for {self.precision}; leave "
                "the precision out, or serve it"
            )
        return replace(self, provider=fixed.provider, precision=fixed.precision, batch_size=fixed.batch_size)

    def of_map(self) -> dict[str, Any]:
        """Return the options that change a map's content, by name."""
        return {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.metadata.get("changes_map", True)
            and not (option.metadata.get("later") and getattr(self, option.name) == option.default)
        }


def most_bad_tiles(limit: int | str, tiles: int) -> int:
    """Return how many of `tiles` may be unreadable: `limit` itself, or its share such as "1%", rounded up.

    Raises
    ------
    ValueError
        If `limit` is neither a count nor a share of 0-100 %.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", str(limit).strip())
    if not match or (match[2] and float(match[1]) > 100) or ("." in match[1] and not match[2]):
        raise ValueError(f"{limit!r} is neither a number of tiles nor a share such as 1%")
    return math.ceil(float(match[1]) * tiles / 100) if match[2] else int(match[1])
