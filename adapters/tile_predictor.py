"""Expression of tiles that another tool has read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import BundleError, InputError
from mclst.runtime.inference.readout import Readout, RegressionReadout, RetrievalReadout
from mclst.runtime.providers.opening import EncoderRequest, open_encoder
from mclst.runtime.sharing.hub import bundle_folder


def as_pixels(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels as uint8; raises InputError for values other than 0, 1, … 255, such as shares of 1."""
    with np.errstate(invalid="ignore"):
        pixels = values.astype(np.uint8, copy=False)
    if not np.array_equal(pixels, values):
        raise InputError(
            f"pixels are {values.dtype} and not whole numbers from 0 to 255; leave out what normalizes them, "
            "since the bundle does"
        )
    return pixels


class TilePredictor:
    """Predicts expression from tiles, as mclst-infer does once it has read them.

    Parameters
    ----------
    bundle : str, Path or Bundle
        A folder, hf://ORG/NAME@REVISION, or an opened bundle.
    provider : str
        Runtime of the encoder, as of mclst-infer.
    batch_size : int
        Tiles encoded at once.

    Attributes
    ----------
    bundle : Bundle
    genes : tuple of str
    tile_px : int
        Side S of a tile.
    mpp : float or None
        µm/px of a tile; None: the slide's own level 0.

    Raises
    ------
    InputError
        If the bundle is refused, or predicts from several spots together.
    ResourceError
        If the provider is not available.
    """

    def __init__(self, bundle: str | Path | Bundle, *, provider: str = "auto", batch_size: int = 16) -> None:
        if batch_size < 1:
            raise InputError(f"a batch of {batch_size} tiles predicts nothing; give 1 or more")
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle_folder(bundle))
        manifest = self.bundle.manifest
        if manifest.kind == "slide" or manifest.neighborhood is not None:
            raise BundleError(
                f"{self.bundle.path} predicts from several spots of a slide together, and a tool that gives "
                "single tiles cannot run it; run mclst-infer"
            )
        self.genes = tuple(self.bundle.genes)
        self.tile_px, self.mpp = manifest.tile.size_px, manifest.tile.mpp
        self._batch = batch_size
        request = EncoderRequest(
            self.bundle.path, self.bundle.encoder(), "fp32", batch_size, False, notify=lambda text: None
        )
        self._session: Session = open_encoder(provider, request)[0]
        self._readout: Readout = (
            RegressionReadout(manifest.genes)
            if manifest.kind == "regression"
            else RetrievalReadout(self.bundle, self.bundle.retrieval, "auto", fp16=False)
        )

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Predict expression.

        Parameters
        ----------
        tiles : uint8 array [n, S, S, 3]
            RGB.

        Returns
        -------
        float32 array [n, G]

        Raises
        ------
        InputError
            If the tiles have another size or type.
        """
        size = self.tile_px
        if tiles.ndim != 4 or tiles.shape[1:] != (size, size, 3) or tiles.dtype != np.uint8:
            scale = f"at {self.mpp:g} µm/px" if self.mpp else "of the slide's level 0"
            raise InputError(
                f"tiles are {tiles.dtype} {list(tiles.shape)}, and the bundle takes uint8 [n, {size}, "
                f"{size}, 3] "
                f"{scale}; cut the slide into such tiles"
            )
        parts = [np.empty((0, len(self.genes)), np.float32)]
        for start in range(0, len(tiles), self._batch):
            batch = np.ascontiguousarray(tiles[start : start + self._batch])
            rows = np.arange(start, start + len(batch))
            parts.append(self._readout.predict_expression(rows, self._session.encode(batch)).expression)
        return np.concatenate(parts)

    def columns(self, genes: Sequence[str]) -> list[int]:
        """Return the genes' columns; raises InputError for a gene that is not predicted."""
        position = {gene: i for i, gene in enumerate(self.genes)}
        for gene in genes:
            if gene not in position:
                raise InputError(f"{self.bundle.path} predicts no {gene}; choose other genes")
        return [position[gene] for gene in genes]
