"""Encoders trained on tissue.

Constructors, pooling and constants are those of TRIDENT (mahmoodlab/TRIDENT at 0120b8b,
`trident/patch_encoder_models/load.py`), fields of view those of its README. Where LazySlide
(lazyslide_models 0.1.0) or HEST (mahmoodlab/HEST at 1ae7ff7) differ, the note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mclst.models.recipes.recipe import Recipe

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
OPTIMUS: dict[str, Any] = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
HIBOU: dict[str, Any] = {"mean": (0.7068, 0.5755, 0.722), "std": (0.195, 0.2316, 0.1816)}
SWIGLU: dict[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
NO_DERIVATIVES: dict[str, Any] = {"license": "CC-BY-NC-ND-4.0", "gated": True}
APACHE: dict[str, Any] = {"license": "Apache-2.0", "redistributable": True}


def _vit(name: str, title: str, architecture: str, arguments: Mapping[str, Any], **fields: Any) -> Recipe:
    fields.setdefault("family", "Vision transformers trained on tissue")
    fields.setdefault("pooling", "cls")
    return Recipe(
        name=name,
        title=title,
        builder=fields.pop("builder", "timm"),
        architecture=architecture,
        arguments=arguments,
        **fields,
    )


RECIPES = (
    _vit(
        "uni",
        "UNI",
        "vit_large_patch16_224",
        {"init_values": 1e-5},
        width=1024,
        parameters=303_350_784,
        fov_um=128.0,
        source="huggingface.co/MahmoodLab/UNI",
        note="HEST reads 112 µm.",
        **IMAGENET,
        **NO_DERIVATIVES,
    ),
    _vit(
        "uni2-h",
        "UNI2-h",
        "vit_giant_patch14_224",
        {
            "depth": 24,
            "num_heads": 24,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "init_values": 1e-5,
            "no_embed_class": True,
            "reg_tokens": 8,
            **SWIGLU,
        },
        width=1536,
        parameters=681_394_176,
        fov_um=128.0,
        source="huggingface.co/MahmoodLab/UNI2-h",
        note="HEST reads 112 µm.",
        **IMAGENET,
        **NO_DERIVATIVES,
    ),
    _vit(
        "virchow",
        "Virchow",
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "mlp_ratio": 5.3375, **SWIGLU},
        pooling="cls+mean",
        width=2560,
        parameters=631_229_184,
        interpolation="bicubic",
        fov_um=112.0,
        gated=True,
        source="huggingface.co/paige-ai/Virchow",
        **IMAGENET,
        **APACHE,
    ),
    _vit(
        "virchow2",
        "Virchow2",
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, **SWIGLU},
        pooling="cls+mean",
        width=2560,
        parameters=631_239_424,
        interpolation="bicubic",
        fov_um=112.0,
        source="huggingface.co/paige-ai/Virchow2",
        **IMAGENET,
        **NO_DERIVATIVES,
    ),
    _vit(
        "h-optimus-0",
        "H-optimus-0",
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224},
        width=1536,
        parameters=1_134_774_272,
        interpolation="bicubic",
        fov_um=112.0,
        source="huggingface.co/bioptimus/H-optimus-0",
        note="TRIDENT resizes bilinearly, LazySlide bicubically.",
        **OPTIMUS,
        **APACHE,
    ),
    _vit(
        "h-optimus-1",
        "H-optimus-1",
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224},
        width=1536,
        parameters=1_134_774_272,
        interpolation="bicubic",
        fov_um=112.0,
        source="huggingface.co/bioptimus/H-optimus-1",
        note="TRIDENT resizes bilinearly, LazySlide bicubically.",
        **OPTIMUS,
        **NO_DERIVATIVES,
    ),
)
