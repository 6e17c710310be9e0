"""The published notebook as a process: its imports, network, prediction and a picture of eight genes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    """Run as a process: print one JSON object with the seconds of encoding."""
    parser = argparse.ArgumentParser()
    for name in ("--bundle", "--ckpt", "--slide", "--spots", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    from mclst.benchmarks.contenders.inputs import open_notebook
    from mclst.runtime.bundle.bundle import MANIFEST, Bundle
    from mclst.runtime.bundle.manifest import read_manifest
    from mclst.sections.tables.spots import read_spots

    # Not verified, as the notebook's own files are not.
    bundle = Bundle(options.bundle, read_manifest(options.bundle / MANIFEST), "")
    spots = read_spots(options.spots)
    notebook = open_notebook(bundle, options.ckpt, options.slide, options.threads)
    expression, clock = notebook.run(options.slide, spots.xy_px)
    figure, panels = plt.subplots(2, 4, figsize=(16, 8))
    for panel, gene in zip(panels.flat, np.argsort(-expression.var(axis=0)), strict=False):
        points = panel.scatter(*spots.xy_px.T, c=expression[:, gene], s=12)
        panel.set_title(bundle.genes[gene])
        panel.invert_yaxis()
        figure.colorbar(points, ax=panel)
    figure.savefig(options.out.with_suffix(".png"))
    np.save(options.out, expression)
    print(json.dumps({"encode_s": clock["encode"]}))


if __name__ == "__main__":
    main()
