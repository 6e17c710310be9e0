"""Tensors of CONCH, CONCH v1.5 and open_clip's CoCa under the names of `AttentionPooled`.

Sources of the names: mahmoodlab/CONCH (`vision_tower.py`, `transformer.py`), the published build of CONCH
v1.5 (`EncoderWithAttentionalPooler`) and open_clip 3 (`transformer.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]

CLIP_NAMES = (
    (r"^conv1\.", "trunk.patch_embed.proj."),
    (r"^class_embedding$", "trunk.cls_token"),
    (r"^positional_embedding$", "trunk.pos_embed"),
    (r"^ln_pre\.", "trunk.norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.(\d+)\.ln_([12])\.", r"trunk.blocks.\1.norm\2."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"trunk.blocks.\1.attn.qkv."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"trunk.blocks.\1.attn.proj."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"trunk.blocks.\1.mlp.fc1."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"trunk.blocks.\1.mlp.fc2."),
    (r"^ln_contrast\.", "norm."),
    (r"^attn_pool(?:_contrast)?\.(ln_[qk])\.", r"pool.\1."),
    (r"^attn_pool(?:_contrast)?\.attn\.([qkv])_proj_weight$", r"pool.\1.weight"),
    (r"^attn_pool(?:_contrast)?\.attn\.out_proj\.", "pool.out."),
    (r"^attn_pool(?:_contrast)?\.to_q\.", "pool.q."),
    (r"^attn_pool(?:_contrast)?\.to_out\.", "pool.out."),
)
QUERY = re.compile(r"^attn_pool(?:_contrast)?\.query$")
JOINED_BIAS = re.compile(r"^attn_pool(?:_contrast)?\.attn\.in_proj_bias$")
JOINED_KV = re.compile(r"^attn_pool(?:_contrast)?\.to_kv\.weight$")


def as_pooled(state: Mapping[str, Tensor], *, project: bool) -> State:
    """Rename to the names of `AttentionPooled`; without `project` the projection is left out."""
    if any(name.startswith("visual.") for name in state):
        state = {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}
    renamed: State = {}
    for name, tensor in state.items():
        if QUERY.match(name):
            # CoCa's other queries serve its captions.
            renamed["pool.query"] = tensor[:1]
        elif JOINED_BIAS.match(name):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"pool.{part}.bias"] = piece
        elif JOINED_KV.match(name):
            for part, piece in zip("kv", tensor.chunk(2), strict=True):
                renamed[f"pool.{part}.weight"] = piece
        elif name in ("proj", "proj_contrast"):
            if project:
                renamed["proj.weight"] = tensor.T
        else:
            renamed[_rename(name)] = tensor
    for name, axes in (("trunk.cls_token", 3), ("trunk.pos_embed", 3)):
        while name in renamed and renamed[name].ndim < axes:
            renamed[name] = renamed[name].unsqueeze(0)
    return renamed


def _rename(name: str) -> str:
    for pattern, replacement in CLIP_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
