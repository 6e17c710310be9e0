"""The small bundle with an `about` in its manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

ABOUT: dict[str, Any] = {
    "title": "Breast, small",
    "license": {"name": "Apache-2.0"},
    "base_model": {
        "name": "Tiny",
        "hub": "org/tiny",
        "revision": "0" * 40,
        "license": {"name": "MIT"},
        "relation": "finetune",
    },
    "citation": ["doi:10.1/abc"],
    "intended_use": "Research on breast tissue.",
    "out_of_scope": "Diagnosis.",
    "training_data": {
        "source": "hf://datasets/org/her2st",
        "organ": "breast",
        "species": "human",
        "platform": "legacy ST",
        "stain": "H&E",
        "sections": 2,
        "patients": 1,
    },
    "evaluation": {
        "protocol": "section B1 held out",
        "metrics": [{"name": "mean Pearson r per gene", "value": 0.25, "id": "pearsonr"}],
    },
}


def describe_bundle(source: Path, target: Path, about: dict[str, Any] | None = None) -> Path:
    """Copy a bundle and give its manifest an `about`."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["about"] = ABOUT if about is None else about
    (target / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return target
