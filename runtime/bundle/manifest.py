"""`manifest.json`: a bundle's description, validated field by field."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, field_validator, model_validator

from mclst.kernels.definition.spec import Distance, Rank, RetrievalSpec, Weighting
from mclst.runtime.bundle.about import About
from mclst.runtime.bundle.strict_model import StrictModel
from mclst.runtime.errors import BundleError

FORMAT = "mclst-bundle/2"
"""Format that is written."""
READABLE_FORMATS = ("mclst-bundle/1", FORMAT)
"""Formats that open. Version 2 adds optional fields, so every bundle of version 1 means the same."""
CHECKPOINT_FORMAT = "mclst-checkpoint/1"
"""`format` of a checkpoint that includes its Settings and reference sections."""

MAX_BYTES = 4 << 20
"""A manifest has a few kilobytes."""
MOST_SECTIONS = 64
"""Sections of a bank whose share of the weight is told; each costs as much as a gene."""
MAX_NAME_LENGTH = 1000
"""Of a gene or spot: a NumPy array of names takes the longest name's width in every row."""
LONGEST_PART = 255
"""Bytes of a file's name: what file systems hold."""
CALIBRATION = "calibration.h5"
ENGINES = "engines"
"""Folder of a bundle with one subfolder per TensorRT engine."""

Color = Annotated[int, Field(ge=0, le=255)]
Spread = Annotated[float, Field(gt=0)]

# Names of format 1 and of checkpoints made with it; only the first of each is written.
_NORMALIZATION = AliasChoices("normalization", "normalisation")
_SLIDE_NETWORK = AliasChoices("slide_network", "sequence")
_NEIGHBORS = AliasChoices("neighbors", "neighbours")
Kind = Annotated[
    Literal["retrieval", "regression", "slide"],
    BeforeValidator(lambda value: "slide" if value == "sequence" else value),
]


class Tile(StrictModel):
    """The encoder's input tile.

    size_px: side, px. mpp: µm/px of training; None: level-0 pixels. pad: RGB outside the slide.
    """

    size_px: int = Field(ge=8, le=4096)
    mpp: float | None = Field(default=None, gt=0.01, lt=100)
    pad: tuple[Color, Color, Color] = (0, 0, 0)


class Preprocessing(StrictModel):
    """What the graph itself does to uint8 RGB pixels; recorded, not applied again.

    axes: "x-major" if the network was trained on transposed tiles. symmetries: 8 if the output is the mean
    over the tile's rotations and reflections.
    """

    channels: Literal["rgb", "bgr"] = "rgb"
    pixel_range: Literal["0-1", "0-255"] = "0-1"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[Spread, Spread, Spread] = (1.0, 1.0, 1.0)
    axes: Literal["row-major", "x-major"] = "row-major"
    symmetries: Literal[1, 8] = 1


class Encoder(StrictModel):
    """The image encoder in `encoder.onnx`, whose values per tile are [embedding | prediction].

    embedding_dim: of the embedding; without a prediction it is the genes of a regression. prediction_dim: of
    the expression that a linear head in the graph predicts; 0 without one.
    """

    name: str
    embedding_dim: int = Field(ge=1)
    prediction_dim: int = Field(default=0, ge=0)

    @property
    def output_dim(self) -> int:
        """Values per tile, embedding and prediction together."""
        return self.embedding_dim + self.prediction_dim


class Neighborhood(StrictModel):
    """Spots that add to a spot's values.

    The graph emits [own | context], two blocks of `Encoder.output_dim`. A spot's values are its own block
    plus the mean context block of the other spots within radius_um; of a spot alone, its own context block.
    """

    radius_um: float = Field(gt=0, le=10_000)


class Retrieval(StrictModel):
    """The fields of RetrievalSpec."""

    k: int = Field(ge=1)
    rank: Rank
    distance: Distance
    weighting: Weighting
    temperature: float = Field(gt=0)

    def spec(self) -> RetrievalSpec:
        """Convert to the kernels' settings."""
        return RetrievalSpec(self.k, self.rank, self.distance, self.weighting, self.temperature)


class SpotEncoder(StrictModel):
    """The Transformer that encoded the bank."""

    heads: int = Field(ge=1)
    depth: int = Field(ge=1)


class Context(StrictModel):
    """How the bank's spots were grouped into Transformer sequences ("sentences").

    spots: per sentence. sentences: "file" continues across section borders, "section" restarts at each.
    positions: what indexes the position embeddings, or "none".
    """

    spots: int = Field(ge=1)
    sentences: Literal["file", "section"]
    positions: Literal["array", "pixel", "none"]


LOG_SHARE = "log-share"


class Normalization(StrictModel):
    """Of the spot encoder's input ("none" without one), and of the averaged or predicted expression.

    log_share_of: the genes that log-share counts; None: neither is log-share, or an earlier version made it,
    which counted the model's genes alone.
    """

    input: str
    expression: str
    log_share_of: Literal["measured genes"] | None = None

    @classmethod
    def of(cls, input: str, expression: str) -> Self:
        """Describe what this version makes."""
        log_share = LOG_SHARE in (input, expression)
        return cls(input=input, expression=expression, log_share_of="measured genes" if log_share else None)

    @property
    def of_earlier_version(self) -> bool:
        """Whether values in these units, made of measured sections, differ from what this version makes."""
        return LOG_SHARE in (self.input, self.expression) and self.log_share_of is None


class Graph(StrictModel):
    """Graph of a slide's spots: edges to the `neighbors` nearest other spots in array coordinates.

    prune: "grid" drops edges longer than 2, "std" those longer than mean + standard deviation of a spot's
    distances.
    """

    neighbors: int = Field(ge=1, le=64, validation_alias=_NEIGHBORS)
    prune: Literal["none", "grid", "std"]


class SlideNetwork(StrictModel):
    """The network over all spots of a slide, in `slide.onnx`.

    heads, depth: of its Transformer. positions: rows of its position embeddings. graph: None without a graph
    network.
    """

    heads: int = Field(ge=1)
    depth: int = Field(ge=1)
    positions: int = Field(ge=1)
    graph: Graph | None = None


class Settings(StrictModel):
    """Settings that the weights do not determine; defaults of the published mclSTExp HER2+ scripts.

    A checkpoint of `mclst.training` has them as its `config`; for others the export's options set them. Each
    system uses the fields that apply to it. heads: of the Transformer.
    """

    heads: int = Field(default=8, ge=1)
    tile: Tile = Tile(size_px=224)
    preprocessing: Preprocessing = Preprocessing()
    retrieval: Retrieval = Retrieval(
        k=200, rank="cosine", distance="l1", weighting="inverse-square", temperature=1.0
    )
    context: Context = Context(spots=32, sentences="file", positions="array")
    normalization: Normalization = Field(
        default=Normalization(input="spot-wise", expression="gene-wise"), validation_alias=_NORMALIZATION
    )
    graph: Graph = Graph(neighbors=4, prune="none")
    neighborhood: Neighborhood | None = None


class SectionRows(StrictModel):
    """A section's rows of the bank, in bank order."""

    name: str
    spots: int = Field(ge=1)


class CalibrationRecord(StrictModel):
    """What stands behind `calibration.h5`.

    left_out: what each prediction left out. groups: of it. sections, spots: in all.
    """

    left_out: str
    groups: int = Field(ge=2)
    sections: int = Field(ge=1)
    spots: int = Field(ge=1)


class Checkpoint(StrictModel):
    """The file the bundle was made from."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class FileRecord(StrictModel):
    """Size and hash of a bundle's file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(StrictModel):
    """All that `runtime` needs to know of a bundle, and how it was made.

    kind: "retrieval" has a bank and `retrieval`; "regression" predicts expression per tile; "slide"
    computes features per tile and expression from all of a slide's features. With `encoder.prediction_dim`
    the graph also predicts expression: a regression's, or what retrieval adds the neighbors' residuals to.
    trained_on: names of the network's training sections; empty if unknown. about: for people. Fields that do
    not apply are null.
    """

    format: Literal["mclst-bundle/1", "mclst-bundle/2"]
    kind: Kind
    system: str = Field(pattern="^[a-z0-9][a-z0-9-]*$")
    encoder: Encoder
    tile: Tile
    preprocessing: Preprocessing
    retrieval: Retrieval | None = None
    spot_encoder: SpotEncoder | None = None
    context: Context | None = None
    slide_network: SlideNetwork | None = Field(default=None, validation_alias=_SLIDE_NETWORK)
    neighborhood: Neighborhood | None = None
    normalization: Normalization = Field(validation_alias=_NORMALIZATION)
    genes: int = Field(ge=1)
    genes_from: str
    bank: tuple[SectionRows, ...] = ()
    trained_on: tuple[str, ...] = ()
    calibration: CalibrationRecord | None = None
    about: About | None = None
    checkpoint: Checkpoint
    versions: dict[str, str]
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            if not path.parts or path.is_absolute() or ".." in path.parts:
                raise ValueError(f"it names {name!r}, outside the bundle")
            if "\0" in name or max(len(os.fsencode(part)) for part in path.parts) > LONGEST_PART:
                raise ValueError(f"it names {name[:40]!r}, as no file is named")
        return files

    @model_validator(mode="after")
    def _parts_fit_the_kind(self) -> Self:
        required = {"retrieval": ("retrieval", "bank"), "slide": ("slide_network",), "regression": ()}[
            self.kind
        ]
        for name in ("retrieval", "bank", "slide_network"):
            if bool(getattr(self, name)) != (name in required):
                raise ValueError(
                    f"{name} {'is missing' if name in required else 'does not belong'} in a {self.kind} "
                    "bundle"
                )
        if (self.calibration is None) == (CALIBRATION in self.files):
            raise ValueError(f"{CALIBRATION} is listed or a calibration is described, but not both")
        predicted = self.encoder.prediction_dim
        if self.kind == "regression" and not predicted:
            predicted = self.encoder.embedding_dim
        if predicted not in (0, self.genes):
            raise ValueError(f"the encoder gives {predicted} values for {self.genes} genes")
        if self.kind == "slide" and (predicted or self.neighborhood):
            part = "encoder.prediction_dim" if predicted else "neighborhood"
            raise ValueError(f"{part} does not belong in a slide bundle")
        return self

    @property
    def earlier_units(self) -> bool:
        """Whether its values are in units of an earlier version; those of a published network are not."""
        measured = bool(self.bank) or self.calibration is not None or self.system == "fitted"
        return measured and self.normalization.of_earlier_version

    @property
    def graph_dim(self) -> int:
        """Values per tile of `encoder.onnx`: two blocks where there is a neighborhood."""
        return self.encoder.output_dim * (2 if self.neighborhood else 1)

    @property
    def tells_section_shares(self) -> bool:
        """Whether a run tells how much of a spot's weight comes from one section of the bank."""
        return self.calibration is not None and 1 < len(self.bank) <= MOST_SECTIONS

    @property
    def bank_rows(self) -> int:
        """M, the number of reference spots."""
        return sum(section.spots for section in self.bank)


def describe_unusable(names: Iterable[str]) -> str | None:
    """Say what is wrong with a name that HDF5 cannot hold or that would widen all others; None if none is."""
    for name in names:
        if len(name) > MAX_NAME_LENGTH:
            return f"a name of {len(name):,} characters"
        if "\0" in name:
            return f"{name!r}, a name with a NUL"
    return None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _check_format(path: Path, content: object) -> None:
    declared = content.get("format") if isinstance(content, dict) else None
    if not isinstance(declared, str) or not declared.startswith("mclst-bundle/"):
        raise BundleError(f"{path} is not a bundle's manifest; export the bundle again")
    if declared not in READABLE_FORMATS:
        version = declared.removeprefix("mclst-bundle/")
        newer = version.isdigit() and int(version) > int(FORMAT.rsplit("/", 1)[1])
        cure = "upgrade mclst" if newer else "export the bundle again"
        raise BundleError(f"{path} has format {declared!r} and this mclst reads up to {FORMAT!r}; {cure}")


def read_manifest(path: Path) -> Manifest:
    """Read and validate a manifest; raises BundleError, naming the field that is wrong."""
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
        # From the text, not `content`: only then may strict fields take JSON arrays as tuples.
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(key) for key in first["loc"])
        raise BundleError(f"{path}: {field}: {first['msg'].lower()}; export the bundle again") from error
    if manifest.earlier_units:
        raise BundleError(
            f"{path}: the log-share of an earlier version counted the model's genes alone; make the bundle "
            "again, and before it the checkpoint if mclst-fit or mclst-train made it"
        )
    return manifest
