"""A bundle and a slide in, an expression map out; numpy in, numpy out, never torch."""

from __future__ import annotations

from mclst.runtime.bundle import Bundle, open_bundle
from mclst.runtime.errors import InputError, MclstError, OutputError, ResourceError
from mclst.runtime.pipeline import Run, predict
from mclst.runtime.slide import Slide, open_slide

__all__ = [
    "Bundle",
    "InputError",
    "MclstError",
    "OutputError",
    "ResourceError",
    "Run",
    "Slide",
    "open_bundle",
    "open_slide",
    "predict",
]
