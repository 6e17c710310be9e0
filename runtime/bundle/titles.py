"""What a model is called, for people."""

from __future__ import annotations

from mclst.runtime.bundle.about import About
from mclst.runtime.bundle.manifest import Manifest

SYSTEMS = {
    "mclstexp": "mclSTExp",
    "bleep": "BLEEP",
    "stnet": "ST-Net",
    "histogene": "HisToGene",
    "hist2st": "Hist2ST",
    "thitogene": "THItoGene",
}
"""Published spelling of the systems' names."""
FITTED = ("fitted", "fitted-retrieval")


def model_title(manifest: Manifest) -> str:
    """Name the system and its encoder, or the head and what it was fitted on."""
    about = manifest.about or About()
    if manifest.system not in FITTED:
        return f"{SYSTEMS.get(manifest.system, manifest.system)} with {manifest.encoder.name}"
    head = "a fitted head" if about.head is None else about.head.name
    encoder = manifest.encoder.name if about.base_model is None else about.base_model.name
    return f"{head} on {encoder}"
