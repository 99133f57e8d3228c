"""Standard deviations that are learned from known errors."""

from __future__ import annotations

import numpy as np
import pytest

from gpnsf.core.companions.spread import Estimate, learned
from gpnsf.core.scores.neighbours import ties

GRID = np.column_stack(np.divmod(np.arange(100), 10)).astype(float)
TIES = ties(GRID, np.zeros(100), n_neighbors=4)


def example(seed: int):
    """Proportions whose errors grow with their size, fall with the depth, and are twice as large for the last type."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.ones(4), 100)
    totals = rng.choice([50.0, 5000.0], 100)
    std = 2 * truth / np.sqrt(totals)[:, None] * [1, 1, 1, 2]
    found = np.clip(truth + std * rng.standard_normal(truth.shape), 0, 1)
    return Estimate(found, totals, TIES), truth, std


def test_intervals_cover_and_follow_depth_size_and_type():
    spread = learned([example(seed)[:2] for seed in range(20)])
    inside, ratio = [], []
    for seed in range(100, 110):
        found, truth, std = example(seed)
        given = spread.of(found)
        inside.append(np.abs(found.share - truth) <= 1.645 * given)
        ratio.append(np.log(given / std)[truth > 0.1])
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)
    assert np.median(np.abs(np.concatenate(ratio))) < 0.35
    deep, shallow = (
        np.mean([spread.of(example(s)[0])[example(s)[0].totals == total].mean() for s in (7, 8)])
        for total in (5000.0, 50.0)
    )
    assert 4 < shallow / deep < 16


def test_parts_of_the_spots_have_what_all_have(monkeypatch):
    spread, found = learned([example(seed)[:2] for seed in range(4)]), example(9)[0]
    whole = spread.of(found)
    monkeypatch.setattr("gpnsf.core.companions.spread.ROWS", 17)
    np.testing.assert_allclose(spread.of(found), whole, rtol=1e-12)
