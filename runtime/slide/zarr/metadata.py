"""Metadata of Zarr groups and arrays, formats 2 and 3, checked before anything is read by them.

https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html and …/v3/core/index.html.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from mclst.runtime.errors import ResourceError, SlideError
from mclst.runtime.slide.zarr.codecs import CODECS, MAX_CODECS
from mclst.runtime.storage.files import ByteFolder

MAX_METADATA_BYTES = 16 << 20
MAX_DIMENSIONS = 8
MAX_LENGTH = 1 << 31
MAX_CHUNK_BYTES = 256 << 20
"""Most bytes of one decoded chunk."""
MAX_INNER_CHUNKS = 1 << 20
"""Most chunks of one shard: an index of 16 MB."""


class ZarrError(ValueError):
    """Why an array or group is refused: the end of a sentence that begins with its name.

    kind: the error to raise for the user.
    """

    def __init__(self, reason: str, kind: type[SlideError | ResourceError] = SlideError) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Encoding:
    """How a chunk's bytes become its array; order: axes as stored, codecs: names in encoding order."""

    order: tuple[int, ...]
    codecs: tuple[str, ...]


@dataclass(frozen=True)
class Sharding:
    """Shards of many chunks; index_codecs as in Encoding, big_endian: the index's numbers."""

    shape: tuple[int, ...]
    index_crc: bool
    index_at_end: bool
    big_endian: bool


@dataclass(frozen=True)
class ArrayMetadata:
    """An array of uint8.

    shape, chunks: elements by axis; chunks: what is decoded in one piece. fill: value of chunks that are not
    stored. prefix, separator: of a chunk's name. sharding: None where every chunk is a file.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    fill: int
    prefix: str
    separator: str
    encoding: Encoding
    sharding: Sharding | None = None


def read_json(folder: ByteFolder, name: str) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file. Raises ZarrError for anything else."""
    try:
        data = folder.read(name, MAX_METADATA_BYTES)
        if data is None:
            return None
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ZarrError(f"holds a {name} that is no JSON ({str(error)[:80]}); copy it again") from error
    if not isinstance(content, dict):
        raise ZarrError(f"holds a {name} that is no JSON object; copy it again")
    return content


def read_attributes(folder: ByteFolder, path: str = "") -> tuple[int, dict[str, Any]] | None:
    """Read a group's attributes: (Zarr format, attributes), None if there is no group at `path`."""
    content = read_json(folder, f"{path}zarr.json")
    if content is not None:
        attributes = content.get("attributes", {})
        if content.get("zarr_format") != 3 or not isinstance(attributes, dict):
            raise ZarrError("holds a zarr.json of another format than 3; convert it to Zarr 2 or 3")
        return 3, attributes
    old = read_json(folder, f"{path}.zattrs")
    if old is None and f"{path}.zgroup" not in folder:
        return None
    return 2, old or {}


def checked_path(path: object) -> str:
    """Check that a path of an array or group stays within its folder; raises ZarrError."""
    text = str(path)
    if not text.isprintable() or "\\" in text or any(part in ("", ".", "..") for part in text.split("/")):
        raise ZarrError(f"names an array {text[:60]!r} outside of it; copy it again")
    return text


def read_array(folder: ByteFolder, path: str) -> ArrayMetadata:
    """Read and check an array's metadata; `path` ends with `/`. Raises ZarrError."""
    name, read = f"{path}zarr.json", _format_3
    content = read_json(folder, name)
    if content is None:
        name, read = f"{path}.zarray", _format_2
        content = read_json(folder, name)
    if content is None:
        raise ZarrError(f"lacks its array {path.rstrip('/')!r}; copy it again")
    try:
        array = read(content)
        _check_sizes(array)
    except ZarrError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ZarrError(
            f"holds a {name} that is no array's metadata ({error!r:.80}); copy it again"
        ) from error
    return array


def _format_2(content: dict[str, Any]) -> ArrayMetadata:
    dtype, filters, order = content["dtype"], content.get("filters"), content.get("order", "C")
    if dtype not in ("|u1", "u1", "<u1", ">u1"):
        raise ZarrError(_other_type(dtype))
    if filters:
        raise ZarrError(f"is filtered by {_name_of(filters[0])}, which mclst does not undo; convert it")
    if order not in ("C", "F"):
        raise ValueError("order")
    compressor = content.get("compressor")
    shape = _lengths(content["shape"])
    axes = tuple(range(len(shape)))
    separator = content.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise ValueError("dimension_separator")
    return ArrayMetadata(
        shape,
        _lengths(content["chunks"]),
        _fill(content.get("fill_value")),
        "",
        separator,
        Encoding(axes if order == "C" else axes[::-1], () if compressor is None else (_codec(compressor),)),
    )


def _format_3(content: dict[str, Any]) -> ArrayMetadata:
    if content["zarr_format"] != 3 or content["node_type"] != "array":
        raise ValueError("node_type")
    if content["data_type"] != "uint8":
        raise ZarrError(_other_type(content["data_type"]))
    if content.get("storage_transformers"):
        raise ZarrError("is stored by transformers, which mclst does not undo; convert it")
    grid, key = content["chunk_grid"], content["chunk_key_encoding"]
    if grid["name"] != "regular":
        raise ZarrError(
            f"has a chunk grid {str(grid['name'])[:40]!r}, where a regular one is needed; convert it"
        )
    if key["name"] not in ("default", "v2"):
        raise ValueError("chunk_key_encoding")
    usual = "/" if key["name"] == "default" else "."
    separator = key.get("configuration", {}).get("separator", usual)
    if separator not in (".", "/"):
        raise ValueError("separator")
    shape, chunks = _lengths(content["shape"]), _lengths(grid["configuration"]["chunk_shape"])
    prefix = f"c{separator}" if key["name"] == "default" else ""
    codecs = content["codecs"]
    fill = _fill(content["fill_value"])
    if _name_of(codecs[0]) != "sharding_indexed":
        return ArrayMetadata(shape, chunks, fill, prefix, separator, _encoding(codecs, len(shape)))
    if len(codecs) > 1:
        raise ZarrError("encodes its shards once more, which mclst does not undo; convert it")
    inner = codecs[0]["configuration"]
    index = [_name_of(codec) for codec in inner["index_codecs"]]
    if index not in (["bytes"], ["bytes", "crc32c"]):
        raise ZarrError("encodes the index of its shards in a way that mclst does not undo; convert it")
    configuration = inner["index_codecs"][0]
    endian = configuration.get("configuration", {}).get("endian") if isinstance(configuration, dict) else None
    sharding = Sharding(
        chunks, "crc32c" in index, inner.get("index_location", "end") == "end", big_endian=endian == "big"
    )
    sizes = _lengths(inner["chunk_shape"])
    return ArrayMetadata(
        shape, sizes, fill, prefix, separator, _encoding(inner["codecs"], len(shape)), sharding
    )


def _encoding(codecs: list[Any], dimensions: int) -> Encoding:
    """Read a chain of codecs: transpositions, `bytes`, then bytes to bytes."""
    if len(codecs) > MAX_CODECS:
        raise ValueError("codecs")
    order = tuple(range(dimensions))
    names = [_name_of(codec) for codec in codecs]
    if "sharding_indexed" in names:
        raise ZarrError("has shards within shards, which mclst does not read; convert it")
    middle = next((number for number, name in enumerate(names) if name in ("bytes", "endian")), None)
    if middle is None:
        raise ValueError("codecs without bytes")
    for name, codec in zip(names[:middle], codecs, strict=False):
        if name != "transpose":
            raise ZarrError(f"is encoded by {name!r}, which mclst does not undo; convert it")
        step = codec["configuration"]["order"]
        if not isinstance(step, list) or sorted(step) != list(range(dimensions)):
            raise ValueError("transpose")
        order = tuple(order[axis] for axis in step)
    return Encoding(order, tuple(_codec(codec) for codec in codecs[middle + 1 :]))


def _codec(codec: Any) -> str:
    name = _name_of(codec).removeprefix("numcodecs.")
    if name not in CODECS:
        raise ZarrError(f"is encoded by {name!r}, which mclst does not undo; convert it")
    return name


def _name_of(codec: Any) -> str:
    """Name of a codec: `name` of format 3, `id` of format 2, or a text alone."""
    name = codec if isinstance(codec, str) else codec.get("name", codec.get("id"))
    if not isinstance(name, str):
        raise TypeError("codec")
    return name[:60]


def _lengths(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not 2 <= len(values) <= MAX_DIMENSIONS:
        raise ValueError("shape")
    if not all(type(value) is int and 0 < value < MAX_LENGTH for value in values):
        raise ZarrError(f"declares a shape or chunks of {str(values)[:60]}; copy it again")
    return tuple(values)


def _fill(value: Any) -> int:
    if value is None:  # format 2: undefined
        return 0
    if type(value) not in (int, float) or not 0 <= value <= 255 or value != int(value):
        raise ValueError("fill_value")
    return int(value)


def _other_type(name: object) -> str:
    return f"has values of type {str(name)[:40]!r}, where 8-bit (uint8) are needed; export it as 8-bit RGB"


def _check_sizes(array: ArrayMetadata) -> None:
    if len(array.chunks) != len(array.shape):
        raise ValueError("chunks")
    if math.prod(array.chunks) > MAX_CHUNK_BYTES:
        raise ZarrError(
            f"must be decoded in chunks of {' x '.join(map(str, array.chunks))}, more than "
            f"{MAX_CHUNK_BYTES >> 20} MB each; write it with smaller chunks",
            ResourceError,
        )
    if array.sharding is None:
        return
    shards = array.sharding.shape
    if len(shards) != len(array.shape) or any(
        shard % chunk for shard, chunk in zip(shards, array.chunks, strict=True)
    ):
        raise ValueError("chunks of a shard")
    if math.prod(shards) // math.prod(array.chunks) > MAX_INNER_CHUNKS:
        raise ZarrError(
            f"has shards of more than {MAX_INNER_CHUNKS:,} chunks; write it with smaller shards",
            ResourceError,
        )
