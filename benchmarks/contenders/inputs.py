"""What the encoder benchmarks are given: bundle, checkpoint, slide and spots, checked against each other and opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from mclst.benchmarks.contenders.base import U8, ContenderInputs
from mclst.benchmarks.contenders.published_baseline import PublishedNotebook
from mclst.benchmarks.harness.errors import PeerUnavailable
from mclst.benchmarks.retrieval.cases import Bank
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.errors import CheckpointError, SlideError
from mclst.runtime.slide.detect_format import detect_format
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.array_pitch import slide_resolution
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.section import Spots


@dataclass(frozen=True)
class Published:
    """A checkpoint's network in torch, and the preprocessing it was trained with: tiles uint8 [b, S, S, 3] → tensor."""

    network: Any
    prepare: Callable[[U8], Any]


def open_published(ckpt: Path, bundle: Bundle) -> Published:
    """The network of the checkpoint that `bundle` was made from; raises CheckpointError where it is another one."""
    from mclst.export.inputs.checkpoint import open_checkpoint
    from mclst.export.onnx.graph import preprocess

    checkpoint = open_checkpoint(ckpt)
    said = bundle.manifest.checkpoint
    if checkpoint.sha256 != said.sha256:
        raise CheckpointError(
            f"{ckpt} is not the checkpoint that {bundle.path} was made from ({said.name}); give that one, or export again"
        )
    encoder = bundle.manifest.spot_encoder
    network = checkpoint.network(heads=None if encoder is None else encoder.heads)
    settings = bundle.manifest.preprocessing
    return Published(network, lambda tiles: preprocess(tiles, settings))


def make_inputs(
    bundle: Bundle, ckpt: Path | None, settings: Sequence[tuple[str, str]], threads: int
) -> ContenderInputs:
    """What encoders are made from: the graphs of `settings`, (provider, precision) each, and with `ckpt` the network.

    Raises BundleError where a precision is not in the bundle, CheckpointError as `open_published` does.
    """
    graphs = {"fp32": bundle.encoder_path}
    graphs |= {precision: bundle.encoder(precision) for _, precision in settings}
    published = None if ckpt is None else open_published(ckpt, bundle)
    return ContenderInputs(
        bundle.path,
        graphs,
        threads,
        bundle.manifest.tile.size_px,
        None if published is None else published.network,
        None if published is None else published.prepare,
    )


def open_notebook(bundle: Bundle, ckpt: Path | None, slide: Path, threads: int) -> PublishedNotebook:
    """The published way with this bundle's reference spots; Absent where it would not do the same work."""
    if ckpt is None:
        raise PeerUnavailable("needs the checkpoint; give --ckpt")
    if bundle.manifest.kind != "retrieval":
        raise PeerUnavailable("it is of the systems with a bank")
    spec = bundle.retrieval
    if spec.rank != "cosine" or spec.distance not in ("l1", "l2") or spec.weighting != "inverse-square":
        raise PeerUnavailable("the published loop knows rank by cosine and d⁻² weights of L1 or L2 alone")
    if bundle.manifest.tile.mpp is not None:
        raise PeerUnavailable("it does not resample tiles, and this bundle's are of a given mpp")
    if detect_format(slide) not in ("jpeg", "png"):
        raise PeerUnavailable("it reads pictures alone, not slide files")
    published = open_published(ckpt, bundle)
    bank = Bank(bundle.bank.embedding, bundle.bank.expression)
    return PublishedNotebook(
        published.network, published.prepare, bank, spec, bundle.manifest.tile.size_px, threads
    )


def real_tiles(bundle: Bundle, slide: Path, spots: Spots, most: int) -> U8:
    """Up to `most` tiles of a slide as the bundle's encoder takes them, uint8 [n, S, S, 3], in the order of the spots.

    Those that cannot be read are left out; raises SlideError where none can be.
    """
    tile = bundle.manifest.tile
    with open_slide(slide) as opened:
        mpp = slide_resolution(opened, spots, None).mpp
        shape = TileShape(tile.size_px, tile.mpp, tile.pad)
        batches = Tiles(opened, spots.xy_px[:most], shape, batch_size=64, workers=2, slide_mpp=mpp)
        found = [(batch.rows, batch.tiles.copy()) for batch in batches if len(batch.rows)]
    if not found:
        raise SlideError(f"{slide}: no tile of the spots can be read; give another slide")
    order = np.argsort(np.concatenate([rows for rows, _ in found]))
    return np.ascontiguousarray(np.concatenate([pixels for _, pixels in found])[order])


def parse_settings(context: click.Context, parameter: click.Parameter, value: str) -> list[tuple[str, str]]:
    """Text as cpu:fp32,openvino:bf16 → (provider, precision), each once."""
    found = []
    for part in value.split(","):
        provider, _, precision = part.strip().partition(":")
        if not provider:
            raise click.BadParameter(f"{value!r} is not a list such as cpu:fp32,cpu:int8")
        found.append((provider, precision or "fp32"))
    return list(dict.fromkeys(found))
