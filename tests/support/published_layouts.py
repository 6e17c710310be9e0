"""Names and shapes of the six systems' published state dicts, independent of mclst's own networks.

DenseNet-121 and ResNet-50 come from torchvision and timm, as in the published code.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torchvision

Layout = dict[str, tuple[int, ...]]


def linear(name: str, out: int, width: int, *, bias: bool = True) -> Layout:
    return {f"{name}.weight": (out, width), **({f"{name}.bias": (out,)} if bias else {})}


def conv(name: str, *shape: int, bias: bool = True) -> Layout:
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def norm(name: str, width: int) -> Layout:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Layout:
    running = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return {**norm(name, width), **running, f"{name}.num_batches_tracked": ()}


def of_library(prefix: str, network: Callable[[], torch.nn.Module]) -> Layout:
    with torch.device("meta"):
        return {prefix + name: tuple(t.shape) for name, t in network().state_dict().items()}


def projection(name: str, width: int) -> Layout:
    return {
        **linear(f"{name}.projection", 256, width),
        **linear(f"{name}.fc", 256, 256),
        **norm(f"{name}.layer_norm", 256),
    }


def attention(name: str, width: int, inner: int) -> Layout:
    return {
        **norm(f"{name}.norm", width),
        **linear(f"{name}.fn.to_qkv", 3 * inner, width, bias=False),
        **linear(f"{name}.fn.to_out.0", width, inner),
    }


def feed_forward(name: str, width: int, hidden: int) -> Layout:
    return {
        **norm(f"{name}.norm", width),
        **linear(f"{name}.fn.net.0", hidden, width),
        **linear(f"{name}.fn.net.3", width, hidden),
    }


def densenet() -> torch.nn.Module:
    return torchvision.models.densenet121(weights=None).features  # type: ignore[no-any-return]


def mclstexp(genes: int = 785) -> Layout:
    layout: Layout = {"x_embed.weight": (65536, genes), "y_embed.weight": (65536, genes)}
    layout |= of_library("image_encoder.model.0.", densenet)
    for block in range(2):
        layout |= attention(f"spot_encoder.{block}.attn", genes, 512)
        layout |= feed_forward(f"spot_encoder.{block}.ff", genes, genes)
    return layout | projection("image_projection", 1024) | projection("spot_projection", genes)


def bleep(genes: int = 785) -> Layout:
    layout = of_library("image_encoder.model.", lambda: timm.create_model("resnet50", num_classes=0))
    return layout | projection("image_projection", 2048) | projection("spot_projection", genes)


def stnet(genes: int = 250) -> Layout:
    return of_library("features.", densenet) | linear("classifier", genes, 1024)


def histogene(genes: int = 785, depth: int = 8) -> Layout:
    layout: Layout = {"x_embed.weight": (64, 1024), "y_embed.weight": (64, 1024)}
    layout |= linear("patch_embedding", 1024, 37632)
    for i in range(depth):
        layout |= attention(f"vit.transformer.layers.{i}.0", 1024, 1024)
        layout |= feed_forward(f"vit.transformer.layers.{i}.1", 1024, 2048)
    return layout | norm("gene_head.0", 1024) | linear("gene_head.1", genes, 1024)


def hist2st(genes: int = 785, depth: int = 8) -> Layout:
    """With the heads that only training has: mean, disp, pi of the ZINB loss, and coef."""
    layout: Layout = {"x_embed.weight": (64, 1024), "y_embed.weight": (64, 1024)}
    layout |= conv("patch_embedding", 32, 3, 7, 7)
    at = "vit.transformer"
    for i in range(2):
        mixer = f"{at}.layer1.{i}"
        layout |= conv(f"{mixer}.dw.0", 32, 1, 5, 5) | batch_norm(f"{mixer}.dw.1", 32)
        layout |= conv(f"{mixer}.dw.3", 32, 1, 5, 5) | batch_norm(f"{mixer}.dw.4", 32)
        layout |= conv(f"{mixer}.pw.0", 32, 32, 1, 1) | batch_norm(f"{mixer}.pw.2", 32)
    for i in range(depth):
        layout |= attention(f"{at}.layer2.{i}.attn", 1024, 1024)
        layout |= feed_forward(f"{at}.layer2.{i}.ff", 1024, 1024)
    layout |= {f"{at}.layer3.{i}.weight": (1024, 1024) for i in range(4)}
    for i in range(2):
        lstm = f"{at}.jknet.0."
        layout |= {f"{lstm}weight_{part}_l{i}": (4096, 1024) for part in ("ih", "hh")}
        layout |= {f"{lstm}bias_{part}_l{i}": (4096,) for part in ("ih", "hh")}
    layout |= conv(f"{at}.down.0", 4, 32, 1, 1)
    for head in ("mean", "disp", "pi"):
        layout |= linear(f"{head}.0", genes, 1024)
    layout |= linear("coef.0", 1024, 1024) | linear("coef.2", 1, 1024)
    return layout | norm("gene_head.0", 1024) | linear("gene_head.1", genes, 1024)


def thitogene(genes: int = 785, depth: int = 4) -> Layout:
    layout: Layout = {"odconv2d.weight": (4, 16, 3, 4, 4)}
    kernels = "odconv2d.attention"
    layout |= conv(f"{kernels}.fc", 16, 3, 1, 1, bias=False) | batch_norm(f"{kernels}.bn", 16)
    for name, out in (("channel", 3), ("filter", 16), ("spatial", 16), ("kernel", 4)):
        layout |= conv(f"{kernels}.{name}_fc", out, 16, 1, 1)
    for i, shape in enumerate(((32, 16, 5, 5), (64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)), start=1):
        layout |= conv(f"caps_layer.conv{i}", *shape) | batch_norm(f"caps_layer.batch_norm{i}", shape[0])
    layout |= conv("caps_layer.primary_caps.depthwise_conv", 128, 1, 9, 9)
    layout |= {"caps_layer.digit_caps.W": (20, 16, 8, 64), "caps_layer.digit_caps.b": (20, 16, 1)}
    layout |= {"x_embed.weight": (64, 64), "y_embed.weight": (64, 64)}
    for i in range(depth):
        layout |= attention(f"vit.transformer.layers.{i}.0", 1408, 1024)
        layout |= feed_forward(f"vit.transformer.layers.{i}.1", 1408, 2048)
    for head in range(8):
        layout |= {f"gat.attention_{head}.W": (1408, 1024), f"gat.attention_{head}.a": (2048, 1)}
    layout |= {"gat.out_att.W": (8192, 512), "gat.out_att.a": (1024, 1)}
    layout |= linear("gene_head.0", 1024, 512) | norm("gene_head.2", 1024)
    return layout | linear("gene_head.3", genes, 1024)


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "mclstexp": mclstexp,
    "bleep": bleep,
    "stnet": stnet,
    "histogene": histogene,
    "hist2st": hist2st,
    "thitogene": thitogene,
}

FEW_LAYERS: dict[str, Callable[[], Layout]] = {
    "histogene": lambda: histogene(depth=2),
    "hist2st": lambda: hist2st(depth=2),
    "thitogene": lambda: thitogene(depth=1),
}
"""Slide systems of the published widths with fewer of the layers that repeat: a tenth of the time."""


def random_state(layout: Layout, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep a signal's size from layer to layer, statistics away from 0 and 1."""
    state = {}
    made = torch.Generator().manual_seed(seed)
    for name, shape in layout.items():
        if not shape:
            state[name] = torch.tensor(0)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            state[name] = torch.empty(shape).uniform_(0.7, 1.3, generator=made)
        elif len(shape) == 1:
            state[name] = torch.empty(shape).uniform_(-0.2, 0.2, generator=made)
        else:
            fan_in = 1 if "_embed" in name else torch.Size(shape[1:]).numel()
            if name.startswith("gat."):
                fan_in = shape[0]
            state[name] = torch.empty(shape).normal_(0, fan_in**-0.5, generator=made)
    return state


def wrapped(name: str, state: dict[str, torch.Tensor]) -> object:
    """As each system's own training saves it."""
    if name == "stnet":
        return {"model": {f"module.{key}": t for key, t in state.items()}, "optim": {"lr": 1e-6}}
    if name == "bleep":
        return {f"module.{key.replace('spot_', 'well_')}": t for key, t in state.items()}
    if name in ("histogene", "thitogene"):
        return {"state_dict": state, "epoch": 1, "global_step": 7, "pytorch-lightning_version": "1.4.0"}
    return state
