"""What was measured, against naive loops over the stored counts."""

from __future__ import annotations

import fitted
import numpy as np
import pytest

from gpnsf.io import fits
from gpnsf.io.measured import compare, find_features


@pytest.fixture
def toy():
    return fitted.mudata(n_obs=64)


def sizes(mod):
    totals = mod.X.toarray().sum(axis=1)
    return np.maximum(totals / totals.mean(), 0.05)


def rates(data, name, positions):
    mod = data[name]
    background = mod.var["gpnsf_background"].to_numpy()[positions]
    return data.obsm["X_gpnsf"] @ mod.varm["gpnsf_loadings"][positions].T + background


def test_counts_are_per_size_factor_beside_rates(toy):
    compared = compare(fits.find(toy), "rna", [3, 0])
    size = sizes(toy["rna"])
    np.testing.assert_allclose(
        compared.observed, toy["rna"].X.toarray()[:, [3, 0]] / size[:, None], rtol=1e-6
    )
    np.testing.assert_allclose(compared.expected, rates(toy, "rna", [3, 0]), rtol=1e-5)
    np.testing.assert_allclose(compared.weight, size, rtol=1e-6)
    assert not compared.binary


def test_open_chromatin_is_0_or_1_beside_its_probability(toy):
    compared = compare(fits.find(toy), "atac", [5])
    size = sizes(toy["atac"])[:, None]
    np.testing.assert_array_equal(compared.observed, toy["atac"].X.toarray()[:, [5]] > 0)
    np.testing.assert_allclose(
        compared.expected, 1 - np.exp(-size * rates(toy, "atac", [5])), rtol=1e-5
    )
    np.testing.assert_array_equal(compared.weight, 1)
    assert compared.binary


def test_a_layer_that_was_fitted_is_read(toy):
    toy["rna"].layers["counts"] = toy["rna"].X.copy()
    expected = compare(fits.find(toy), "rna", [1]).observed
    toy["rna"].X = toy["rna"].X * 3
    toy.uns["gpnsf"]["params"]["layers"] = {"rna": "counts"}
    np.testing.assert_array_equal(compare(fits.find(toy), "rna", [1]).observed, expected)


def test_multipliers_of_batches_change_what_is_expected():
    data = fitted.anndata(n_obs=64)
    before = compare(fits.find(data), "rna", [2]).expected
    data.obs["batch"] = np.where(np.arange(64) < 20, "a", "b")
    data.varm["gpnsf_batch"] = np.tile([[2.0, 0.5]], (data.n_vars, 1))
    data.uns["gpnsf"]["batches"] = ["a", "b"]
    data.uns["gpnsf"]["params"]["batch_key"] = "batch"
    factor = np.where(np.arange(64) < 20, 2.0, 0.5)[:, None]
    np.testing.assert_allclose(compare(fits.find(data), "rna", [2]).expected, factor * before)


def test_features_that_were_left_out_of_the_fit_are_not_in_the_totals():
    data = fitted.anndata(n_obs=64)
    data.varm["gpnsf_loadings"][:30], data.var.loc[data.var_names[:30], "gpnsf_background"] = 0, 0
    total = data.X.toarray()[:, 30:].sum(axis=1)
    compared = compare(fits.find(data), "rna", [0, 40])
    np.testing.assert_allclose(compared.weight, np.maximum(total / total.mean(), 0.05), rtol=1e-6)
    assert not compared.observed[:, 0].any()


def test_observations_without_the_modality_have_no_value(simulated):
    import gpnsf

    data = simulated.copy()
    data.mod["atac"] = data["atac"][10:].copy()
    data.update()
    gpnsf.tl.fit(data, n_factors=2, max_steps=2, init="spot", split="assumed", progress=False)
    compared = compare(fits.find(data), "atac", [0])
    lacking = ~data.obs_names.isin(data["atac"].obs_names)
    assert lacking.sum() == 10
    np.testing.assert_array_equal(np.isnan(compared.observed[:, 0]), lacking)
    np.testing.assert_array_equal(np.isnan(compared.expected[:, 0]), lacking)


def test_features_are_found_by_name_in_their_modality(toy):
    fit = fits.find(toy)
    peak = toy["atac"].var_names[7]
    assert find_features(fit, ["Gene3", peak], ["rna", "atac"]) == [("rna", 2), ("atac", 7)]
    with pytest.raises(KeyError, match="Gene9999"):
        find_features(fit, ["Gene9999"], ["rna", "atac"])
    toy["atac"].var_names = ["Gene3", *toy["atac"].var_names[1:]]
    assert find_features(fits.find(toy), ["Gene3"], ["atac"]) == [("atac", 0)]
    with pytest.raises(ValueError, match="one feature 'Gene3'; got 2"):
        find_features(fits.find(toy), ["Gene3"], ["rna", "atac"])


def test_layers_may_name_modalities_that_were_not_fitted(toy):
    toy["rna"].layers["counts"] = toy["rna"].X.copy()
    expected = compare(fits.find(toy), "rna", [1]).observed
    record = toy.uns["gpnsf"]
    record["params"]["layers"] = {"rna": "counts", "atac": "counts"}
    record["modalities"] = ["rna"]
    record["likelihoods"] = {"rna": "nb"}
    np.testing.assert_array_equal(compare(fits.find(toy), "rna", [1]).observed, expected)


def test_held_out_cells_need_no_size_factor(toy):
    import gpnsf

    toy.obs["held"], toy.obs["depth"] = np.arange(64) < 4, 2.0
    toy.obs.loc[toy.obs_names[:4], "depth"] = np.nan
    toy.uns["gpnsf"]["params"] |= {"holdout_key": "held", "size_factors": "depth"}
    for name in toy.mod:
        compared = compare(fits.find(toy), name, [0])
        np.testing.assert_array_equal(np.isnan(compared.observed[:, 0]), toy.obs["held"])
        np.testing.assert_array_equal(compared.weight[4:], 1)
    with pytest.raises(ValueError, match="size factors of the rows 'holdout'"):
        gpnsf.tl.evaluate(toy)


def test_size_factors_of_a_column_are_relative_to_training_cells(toy):
    toy.obs["held"], toy.obs["depth"] = np.arange(64) < 4, np.where(np.arange(64) < 4, 10.0, 2.0)
    toy.uns["gpnsf"]["params"] |= {"holdout_key": "held", "size_factors": "depth"}
    np.testing.assert_allclose(compare(fits.find(toy), "rna", [0]).weight, [5.0] * 4 + [1.0] * 60)
