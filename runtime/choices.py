"""Choices of options; imports nothing, so that `--help` stays fast."""

from __future__ import annotations

READERS = ("auto", "pillow", "tifffile", "openslide", "zarr", "hdf5")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""The most faithful first."""
FIGURE_FORMATS = ("png", "pdf", "svg")

# In fp32 the last two are about equally fast; only the last one runs bf16.
FASTEST_FIRST = ("tensorrt", "tensorrt-rtx", "cuda", "cpu", "openvino")
PROVIDERS = ("auto", *FASTEST_FIRST)
ON_CPU = ("cpu", "openvino")
RETRIEVERS = ("cpu", "cuda", "faiss", "reference")
