"""Load initial weights: a whole model, or an image encoder as torchvision and timm save it."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from mclst.models.bleep import Bleep
from mclst.models.encoders import WIDTHS
from mclst.models.fitted import weights_sha256
from mclst.models.mclstexp import MclSTExp
from mclst.models.recipes.recipe import Recipe
from mclst.models.recipes.weights import load_weights as load_encoder
from mclst.runtime.errors import CheckpointError

PREFIX = "image_encoder.model."
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
"""torchvision's ImageNet file has `norm.1` where its network has `norm1`."""
State = dict[str, Tensor]


@dataclass(frozen=True)
class StartingWeights:
    """Files that a network starts from, in place of random weights; each is read once.

    Attributes
    ----------
    encoder : str
        Image encoder.
    recipe : Recipe, optional
        Of the image encoder.
    init : Path, optional
        Of the image encoder or of a whole model.
    weights : Path, optional
        Of the recipe's encoder.
    """

    encoder: str
    recipe: Recipe | None = None
    init: Path | None = None
    weights: Path | None = None

    @cached_property
    def _init(self) -> State | None:
        return None if self.init is None else read_weights(self.init)

    @cached_property
    def _encoder(self) -> State | None:
        if self.weights is None or self.recipe is None:
            return None
        return load_encoder(self.recipe, self.weights)

    def check(self) -> None:
        """Raise CheckpointError if a file holds no weights, or not those of the recipe's encoder."""
        _ = self._init, self._encoder

    def load(self, network: MclSTExp | Bleep) -> str:
        """Load them into `network`; returns a description, "" if there are none. Raises CheckpointError."""
        said = ""
        if self.init is not None and self._init is not None:
            said = load_state(network, self._init, self.init, self.encoder)
        if self.weights is not None and self.recipe is not None and self._encoder is not None:
            network.image_encoder.model.load_state_dict(self._encoder)
            said = said or f"{self.recipe.title} from {self.weights.name}"
        return said

    def record(self) -> dict[str, str]:
        """SHA-256 of the tensors in each file, by option; raises CheckpointError."""
        states = {"init": self._init, "weights": self._encoder}
        return {name: weights_sha256(state) for name, state in states.items() if state is not None}


def read_weights(path: Path) -> State:
    """Read the tensors of a .pt, .pth, .ckpt or .safetensors file by name, without executing code.

    `{"model": …}` and `{"state_dict": …}` are unwrapped, the prefixes `module.` and `backbone.` removed.
    Raises CheckpointError for any other content.
    """
    refusal = f"{path} holds no weights that can be read safely; give a state dict (.pt, .pth, .safetensors)"
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check --init") from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError) as error:
        raise CheckpointError(refusal) from error
    except (pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise CheckpointError(refusal) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(refusal)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(refusal)
    return {re.sub(r"^(module\.|backbone\.)+", "", name): value for name, value in tensors.items()}


def load_weights(network: MclSTExp | Bleep, path: Path, encoder: str) -> str:
    """Load the weights in `path` into `network`; returns a description of what was loaded.

    The image encoder must be complete, but for what timm leaves new; of the spot encoder and projections,
    matching tensors are loaded. Raises CheckpointError if tensors of the image encoder are missing or have
    other shapes.
    """
    return load_state(network, read_weights(path), path, encoder)


def load_state(network: MclSTExp | Bleep, weights: State, path: Path, encoder: str) -> str:
    """Load the tensors that `read_weights` read from `path`; see `load_weights`."""
    state = network.state_dict()
    whole_model = any(name.startswith(PREFIX) for name in weights)
    if not whole_model:
        # BLEEP's image networks keep timm's names, which for ResNets are torchvision's own.
        weights = weights if isinstance(network, Bleep) else _as_published(weights, encoder)
        weights = {PREFIX + name: tensor for name, tensor in weights.items()}
    # A partly random image encoder would go unnoticed, so all its tensors are required.
    encoder_part = [name for name in state if name.startswith(PREFIX) and "num_batches" not in name]
    fresh = set() if whole_model else _fresh_norm(weights, state)
    missing = [
        n for n in encoder_part if n not in fresh and (n not in weights or weights[n].shape != state[n].shape)
    ]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the {len(encoder_part)} tensors of {encoder} "
            f"(first {missing[0].removeprefix(PREFIX)}); give the weights of that encoder"
        )
    fitting = {name: t for name, t in weights.items() if name in state and t.shape == state[name].shape}
    network.load_state_dict(fitting, strict=False)
    if not whole_model:
        return f"{encoder} from {path.name}{', but for a new fc_norm' if fresh else ''}"
    rest = len([name for name in state if not name.startswith(PREFIX)])
    loaded = len([name for name in fitting if not name.startswith(PREFIX)])
    return f"{encoder} and {loaded} of {rest} other tensors from {path.name}"


def _fresh_norm(weights: State, state: State) -> set[str]:
    """Tensors that timm, too, leaves as they are built when a ViT of a class token is pooled by its mean."""
    names = {f"{PREFIX}fc_norm.{part}" for part in ("weight", "bias")}
    of_class_token = f"{PREFIX}norm.weight" in weights and not names & weights.keys()
    return names & state.keys() if of_class_token else set()


def _as_published(weights: State, encoder: str) -> State:
    """Rename torchvision's tensors to the published code's list of children; timm's names stay."""
    weights = {OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in weights.items()}
    if encoder not in WIDTHS or encoder.startswith("vit"):
        return weights
    with torch.device("meta"):
        network = torchvision.models.get_model(encoder, weights=None)
    index_of = {child: str(i) for i, (child, _) in enumerate(network.named_children())}
    parts = {name: name.partition(".") for name in weights}
    return {
        f"{index_of[child]}.{rest}": weights[name]
        for name, (child, _, rest) in parts.items()
        if child in index_of
    }
