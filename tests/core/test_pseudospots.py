"""Where spots lie, and simulated ones."""

from __future__ import annotations

import numpy as np
import pytest

from gpnsf.core.companions import pseudospots
from gpnsf.core.companions.pseudospots import Places

GRID = np.column_stack(np.divmod(np.arange(900), 30)).astype(float)
FIELD = {"amplitude": 1.5, "abundance": 0.0, "noise": 0.0}


def places(**changes) -> Places:
    values = {
        "coords": GRID,
        "slices": np.repeat(["a", "b"], 450),
        "totals": np.full(900, 200.0),
        "unit": 1.0,
    }
    return Places(**{**values, "n_neighbors": 4, **changes})


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_smooth_proportions_are_as_smooth_as_asked(rng):
    def roughness(lengthscale):
        share = pseudospots.smooth(GRID, 4, lengthscale=lengthscale, rng=rng, **FIELD)
        assert share.sum(axis=1) == pytest.approx(1)
        assert share.min() >= 0
        steps = np.diff(share.reshape(30, 30, 4), axis=1)
        return np.square(steps).mean() / share.var(axis=0).mean()

    assert roughness(2.0) > 4 * roughness(8.0)


def test_regions_have_compositions_of_their_own(rng):
    labels = np.repeat(["x", "y", "z"], 300)
    share = pseudospots.regional(labels, 5, concentration=0.5, within=50.0, rng=rng)
    assert share.sum(axis=1) == pytest.approx(1)
    within = sum(share[labels == name].var(axis=0).sum() for name in "xyz") / 3
    assert within < 0.2 * share.var(axis=0).sum()


def test_counts_mix_the_profiles_at_the_given_depth(rng):
    profiles = rng.dirichlet(np.full(50, 0.5), 3).T
    share = rng.dirichlet(np.ones(3), 2000)
    counts = pseudospots.drawn(share, profiles, np.linspace(50, 150, 2000), rng)
    np.testing.assert_allclose(np.asarray(counts.sum(axis=1)).ravel()[1000:].mean(), 125, rtol=0.02)
    expected = (np.linspace(50, 150, 2000)[:, None] * (share @ profiles.T)).sum(axis=0)
    np.testing.assert_allclose(
        np.asarray(counts.sum(axis=0)).ravel(), expected, atol=5 * np.sqrt(expected.max())
    )


def test_a_patch_lies_in_one_slice_and_holds_together(rng):
    rows = places().patch(rng)
    assert len(rows) == pseudospots.PATCH
    assert len(set(places().slices[rows])) == 1
    assert np.ptp(GRID[rows], axis=0).max() < 30
    small = places(coords=GRID[:20], slices=np.zeros(20), totals=np.ones(20))
    assert small.patch(rng).tolist() == list(range(20))
