"""`mclst-bench nulls`: random fields, and what the evaluation finds in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_model import Small

from mclst.benchmarks.cli import main
from mclst.benchmarks.nulls.fields import disc, gaussian_fields
from mclst.benchmarks.nulls.measure import p_values


def test_fields_have_their_covariance() -> None:
    xy = disc(3.0)
    fields = gaussian_fields(xy, 2.0, 20_000, seed=0)
    apart = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    np.testing.assert_allclose(np.cov(fields), np.exp(-apart / 2.0), atol=0.06)


@pytest.mark.parametrize(("length", "plain"), [(0.0, 0.05), (2.0, 0.3), (5.0, 0.5)])
def test_the_corrected_p_keeps_its_level_on_autocorrelated_fields(length: float, plain: float) -> None:
    """Independent fields: 5 % of the corrected p-values are below 5 %; of the paper's, up to half."""
    result = p_values(disc(8.5), length, 0.0, 1500, seed=6)
    assert 0.03 <= result["corrected"] <= 0.07
    assert result["published"] == pytest.approx(plain, abs=0.12 if length else 0.02)
    assert result["effective_spots"] < 0.6 * len(disc(8.5)) or not length


def test_the_command_counts_at_given_spots_and_on_a_disc(small: Small, tmp_path: Path) -> None:
    words = ["nulls", "--spots", small.spots, "--pairs", "20", "--trials", "10", "--genes", "2"]
    done = CliRunner().invoke(main, [*map(str, words), "--json", str(tmp_path / "n.json")])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "n.json").read_text())
    assert {own["spots"] for own in document["p_values"]} == {small.spots.name, "disc"}
    assert all(0 <= own["corrected"] <= 1 for own in document["p_values"])
    assert all(own["least"] <= own["missed"] <= own["most"] for own in document["intervals"])


def test_spots_without_array_positions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("spot,x,y\na,10,10\nb,20,10\n")
    for name, reason in (("plain.csv", "no array positions"), ("no.csv", "no.csv")):
        refused = CliRunner().invoke(main, ["nulls", "--spots", str(tmp_path / name)])
        assert refused.exit_code == 4 and reason in refused.output, refused.output
