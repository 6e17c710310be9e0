"""Recognize a checkpoint's system and rebuild its network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mclst.models.encoders import known_encoder
from mclst.models.fitted import weights_sha256
from mclst.models.mclstexp import position_table
from mclst.models.recipes.recipe import Recipe
from mclst.models.recipes.weights import load_weights
from mclst.models.recipes.weights_file import read_weights_file
from mclst.models.system import System, Traits, systems
from mclst.runtime.bundle.manifest import CHECKPOINT_FORMAT
from mclst.runtime.errors import CheckpointError
from mclst.runtime.hashing import file_sha256

State = dict[str, Tensor]

POSITION_TABLES = ("x_embed.weight", "y_embed.weight")


@dataclass(frozen=True)
class Checkpoint:
    """A recognized checkpoint.

    Parameters
    ----------
    path : Path
    sha256 : str
        Of the file.
    system : System
    traits : Traits
        Architecture read from key names and shapes.
    state : dict of str to Tensor
        Tensors by published key name without training-only ones, memory-mapped if the format allows.
    metadata : dict
        `config`, `genes`, `sections` and more from a checkpoint of mclst; empty for others.
    """

    path: Path
    sha256: str
    system: System
    traits: Traits
    state: State = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)

    @property
    def encoder(self) -> str:
        """Name of the image network."""
        return self.traits.encoder

    @property
    def genes(self) -> int:
        """Number of genes, G."""
        return self.traits.genes

    @property
    def positions(self) -> int:
        """Rows of the position tables."""
        return self.traits.positions

    def network(
        self, *, heads: int | None, x_rows: Tensor | None = None, y_rows: Tensor | None = None
    ) -> Any:
        """Build the network with these weights.

        Parameters
        ----------
        heads : int or None
            Attention heads, which a checkpoint does not store; systems without attention ignore it.
        x_rows, y_rows : Tensor, optional
            int64 [n], the rows that cut position tables keep, in this order; by default the first row.

        Returns
        -------
        nn.Module
            The system's own class in eval mode, float32, without gradients.

        Raises
        ------
        CheckpointError
            If `heads` does not divide the attention width or a weight is not finite.
        """
        heads, width = heads or 1, self.traits.attention_width
        if width % heads:
            raise CheckpointError(
                f"{self.path} has an attention width of {width}, which {heads} heads do not divide; "
                "give --heads as it was trained"
            )
        network = self.system.build(self.traits, heads)
        state = dict(self.state)
        if self.system.cut_positions:
            for name, rows in zip(POSITION_TABLES, (x_rows, y_rows), strict=True):
                table = self.state.get(name, torch.empty(0, self.genes))
                state[name] = table[:1] if rows is None else table[rows]
                setattr(network, name.split(".")[0], position_table(len(state[name]), self.genes))
        for name, tensor in state.items():
            if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
                raise CheckpointError(
                    f"{self.path}: {name} is {tensor.dtype}, not floating point; use another checkpoint"
                )
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"{self.path}: {name} holds values that are not finite; use another checkpoint"
                )
        network.load_state_dict(state, strict=False)
        return network.eval().requires_grad_(False)


def open_checkpoint(
    path: str | Path, system: str | None = None, *, weights: str | Path | None = None
) -> Checkpoint:
    """Read and recognize a checkpoint.

    Parameters
    ----------
    path : str or Path
        A plain state dict, `{"model": …}`, `{"state_dict": …}` (Lightning), mclst's own format or
        safetensors, with or without the prefix `module.` and the old `well` names.
    system : str, optional
        Name of its system; recognized by default.
    weights : str or Path, optional
        The encoder's weights, for a checkpoint of mclst-fit that names them and leaves them out.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CheckpointError
        If the file is no checkpoint, needs arbitrary unpickling, or belongs to no known system; or `weights`
        are not those it names.
    """
    path = Path(path)
    content = read_weights_file(path)
    metadata: dict[str, Any] = {}
    if content.get("format") == CHECKPOINT_FORMAT:
        metadata = {key: value for key, value in content.items() if key != "model"}
    elif isinstance(content.get("format"), str) and str(content["format"]).startswith("mclst-checkpoint/"):
        raise CheckpointError(
            f"{path} has format {content['format']!r} and this mclst reads {CHECKPOINT_FORMAT!r}; upgrade"
        )
    state = _published_names(_unwrap(content, path))
    return _recognize(path, _with_encoder(path, state, metadata, weights), metadata, system)


def _unwrap(content: dict[str, Any], path: Path) -> State:
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    if not content:
        raise CheckpointError(f"{path} holds no tensors; give the trained checkpoint")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is no tensor, so this is not a state dict; save model.state_dict()"
            )
    return content


def _with_encoder(path: Path, state: State, metadata: dict[str, Any], weights: str | Path | None) -> State:
    """Put back the encoder that a checkpoint of mclst-fit names by reference."""
    fit: dict[str, Any] = metadata["fit"] if isinstance(metadata.get("fit"), dict) else {}
    record = fit.get("weights")
    if not isinstance(record, dict) or record.get("included", True):
        if weights is not None:
            raise CheckpointError(f"{path} holds all its weights; leave --weights out")
        return state
    try:
        recipe = Recipe.from_record(fit["recipe"])
        name, sha256, tensors_sha256 = (str(record[key]) for key in ("name", "sha256", "tensors_sha256"))
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); fit it again") from error
    if weights is None:
        raise CheckpointError(
            f"{path} leaves out the weights of {recipe.title} ({name}, SHA-256 {sha256 or tensors_sha256}; "
            f"{recipe.source}); give them with --weights"
        )
    tensors = load_weights(recipe, weights)
    if weights_sha256(tensors) != tensors_sha256:
        raise CheckpointError(
            f"{weights} does not hold the weights that {path} was fitted on ({name}, SHA-256 "
            f"{sha256 or tensors_sha256}); give these with --weights"
        )
    return {**{f"encoder.model.{key}": tensor for key, tensor in tensors.items()}, **state}


def _published_names(state: State) -> State:
    """Strip DataParallel's prefix and rename the older `well_` to `spot_`, as the published loader does."""
    renamed: State = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        renamed["spot" + name.removeprefix("well") if name.startswith("well_") else name] = tensor
    return renamed


def _stored_encoder(path: Path, metadata: dict[str, Any]) -> str | Recipe | None:
    """Encoder in a checkpoint of mclst, by name or recipe; None for other checkpoints."""
    training = metadata.get("training")
    if not isinstance(training, dict):
        return None
    if isinstance(training.get("recipe"), dict):
        try:
            return Recipe.from_record(training["recipe"])
        except ValueError as error:
            raise CheckpointError(f"{path} cannot be exported: {error}; train it again") from error
    name = training.get("encoder")
    if name is not None and not (isinstance(name, str) and known_encoder(name)):
        raise CheckpointError(
            f"{path} was trained with the image encoder {name!r}, which neither mclst nor this timm has; "
            "upgrade timm"
        )
    return name


def _recognize(path: Path, state: State, metadata: dict[str, Any], name: str | None) -> Checkpoint:
    known = systems()
    if name is not None and name not in known:
        raise CheckpointError(f"there is no system {name!r}; choose one of {', '.join(sorted(known))}")
    system = known[name] if name else next((s for s in known.values() if s.claims(state)), None)
    if system is None:
        titles = ", ".join(sorted((s.title for s in known.values()), key=str.casefold))
        raise CheckpointError(
            f"{path} is a checkpoint of no system that can be exported, which are {titles} "
            f"(its first tensor is {next(iter(state))}); name its system with --system"
        )
    state = {key: t for key, t in state.items() if not key.startswith(system.training_only)}
    try:
        traits = system.traits(state, _stored_encoder(path, metadata))
        if system.complete is not None:
            traits = system.complete(traits, metadata)
    except KeyError as error:
        raise CheckpointError(
            f"{path} is no {system.title} checkpoint: it has no {error.args[0]}; name its system with "
            "--system"
        ) from error
    except (ValueError, IndexError) as error:
        # Subclasses of ValueError come from torch, whose texts say nothing to a user.
        reason = str(error) if type(error) is ValueError else "its tensors have other ranks"
        raise CheckpointError(
            f"{path} is no {system.title} checkpoint that can be exported: {reason}"
        ) from error
    checkpoint = Checkpoint(path, file_sha256(path), system, traits, state, metadata)
    _check_shapes(checkpoint)
    return checkpoint


def _check_shapes(checkpoint: Checkpoint) -> None:
    """Require exactly the network's tensors and shapes; cut position tables may have any length."""
    state, system = checkpoint.state, checkpoint.system
    with torch.device("meta"):
        expected = system.build(checkpoint.traits, 1).state_dict()
    tables = set(POSITION_TABLES) if system.cut_positions else set()
    if tables and not checkpoint.positions and not tables & set(state):
        expected = {name: tensor for name, tensor in expected.items() if name not in tables}
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    extra = [n for n in state if n not in expected]
    misshapen = [
        n
        for n, tensor in state.items()
        # Of a position table only the width is compared.
        if n in expected and tuple(tensor.shape)[n in tables :] != tuple(expected[n].shape)[n in tables :]
    ]
    problems = [
        f"{len(names)} tensors {problem} (first {names[0]})"
        for names, problem in (
            (missing, "missing"),
            (extra, "that do not belong"),
            (misshapen, "of another shape"),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} looks like {system.title} with {checkpoint.encoder} and {checkpoint.genes} "
            f"genes but has {' and '.join(problems)}; use a checkpoint in the published layout"
        )
