"""The published notebook: Pillow, a data loader of 32 tiles, torch, and a Python loop per spot.

It follows the evaluation scripts of mclSTExp and BLEEP, and is faster than they are in two ways: it encodes
only the section in question, and it receives the spot embeddings instead of computing them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.retrieval.peers import published_loop
from mclst.benchmarks.retrieval.synthetic import F32, Bank
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.progress import Clock

BATCH = 32
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class PublishedNotebook:
    """Its state before a slide: the network, its preprocessing, the reference spots.

    prepare: uint8 tiles [b, S, S, 3] → float tensor.
    """

    network: Any
    prepare: Callable[[U8], Any]
    bank: Bank
    spec: RetrievalSpec
    size_px: int
    threads: int

    def run(self, slide: Path, xy_px: NDArray[np.float64]) -> tuple[F32, Clock]:
        """Predict a picture.

        Parameters
        ----------
        slide : Path
            JPEG or PNG.
        xy_px : ndarray of float64, shape (n, 2)
            Spot centers, px.

        Returns
        -------
        expression : ndarray of float32, shape (n, G)
        clock : Clock
            Seconds by stage: `decode` opens the whole picture, `read` crops and prepares tiles, `total` is
            the run.
        """
        import torch
        from PIL import Image
        from torch.utils.data import DataLoader, Dataset

        torch.set_num_threads(self.threads)
        clock, started = Clock(), time.perf_counter()
        with clock.stage("decode"):
            # The scripts lift Pillow's pixel limit; here it is restored after this picture.
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(slide).convert("RGB")
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        half, prepare, centers = self.size_px // 2, self.prepare, np.floor(xy_px).astype(int)

        class Spots(Dataset[Any]):
            def __len__(self) -> int:
                return len(centers)

            def __getitem__(self, row: int) -> Any:
                x, y = centers[row].tolist()
                with clock.stage("read"):
                    patch = image.crop((x - half, y - half, x + half, y + half))
                    return prepare(np.array(patch)[None])[0]

        parts = []
        with torch.no_grad():
            for tiles in DataLoader(Spots(), batch_size=BATCH, shuffle=False):
                with clock.stage("encode"):
                    parts.append(self.network.encode_tiles(tiles).cpu().numpy())
        with clock.stage("retrieve"):
            expression = published_loop(self.bank, self.spec, self.threads)(np.concatenate(parts))
        clock["total"] = time.perf_counter() - started
        return expression, clock
