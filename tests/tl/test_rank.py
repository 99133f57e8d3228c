from __future__ import annotations

import fitted
import numpy as np
import pytest

from gpnsf import results
from gpnsf.keys import Keys
from gpnsf.tl.rank import rank_features

COLUMNS = ["factor", "modality", "feature", "rank", "score", "loading", "share", "lift", "importance"]


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=81)


def with_loadings(W):
    """A fitted AnnData whose loadings are replaced; features are called g0, g1, .."""
    data = fitted.anndata(n_obs=36, n_factors=W.shape[1], n_spatial=1, n_genes=W.shape[0])
    data.var_names = [f"g{j}" for j in range(W.shape[0])]
    data.varm[Keys().loadings] = W.astype(np.float32)
    return data


def test_table_is_tidy_and_ordered(toy):
    table = rank_features(toy, n_features=5)
    assert list(table.columns) == COLUMNS
    fit = results.find(toy)
    expected = [(factor, name) for factor in fit.names for name in ("rna", "atac")]
    assert list(table.groupby(["factor", "modality"], sort=False).size().index) == expected
    for _, part in table.groupby(["factor", "modality"]):
        assert part["rank"].tolist() == [1, 2, 3, 4, 5]
        assert part["score"].is_monotonic_decreasing
        assert part["feature"].is_unique
    assert table["share"].between(0, 1).all()


def test_numbers_are_those_of_the_definition(toy):
    W = toy["rna"].varm["gpnsf_loadings"].astype(float)
    table = rank_features(toy, modality="rna", factors="nonspatial_1", n_features=3)
    for row in table.itertuples():
        w = W[toy["rna"].var_names.get_loc(row.feature)]
        expected = w.sum() * W[:, 2].sum() / W.sum()
        assert row.loading == pytest.approx(w[2], rel=1e-5)
        assert row.share == pytest.approx(w[2] / w.sum(), rel=1e-5)
        assert row.lift == pytest.approx(w[2] / expected, rel=1e-5)
        assert row.score == pytest.approx(w[2] * np.log(w[2] / expected) - w[2] + expected, rel=1e-4)


def test_lift_prefers_specific_and_abundant_features():
    housekeeping, noise, marker, other = [100, 100], [0.001, 0], [20, 1], [1, 20]
    data = with_loadings(np.array([housekeeping, noise, marker, other]))
    best = {method: rank_features(data, method=method, factors="spatial_1") for method in ("lift", "loading", "share")}
    assert best["lift"]["feature"].iloc[0] == "g2"
    assert best["loading"]["feature"].iloc[0] == "g0"
    assert best["share"]["feature"].iloc[0] == "g1"


def test_specificity_is_the_share_above_the_next():
    data = with_loadings(np.array([[6.0, 3.0, 1.0], [5.0, 0.0, 5.0], [1.0, 9.0, 0.0], [0.0, 0.0, 0.0]]))
    table = rank_features(data, method="specificity")
    assert table[["factor", "feature"]].to_numpy().tolist() == [
        ["spatial_1", "g0"],
        ["spatial_1", "g1"],
        ["nonspatial_1", "g2"],
        ["nonspatial_2", "g1"],
    ]
    np.testing.assert_allclose(table["score"], [0.3, 0, 0.8, 0], atol=1e-6)
    assert rank_features(with_loadings(np.array([[2.0]])), method="specificity")["score"].tolist() == [1.0]


def test_features_without_signal_or_below_the_expected_share_are_left_out():
    data = with_loadings(np.array([[5, 1], [1, 5], [0, 0], [3, 0]]))
    assert set(rank_features(data, factors="spatial_1")["feature"]) == {"g0", "g3"}
    assert set(rank_features(data, factors="nonspatial_1", method="loading")["feature"]) == {"g0", "g1"}


def test_a_single_factor_ranks_by_loading():
    table = rank_features(with_loadings(np.array([[1.0], [3.0], [2.0], [0.0]])))
    assert table["feature"].tolist() == ["g1", "g2", "g0"]


def test_a_factor_without_loadings_has_no_lines():
    table = rank_features(with_loadings(np.array([[1.0, 0.0], [3.0, 0.0]])))
    assert set(table["factor"]) == {"spatial_1"}


def test_signed_loadings_are_ranked_by_magnitude():
    data = with_loadings(np.array([[-5.0, 1.0], [1.0, 4.0], [2.0, 1.0]]))
    data.uns["gpnsf"]["likelihoods"]["rna"] = "gaussian"
    table = rank_features(data, factors="spatial_1")
    assert table["feature"].tolist() == ["g0", "g2"]
    assert table["loading"].tolist() == [-5.0, 2.0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "z"}, ValueError, "'lift', 'loading', 'share', 'specificity'"),
        ({"n_features": 0}, ValueError, "`n_features` of at least 1"),
        ({"factors": "spatial_9"}, KeyError, "spatial_9"),
        ({"factors": []}, ValueError, "at least one"),
        ({"modality": "protein"}, KeyError, "protein"),
        ({"key": "other"}, KeyError, "key_added='other'|key=` one of"),
    ],
)
def test_bad_options_are_refused(toy, options, error, message):
    with pytest.raises(error, match=message):
        rank_features(toy, **options)
