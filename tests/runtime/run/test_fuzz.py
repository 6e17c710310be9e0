"""Thousands of damaged files of each kind are read, or refused in one sentence.

A subprocess reads them, so that a crash is seen. For longer campaigns:
`python tests/support/fuzzing.py KIND SEED COUNT FOLDER`.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import fuzzing
import numpy as np
import onnx
import pytest
import tifffile
from onnx import numpy_helper
from PIL import Image
from synthetic_maps import write_counts_map
from synthetic_slides import tissue, write_layout
from synthetic_vendors import VENDORS

LAYOUTS = ("tiled jpeg 4:2:0", "tiled deflate", "lzw strips", "planar tiles", "big-endian bigtiff",
           "jpeg strips", "one plain strip", "tiled jpeg 2000", "tiled zstd",
           "tiled webp", "packbits strips")  # fmt: skip


def write_slides(folder: Path) -> None:
    for layout in LAYOUTS:
        write_layout(folder, layout)
    for form in ("jpeg", "png"):
        Image.fromarray(tissue(60, 80)).save(folder / f"picture.{form}")
    VENDORS["Philips TIFF"](folder)
    with tifffile.TiffWriter(folder / "a.ome.tif", bigtiff=True) as tif:
        tif.write(
            tissue(),
            subifds=1,
            metadata={"axes": "YXS"},
            tile=(64, 64),
            photometric="rgb",
            compression="zlib",
        )
        tif.write(tissue(150, 210), subfiletype=1, tile=(64, 64), photometric="rgb", compression="zlib")
    tifffile.imwrite(
        folder / "a.svs", tissue(), tile=(64, 64), compression="jpeg", photometric="rgb", metadata=None,
        description="Aperio Image Library v11\r\n420x300|AppMag = 20|MPP = 0.5",
    )  # fmt: skip


def write_openslide(folder: Path) -> None:
    for name in ("Leica SCN", "Ventana BIF"):
        VENDORS[name](folder)
    # Not DICOM of JPEG frames: damaged ones crash OpenSlide 4.0.1 itself.
    for name in ("MIRAX", "DICOM, uncompressed"):
        (folder / name).mkdir()
        VENDORS[name](folder / name)


def write_graphs(encoder: Path, folder: Path) -> None:
    """A graph of each precision: weights in raw bytes of its type, converted by hand."""
    shutil.copy(encoder, folder)
    for precision, dtype in (("fp16", np.float16), ("bf16", np.uint16), ("int8", np.int8)):
        model = onnx.load(encoder)
        for weight in model.graph.initializer:
            array = numpy_helper.to_array(weight)
            if array.dtype == np.float32:
                weight.CopyFrom(numpy_helper.from_array(array.astype(dtype), weight.name))
        for graph in ("encoder", "slide"):
            onnx.save(model, folder / f"{graph}.{precision}.onnx")


COUNTS = {
    "slide": 700,
    "openslide": 150,
    "bundle": 300,
    "manifest": 1500,
    "graph": 1500,
    "map": 150,
    "section": 150,
    "spots": 150,
}


@pytest.mark.parametrize("kind", sorted(COUNTS))
def test_damaged_files_are_read_or_refused(kind: str, tmp_path: Path, run_inputs: Path) -> None:
    if kind == "slide":
        write_slides(tmp_path)
    elif kind == "openslide":
        write_openslide(tmp_path)
    elif kind in fuzzing.HDF5:
        write_counts_map(tmp_path / "made.h5ad")
    elif kind == "bundle":
        shutil.copytree(run_inputs / "mclst-bundle", tmp_path / "mclst-bundle")
    elif kind == "manifest":
        shutil.copy(run_inputs / "mclst-bundle" / "manifest.json", tmp_path)
    else:
        write_graphs(run_inputs / "mclst-bundle" / "encoder.onnx", tmp_path)
    done = subprocess.run(
        [sys.executable, fuzzing.__file__, kind, "20", str(COUNTS[kind]), str(tmp_path)],
        capture_output=True, text=True, timeout=1500, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-3000:]}"
    counts = json.loads(done.stdout)
    assert counts["files"] == COUNTS[kind] and 0 < counts["readable"] < counts["files"]


def test_a_crash_would_be_seen(tmp_path: Path, run_inputs: Path) -> None:
    """The harness itself: a reader that dies of a file ends its process, and the file is still there."""
    shutil.copy(run_inputs / "mclst-bundle" / "manifest.json", tmp_path)
    source = (
        "import ctypes, sys; from pathlib import Path; import fuzzing\n"
        "real = fuzzing.READ['manifest']\n"
        "def dies(path):\n"
        "    if path.parent.name == 'current': ctypes.string_at(0)\n"
        "    real(path)\n"
        "fuzzing.READ['manifest'] = dies\n"
        "fuzzing.main('manifest', 1, 5, Path(sys.argv[1]))\n"
    )
    paths = [str(Path(__file__).parents[2] / "support"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", source, str(tmp_path)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode < 0 and (tmp_path / "current" / "manifest.json").is_file()


def test_damage_depends_on_the_seed_alone() -> None:
    whole = io.BytesIO()
    Image.fromarray(tissue(40, 40)).save(whole, format="png")
    first, again = (fuzzing.damaged(whole.getvalue(), random.Random("3 4")) for _ in range(2))
    assert first == again != whole.getvalue()
