"""A bundle as a tile prediction model of LazySlide.

>>> import lazyslide as zs
>>> from mclst.adapters.lazyslide import MclstTileModel
>>> model = MclstTileModel("mclst-bundle")
>>> zs.pp.tile_tissues(wsi, model.tile_px, mpp=model.mpp)
>>> zs.tl.tile_prediction(wsi, model)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lazyslide_models import ModelTask, register
from lazyslide_models.base import TilePredictionModel

from mclst.adapters.tile_predictor import TilePredictor
from mclst.runtime.bundle.bundle import Bundle


class MclstTileModel(TilePredictionModel):
    """Expression of a tile, one column per gene.

    Parameters
    ----------
    bundle : str, Path or Bundle
        A folder, hf://ORG/NAME@REVISION, or an opened bundle.
    provider : str
        Runtime of the encoder, as of mclst-infer; `device` of LazySlide does not change it.
    genes : sequence of str, optional
        Genes to give; all by default.
    batch_size : int
        Tiles encoded at once.

    Raises
    ------
    InputError, ResourceError
        See `TilePredictor`; also if the bundle predicts no such gene.
    """

    task = ModelTask.tile_prediction

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        provider: str = "auto",
        genes: tuple[str, ...] | list[str] | None = None,
        batch_size: int = 16,
    ) -> None:
        self.predictor = TilePredictor(bundle, provider=provider, batch_size=batch_size)
        self._genes = tuple(self.predictor.genes if genes is None else genes)
        self._rows = self.predictor.columns(self._genes)
        self.columns = self._genes
        self.tile_px, self.mpp = self.predictor.tile_px, self.predictor.mpp
        # What LazySlide moves to a device and counts; the graph runs outside torch.
        self.model = torch.nn.Identity()

    def get_transform(self) -> Callable[[Any], torch.Tensor]:
        """Pixels as they are: uint8 [C, H, W]. Normalization is inside the graph."""
        return _pixels

    def try_compile(self, **compile_kws: Any) -> None:
        """Leave the graph as it is."""

    def predict(self, image: torch.Tensor) -> dict[str, Any]:
        """Predict from uint8 [B, C, H, W]: a column of float32 [B] per gene."""
        tiles = image.permute(0, 2, 3, 1).cpu().numpy()
        expression = self.predictor.predict(tiles)[:, self._rows]
        return dict(zip(self._genes, expression.T, strict=True))


def _pixels(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image)[..., :3]).permute(2, 0, 1)


def register_bundle(name: str, bundle: str | Path | Bundle, **options: Any) -> type[MclstTileModel]:
    """Add a bundle to LazySlide's list of models, for `zs.tl.tile_prediction(wsi, name)`.

    Parameters
    ----------
    name : str
        Of the model.
    bundle : str, Path or Bundle
        See MclstTileModel.
    options : dict
        Further arguments of MclstTileModel.

    Returns
    -------
    type
        The class that LazySlide creates.
    """

    class Registered(MclstTileModel):
        def __init__(self) -> None:
            super().__init__(bundle, **options)

    Registered.__name__ = Registered.__qualname__ = "MclstTileModel"
    register(key=name, task=ModelTask.tile_prediction, description=f"mclst bundle {bundle}")(Registered)
    return Registered
