"""The six systems in their published sizes, and fitted heads, with random weights: exported and timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mclst.benchmarks.harness.measure import Samples, summarize, time_interleaved
from mclst.benchmarks.retrieval.cases import Case
from mclst.benchmarks.retrieval.synthetic import Source
from mclst.benchmarks.systems.slide_memory import array_positions
from mclst.export.onnx.graph import write_graph
from mclst.export.onnx.slide_graph import write_slide_graph
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.models.bleep import Bleep
from mclst.models.fitted import HEAD, PROJECTION, Fitted
from mclst.models.hist2st import Hist2St
from mclst.models.histogene import HisToGene
from mclst.models.mclstexp import MclSTExp
from mclst.models.recipes.find import find_recipe
from mclst.models.stnet import StNet
from mclst.models.system import systems
from mclst.models.thitogene import ThitoGene
from mclst.runtime.bundle.bundle import ENCODER, SLIDE_GRAPH
from mclst.runtime.bundle.manifest import Settings, SlideNetwork
from mclst.runtime.inference.slide_network import SlideNetworkSession
from mclst.runtime.providers.opening import EncoderRequest, onnxruntime_beside, open_encoder
from mclst.training.fitting.heads import COMPONENTS, neighbor_spec

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Published:
    """make: the network in its published size. bank: of a retrieval system.

    settings: those a checkpoint does not contain; any value takes as long. system: if it has another name.
    genes: that the network predicts itself beside an embedding.
    """

    make: Callable[[], nn.Module]
    bank: Case | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    genes: int = 0


def _head(retrieves: bool, genes: int) -> Published:
    """A head of mclst-fit on EfficientNet-Lite0, of the genes and the bank of mclSTExp's HER2+ sections."""
    recipe = find_recipe("efficientnet_lite0")
    bank = Case("knn", 11_372, 785, neighbor_spec(50), d=COMPONENTS) if retrieves else None
    return Published(
        lambda: Fitted(
            recipe, (1.0,), COMPONENTS + genes, context=False, layer=PROJECTION if retrieves else HEAD
        ),
        bank,
        {"preprocessing": {"mean": list(recipe.mean), "std": list(recipe.std)}},
        "fitted-retrieval" if retrieves else "fitted",
        genes,
    )


# Banks as published: HER2+ without its smallest section, and three liver slides; genes as trained.
PUBLISHED: dict[str, Published] = {
    "mclstexp": Published(
        lambda: MclSTExp("densenet121", 785, positions=1),
        Case("mclstexp", 11_372, 785, RetrievalSpec(k=200, rank="cosine", distance="l1")),
    ),
    "bleep": Published(
        lambda: Bleep("resnet50", 3467),
        Case("bleep", 6_992, 3467, RetrievalSpec(k=50, rank="cosine", distance="l2", weighting="uniform")),
    ),
    "stnet": Published(
        lambda: StNet(250), settings={"preprocessing": {"mean": [0.7, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}}
    ),
    "histogene": Published(lambda: HisToGene(785)),
    "hist2st": Published(lambda: Hist2St(785)),
    "thitogene": Published(lambda: ThitoGene(785)),
    "ridge": _head(retrieves=False, genes=785),
    "knn": _head(retrieves=True, genes=0),
    "blend": _head(retrieves=True, genes=785),
}


class ExportedSystem:
    """A system's graphs in a folder, opened: the encoder, and the part that follows it."""

    def __init__(self, name: str, published: Published, folder: Path, provider: str, batch: int) -> None:
        """Export to a new `folder` and open on `provider` for `batch` tiles at once."""
        folder.mkdir()
        self.system, self._genes = systems()[published.system or name], published.genes
        settings = _settings({**self.system.settings, **published.settings})
        self.tile_px = settings.tile.size_px
        network = published.make().eval().requires_grad_(False)
        self.parameters = sum(weight.numel() for weight in network.parameters())
        write_graph(network, settings.tile, settings.preprocessing, folder / ENCODER)
        self.session, _ = open_encoder(provider, EncoderRequest(folder, folder / ENCODER, "fp32", batch))
        self.slide_graph_path: Path | None = None
        self._beside = ""
        self._slide_network: SlideNetworkSession | None = None
        self._retriever: Retriever | None = None
        if self.system.kind == "slide":
            traits = self.system.traits(network.state_dict(), None)
            graph = settings.graph if "graph" in self.system.supports else None
            self.settings = SlideNetwork(
                heads=settings.heads, depth=traits.depth, positions=traits.positions, graph=graph
            )
            self.slide_graph_path = folder / SLIDE_GRAPH
            write_slide_graph(network, traits, graph, self.slide_graph_path)
            self._beside = onnxruntime_beside(self.session.provider)
            self._slide_network = SlideNetworkSession(self.slide_graph_path, self.settings, self._beside)
        if published.bank is not None:
            self._retriever = Retriever(Source("contrastive", published.bank).bank(), published.bank.spec)

    @property
    def after(self) -> str:
        """The part after the encoder, and what runs it."""
        if self._retriever is not None:
            return f"retrieval on {self._retriever.provider}"
        return f"whole slide on {self._beside}" if self._slide_network is not None else ""

    def encode(self, tiles: NDArray[np.uint8], batch: int) -> F32:
        """Encode tiles uint8 [N, S, S, 3] in batches; the graph's output float32 [N, D]."""
        parts = [self.session.encode(tiles[i : i + batch]) for i in range(0, len(tiles), batch)]
        return np.concatenate(parts)

    def predict_expression(self, encoded: F32) -> F32:
        """Expression float32 [N, G] of a slide's spots from the encoder's output [N, D]."""
        embedding, predicted = np.split(encoded, [encoded.shape[1] - self._genes], axis=1)
        if self._retriever is not None:
            neighbors = self._retriever.aggregate(np.ascontiguousarray(embedding)).expression
            return neighbors + predicted if self._genes else neighbors
        if self._slide_network is not None:
            return self._slide_network.predict_expression(
                encoded, array_positions(len(encoded), self.settings.positions)
            )
        return predicted if self._genes else encoded


def measure(
    exported: Mapping[str, ExportedSystem],
    *,
    spots: int,
    batch: int,
    rounds: int,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Time encoder and rest of every system on `spots` random tiles, interleaved; rates by wall clock."""
    features: dict[str, NDArray[np.float32]] = {}
    contenders: dict[str, Callable[[], object]] = {}
    for name, system in exported.items():
        shape = (spots, system.tile_px, system.tile_px, 3)
        tiles = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        features[name] = system.encode(tiles, batch)
        contenders[f"{name} tiles"] = partial(system.encode, tiles, batch)
        contenders[f"{name} rest"] = partial(system.predict_expression, features[name])
    timed = time_interleaved(contenders, rounds, warm_up=0, on_round=on_round)
    results = {
        name: _result(system, spots, *(timed.samples[f"{name} {part}"] for part in ("tiles", "rest")))
        for name, system in exported.items()
    }
    return {"load": timed.load, "systems": results}


def _result(system: ExportedSystem, spots: int, tiles: Samples, rest: Samples) -> dict[str, Any]:
    both = [a + b for a, b in zip(tiles.wall_s, rest.wall_s, strict=True)]
    return {
        "kind": system.system.kind,
        "tile_px": system.tile_px,
        "parameters": system.parameters,
        "provider": system.session.provider,
        "after": system.after,
        "tiles_per_second": {
            "tiles": summarize([spots / max(s, 1e-9) for s in tiles.wall_s]),
            "all": summarize([spots / max(s, 1e-9) for s in both]),
        },
        "rest_seconds": summarize(rest.wall_s),
    }


def _settings(changes: Mapping[str, Any]) -> Settings:
    merged = Settings().model_dump(mode="json")
    for part, fields in changes.items():
        merged[part] = {**merged[part], **fields} if isinstance(fields, Mapping) else fields
    return Settings.model_validate_json(json.dumps(merged))
