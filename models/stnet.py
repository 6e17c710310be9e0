"""ST-Net (He et al. 2020): expression from one tile by DenseNet-121 and a linear layer.

State-dict compatible with the published code, which replaces the classifier of torchvision's DenseNet.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from mclst.models.system import State, System, Traits


class StNet(nn.Module):
    """torchvision's DenseNet-121, including the ReLU after `norm5`, with a linear layer to the genes."""

    def __init__(self, genes: int) -> None:
        super().__init__()
        network = torchvision.models.densenet121(weights=None)
        self.features = network.features
        self.classifier = nn.Linear(network.classifier.in_features, genes)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W], preprocessed → expression float32 [N, genes]."""
        features = torch.relu(self.features(tiles))
        out: Tensor = self.classifier(features.mean((2, 3)))
        return out


def _traits(state: State, encoder: str | None) -> Traits:
    genes = len(state["classifier.weight"])
    return Traits(encoder="densenet121", genes=genes, width=genes)


SYSTEM = System(
    name="stnet",
    title="ST-Net",
    kind="regression",
    claims=lambda state: "features.conv0.weight" in state and "classifier.weight" in state,
    traits=_traits,
    build=lambda traits, heads: StNet(traits.genes),
    settings={"normalization": {"input": "none", "expression": "log-share"}},
    supports=frozenset({"symmetries"}),
    # The published training estimates them from its first batches and only logs them.
    required=("preprocessing.mean", "preprocessing.std"),
)
