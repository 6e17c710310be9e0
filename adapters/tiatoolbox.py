"""A bundle as a model of TIAToolbox.

>>> from tiatoolbox.models.engine.patch_predictor import PatchPredictor
>>> from mclst.adapters.tiatoolbox import MclstModel
>>> model = MclstModel("mclst-bundle")
>>> predictor = PatchPredictor(model=model)
>>> predictor.run(images=tiles, patch_mode=True, ioconfig=model.ioconfig, return_probabilities=True)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
from tiatoolbox.models.models_abc import ModelABC

from mclst.adapters.tile_predictor import TilePredictor, as_pixels
from mclst.runtime.bundle.bundle import Bundle


class MclstModel(ModelABC):
    """Expression of a patch, float32 [n, G], in the order of `genes`.

    Parameters
    ----------
    bundle : str, Path or Bundle
        A folder, hf://ORG/NAME@REVISION, or an opened bundle.
    provider : str
        Runtime of the encoder, as of mclst-infer; `device` of TIAToolbox does not change it.
    batch_size : int
        Tiles encoded at once.

    Raises
    ------
    InputError, ResourceError
        See `TilePredictor` and `as_pixels`.
    """

    def __init__(self, bundle: str | Path | Bundle, *, provider: str = "auto", batch_size: int = 16) -> None:
        super().__init__()
        self.predictor = TilePredictor(bundle, provider=provider, batch_size=batch_size)
        self.genes = self.predictor.genes
        self.class_dict = dict(enumerate(self.genes))

    @property
    def ioconfig(self) -> IOPatchPredictorConfig:
        """Size and scale of the patches to cut, for `run`."""
        size, mpp = self.predictor.tile_px, self.predictor.mpp
        scale = (
            {"units": "baseline", "resolution": 1.0} if mpp is None else {"units": "mpp", "resolution": mpp}
        )
        return IOPatchPredictorConfig(
            patch_input_shape=(size, size), stride_shape=(size, size), input_resolutions=[scale]
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Predict from uint8 [n, S, S, 3]: float32 [n, G]."""
        return torch.from_numpy(self.predictor.predict(as_pixels(patches.cpu().numpy())))

    @staticmethod
    def infer_batch(
        model: torch.nn.Module, batch_data: NDArray[Any] | torch.Tensor, *, device: str = "cpu"
    ) -> NDArray[np.float32]:
        """See ModelABC: patches [n, S, S, 3] → expression [n, G]; `device` does not count."""
        expression: torch.Tensor = model(torch.as_tensor(batch_data))
        return expression.numpy()

    @staticmethod
    def postproc(image: NDArray[Any]) -> NDArray[Any]:
        """Leave the expression as it is: no class is chosen."""
        return image
