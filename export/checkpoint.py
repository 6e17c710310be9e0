"""Recognise a checkpoint: read it without executing anything, name what it is, rebuild its network."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mclst.models.encoders import known_encoder
from mclst.models.mclstexp import MclSTExp, position_table
from mclst.runtime.bundle import file_sha256
from mclst.runtime.errors import CheckpointError

CARRIED_FORMAT = "mclst-checkpoint/1"
"""`format` of a checkpoint that brings its configuration and reference sections along."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A recognised mclSTExp checkpoint; what key names and shapes tell.

    genes: G. projection_dim: D. depth: Transformer blocks. attention_width: heads x head_dim, which shapes cannot
    part. positions: rows of the two position tables. carried: `config`, `genes` and `sections` where the file is one
    of mclst's own, else empty. state: tensors by published key name, memory-mapped where the format allows it.
    """

    path: Path
    sha256: str
    system: str
    encoder: str
    genes: int
    projection_dim: int
    depth: int
    attention_width: int
    positions: int
    vit_norm: str
    state: State = field(repr=False)
    carried: dict[str, Any] = field(repr=False)

    def network(self, *, heads: int, x_rows: Tensor | None = None, y_rows: Tensor | None = None) -> MclSTExp:
        """The network in eval mode with this checkpoint's weights, float32.

        Its position tables hold only the rows asked for (int64 1-D), in that order; none where None.
        Raises CheckpointError where `heads` does not divide the attention width or a weight is not finite.
        """
        if heads < 1 or self.attention_width % heads:
            raise CheckpointError(
                f"{self.path} has an attention width of {self.attention_width}, which {heads} heads do not divide; "
                "give --heads as it was trained"
            )
        rows = {"x_embed.weight": x_rows, "y_embed.weight": y_rows}
        state = dict(self.state)
        for name, wanted in rows.items():
            index = torch.zeros(min(1, self.positions), dtype=torch.int64) if wanted is None else wanted
            state[name] = self.state[name][index]
        network = self._empty(heads, len(state["x_embed.weight"]), len(state["y_embed.weight"]))
        for name, tensor in state.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"{self.path}: {name} holds values that are not finite; use another checkpoint"
                )
        network.load_state_dict(state, strict=False)
        return network.eval().requires_grad_(False)

    def _empty(self, heads: int, x_rows: int, y_rows: int) -> MclSTExp:
        network = MclSTExp(
            self.encoder,
            self.genes,
            projection_dim=self.projection_dim,
            heads=heads,
            head_dim=self.attention_width // heads,
            depth=self.depth,
            positions=x_rows,
            vit_norm=self.vit_norm,
        )
        network.y_embed = position_table(y_rows, self.genes)
        return network


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read and recognise a checkpoint.

    Accepted: a plain state dict, `{"model": …}`, `{"state_dict": …}` (Lightning), mclst's own, and safetensors, with
    or without the `module.` prefix and with the old `well` names. Only tensors and plain values are unpickled.
    Raises CheckpointError where the file is no checkpoint, would need arbitrary unpickling, or is of no known system.
    """
    path = Path(path)
    content = _read(path)
    carried: dict[str, Any] = {}
    if content.get("format") == CARRIED_FORMAT:
        carried = {key: value for key, value in content.items() if key != "model"}
    elif isinstance(content.get("format"), str) and str(content["format"]).startswith("mclst-checkpoint/"):
        raise CheckpointError(
            f"{path} has format {content['format']!r} and this mclst reads {CARRIED_FORMAT!r}; upgrade"
        )
    state = _published_names(_unwrap(content, path))
    return _recognise(path, state, carried)


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


def _read_torch(path: Path) -> dict[str, Any]:
    archive = zipfile.is_zipfile(path)
    if archive:
        with zipfile.ZipFile(path) as members:
            if sum(member.file_size for member in members.infolist()) > 1.1 * path.stat().st_size + (1 << 20):
                raise CheckpointError(
                    f"{path} would unpack to more than it holds, as no checkpoint does; refused"
                )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is refused below
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
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        what = "a whole checkpoint" if archive else "a checkpoint"
        raise CheckpointError(
            f"{path} is not {what}; copy the .pt, .ckpt or .safetensors file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict()"
        )
    return content


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


def _image_encoder(state: State) -> str | None:
    """The encoder's name by its key names and block counts, None where they are nobody's."""
    prefix = "image_encoder.model."
    if prefix + "0.conv0.weight" in state:
        return "densenet121"
    if prefix + "cls_token" in state:
        return "vit_base_patch32_224"
    blocks = {name.removeprefix(prefix).split(".")[1] for name in state if name.startswith(prefix + "6.")}
    by_depth = {2: "resnet18", 6: "resnet50", 23: "resnet101"}
    return by_depth.get(len(blocks)) if prefix + "0.weight" in state else None


def _with_tables(state: State) -> State:
    """A network trained without positions has no tables, which is the same as empty ones."""
    projection = state.get("spot_projection.projection.weight")
    if projection is None or projection.ndim != 2 or {"x_embed.weight", "y_embed.weight"} & set(state):
        return state
    empty = {name: torch.empty(0, projection.shape[1]) for name in ("x_embed.weight", "y_embed.weight")}
    return {**state, **empty}


def _carried_encoder(path: Path, carried: dict[str, Any]) -> str | None:
    """The encoder a checkpoint of mclst names itself; None where it carries nothing."""
    if not carried:
        return None
    training = carried.get("training")
    name = training.get("encoder") if isinstance(training, dict) else None
    if name is not None and not (isinstance(name, str) and known_encoder(name)):
        raise CheckpointError(
            f"{path} was trained with the image encoder {name!r}, which neither mclst nor this timm has; upgrade timm"
        )
    return name


def _recognise(path: Path, state: State, carried: dict[str, Any]) -> Checkpoint:
    needed = (
        "spot_projection.projection.weight",
        "spot_encoder.0.attn.fn.to_qkv.weight",
        "x_embed.weight",
        "y_embed.weight",
    )
    state = _with_tables(state)
    missing = [name for name in needed if name not in state or state[name].ndim != 2]
    encoder = _carried_encoder(path, carried) or _image_encoder(state)
    if missing or encoder is None:
        lack = missing[0] if missing else "an image encoder under image_encoder.model"
        raise CheckpointError(
            f"{path} is not an mclSTExp checkpoint: it has no {lack} (its first tensor is {next(iter(state))}); "
            "mclSTExp with DenseNet-121, ResNet-18/50/101 or ViT-B/32 is what can be exported"
        )
    projection_dim, genes = state[needed[0]].shape
    blocks = {name.split(".")[1] for name in state if name.startswith("spot_encoder.")}
    found = Checkpoint(
        path=path,
        sha256=file_sha256(path),
        system="mclstexp",
        encoder=encoder,
        genes=genes,
        projection_dim=projection_dim,
        depth=len(blocks),
        attention_width=state[needed[1]].shape[0] // 3,
        positions=min(len(state["x_embed.weight"]), len(state["y_embed.weight"])),
        vit_norm="norm" if "image_encoder.model.norm.weight" in state else "fc_norm",
        state=state,
        carried=carried,
    )
    _check_shapes(found)
    return found


def _check_shapes(found: Checkpoint) -> None:
    """Every tensor of the network is there with its shape, and none beside; position tables may be any length."""
    with torch.device("meta"):
        expected = found._empty(1, found.positions, found.positions).state_dict()
    tables = {"x_embed.weight", "y_embed.weight"}
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
            f"{found.path} looks like mclSTExp with {found.encoder} and {found.genes} genes but has "
            f"{' and '.join(parts)}; use a checkpoint in the published layout"
        )
