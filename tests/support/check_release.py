"""Predict a slide with an installed wheel: `PYTHON check_release.py SLIDE BUNDLE OUT PLACES...`.

`make release-check` runs it with the Python of an environment that has the wheel and nothing else: no
compiler, no npm, no torch, no source tree.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path


def check(slide: Path, bundle: Path, out: Path, places: list[str]) -> None:
    """Run mclst-infer in a process of its own, then read what it wrote; places: --grid or --spots."""
    for program in ("c++", "g++", "cc", "gcc", "clang", "npm", "node"):
        assert shutil.which(program) is None, f"{program} is on PATH: this environment is not clean"
    for package in ("torch", "onnx", "timm"):
        assert importlib.util.find_spec(package) is None, (
            f"{package} is installed: this environment is not clean"
        )

    from mclst.kernels.cpu import compiled
    from mclst.runtime.decoding import library as batch_library
    from mclst.runtime.report.page.openseadragon import VIEWER_PATH

    assert "site-packages" in str(Path(compiled.__file__)), f"mclst is not the wheel's: {compiled.__file__}"
    assert compiled.built(), "the wheel has no compiled cpu retrieval"
    compiled.library()
    assert batch_library.compiled() is not None, "the wheel has no compiled decoder"
    assert VIEWER_PATH.is_file(), "the wheel has no viewer for its pages"

    command = [str(Path(sys.executable).with_name("mclst-infer")), str(slide), "--bundle", str(bundle)]
    command += [*places, "--out", str(out), "--overwrite", "--retriever", "cpu"]
    subprocess.run(command, check=True)

    import anndata
    import numpy as np

    written = anndata.read_h5ad(out)
    assert len(written) and np.isfinite(written.X).all(), f"{out} has no expression"
    page = out.with_suffix(".html")
    assert "OpenSeadragon" in page.read_text(encoding="utf-8"), f"{page} has no viewer"
    print(f"mclst {version('mclst')} from its wheel: {len(written)} spots of {slide.name}, map and page")


if __name__ == "__main__":
    slide, bundle, out = map(Path, sys.argv[1:4])
    check(slide, bundle, out, sys.argv[4:])
