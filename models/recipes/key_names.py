"""Tensors of other libraries under timm's names.

Each layout is known by names that only it has. Sources of the names: transformers 4
(`modeling_vit.py`, `modeling_dinov2.py`, `modeling_dinov2_with_registers.py`), facebookresearch/dinov2,
open_clip 2 and the PyPI package efficientnet-lite-pytorch 0.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict", "module", "student")
PREFIXES = re.compile(r"^(?:module|_orig_mod|model|backbone|encoder_q|teacher|dinov2|vit)\.")

HF_BLOCK = r"^(?:encoder\.layer|layers)\.(\d+)\."
HF_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (HF_BLOCK + r"(?:norm1|layernorm_before)\.", r"blocks.\1.norm1."),
    (HF_BLOCK + r"(?:norm2|layernorm_after)\.", r"blocks.\1.norm2."),
    (HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (HF_BLOCK + r"layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (HF_BLOCK + r"mlp\.(fc[12])\.", r"blocks.\1.mlp.\2."),
    (HF_BLOCK + r"(?:mlp\.weights_in|intermediate\.dense)\.", r"blocks.\1.mlp.fc1."),
    (HF_BLOCK + r"(?:mlp\.weights_out|mlp\.down_proj|output\.dense)\.", r"blocks.\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
HF_PARTS = (
    (
        re.compile(HF_BLOCK + r"attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(weight|bias)$"),
        "attn.qkv",
    ),
    (re.compile(HF_BLOCK + r"mlp\.(gate_proj|up_proj)\.(weight|bias)$"), "mlp.fc1"),
)
"""Tensors that timm holds as one."""
HF_ORDER = ("query", "q_proj", "key", "k_proj", "value", "v_proj", "gate_proj", "up_proj")

LITE_NAMES = (
    (r"^_conv_stem\.", "conv_stem."),
    (r"^_bn0\.", "bn1."),
    (r"^_conv_head\.", "conv_head."),
    (r"^_bn1\.", "bn2."),
    (r"^_fc\.", "classifier."),
)
LITE_LAYERS = {
    # timm's first stage has no expansion, so its names are one step behind.
    False: {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    True: {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    },
}
LITE_BLOCK = re.compile(r"^_blocks\.(\d+)\.(\w+)\.(.+)$")


def unwrap(content: Mapping[str, object]) -> State:
    """Tensors of a file's content, out of its wrappers and without prefixes that all of them share."""
    for _ in range(3):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner  # type: ignore[assignment]
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    while True:
        prefixes = {match[0] if (match := PREFIXES.match(name)) else "" for name in state}
        # What stands beside the network, such as a projection head, has another prefix or none.
        prefix = next((p for p in sorted(prefixes) if p and _is_network(state, p)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def _is_network(state: State, prefix: str) -> bool:
    return sum(name.startswith(prefix) for name in state) * 2 > len(state)


def has_timms_names(state: State) -> bool:
    """Whether a vision transformer's tensors are not under names of transformers or dinov2."""
    return "embeddings.patch_embeddings.projection.weight" not in state and not _of_dinov2(state)


def _of_dinov2(state: State) -> bool:
    return "register_tokens" in state or any(".mlp.w12." in name for name in state)


def as_timm(state: State, modules: Mapping[str, int]) -> State:
    """Rename to timm's names; a state that has them, or is unknown, stays.

    `modules` says how many blocks each stage of the target has, for layouts that number them throughout.
    """
    if "embeddings.patch_embeddings.projection.weight" in state:
        state = _from_transformers(state)
    elif any(name.startswith("_blocks.") for name in state):
        state = _from_efficientnet_lite(state, modules)
    elif "layers.0.downsample.reduction.weight" in state:
        state = _from_old_swin(state)
    elif _of_dinov2(state):
        state = {name.replace(".w12.", ".fc1.").replace(".w3.", ".fc2."): t for name, t in state.items()}
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
    if "reg_token" in state and "cls_token" in state:
        state = _class_position_in_token(state)
    return state


def _class_position_in_token(state: State) -> State:
    """Add the class token's position to it, as timm's networks with registers hold it."""
    positions = state.get("pos_embed")
    if positions is None or round((positions.shape[1] - 1) ** 0.5) ** 2 != positions.shape[1] - 1:
        return state
    state["cls_token"] = state["cls_token"] + positions[:, :1]
    state["pos_embed"] = positions[:, 1:]
    return state


def _from_transformers(state: State) -> State:
    renamed: State = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        for pattern, joined in HF_PARTS:
            if match := pattern.match(name):
                whole = f"blocks.{match[1]}.{joined}.{match[3]}"
                parts.setdefault(whole, {})[match[2]] = tensor
                break
        else:
            renamed[_rename(name, HF_NAMES)] = tensor
    for whole, tensors in parts.items():
        renamed[whole] = torch.cat([tensors[part] for part in HF_ORDER if part in tensors])
    return renamed


def _from_old_swin(state: State) -> State:
    """Move the downsampling from the end of a stage to the start of the next, and leave buffers out."""
    return {
        re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name): tensor
        for name, tensor in state.items()
        if not name.endswith(("relative_position_index", "attn_mask"))
    }


def _from_efficientnet_lite(state: State, modules: Mapping[str, int]) -> State:
    stages = [f"blocks.{stage}.{block}" for stage, blocks in modules.items() for block in range(blocks)]
    renamed: State = {}
    for name, tensor in state.items():
        match = LITE_BLOCK.match(name)
        if match is None:
            renamed[_rename(name, LITE_NAMES)] = tensor
            continue
        number, layer, rest = int(match[1]), match[2], match[3]
        expands = f"_blocks.{number}._expand_conv.weight" in state
        if number < len(stages) and layer in LITE_LAYERS[expands]:
            renamed[f"{stages[number]}.{LITE_LAYERS[expands][layer]}.{rest}"] = tensor
        else:
            renamed[name] = tensor
    return renamed


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
