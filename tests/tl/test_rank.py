from __future__ import annotations

import fitted
import numpy as np
import pytest
from scipy import stats

from gpnsf.core.scores.ranking import METHODS, Weights
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
        weights.expected, [4 / 3, 2 / 3]
    )  # the factor has two thirds of everything
    weights = Weights(weights.every, 0, background=np.array([0.0, 1.0]))
    np.testing.assert_allclose(weights.expected, [1.0, 1.0])  # and half of it with the background


def with_loadings(W, n_obs=36):
    """A fitted AnnData with these loadings and no background; features are called g0, g1, .."""
    data = fitted.anndata(n_obs=n_obs, n_factors=W.shape[1], n_spatial=1, n_genes=W.shape[0])
    data.var_names = [f"g{j}" for j in range(W.shape[0])]
    data.varm[Keys().loadings] = W.astype(np.float32)
    data.var[Keys().background] = np.float32(0)
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
    whole = W.sum(axis=1) + toy["rna"].var["gpnsf_background"].to_numpy(float)
    table = rank_features(toy, modality="rna", factors="nonspatial_1", n_features=3, method="lift")
    for row in table.itertuples():
        j = toy["rna"].var_names.get_loc(row.feature)
        w, expected = W[j], whole[j] * W[:, 2].sum() / whole.sum()
        assert row.loading == pytest.approx(w[2], rel=1e-5)
        assert row.share == pytest.approx(w[2] / w.sum(), rel=1e-5)
        assert row.lift == pytest.approx(w[2] / expected, rel=1e-5)
        assert row.score == pytest.approx(
            w[2] * np.log(w[2] / expected) - w[2] + expected, rel=1e-4
        )


def test_the_posterior_score_is_the_lower_end_of_the_interval_of_the_ratio(toy):
    """By quadrature: what the Poisson likelihood and the prior leave of the ratio to expected counts."""
    rna = toy["rna"]
    W = rna.varm["gpnsf_loadings"].astype(float)
    part = W.sum(axis=1) + rna.var["gpnsf_background"].to_numpy(float)
    part /= part.sum()
    options = {"modality": "rna", "factors": "spatial_2", "n_features": 5}
    table = rank_features(toy, **options, prior_counts=8)
    ratio = np.linspace(1e-3, 20, 200_000)
    for row in table.itertuples():
        j = rna.var_names.get_loc(row.feature)
        counts, expected = rna.n_obs * W[j, 1], rna.n_obs * W[:, 1].sum() * part[j]
        log_density = stats.gamma.logpdf(ratio, 8, scale=1 / 8) + (
            counts * np.log(ratio) - expected * ratio
        )
        mass = np.cumsum(np.exp(log_density - log_density.max()))
        lower = ratio[np.searchsorted(mass, 0.05 * mass[-1])]
        assert row.score == pytest.approx(np.log2(lower), abs=1e-3)
        assert row.loading_std == pytest.approx(rna.varm["gpnsf_loadings_std"][j, 1], rel=1e-6)


def test_what_is_counted_and_specific_comes_before_what_is_abundant_or_rare():
    housekeeping, marker, rare, other = [105.0, 100], [9.0, 1], [0.03, 0], [1.0, 60]
    data = with_loadings(np.array([housekeeping, marker, rare, other]), n_obs=400)
    table = rank_features(data, factors="spatial_1")
    assert table["feature"].tolist() == ["g1", "g0", "g2", "g3"]
    assert table["score"].iloc[0] > 0.3
    assert table["score"].iloc[2] < 0
    share = rank_features(data, factors="spatial_1", method="share")
    assert share["feature"].iloc[0] == "g2"


def test_the_prior_decides_how_abundant_features_are():
    """Ninety counts in ten times more than expected, or 40,000 in a fifth more."""
    data = with_loadings(np.array([[0.1, 0], [100.0, 40], [40, 100]]), n_obs=900)
    first = [
        rank_features(data, factors="spatial_1", prior_counts=prior)["feature"].iloc[0]
        for prior in (0, 1000)
    ]
    assert first == ["g0", "g1"]


def test_features_with_equal_ratios_are_ranked_by_their_counts():
    data = with_loadings(np.array([[0.5, 0.1], [5.0, 1.0], [1.0, 9.0]]), n_obs=400)
    assert rank_features(data, factors="spatial_1")["feature"].tolist() == ["g1", "g0", "g2"]


def test_every_method_returns_as_many_features_as_asked_for_of_every_factor(subtests, toy):
    for method in METHODS:
        with subtests.test(method=method):
            table = rank_features(toy, n_features=3, method=method)
            sizes = table.groupby(["factor", "modality"]).size()
            assert sizes.tolist() == [3] * sizes.size
            twins = with_loadings(np.array([[9.0, 1.0], [8.0, 1.0], [7.0, 2.0], [1.0, 0.5]]))
            table = rank_features(twins, n_features=3, method=method)
            assert table.groupby("factor").size().tolist() == [3, 3]
            assert table.groupby("factor")["score"].is_monotonic_decreasing.all()


def test_ratios_need_no_standard_deviations():
    data = fitted.anndata(n_obs=36)
    whole = rank_features(data)
    del data.varm["gpnsf_loadings_std"]
    table = rank_features(data)
    assert table["loading_std"].isna().all()
    assert table["feature"].tolist() == whole["feature"].tolist()


def test_real_values_are_ranked_by_lift():
    data = fitted.anndata(n_obs=36)
    data.uns["gpnsf"]["likelihoods"]["rna"] = "gaussian"
    table, lift = rank_features(data), rank_features(data, method="lift")
    assert table.equals(lift)
    data.uns["gpnsf"]["likelihoods"]["rna"] = "nb"
    assert not rank_features(data)["score"].equals(lift["score"])


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
    data = with_loadings(W, n_obs=400)
    data.var_names = [f"RPL{j}" for j in range(30)] + [f"marker{j}" for j in range(48)]
    return data


def test_a_factor_without_markers_has_as_many_features_as_others():
    """A factor that only has its part of everything, and less of some."""
    rng = np.random.default_rng(0)
    W = np.column_stack([np.full(12, 9.0), np.append(rng.gamma(9, 1, 6), np.full(6, 30.0))])
    data = with_loadings(W, n_obs=400)
    for method in METHODS:
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
    first = table.groupby("factor", sort=False).head(2)
    assert first[["factor", "feature"]].to_numpy().tolist() == [
        ["spatial_1", "g0"],
        ["spatial_1", "g1"],
        ["nonspatial_1", "g2"],
        ["nonspatial_1", "g0"],
        ["nonspatial_2", "g1"],
        ["nonspatial_2", "g0"],
    ]
    np.testing.assert_allclose(first["score"], [0.3, 0, 0.8, -0.3, 0, -0.5], atol=1e-6)
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


def test_bad_options_are_refused(subtests, toy):
    for options, error, message in (
        ({"method": "z"}, ValueError, "'posterior', 'lift', 'loading', 'share', 'specificity'"),
        ({"prior_counts": -1}, ValueError, "`prior_counts` to be .*of at least 0"),
        ({"n_features": 0}, ValueError, "`n_features` of at least 1"),
        ({"factors": "spatial_9"}, KeyError, "spatial_9"),
        ({"factors": []}, ValueError, "at least one"),
        ({"modality": "protein"}, KeyError, "protein"),
        ({"key": "other"}, KeyError, "key_added='other'|key=` one of"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            rank_features(toy, **options)
