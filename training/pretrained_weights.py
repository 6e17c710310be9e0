"""Starting weights from a file: of a whole model, or of an image encoder as torchvision and timm save it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from mclst.models.bleep import Bleep
from mclst.models.encoders import WIDTHS
from mclst.models.mclstexp import MclSTExp
from mclst.runtime.errors import CheckpointError

PREFIX = "image_encoder.model."
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
"""torchvision's ImageNet file still says `norm.1` where its network says `norm1`."""
State = dict[str, Tensor]


def read_weights(path: Path) -> State:
    """The tensors of a .pt, .pth, .ckpt or .safetensors file by name, without executing anything.

    `{"model": …}` and `{"state_dict": …}` are unwrapped, the prefixes `module.` and `backbone.` dropped.
    Raises CheckpointError where the file is none of that.
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
    """Load what `path` holds into `network`; says in words what that was.

    Raises CheckpointError unless the whole image encoder is there with its shapes: a part of it left at random would
    pass unnoticed. Of the spot encoder and the projections, what fits is loaded.
    """
    found = read_weights(path)
    state = network.state_dict()
    whole_model = any(name.startswith(PREFIX) for name in found)
    if not whole_model:
        # BLEEP's image networks keep timm's names, which for ResNets are torchvision's own.
        found = found if isinstance(network, Bleep) else _as_published(found, encoder)
        found = {PREFIX + name: tensor for name, tensor in found.items()}
    encoder_part = [name for name in state if name.startswith(PREFIX) and "num_batches" not in name]
    lacking = [n for n in encoder_part if n not in found or found[n].shape != state[n].shape]
    if lacking:
        raise CheckpointError(
            f"{path} lacks {len(lacking)} of the {len(encoder_part)} tensors of {encoder} "
            f"(first {lacking[0].removeprefix(PREFIX)}); give the weights of that encoder"
        )
    fitting = {name: t for name, t in found.items() if name in state and t.shape == state[name].shape}
    network.load_state_dict(fitting, strict=False)
    if not whole_model:
        return f"{encoder} from {path.name}"
    rest = len([name for name in state if not name.startswith(PREFIX)])
    taken = len([name for name in fitting if not name.startswith(PREFIX)])
    return f"{encoder} and {taken} of {rest} other tensors from {path.name}"


def _as_published(found: State, encoder: str) -> State:
    """Names of torchvision's whole network → of the published code's list of its children; timm's stay."""
    found = {OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in found.items()}
    if encoder not in WIDTHS or encoder.startswith("vit"):
        return found
    with torch.device("meta"):
        network = torchvision.models.get_model(encoder, weights=None)
    place = {child: str(i) for i, (child, _) in enumerate(network.named_children())}
    parted = {name: name.partition(".") for name in found}
    return {
        f"{place[child]}.{rest}": found[name] for name, (child, _, rest) in parted.items() if child in place
    }
