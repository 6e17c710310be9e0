"""Small whole numbers as few bytes: several to a byte where they are small, the rare large ones behind them."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

KINDS = {1: 5, 2: 3, 7: 2, 127: 1}
"""Largest number that a digit says itself → digits in a byte."""
STRATEGIES = {1: zlib.Z_FILTERED, 2: zlib.Z_HUFFMAN_ONLY, 7: zlib.Z_HUFFMAN_ONLY, 127: zlib.Z_HUFFMAN_ONLY}
"""Where nearly all are 0 zlib finds runs; elsewhere it would take for a pattern what is likely by chance."""


def squeeze(numbers: NDArray[np.integer]) -> bytes:
    """Whole numbers [n] as the shortest zlib stream that is found.

    The stream holds a byte that says the largest number m of a digit, the digits (each number, kept within ±m, plus m) in base
    2m + 1, the first of a byte its lowest, and behind them how far each number that reached ±m lies beyond: seven bits a byte, the lowest first, the
    eighth set where more follow.
    """
    found = np.asarray(numbers, np.int64)
    return min((_packed(_written(found, most), how) for most, how in STRATEGIES.items()), key=len)


def _written(numbers: NDArray[np.int64], most: int) -> bytes:
    each, base = KINDS[most], 2 * most + 1
    digits = np.clip(numbers, -most, most) + most
    digits = np.concatenate([digits, np.zeros(-len(digits) % each, np.int64)]).reshape(-1, each)
    large = np.abs(numbers)
    packed = (digits @ base ** np.arange(each)).astype(np.uint8)
    return bytes([most]) + bytes(packed) + _sevens(large[large >= most] - most)


def _sevens(numbers: NDArray[np.int64]) -> bytes:
    """Numbers from 0 on, seven bits a byte."""
    if not len(numbers):
        return b""
    width = max(1, -(-int(numbers.max()).bit_length() // 7))
    parts = numbers[:, None] >> (7 * np.arange(width))
    used = np.concatenate([np.ones((len(numbers), 1), bool), parts[:, 1:] > 0], axis=1)
    follows = np.concatenate([used[:, 1:], np.zeros((len(numbers), 1), bool)], axis=1)
    return bytes(((parts & 127) | (follows << 7)).astype(np.uint8)[used])


def _packed(content: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return packer.compress(content) + packer.flush()
