"""Decode the bytes of a Zarr chunk, never to more than it may hold.

imagecodecs takes the largest size as an argument. The `zarr` package unpacks whatever a frame declares, so a
chunk of a megabyte could take all memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import imagecodecs

SPARE_BYTES = 1 << 16
"""What a codec may add to incompressible bytes, beyond their own length again."""
MAX_CODECS = 8
CRC_BYTES = 4

Decoder = Callable[[bytes, int], bytes]
"""(bytes, largest size of the result) → decoded bytes; raises any exception."""

_DECODERS: dict[str, str] = {
    "blosc": "blosc_decode",
    "zstd": "zstd_decode",
    "gzip": "gzip_decode",
    "zlib": "zlib_decode",
    "lz4": "lz4_decode",
    "bz2": "bz2_decode",
    "lzma": "lzma_decode",
}
CODECS = ("crc32c", *_DECODERS)
"""Names of the codecs from bytes to bytes, without the prefix `numcodecs.`."""


def most_bytes(raw_bytes: int) -> int:
    """Most bytes that chunks of `raw_bytes` may take once encoded."""
    return 2 * raw_bytes + SPARE_BYTES


def decode(data: bytes, codecs: Sequence[str], raw_bytes: int) -> bytes:
    """Undo codecs, given in the order of encoding; the result has exactly `raw_bytes`.

    Raises ValueError for another length or a wrong checksum, or what a codec raises on damaged bytes.
    """
    for number in range(len(codecs) - 1, -1, -1):
        # One byte more than allowed: some codecs cut off what does not fit.
        limit = raw_bytes + 1 if number == 0 else most_bytes(raw_bytes) + 1
        name = codecs[number]
        if name == "crc32c":
            data = checked(data)
        else:
            arguments: dict[str, Any] = {"header": True} if name == "lz4" else {}
            data = bytes(getattr(imagecodecs, _DECODERS[name])(data, out=limit, **arguments))
    if len(data) != raw_bytes:
        raise ValueError(f"it unpacks to {len(data):,} bytes, where {raw_bytes:,} are needed")
    return data


def checked(data: bytes) -> bytes:
    """Take the CRC-32C off the end of `data`; raises ValueError if it is wrong."""
    content, stored = data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:], "little")
    if len(data) < CRC_BYTES or crc32c(content) != stored:
        raise ValueError("its checksum is wrong")
    return content


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) of some bytes."""
    crc = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _table()
