from __future__ import annotations

import fitted
import numpy as np
import pytest
from scipy import stats

from gpnsf.core.scores.ranking import Weights
from gpnsf.io import fits
from gpnsf.io.ranked import ranked
from gpnsf.keys import Keys
from gpnsf.tl.rank import rank_features

COLUMNS = [
    "factor",
    "modality",
    "feature",
    "rank",
    "score",
    "loading",
    "loading_std",
    "share",
    "lift",
    "importance",
]


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=81)


def test_what_is_expected_of_a_factor_counts_the_background_as_well():
    weights = Weights(np.array([[1.0, 1.0], [1.0, 0.0]]), 0)
    np.testing.assert_allclose(
        weights.expected(), [4 / 3, 2 / 3]
    )  # the factor has two thirds of everything
    np.testing.assert_allclose(
        weights.expected(np.array([0.0, 1.0])), [1.0, 1.0]
    )  # and half of it with the background


def with_loadings(W):
    """A fitted AnnData whose loadings are replaced; features are called g0, g1, .."""
    data = fitted.anndata(n_obs=36, n_factors=W.shape[1], n_spatial=1, n_genes=W.shape[0])
    data.var_names = [f"g{j}" for j in range(W.shape[0])]
    data.varm[Keys().loadings] = W.astype(np.float32)
    return data


def test_table_is_tidy_and_ordered(toy):
    table = rank_features(toy, n_features=5)
    assert list(table.columns) == COLUMNS
    fit = fits.find(toy)
    expected = [(factor, name) for factor in fit.names for name in ("rna", "atac")]
    assert list(table.groupby(["factor", "modality"], sort=False).size().index) == expected
    for _, part in table.groupby(["factor", "modality"]):
        assert part["rank"].tolist() == [1, 2, 3, 4, 5]
        assert part["score"].is_monotonic_decreasing
        assert part["feature"].is_unique
    assert table["share"].between(0, 1).all()


def test_numbers_are_those_of_the_definition(toy):
    W = toy["rna"].varm["gpnsf_loadings"].astype(float)
    table = rank_features(toy, modality="rna", factors="nonspatial_1", n_features=3, method="lift")
    for row in table.itertuples():
        w = W[toy["rna"].var_names.get_loc(row.feature)]
        expected = w.sum() * W[:, 2].sum() / W.sum()
        assert row.loading == pytest.approx(w[2], rel=1e-5)
        assert row.share == pytest.approx(w[2] / w.sum(), rel=1e-5)
        assert row.lift == pytest.approx(w[2] / expected, rel=1e-5)
        assert row.score == pytest.approx(
            w[2] * np.log(w[2] / expected) - w[2] + expected, rel=1e-4
        )


def test_the_posterior_score_is_the_lower_end_of_the_interval_over_the_part_in_the_section(toy):
    rna = toy["rna"]
    W, std = (rna.varm[f"gpnsf_loadings{name}"].astype(float) for name in ("", "_std"))
    part = W.sum(axis=1) + rna.var["gpnsf_background"].to_numpy(float)
    part /= part.sum()
    table = rank_features(toy, modality="rna", factors="spatial_2", n_features=5)
    for row in table.itertuples():
        j = rna.var_names.get_loc(row.feature)
        shape = (W[j, 1] / std[j, 1]) ** 2
        lower = stats.gamma.ppf(0.05, shape, scale=W[j, 1] / shape)
        assert row.loading_std == pytest.approx(std[j, 1], rel=1e-6)
        assert row.score == pytest.approx(np.log2(lower / W[:, 1].sum() / part[j]), rel=1e-4)


def with_std(W, std, n_obs=400):
    """The same with standard deviations of the loadings and no background."""
    data = fitted.anndata(n_obs=n_obs, n_factors=W.shape[1], n_spatial=1, n_genes=W.shape[0])
    data.var_names = [f"g{j}" for j in range(W.shape[0])]
    data.varm[Keys().loadings], data.varm[Keys().loadings_std] = (
        W.astype(np.float32),
        std.astype(np.float32),
    )
    data.var[Keys().background] = np.float32(0)
    return data


def test_what_is_sure_and_specific_comes_before_what_is_abundant_or_unsure():
    housekeeping, marker, unsure, other = [105.0, 100], [9.0, 1], [10.0, 0.5], [1.0, 60]
    W = np.array([housekeeping, marker, unsure, other])
    std = 0.05 * W
    std[2] = W[2] / 1.5
    table = rank_features(with_std(W, std), factors="spatial_1")
    assert table["feature"].tolist() == ["g1", "g0", "g2", "g3"]
    assert table["score"].iloc[0] > 0.3
    assert table["score"].iloc[-1] < 0
    assert (
        rank_features(with_std(W, std), factors="spatial_1", method="lift")["feature"].iloc[0]
        == "g2"
    )


def test_the_surer_of_two_equal_loadings_is_first():
    W = np.array([[5.0, 1], [5.0, 1], [1.0, 9]])
    table = rank_features(with_std(W, np.array([[1.0, 1], [0.5, 1], [1, 1]])), factors="spatial_1")
    assert table["feature"].tolist() == ["g1", "g0", "g2"]


def test_rare_features_are_left_out_unless_all_are_rare():
    """A hundred abundant features, and a rare one that is the most specific."""
    rng = np.random.default_rng(0)
    W = np.vstack([rng.gamma(5, 1, (100, 2)), [0.1, 0]])
    data = with_std(W, 0.01 * W)
    assert "g100" not in set(
        rank_features(data, factors="spatial_1", n_features=200)["feature"]
    )  # .1 x 400 = 40
    table = rank_features(data, factors="spatial_1", n_features=200, min_counts=39)
    assert table["feature"].iloc[0] == "g100"
    shallow = with_std(W / 1e3, 1e-5 * W)
    table = rank_features(shallow, factors="spatial_1", n_features=200)
    assert len(table) == 50
    assert 10 < (table["lift"] > 1).sum() < 50
    assert "g100" not in set(table["feature"])


def test_a_fit_that_knows_no_precision_ranks_by_lift():
    data = fitted.anndata(n_obs=36)
    del data.varm["gpnsf_loadings_std"]
    table, lift = rank_features(data), rank_features(data, method="lift")
    assert table["feature"].tolist() == lift["feature"].tolist()
    assert table["loading_std"].isna().all()


def test_no_ribosomal_genes_for_markers(lymph_node):
    """A factor in ten holds two thirds of a marker; every factor holds much of the ribosomal genes, and some more than others."""
    table = rank_features(lymph_node, n_features=5)
    marker = table["feature"].str.startswith("marker")
    assert marker.all()
    lift = rank_features(lymph_node, n_features=5, method="lift")["feature"]
    assert lift.str.startswith("RPL").mean() > 0.5


@pytest.fixture(scope="module")
def lymph_node():
    """Simulated loadings: 30 ribosomal genes of large loadings, and 12 markers of each of 4 factors."""
    rng = np.random.default_rng(1)
    ribosomal = 200 * rng.lognormal(0, 0.3, (30, 4))
    markers = rng.gamma(2, 0.1, (48, 4)) + 2.0 * np.eye(4)[np.arange(48) // 12]
    W = np.vstack([ribosomal, markers])
    data = with_std(W, np.sqrt(W / 400) + 0.02 * W)
    data.var_names = [f"RPL{j}" for j in range(30)] + [f"marker{j}" for j in range(48)]
    return data


def test_a_factor_without_markers_has_as_many_features_as_others():
    """A factor that only has its part of everything, and less of some."""
    rng = np.random.default_rng(0)
    W = np.column_stack([np.full(12, 9.0), np.append(rng.gamma(9, 1, 6), np.full(6, 30.0))])
    data = with_std(W, 0.05 * W)
    for method in ("posterior", "lift", "loading", "share"):
        table = rank_features(data, n_features=9, method=method)
        assert table.groupby("factor").size().tolist() == [9, 9]
        for _, part in table.groupby("factor"):
            assert part["score"].is_monotonic_decreasing
    table = rank_features(data, n_features=12)
    assert ((table["score"] < 0) | (table["lift"] > 1)).all()
    best = ranked(fits.find(data), "rna", 1, n_features=12)  # as figures and gene sets take it
    assert (best["lift"] >= 1).all()


def test_lift_prefers_specific_and_abundant_features():
    housekeeping, noise, marker, other = [100, 100], [0.001, 0], [20, 1], [1, 20]
    data = with_loadings(np.array([housekeeping, noise, marker, other]))
    best = {
        method: rank_features(data, method=method, factors="spatial_1")
        for method in ("lift", "loading", "share")
    }
    assert best["lift"]["feature"].iloc[0] == "g2"
    assert best["loading"]["feature"].iloc[0] == "g0"
    assert best["share"]["feature"].iloc[0] == "g1"


def test_specificity_is_the_share_above_the_next():
    data = with_loadings(
        np.array([[6.0, 3.0, 1.0], [5.0, 0.0, 5.0], [1.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    )
    table = rank_features(data, method="specificity")
    assert table[["factor", "feature"]].to_numpy().tolist() == [
        ["spatial_1", "g0"],
        ["spatial_1", "g1"],
        ["nonspatial_1", "g2"],
        ["nonspatial_2", "g1"],
    ]
    np.testing.assert_allclose(table["score"], [0.3, 0, 0.8, 0], atol=1e-6)
    assert rank_features(with_loadings(np.array([[2.0]])), method="specificity")[
        "score"
    ].tolist() == [1.0]


def test_features_without_signal_are_left_out_and_those_below_the_expected_share_come_last():
    data = with_loadings(np.array([[5, 1], [1, 5], [0, 0], [3, 0]]))
    table = rank_features(data, factors="spatial_1", method="lift")
    assert table["feature"].tolist() == ["g3", "g0", "g1"]
    assert (table["score"] > 0).tolist() == (table["lift"] > 1).tolist() == [True, True, False]
    assert set(rank_features(data, factors="nonspatial_1", method="loading")["feature"]) == {
        "g0",
        "g1",
    }


def test_a_single_factor_ranks_by_loading():
    table = rank_features(with_loadings(np.array([[1.0], [3.0], [2.0], [0.0]])), method="lift")
    assert table["feature"].tolist() == ["g1", "g2", "g0"]


def test_a_factor_without_loadings_has_no_lines():
    table = rank_features(with_loadings(np.array([[1.0, 0.0], [3.0, 0.0]])))
    assert set(table["factor"]) == {"spatial_1"}


def test_signed_loadings_are_ranked_by_magnitude():
    data = with_loadings(np.array([[-5.0, 1.0], [1.0, 4.0], [2.0, 1.0]]))
    data.uns["gpnsf"]["likelihoods"]["rna"] = "gaussian"
    table = rank_features(data, factors="spatial_1")
    assert table["feature"].tolist() == ["g0", "g2", "g1"]
    assert table["loading"].tolist() == [-5.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "z"}, ValueError, "'posterior', 'lift', 'loading', 'share', 'specificity'"),
        ({"min_counts": -1}, ValueError, "`min_counts` to be .*of at least 0"),
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
