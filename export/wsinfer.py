"""A bundle as a model of QuPath's WSInfer extension: TorchScript, and config.json.

The extension applies a softmax to what the network gives, and writes each class as a measurement of a tile.
So the graph gives log ŷ of each chosen gene, and one class more, `rest`, with log(C - Σŷ): the softmax of
these is ŷ / C, exactly for 0 ≤ ŷ and Σŷ ≤ C.

References
----------
https://github.com/qupath/qupath-extension-wsinfer and https://wsinfer.readthedocs.io: `config.json`,
`torchscript_model.pt`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mclst.export.inputs.checkpoint import Checkpoint
from mclst.export.onnx.graph import ImageModule
from mclst.export.parity.tiles import stored_tiles, synthetic_tiles
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.models.pixels import prepare
from mclst.runtime.atomic import AtomicFolder, write_atomically
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.bundle.manifest import Settings
from mclst.runtime.errors import CheckpointError, InputError

CONFIG, NETWORK, README = "config.json", "torchscript_model.pt", "README.md"
REST = "rest"
SMALLEST = 1e-30
"""Of a share: the softmax of its logarithm is 0 in float32 sums, and its logarithm is finite."""
MARGIN = 4.0
"""C of a prediction, whose sums nothing bounds, over the largest sum seen on tiles."""
SCALE_TILES = 16


def write_wsinfer(
    checkpoint: Checkpoint,
    settings: Settings,
    bundle: Bundle,
    folder: Path,
    genes: Sequence[str],
    mpp: float | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a model for QuPath's WSInfer extension, with chosen genes as classes.

    Parameters
    ----------
    checkpoint : Checkpoint
    settings : Settings
        Of the bundle.
    bundle : Bundle
        Made from the checkpoint.
    folder : Path
        To write: torchscript_model.pt, config.json, README.md.
    genes : sequence of str
    mpp : float, optional
        µm/px of the tiles, for a bundle that does not say it.
    overwrite : bool
        Replace such a folder.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the system predicts from several spots together, a gene is unknown, the µm/px is not known, or
        expression is below 0.
    CheckpointError
        If the network cannot be traced.
    OutputError
        If the folder exists or cannot be written.
    """
    manifest = bundle.manifest
    mpp = mpp or manifest.tile.mpp
    if mpp is None:
        raise InputError(
            f"{bundle.path} does not say its µm/px, which WSInfer needs; give --wsinfer-mpp, that of the "
            "training slides"
        )
    check_exportable(bundle)
    columns = _columns(bundle, genes)
    encoder = ImageModule(checkpoint.network(heads=settings.heads), settings.preprocessing.symmetries)
    encoder.eval().requires_grad_(False)
    stored = stored_tiles(checkpoint.metadata, settings.tile, SCALE_TILES, 0)
    tiles = stored[0] if stored is not None else synthetic_tiles(settings.tile, SCALE_TILES)
    network, scale = _network(encoder, settings, bundle, columns, tiles.pixels)
    with AtomicFolder(folder, mark=CONFIG, overwrite=overwrite, option="--wsinfer") as draft:
        _trace(network, manifest.tile.size_px, draft.part / NETWORK)
        config = _config(bundle, genes, mpp, scale)
        write_atomically(draft.part / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        write_atomically(draft.part / README, _readme(bundle, genes, scale).encode())
        return draft.publish()


def check_exportable(bundle: Bundle) -> None:
    """Raise InputError for a bundle whose expression no single tile gives."""
    m = bundle.manifest
    if m.kind == "slide" or m.neighborhood is not None:
        raise InputError(
            f"{bundle.path} predicts from several spots together, and WSInfer gives one tile at a time; "
            "leave --wsinfer out"
        )


def _columns(bundle: Bundle, genes: Sequence[str]) -> list[int]:
    position = {gene: i for i, gene in enumerate(bundle.genes)}
    for gene in genes:
        if gene not in position:
            raise InputError(f"--wsinfer-genes: {bundle.path} predicts no {gene}; choose other genes")
    if len(set(genes)) != len(genes) or REST in genes:
        raise InputError(f"--wsinfer-genes names a gene twice, or {REST!r}; correct it")
    return [position[gene] for gene in genes]


def _network(
    encoder: nn.Module,
    settings: Settings,
    bundle: Bundle,
    columns: list[int],
    tiles: NDArray[np.uint8],
) -> tuple[nn.Module, float]:
    """Return the network from RGB in 0 … 1 to logarithms of shares, and C; tiles: to see its sums on."""
    encode, manifest = _Encode(encoder, settings), bundle.manifest
    predicted = manifest.encoder.prediction_dim
    prediction = _Columns(columns, manifest.genes)
    if manifest.retrieval is None:
        head: nn.Module = prediction
    else:
        head = _Retrieve(bundle.bank.embedding, bundle.bank.expression[:, columns], bundle.retrieval)
        if predicted:
            head = _RetrieveAndAdd(head, manifest.encoder.embedding_dim, prediction)
    if manifest.retrieval is None or predicted:
        scale = MARGIN * _largest_sum(nn.Sequential(encode, head), tiles, bundle)
    else:
        expression = bundle.bank.expression[:, columns]
        if expression.min() < 0:
            raise InputError(
                f"{bundle.path} has expression below 0 in its bank, of which no logarithm exists; export "
                "with an --expression-normalization that counts from 0"
            )
        # A weighted mean of rows has at most the largest sum of a row.
        scale = float(expression.astype(np.float64).sum(1).max()) or 1.0
    # Rounded up to a power of two, so that multiplying by C is exact.
    scale = 2.0 ** math.ceil(math.log2(scale))
    return nn.Sequential(encode, head, _Shares(scale)).eval(), scale


def _largest_sum(network: nn.Module, tiles: NDArray[np.uint8], bundle: Bundle) -> float:
    """Largest sum of the genes over tiles; InputError if no gene is above 0 anywhere."""
    sums = []
    with torch.inference_mode():
        for tile in torch.from_numpy(tiles).permute(0, 3, 1, 2):
            sums.append(float(network(tile[None] / 255).clamp_min(0).sum()))
    if not max(sums) > 0:
        raise InputError(
            f"{bundle.path} gives no value above 0 of these genes (its unit is "
            f"{bundle.manifest.normalization.expression}), and WSInfer shows no "
            "others; choose other --wsinfer-genes, or leave --wsinfer out"
        )
    return max(sums)


class _Encode(nn.Module):
    """float32 [N, 3, S, S], RGB in 0 … 1 as ToTensor gives it → what the encoder gives."""

    def __init__(self, encoder: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, settings.preprocessing

    def forward(self, tiles: Tensor) -> Tensor:
        # Whole numbers again, as the slide has them.
        pixels = torch.round(tiles * 255)
        if self.preprocessing.axes == "x-major":
            pixels = pixels.transpose(2, 3)
        p = self.preprocessing
        out: Tensor = self.encoder(
            prepare(pixels, channels=p.channels, pixel_range=p.pixel_range, mean=p.mean, std=p.std)
        )
        return out


class _Columns(nn.Module):
    """Expression of the chosen genes, from values that end with that of all genes."""

    columns: Tensor

    def __init__(self, columns: list[int], genes: int) -> None:
        super().__init__()
        self.genes = genes
        self.register_buffer("columns", torch.tensor(columns))

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = values[:, -self.genes :].double()[:, self.columns]
        return out


class _RetrieveAndAdd(nn.Module):
    """Retrieval by the first values, added to the prediction that the last ones are."""

    def __init__(self, retrieve: nn.Module, width: int, prediction: nn.Module) -> None:
        super().__init__()
        self.retrieve, self.width, self.prediction = retrieve, width, prediction

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.retrieve(values[:, : self.width]) + self.prediction(values)
        return out


class _Retrieve(nn.Module):
    """Retrieval as `mclst.kernels.definition` defines it, with the bank as a constant, in float64."""

    embedding: Tensor
    expression: Tensor

    def __init__(self, embedding: np.ndarray, expression: np.ndarray, spec: RetrievalSpec) -> None:
        super().__init__()
        # float32, as in the bank: half the file, and the same values once they are float64.
        self.register_buffer("embedding", torch.from_numpy(np.ascontiguousarray(embedding)))
        self.register_buffer("expression", torch.from_numpy(np.ascontiguousarray(expression)))
        self.spec = spec

    def forward(self, queries: Tensor) -> Tensor:
        q, bank, spec = queries.double(), self.embedding.double(), self.spec
        if spec.rank == "cosine":
            norm = bank.square().sum(1).sqrt()
            score = -(q @ bank.T) / torch.where(norm > 0, norm, 1.0)
        else:
            score = torch.cdist(
                q, bank, 1.0 if spec.rank == "l1" else 2.0, compute_mode="donot_use_mm_for_euclid_dist"
            )
        rows = torch.topk(score, spec.k, dim=1, largest=False).indices
        weight = self._weights(self._distances(q.unsqueeze(1), bank[rows]))
        return (weight.unsqueeze(2) * self.expression.double()[rows]).sum(1)

    def _distances(self, q: Tensor, b: Tensor) -> Tensor:
        if self.spec.distance == "l1":
            return (q - b).abs().sum(2)
        if self.spec.distance == "l2":
            return (q - b).square().sum(2).sqrt()
        return (nn.functional.normalize(q, dim=2) - nn.functional.normalize(b, dim=2)).square().sum(2) / 2

    def _weights(self, distance: Tensor) -> Tensor:
        nearest = distance.min(1, keepdim=True).values
        if self.spec.weighting == "similarity":
            raw = 1.0 - distance
        elif self.spec.weighting == "uniform":
            raw = torch.ones_like(distance)
        elif self.spec.weighting == "inverse-square":
            ratio = nearest / torch.where(distance > 0, distance, 1.0)
            raw = torch.where(nearest > 0, ratio * ratio, (distance == 0).double())
        else:
            excess = distance - nearest
            if self.spec.weighting == "softmax-squared":
                excess = excess * (distance + nearest)
            raw = torch.exp(-excess / self.spec.temperature)
        return raw / raw.sum(1, keepdim=True)


class _Shares(nn.Module):
    """Expression [N, G] → log of ŷ / C and of the rest, float32 [N, G + 1]; below 0 counts as 0."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, expression: Tensor) -> Tensor:
        shares = (expression / self.scale).clamp_min(0.0)
        rest = (1.0 - shares.sum(1, keepdim=True)).clamp_min(0.0)
        return torch.cat([shares, rest], 1).clamp_min(SMALLEST).log().float()


def _trace(network: nn.Module, size_px: int, path: Path) -> None:
    example = torch.rand(2, 3, size_px, size_px)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(network, example, check_trace=False), str(path))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the network cannot be written as TorchScript ({reason}); report it"
        ) from error


def _config(bundle: Bundle, genes: Sequence[str], mpp: float, scale: float) -> dict[str, object]:
    size_px = bundle.manifest.tile.size_px
    return {
        "spec_version": "1.0",
        "architecture": bundle.manifest.encoder.name,
        "num_classes": len(genes) + 1,
        "patch_size_pixels": size_px,
        "spacing_um_px": mpp,
        "class_names": [*genes, REST],
        "transform": [{"name": "Resize", "arguments": {"size": size_px}}, {"name": "ToTensor"}],
        "mclst": {
            "scale": scale,
            "bundle_sha256": bundle.sha256,
            "expression": bundle.manifest.normalization.expression,
        },
    }


def _is_mean_of_bank(bundle: Bundle) -> bool:
    retrieval = bundle.manifest.retrieval
    # Similarities may be negative.
    weights = retrieval is not None and retrieval.weighting != "similarity"
    return weights and not bundle.manifest.encoder.prediction_dim


def _readme(bundle: Bundle, genes: Sequence[str], scale: float) -> str:
    bound = (
        "No sum exceeds it: each value is a weighted mean of the bank."
        if _is_mean_of_bank(bundle)
        else f"Where `{REST}` is 0, the sum exceeds it, and the values are too small."
    )
    return (
        f"# Expression of {len(genes)} genes in QuPath\n\n"
        "A model for QuPath's WSInfer extension, written by mclst-export --wsinfer. Each class but "
        f"`{REST}` is a gene; a tile's measurement times {scale:g} is its expression, "
        f"{bundle.manifest.normalization.expression}. {bound} Values below 0 are given as 0.\n\n"
        f"Bundle: SHA-256 {bundle.sha256}\n"
    )
