"""The published way from a slide to expression: Pillow, a data loader of 32 tiles, torch, and a Python loop per spot.

Written after the evaluation scripts of mclSTExp (and of BLEEP before it), which is what a lab that runs them has. In two
things it is faster than they are: it encodes the section in question alone, not all of them, and leaves out the spots'
side of the network, whose embeddings it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.retrieval.cases import Bank
from mclst.benchmarks.retrieval.peers import published_loop
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.progress import Clock

BATCH = 32
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class PublishedNotebook:
    """What its cells hold in memory before a slide comes: the network, its preprocessing, the reference spots.

    prepare: uint8 tiles [b, S, S, 3] → float tensor, as the network was trained.
    """

    network: Any
    prepare: Callable[[U8], Any]
    bank: Bank
    spec: RetrievalSpec
    size_px: int
    threads: int

    def run(self, slide: Path, xy_px: NDArray[np.float64]) -> tuple[F32, Clock]:
        """Expression float32 [n, G] at places float64 [n, 2] (level-0 px) of a picture, and seconds by stage.

        Of the stages, `decode` opens the whole picture, `read` crops and prepares tiles; `total` is the whole run.
        """
        import torch
        from PIL import Image
        from torch.utils.data import DataLoader, Dataset

        torch.set_num_threads(self.threads)
        clock, started = Clock(), time.perf_counter()
        with clock.stage("decode"):
            # The scripts lift Pillow's limit for the large pictures of this field; here for this picture alone.
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(slide).convert("RGB")
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        half, prepare, centres = self.size_px // 2, self.prepare, np.floor(xy_px).astype(int)

        class Spots(Dataset[Any]):
            def __len__(self) -> int:
                return len(centres)

            def __getitem__(self, row: int) -> Any:
                x, y = centres[row].tolist()
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
