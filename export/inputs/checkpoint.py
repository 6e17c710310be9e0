"""Recognise a checkpoint: read it without executing anything, name what it is, rebuild its network."""

from __future__ import annotations

import pickle
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mclst.models.encoders import known_encoder
from mclst.models.mclstexp import position_table
from mclst.models.system import System, Traits, systems
from mclst.runtime.bundle.manifest import CHECKPOINT_FORMAT
from mclst.runtime.errors import CheckpointError
from mclst.runtime.hashing import file_sha256

FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.")
"""Packages whose classes HisToGene's and THItoGene's checkpoints name beside the weights."""

State = dict[str, Tensor]


TABLES = ("x_embed.weight", "y_embed.weight")
"""The position tables of every system that has any."""


@dataclass(frozen=True)
class Checkpoint:
    """A recognised checkpoint: its system, and what key names and shapes tell.

    carried: `config`, `genes`, `sections` and more where the file is one of mclst's own, else empty.
    state: tensors by published key name, memory-mapped where the format allows it, without those only training needs.
    """

    path: Path
    sha256: str
    system: System
    traits: Traits
    state: State = field(repr=False)
    carried: dict[str, Any] = field(repr=False)

    @property
    def encoder(self) -> str:
        """The image network."""
        return self.traits.encoder

    @property
    def genes(self) -> int:
        """G."""
        return self.traits.genes

    @property
    def positions(self) -> int:
        """Rows of the position tables."""
        return self.traits.positions

    def network(
        self, *, heads: int | None, x_rows: Tensor | None = None, y_rows: Tensor | None = None
    ) -> Any:
        """The network, of its system's own class, in eval mode with this checkpoint's weights, float32.

        Where its position tables are cut they hold only the rows asked for (int64 1-D), in that order; the first where
        None. Raises CheckpointError where `heads` does not divide the attention width or a weight is not finite.
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
            for name, wanted in zip(TABLES, (x_rows, y_rows), strict=True):
                table = self.state.get(name, torch.empty(0, self.genes))
                state[name] = table[:1] if wanted is None else table[wanted]
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


def open_checkpoint(path: str | Path, system: str | None = None) -> Checkpoint:
    """Read and recognise a checkpoint; system: the name of the one it is, in place of recognising it.

    Accepted: a plain state dict, `{"model": …}`, `{"state_dict": …}` (Lightning), mclst's own, and safetensors, with
    or without the `module.` prefix and with the old `well` names. Only tensors and plain values are unpickled.
    Raises CheckpointError where the file is no checkpoint, would need arbitrary unpickling, or is of no known system.
    """
    path = Path(path)
    content = _read(path)
    carried: dict[str, Any] = {}
    if content.get("format") == CHECKPOINT_FORMAT:
        carried = {key: value for key, value in content.items() if key != "model"}
    elif isinstance(content.get("format"), str) and str(content["format"]).startswith("mclst-checkpoint/"):
        raise CheckpointError(
            f"{path} has format {content['format']!r} and this mclst reads {CHECKPOINT_FORMAT!r}; upgrade"
        )
    state = _published_names(_unwrap(content, path))
    return _recognise(path, state, carried, system)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give --ckpt the checkpoint itself")
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if not head:
            raise CheckpointError(f"{path} is empty; copy the checkpoint again")
        if head.startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull")
        if head.lstrip()[:1] == b"<":
            raise CheckpointError(f"{path} is a web page, not a checkpoint; download the file itself")
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
            return _read_safetensors(path)
        return _read_torch(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check the file") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(safetensors.torch.load_file(path))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is a damaged safetensors file ({error}); copy it again") from error


def _is_sound_archive(path: Path) -> bool:
    """Whether it is torch's zip layout; CheckpointError where it is damaged or unpacks to more than it holds."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as members:
            unpacked = sum(member.file_size for member in members.infolist())
            if unpacked <= _most_bytes(path) and (changed := members.testzip()):
                raise CheckpointError(
                    f"{path} is damaged: {changed} does not have its checksum; copy the checkpoint again"
                )
    except (zipfile.BadZipFile, NotImplementedError, zlib.error, EOFError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint ({error}); copy it again") from error
    if unpacked > _most_bytes(path):
        raise CheckpointError(f"{path} would unpack to more than it holds, as no checkpoint does; refused")
    return True


def _most_bytes(path: Path) -> float:
    """What an archive of tensors, which are not compressed, may unpack to."""
    return 1.1 * path.stat().st_size + (1 << 20)


def _read_torch(path: Path) -> dict[str, Any]:
    archive = _is_sound_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is refused below
            with torch.serialization.safe_globals(_inert(path) if archive else []):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and "unsupported class" not in str(error).lower():
            raise CheckpointError(
                f"{path} is not a checkpoint; give a .pt, .ckpt or .safetensors file"
            ) from error
        raise CheckpointError(
            f"{path} needs arbitrary unpickling, which could run any program, and is refused; "
            "save its state dict alone (torch.save(model.state_dict(), …)) or convert it to safetensors"
        ) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        safetensors.SafetensorError,  # torch hands a file of that name on
    ) as error:
        what = "a whole checkpoint" if archive else "a checkpoint"
        raise CheckpointError(
            f"{path} is not {what}; copy the .pt, .ckpt or .safetensors file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict()"
        )
    return content


class Inert:
    """Stands for a class of the training framework in a checkpoint; it holds nothing and does nothing."""

    def __init__(self, *arguments: object) -> None:
        """Whatever the file says of it is dropped."""

    def __setstate__(self, state: object) -> None:
        """As for the arguments."""


def _inert(path: Path) -> list[Any]:
    """Lightning's own classes in a checkpoint, such as the callbacks it names by class, each as Inert.

    They stand beside the weights and are not needed. Nothing of Lightning is imported or run; any other class
    stays refused.
    """
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(Inert, name) for name in asked if name.startswith(FRAMEWORKS)]


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


def _published_names(state: State) -> State:
    """Without DataParallel's prefix, and `spot` where older code said `well` (as the published loader does)."""
    renamed: State = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        renamed["spot" + name.removeprefix("well") if name.startswith("well_") else name] = tensor
    return renamed


def _carried_encoder(path: Path, carried: dict[str, Any]) -> str | None:
    """The encoder a checkpoint of mclst names itself; None where it carries nothing."""
    training = carried.get("training")
    name = training.get("encoder") if isinstance(training, dict) else None
    if name is not None and not (isinstance(name, str) and known_encoder(name)):
        raise CheckpointError(
            f"{path} was trained with the image encoder {name!r}, which neither mclst nor this timm has; upgrade timm"
        )
    return name


def _recognise(path: Path, state: State, carried: dict[str, Any], name: str | None) -> Checkpoint:
    known = systems()
    if name is not None and name not in known:
        raise CheckpointError(f"there is no system {name!r}; choose one of {', '.join(sorted(known))}")
    system = known[name] if name else next((s for s in known.values() if s.claims(state)), None)
    if system is None:
        titles = ", ".join(sorted((s.title for s in known.values()), key=str.casefold))
        raise CheckpointError(
            f"{path} is a checkpoint of no system that can be exported, which are {titles} "
            f"(its first tensor is {next(iter(state))}); name its system with --system where it is one"
        )
    state = {key: t for key, t in state.items() if not key.startswith(system.training_only)}
    try:
        traits = system.traits(state, _carried_encoder(path, carried))
    except KeyError as error:
        raise CheckpointError(
            f"{path} is no {system.title} checkpoint: it has no {error.args[0]}; name its system with --system"
        ) from error
    except (ValueError, IndexError) as error:
        what = str(error) if type(error) is ValueError else "its tensors have other ranks"
        raise CheckpointError(
            f"{path} is no {system.title} checkpoint that can be exported: {what}"
        ) from error
    found = Checkpoint(path, file_sha256(path), system, traits, state, carried)
    _check_shapes(found)
    return found


def _check_shapes(found: Checkpoint) -> None:
    """Every tensor of the network is there with its shape, and none beside; cut position tables may be any length."""
    with torch.device("meta"):
        expected = found.system.build(found.traits, 1).state_dict()
    tables = set(TABLES) if found.system.cut_positions else set()
    if tables and not found.positions and not tables & set(found.state):
        expected = {name: tensor for name, tensor in expected.items() if name not in tables}
    missing = [n for n in expected if n not in found.state and not n.endswith("num_batches_tracked")]
    extra = [n for n in found.state if n not in expected]
    other = [
        n
        for n, tensor in found.state.items()
        if n in expected and tuple(tensor.shape)[n in tables :] != tuple(expected[n].shape)[n in tables :]
    ]
    parts = [
        f"{len(names)} tensors {what} (first {names[0]})"
        for names, what in ((missing, "missing"), (extra, "that do not belong"), (other, "of another shape"))
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{found.path} looks like {found.system.title} with {found.encoder} and {found.genes} genes but has "
            f"{' and '.join(parts)}; use a checkpoint in the published layout"
        )
