"""PNG files against Pillow, which reads them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from PIL import Image

from mclst.runtime.report.figures.png import encode_png
from mclst.runtime.report.figures.style import figure_bytes

SIDE = st.integers(1, 40)


@given(st.tuples(SIDE, SIDE).flatmap(lambda size: arrays(np.uint8, (*size, 3))), st.floats(30, 600))
def test_another_decoder_reads_the_same_pixels(pixels: np.ndarray, dpi: float) -> None:
    with Image.open(BytesIO(encode_png(pixels, dpi=dpi, text={"Software": "mclst"}))) as image:
        image.load()
        assert image.mode == "RGB" and image.info["Software"] == "mclst"
        assert image.info["dpi"][0] == pytest.approx(dpi, abs=0.02)
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("dpi", ["figure", 55.0])
def test_a_figure_is_drawn_as_matplotlib_saves_it(dpi: float | str) -> None:
    figure = Figure(figsize=(3, 2), dpi=110)
    figure.add_subplot().plot([1, 4, 2], label="a")
    expected = BytesIO()
    figure.savefig(expected, format="png", dpi=dpi)
    with Image.open(expected) as one, Image.open(BytesIO(figure_bytes(figure, dpi=dpi))) as other:
        assert other.size == one.size == ((330, 220) if dpi == "figure" else (165, 110))
        assert np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other))
