from __future__ import annotations

import numpy as np
import pytest
from sections import digest

import gpnsf

SMALL = {"n_obs": 100, "n_genes": 50, "n_types": 3, "n_cells": 40}


@pytest.fixture(scope="module")
def drawn():
    return gpnsf.datasets.mixture(depth=500.0, seed=1, **SMALL)


def test_shapes_and_truth(drawn):
    spots, cells = drawn
    assert spots.shape == (100, 50)
    assert cells.shape == (120, 50)
    assert cells.obs["cell_type"].value_counts().to_dict() == {
        "type_1": 40,
        "type_2": 40,
        "type_3": 40,
    }
    assert (spots.var_names == cells.var_names).all()
    assert spots.uns["truth"]["simulated"]
    assert spots.uns["truth"]["types"] == ["type_1", "type_2", "type_3"]
    np.testing.assert_allclose(spots.obsm["true_proportions"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(spots.varm["true_profiles"].sum(axis=0), 1)
    assert np.asarray(spots.X.sum(axis=1)).mean() == pytest.approx(500, rel=0.1)


def test_counts_follow_the_truth(drawn):
    spots, cells = drawn
    expected = spots.obsm["true_proportions"].mean(axis=0) @ spots.varm["true_profiles"].T
    found = np.asarray(spots.X.sum(axis=0)).ravel()
    assert np.corrcoef(found, expected)[0, 1] > 0.98
    for k, name in enumerate(spots.uns["truth"]["types"]):
        found = np.asarray(cells[cells.obs["cell_type"] == name].X.sum(axis=0)).ravel()
        assert np.corrcoef(found, spots.varm["true_profiles"][:, k])[0, 1] > 0.98


def test_the_seed_decides(drawn):
    again = gpnsf.datasets.mixture(depth=500.0, seed=1, **SMALL)
    assert [digest(data) for data in again] == [digest(data) for data in drawn]
    assert not np.array_equal(
        gpnsf.datasets.mixture(depth=500.0, seed=2, **SMALL)[0].X.toarray(), drawn[0].X.toarray()
    )


def test_regions_have_compositions_of_their_own():
    spots, _ = gpnsf.datasets.mixture(n_regions=4, **SMALL)
    assert spots.obs["region"].nunique() == 4
    share, code = spots.obsm["true_proportions"], spots.obs["region"].cat.codes
    within = sum(((share[code == c] - share[code == c].mean(axis=0)) ** 2).sum() for c in range(4))
    assert within < 0.4 * ((share - share.mean(axis=0)) ** 2).sum()


def test_types_differ_as_asked_and_fields_are_as_smooth_as_asked():
    alike, different = (
        gpnsf.datasets.mixture(difference=d, **SMALL)[0].varm["true_profiles"] for d in (0.1, 1.5)
    )
    assert np.corrcoef(alike.T)[0, 1] > 0.9 > np.corrcoef(different.T)[0, 1]
    steps = [
        np.diff(
            gpnsf.datasets.mixture(lengthscale=scale, **SMALL)[0].obsm["true_proportions"], axis=0
        ).std()
        for scale in (0.05, 0.5)
    ]
    assert steps[0] > 1.5 * steps[1]


def test_settings_out_of_range_are_refused(subtests):
    for options, error in (
        ({"n_obs": 2}, ValueError),
        ({"n_types": 1}, ValueError),
        ({"n_genes": 50.0}, TypeError),
        ({"depth": 0.0}, ValueError),
        ({"difference": -1.0}, ValueError),
        ({"lengthscale": 0}, ValueError),
        ({"n_regions": 101}, ValueError),
        ({"n_cells": 0}, ValueError),
        ({"seed": -1}, ValueError),
    ):
        with subtests.test(options=options), pytest.raises(error, match="Expected "):
            gpnsf.datasets.mixture(**{**SMALL, **options})
