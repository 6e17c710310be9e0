"""Weights that other libraries wrote give, under a recipe, what those libraries compute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mclst.benchmarks.recipes.two_blocks import two_blocks
from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.ctranspath import ConvolutionalStem
from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.recipe import Recipe
from mclst.models.recipes.weights import TWINS, expected_shapes, load_weights
from mclst.runtime.errors import CheckpointError

State = dict[str, Tensor]


def varied(network: Any) -> Any:
    """Random weights everywhere: normalizations, layer scales and tokens too, so that none can be lost."""
    generator = torch.Generator().manual_seed(5)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * 0.03
            tensor.copy_(tensor.abs() + noise.abs() + 0.1 if tensor.ndim == 1 else tensor + noise)
    return network.eval()


def tiles(recipe: Recipe) -> Tensor:
    return torch.randn(2, 3, recipe.tile_px, recipe.tile_px, generator=torch.Generator().manual_seed(1))


def check(recipe: Recipe, path: Path, expected: Tensor) -> None:
    with torch.inference_mode():
        actual = build_encoder(recipe, load_weights(recipe, path))(tiles(recipe))
    assert float(expected.std()) > 1e-3
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("name", "names"),
    [("phikon", "now"), ("phikon-v2", "published"), ("midnight-12k", "now"), ("hibou-b", "published")],
)
def test_transformers(name: str, names: str, tmp_path: Path) -> None:
    """The names of published files, and those that version 5 gives the same tensors in memory."""
    pytest.importorskip("transformers")
    recipe = two_blocks(name)
    network = transformers_network(name)
    if names == "published":
        network.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").is_file()
    else:
        torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with torch.inference_mode():
        tokens = network(tiles(recipe)).last_hidden_state
    registers = 4 if name == "hibou-b" else 0
    parts = [tokens[:, 0]] + ([tokens[:, 1 + registers :].mean(1)] if recipe.pooling == "cls+mean" else [])
    # A folder, as huggingface.co keeps it.
    check(recipe, tmp_path, torch.cat(parts, 1))
    for other in (timms for timms, twin in TWINS.items() if twin == name):
        with pytest.raises(CheckpointError, match=f"the names of {recipe.title}'s file, .*--encoder {name}"):
            load_weights(two_blocks(other), tmp_path)


def test_encoders_that_shapes_do_not_tell_apart_are_listed() -> None:
    for name, twin in TWINS.items():
        assert expected_shapes(find_recipe(name)) == expected_shapes(find_recipe(twin)), name


def transformers_network(name: str) -> Any:
    from transformers import Dinov2Config, Dinov2WithRegistersConfig, ViTConfig
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Model
    from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
        Dinov2WithRegistersModel,
    )
    from transformers.models.vit.modeling_vit import ViTModel

    depth: dict[str, Any] = {"num_hidden_layers": 2}
    if name == "phikon":
        return varied(ViTModel(ViTConfig(**depth), add_pooling_layer=False))
    if name == "hibou-b":
        return varied(
            Dinov2WithRegistersModel(
                Dinov2WithRegistersConfig(**depth, image_size=224, patch_size=14, use_swiglu_ffn=True)
            )
        )
    large = {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 16, "image_size": 224}
    # Positions of another grid, which transformers resamples in every run.
    giant = {"hidden_size": 1536, "num_attention_heads": 24, "patch_size": 14, "image_size": 518}
    sizes: dict[str, Any] = large if name == "phikon-v2" else {**giant, "use_swiglu_ffn": True}
    return varied(Dinov2Model(Dinov2Config(**depth, **sizes)))


def test_dinov2_names_with_registers_and_swiglu(tmp_path: Path) -> None:
    """Hibou's own file has the names of facebookresearch/dinov2."""
    pytest.importorskip("transformers")
    recipe, network = two_blocks("hibou-b"), transformers_network("hibou-b")
    joined = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    rules = (
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.", ""),
        ("encoder.layer.", "blocks."),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
        ("mlp.gate_proj", "mlp.w12"),
        ("mlp.down_proj", "mlp.w3"),
        ("attention.q_proj", "attn.qkv"),
        ("attention.o_proj", "attn.proj"),
        ("layernorm.", "norm."),
    )
    state: State = {}
    for name, tensor in network.state_dict().items():
        for part, first in joined.items():
            name = name.replace(part, first)
        for old, new in rules:
            name = name.replace(old, new)
        state[name] = torch.cat([state[name], tensor]) if name in state else tensor
    torch.save({"teacher": {f"backbone.{n}": t for n, t in state.items()}}, tmp_path / "hibou-b.pth")
    with torch.inference_mode():
        expected = network(tiles(recipe)).last_hidden_state[:, 0]
    check(recipe, tmp_path / "hibou-b.pth", expected)


def test_open_clip_coca(tmp_path: Path) -> None:
    tower = pytest.importorskip("open_clip.transformer")
    recipe = two_blocks("omiclip")
    network = varied(
        tower.VisionTransformer(
            image_size=224,
            patch_size=14,
            width=1024,
            layers=2,
            heads=16,
            mlp_ratio=4.0,
            attentional_pool=True,
            attn_pooler_heads=8,
            output_dim=768,
        )
    )
    state = {f"visual.{name}": tensor for name, tensor in network.state_dict().items()}
    state |= {"text.token_embedding.weight": torch.zeros(8, 4), "logit_scale": torch.tensor(1.0)}
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "checkpoint.pt"
    )
    with torch.inference_mode():
        expected = network(tiles(recipe))
    check(recipe, tmp_path / "checkpoint.pt", expected)


def test_conch(tmp_path: Path) -> None:
    """The pooler against torch's own MultiheadAttention; the trunk is timm's in CONCH too."""
    recipe = two_blocks("conch")
    encoder = varied(build_encoder(recipe))
    trunk: Any = encoder.model.trunk
    attention = varied(nn.MultiheadAttention(512, 8, kdim=768, vdim=768, batch_first=True))
    query = torch.randn(1, 512)
    ln_q, ln_k, norm = (varied(nn.LayerNorm(n)) for n in (512, 768, 512))
    state = {f"trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    state["attn_pool_contrast.query"] = query
    for prefix, module in (
        ("attn_pool_contrast.attn.", attention),
        ("attn_pool_contrast.ln_q.", ln_q),
        ("attn_pool_contrast.ln_k.", ln_k),
        ("ln_contrast.", norm),
    ):
        state |= {prefix + name: tensor for name, tensor in module.state_dict().items()}
    state["proj_contrast"] = torch.randn(512, 512)
    state["attn_pool_caption.query"] = torch.randn(256, 768)
    state = {f"visual.{name}": tensor for name, tensor in state.items()}
    torch.save({**state, "text.cls_emb": torch.zeros(768)}, tmp_path / "pytorch_model.bin")
    with torch.inference_mode():
        tokens = ln_k(trunk.forward_features(tiles(recipe)))
        pooled = attention(ln_q(query).expand(2, 1, -1), tokens, tokens, need_weights=False)[0]
        expected = norm(pooled[:, 0])
    check(recipe, tmp_path / "pytorch_model.bin", expected)


def test_conch_v1_5(tmp_path: Path) -> None:
    """Positions of 224 px, resampled as DINO does; the pooler against its formula in float64."""
    recipe = two_blocks("conch-v1.5")
    encoder = varied(build_encoder(recipe))
    trunk: Any = encoder.model.trunk
    generator = torch.Generator().manual_seed(2)
    positions = torch.randn(1, 197, 1024, generator=generator) * 0.1
    grid = positions[:, 1:].reshape(1, 14, 14, 1024).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, scale_factor=(28.1 / 14, 28.1 / 14), mode="bicubic")
    trunk.pos_embed.data = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 784, 1024)], 1)
    state = {f"trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    pool = {
        "query": torch.randn(1, 768, generator=generator),
        "to_q.weight": torch.randn(768, 768, generator=generator) * 0.05,
        "to_kv.weight": torch.randn(1536, 1024, generator=generator) * 0.05,
        "to_out.weight": torch.randn(768, 768, generator=generator) * 0.05,
    }
    norms = {"ln_q": varied(nn.LayerNorm(768)), "ln_k": varied(nn.LayerNorm(1024))}
    norm = varied(nn.LayerNorm(768))
    pool |= {f"{n}.{key}": t for n, module in norms.items() for key, t in module.state_dict().items()}
    state["trunk.pos_embed"] = positions
    state |= {f"attn_pool_contrast.{name}": tensor for name, tensor in pool.items()}
    state |= {f"ln_contrast.{name}": tensor for name, tensor in norm.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model_vision.bin")
    with torch.inference_mode():
        tokens = norms["ln_k"](trunk.forward_features(tiles(recipe))).double()
        query = norms["ln_q"](pool["query"]).double() @ pool["to_q.weight"].double().T
        keys, values = (tokens @ pool["to_kv.weight"].double().T).chunk(2, dim=-1)
        heads = []
        for head in range(8):
            part = slice(96 * head, 96 * (head + 1))
            weights = torch.softmax(query[:, part] @ keys[..., part].transpose(1, 2) / 96**0.5, dim=-1)
            heads.append((weights @ values[..., part])[:, 0])
        expected = norm.double()(torch.cat(heads, 1) @ pool["to_out.weight"].double().T).float()
    check(recipe, tmp_path, expected)


def test_ctranspath(tmp_path: Path) -> None:
    """torchvision's Swin-T behind the stem; the names are those of timm 0.5.4, as published."""
    torchvision = pytest.importorskip("torchvision")
    recipe = two_blocks("ctranspath")
    stem = varied(ConvolutionalStem(96))
    swin = varied(
        torchvision.models.SwinTransformer(
            [4, 4], 96, [2, 1, 1, 1], [3, 6, 12, 24], [7, 7], stochastic_depth_prob=0.0
        )
    )
    swin.features[0] = stem
    state: State = {f"patch_embed.{name}": tensor for name, tensor in stem.state_dict().items()}
    for name, tensor in swin.state_dict().items():
        match = re.match(r"features\.(\d)\.(.*)", name)
        if name.startswith("norm."):
            state[name] = tensor
        elif match and int(match[1]) % 2 and not name.endswith("relative_position_index"):
            rest = match[2].replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
            state[f"layers.{int(match[1]) // 2}.blocks.{rest}"] = tensor
        elif match and int(match[1]) and not int(match[1]) % 2:
            state[f"layers.{int(match[1]) // 2 - 1}.downsample.{match[2]}"] = tensor
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    state["head.weight"] = torch.zeros(1000, 768)
    torch.save({"model": state}, tmp_path / "ctranspath.pth")
    swin.head = nn.Identity()
    with torch.inference_mode():
        expected = swin(tiles(recipe))
    check(recipe, tmp_path / "ctranspath.pth", expected)
