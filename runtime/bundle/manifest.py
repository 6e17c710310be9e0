"""`manifest.json`: what a bundle says of itself, validated field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mclst.kernels.definition.spec import Distance, Rank, RetrievalSpec, Weighting
from mclst.runtime.errors import BundleError

FORMAT = "mclst-bundle/1"
CHECKPOINT_FORMAT = "mclst-checkpoint/1"
"""`format` of a checkpoint that brings its Settings and its reference sections along."""

MAX_BYTES = 4 << 20
"""A manifest is a few kilobytes; anything near this is not one."""


Color = Annotated[int, Field(ge=0, le=255)]
Spread = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """Base: unknown fields are refused, values never coerced and finite, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Tile(Part):
    """The square the encoder sees.

    size_px: pixels along a side. mpp: µm/px it was trained at, None for level-0 pixels as they are.
    pad: RGB outside the slide.
    """

    size_px: int = Field(ge=8, le=4096)
    mpp: float | None = Field(default=None, gt=0.01, lt=100)
    pad: tuple[Color, Color, Color] = (0, 0, 0)


class Preprocessing(Part):
    """What the graph does to uint8 RGB pixels before the encoder; recorded, not applied again.

    axes: "x-major" where the network was trained on transposed tiles. symmetries: 8 where the output is the mean over
    the tile's rotations and reflections.
    """

    channels: Literal["rgb", "bgr"] = "rgb"
    pixel_range: Literal["0-1", "0-255"] = "0-1"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[Spread, Spread, Spread] = (1.0, 1.0, 1.0)
    axes: Literal["row-major", "x-major"] = "row-major"
    symmetries: Literal[1, 8] = 1


class Encoder(Part):
    """The image part in `encoder.onnx`; embedding_dim: what it gives per tile (genes for a regression)."""

    name: str
    embedding_dim: int = Field(ge=1)


class Retrieval(Part):
    """RetrievalSpec's fields."""

    k: int = Field(ge=1)
    rank: Rank
    distance: Distance
    weighting: Weighting
    temperature: float = Field(gt=0)

    def spec(self) -> RetrievalSpec:
        """The settings the kernels take."""
        return RetrievalSpec(self.k, self.rank, self.distance, self.weighting, self.temperature)


class SpotEncoder(Part):
    """The Transformer that encoded the bank. heads cannot be read from a checkpoint: an option with a default."""

    heads: int = Field(ge=1)
    depth: int = Field(ge=1)


class Context(Part):
    """How the bank's spots were put into Transformer sentences.

    spots: per sentence. sentences: "file" runs on over section borders, "section" starts anew at each.
    positions: what indexed the position tables, or "none" where there are none.
    """

    spots: int = Field(ge=1)
    sentences: Literal["file", "section"]
    positions: Literal["array", "pixel", "none"]


class Normalisation(Part):
    """Of the spots' side's input ("none" where there is none) and of the expression: averaged, or trained on."""

    input: str
    expression: str


class Graph(Part):
    """Who is whose neighbour on a slide: the `neighbours` nearest other spots in array coordinates.

    prune: "grid" drops those farther than 2, "std" those farther than mean + standard deviation of a spot's distances.
    """

    neighbours: int = Field(ge=1, le=64)
    prune: Literal["none", "grid", "std"]


class Sequence(Part):
    """The part that sees all spots of a slide, in `sequence.onnx`.

    heads, depth: of its Transformer. positions: rows of its coordinate tables. graph: None where it has none.
    """

    heads: int = Field(ge=1)
    depth: int = Field(ge=1)
    positions: int = Field(ge=1)
    graph: Graph | None = None


class Settings(Part):
    """What the weights alone do not tell; the defaults are the published mclSTExp HER2+ scripts'.

    A checkpoint of `mclst.training` carries these as its `config`; for others the export's options set them. A system
    uses the parts that apply to it. heads: of the Transformer.
    """

    heads: int = Field(default=8, ge=1)
    tile: Tile = Tile(size_px=224)
    preprocessing: Preprocessing = Preprocessing()
    retrieval: Retrieval = Retrieval(
        k=200, rank="cosine", distance="l1", weighting="inverse-square", temperature=1.0
    )
    context: Context = Context(spots=32, sentences="file", positions="array")
    normalisation: Normalisation = Normalisation(input="spot-wise", expression="gene-wise")
    graph: Graph = Graph(neighbours=4, prune="none")


class SectionRows(Part):
    """A section's share of the bank, in bank order."""

    name: str
    spots: int = Field(ge=1)


class Checkpoint(Part):
    """The file the bundle was made from."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class FileRecord(Part):
    """Size and hash of a file of the bundle."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Part):
    """Everything `runtime` needs to know, and everything that shaped the bundle.

    kind: "retrieval" has a bank and `retrieval`; "regression" gives expression per tile; "sequence" gives features
    per tile, and `sequence` makes expression of all of a slide's. What does not apply is null.
    """

    format: Literal["mclst-bundle/1"]
    kind: Literal["retrieval", "regression", "sequence"]
    system: str = Field(pattern="^[a-z0-9][a-z0-9-]*$")
    encoder: Encoder
    tile: Tile
    preprocessing: Preprocessing
    retrieval: Retrieval | None = None
    spot_encoder: SpotEncoder | None = None
    context: Context | None = None
    sequence: Sequence | None = None
    normalisation: Normalisation
    genes: int = Field(ge=1)
    genes_from: str
    bank: tuple[SectionRows, ...] = ()
    checkpoint: Checkpoint
    versions: dict[str, str]
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _parts_fit_the_kind(self) -> Self:
        wanted = {"retrieval": ("retrieval", "bank"), "sequence": ("sequence",), "regression": ()}[self.kind]
        for name in ("retrieval", "bank", "sequence"):
            if bool(getattr(self, name)) != (name in wanted):
                raise ValueError(
                    f"{name} {'is missing' if name in wanted else 'does not belong'} in a {self.kind} bundle"
                )
        if self.kind == "regression" and self.encoder.embedding_dim != self.genes:
            raise ValueError(f"the encoder gives {self.encoder.embedding_dim} values for {self.genes} genes")
        return self

    @property
    def bank_rows(self) -> int:
        """M, the number of reference spots."""
        return sum(section.spots for section in self.bank)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _check_format(path: Path, content: object) -> None:
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, str) or not found.startswith("mclst-bundle/"):
        raise BundleError(f"{path} is not a bundle's manifest; export the bundle again")
    if found != FORMAT:
        version = found.removeprefix("mclst-bundle/")
        newer = version.isdigit() and int(version) > int(FORMAT.rsplit("/", 1)[1])
        cure = "upgrade mclst" if newer else "export the bundle again"
        raise BundleError(f"{path} has format {found!r} and this mclst reads {FORMAT!r}; {cure}")


def read_manifest(path: Path) -> Manifest:
    """Read and validate; raises BundleError naming the field that is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(
                f"{path} is larger than {MAX_BYTES >> 20} MiB and no manifest; export the bundle again"
            )
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror or error}); export the bundle again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON ({error}); export the bundle again") from error
    _check_format(path, content)
    try:
        # Lenient on JSON's own limits (no tuples), strict on everything else.
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg'].lower()}; export the bundle again") from error


ENGINES = "engines"
"""The folder of a bundle that engines lie in, each in one of its own."""
