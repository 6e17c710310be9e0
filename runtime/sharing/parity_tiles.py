"""Tiles of the parity proof that a bundle keeps: for anyone to repeat it, and as test tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.bundle.bundle import PARITY_OUTPUT, PARITY_TILES, Bundle
from mclst.runtime.encoder.onnxruntime_cpu import OnnxSession
from mclst.runtime.errors import BundleError

RTOL, ATOL = 1e-3, 1e-4
"""Between this machine and the one that exported; what separates runtimes is smaller by far."""


def read_parity_tiles(bundle: Bundle) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
    """Read the tiles uint8 [n, S, S, 3] and the checkpoint's output float32 [n, D]; None if none are kept.

    Raises BundleError if they are not what the manifest says.
    """
    if PARITY_TILES not in bundle.manifest.files or PARITY_OUTPUT not in bundle.manifest.files:
        return None
    tiles, output = _read(bundle.path / PARITY_TILES), _read(bundle.path / PARITY_OUTPUT)
    size = bundle.manifest.tile.size_px
    if (
        tiles.dtype != np.uint8
        or output.dtype != np.float32
        or not len(tiles)
        or tiles.shape != (len(output), size, size, 3)
        or output.shape[1:] != (bundle.manifest.graph_dim,)
    ):
        raise BundleError(
            f"{bundle.path / PARITY_TILES} and {PARITY_OUTPUT} are not tiles and outputs of this bundle; "
            "export it again"
        )
    return tiles, output


def repeat_proof(bundle: Bundle) -> tuple[int, float] | None:
    """Encode the kept tiles by ONNX Runtime; return their number and the largest difference.

    Raises
    ------
    BundleError
        If the graph gives something else than the checkpoint gave.
    ResourceError
        If ONNX Runtime is not installed.
    """
    kept = read_parity_tiles(bundle)
    if kept is None:
        return None
    tiles, expected = kept
    actual = OnnxSession(bundle.encoder_path).encode(tiles)
    if not np.allclose(actual, expected, rtol=RTOL, atol=ATOL):
        raise BundleError(
            f"{bundle.encoder_path} does not give here what the checkpoint gave on {len(tiles)} tiles (it "
            f"differs by {np.abs(actual - expected).max():.2g}); export the bundle again, or do not use it"
        )
    return len(tiles), float(np.abs(actual - expected).max())


def _read(path: Path) -> NDArray[Any]:
    try:
        # Mapped, an array of more than the file holds is refused before memory is taken.
        array: NDArray[Any] = np.array(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
    return array
