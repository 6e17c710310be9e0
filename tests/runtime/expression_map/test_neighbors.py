from __future__ import annotations

import numpy as np
import pytest

from mclst.runtime.expression_map import morans_i
from mclst.runtime.expression_map.morans_i import nearest_spots

SPREAD = np.random.default_rng(0).random((90, 2)) * [400, 30]
COINCIDING = np.repeat(SPREAD[:12], 5, axis=0)


@pytest.mark.parametrize("most", [0, 10_000])
@pytest.mark.parametrize("k", [1, 6, 11])
@pytest.mark.parametrize("xy", [SPREAD, COINCIDING], ids=["spread", "coinciding"])
def test_no_other_spot_is_nearer_than_the_neighbors(xy, k, most, monkeypatch):
    monkeypatch.setattr(morans_i, "MOST_BY_DISTANCES", most)
    monkeypatch.setattr(morans_i, "DISTANCES", 200)
    distance, index = nearest_spots(xy, k)
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.testing.assert_allclose(np.take_along_axis(apart, index, axis=1), distance, atol=1e-9)
    np.fill_diagonal(apart, np.inf)
    np.testing.assert_allclose(distance, np.sort(apart, axis=1)[:, :k], atol=1e-9)
    for spot, row in enumerate(index):
        assert spot not in row and len(set(row)) == k
