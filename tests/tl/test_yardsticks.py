"""One yardstick for all models: Poisson deviance, squared error, zero loadings, Moran's I."""

from __future__ import annotations

import logging

import fitted
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import gpnsf
from gpnsf.core.scores import metrics
from gpnsf.tl.evaluate import evaluate

SHORT = {"n_factors": 2, "max_steps": 2, "split": "assumed", "init": "spot", "progress": False}
K = 8


def held(data, n=4):
    """Hold every n-th row out."""
    data.obs["held"] = np.arange(data.n_obs) % n == 0
    data.uns["gpnsf"]["params"]["holdout_key"] = "held"
    return data


def expressed(likelihood, values, *, layer=None, size_factors="total"):
    """A fit whose factors are expected values [n, K] of as many features, held-out rows among them."""
    data = fitted.anndata(n_obs=64, n_factors=K, n_genes=K, likelihood="poisson")
    counts = np.random.default_rng(0).poisson(3.0, (64, K)).astype(np.float32)
    counts[np.arange(64) % K, np.arange(64) % K] += 5
    data.X = sp.csr_matrix(counts)
    data.layers["other"] = sp.csr_matrix(counts[::-1] * 2)
    held(data)
    gpnsf.pp.normalise(data, holdout_key="held", size_factors=size_factors, log=layer == "logs")
    data.layers["logs"] = data.layers["normalised"]
    read = data.X if layer is None else data.layers["normalised"]
    data.obs["gpnsf_total"] = np.asarray(read.sum(axis=1)).ravel()
    data.obsm["X_gpnsf"] = values.astype(np.float64)
    data.varm["gpnsf_loadings"] = np.eye(K)
    data.var["gpnsf_background"] = 0.0
    data.var["gpnsf_dispersion"] = 1e-6 if likelihood == "gaussian" else 1e13
    data.uns["gpnsf"]["likelihoods"] = {"rna": likelihood}
    data.uns["gpnsf"]["n_features"] = {"rna": K}
    data.uns["gpnsf"]["params"] |= {
        "layers": None if layer is None else "normalised",
        "size_factors": size_factors,
    }
    return data


RATES = np.random.default_rng(1).gamma(4.0, 1.0, (64, K))
EXPRESSIONS = {
    "nb": (("nb", RATES), {}),
    "logs": (("gaussian", np.log1p(RATES)), {"layer": "logs"}),
    "quotients": (("gaussian", RATES), {"layer": "quotients"}),
}


def test_a_model_and_its_exact_expression_as_another_are_equally_far_from_the_counts(subtests):
    for metric in ("poisson", "rmse"):
        wanted = evaluate(expressed("poisson", RATES), metric=metric, layers="other")
        wanted = wanted.drop(columns="likelihood")
        for name, (arguments, options) in EXPRESSIONS.items():
            with subtests.test(metric=metric, name=name):
                table = evaluate(expressed(*arguments, **options), metric=metric, layers="other")
                assert table["rows"].tolist() == ["train", "holdout", "thinned"]
                pd.testing.assert_frame_equal(table.drop(columns="likelihood"), wanted, rtol=1e-5)


@pytest.mark.parametrize("layer", [None, "quotients"])
def test_a_gaussian_fit_of_counts_without_size_factors_has_their_rates(layer):
    """Lossless: neither a logarithm nor size factors, whether `pp.normalise` wrote the values or they are the counts."""
    table = evaluate(expressed("gaussian", RATES, layer=layer, size_factors=None), metric="poisson")
    wanted = evaluate(expressed("poisson", RATES, size_factors=None), metric="poisson")
    pd.testing.assert_frame_equal(
        table.drop(columns="likelihood"), wanted.drop(columns="likelihood"), rtol=1e-5
    )


def test_of_a_poisson_fit_it_is_the_deviance_itself():
    data = held(fitted.anndata(n_obs=100, likelihood="poisson"))
    data.layers["other"] = data.X * 2
    data.obs["run"] = np.where(np.arange(100) % 3, "one", "two")
    data.varm["gpnsf_batch"] = np.random.default_rng(0).lognormal(0, 0.3, (data.n_vars, 2))
    data.uns["gpnsf"]["batches"] = ["one", "two"]
    data.uns["gpnsf"]["params"]["batch_key"] = "run"
    own, one = (evaluate(data, metric=m, layers="other") for m in ("deviance", "poisson"))
    assert own.pop("metric").tolist() == ["deviance"] * 3
    assert one.pop("metric").tolist() == ["poisson"] * 3
    pd.testing.assert_frame_equal(own, one, rtol=1e-6)


def test_of_an_nb_fit_it_goes_to_the_deviance_as_theta_grows():
    data = fitted.anndata(n_obs=64)
    differences = []
    for theta in (10.0, 1e3, 1e13):
        data.var["gpnsf_dispersion"] = theta
        pair = [evaluate(data, metric=m)["deviance"][0] for m in ("deviance", "poisson")]
        differences.append(abs(pair[0] / pair[1] - 1))
    assert differences[0] > 1e-2
    assert differences[1] < 0.1 * differences[0]
    assert differences[2] < 1e-6


def test_an_open_peak_is_one_count_and_its_probability_is_expected():
    data = fitted.mudata(n_obs=64)
    mod, y = data["atac"], data["atac"].X.toarray()
    seen = y.any(axis=0)
    rate = data.obsm["X_gpnsf"] @ mod.varm["gpnsf_loadings"].T + mod.var[
        "gpnsf_background"
    ].to_numpy().astype(float)
    size = y.sum(1) / y.sum(1).mean()
    mu = -np.expm1(-size[:, None] * rate)[:, seen]
    y = y[:, seen]
    wanted = 2 * (np.where(y > 0, -np.log(mu), 0) - y + mu).mean()
    found = evaluate(data, metric="poisson").set_index("modality").loc["atac", "deviance"]
    assert found == pytest.approx(wanted, rel=1e-5)
    root = evaluate(data, metric="rmse").set_index("modality").loc["atac"]
    assert root["rmse"] == pytest.approx(np.sqrt(((y - mu) ** 2).mean()), rel=1e-5)
    assert root["explained"] == pytest.approx(1 - (root["rmse"] / root["null_rmse"]) ** 2)


def test_a_mean_of_logarithms_becomes_the_mean_of_the_model():
    data = expressed("gaussian", np.log1p(RATES), layer="logs")
    data.var["gpnsf_dispersion"] = noise = np.linspace(0.1, 1, K)
    rows, y = ~data.obs["held"].to_numpy(), data.X.toarray()
    mu = np.exp(np.log1p(RATES) + noise**2 / 2) - 1
    mu = data.obs["normalised_size"].to_numpy()[:, None] * mu
    squares = ((y - mu)[rows] ** 2).mean()
    assert evaluate(data, metric="rmse")["rmse"][0] == pytest.approx(np.sqrt(squares), rel=1e-6)


def test_a_signed_model_that_expects_less_than_nothing_has_a_finite_deviance():
    data = expressed("gaussian", RATES - 20, layer="quotients")
    table = evaluate(data, metric="poisson")
    train, y = ~data.obs["held"].to_numpy(), data.X.toarray()
    size = data.obs["normalised_size"].to_numpy()[:, None]
    mu = 0.01 * size * y[train].sum(0) / size[train].sum()
    wanted = 2 * (np.where(y > 0, y * np.log(np.maximum(y, 1) / mu), 0) - y + mu)
    np.testing.assert_allclose(
        table["deviance"], [wanted[train].mean(), wanted[~train].mean()], rtol=1e-5
    )


def test_the_values_or_the_counts_may_have_moved_to_another_layer():
    data = expressed("gaussian", np.log1p(RATES), layer="logs")
    wanted = evaluate(data, metric="poisson")
    data.layers["raw"], data.X = data.X, data.layers["normalised"]
    data.uns["gpnsf"]["params"]["layers"] = None
    del data.layers["logs"]
    pd.testing.assert_frame_equal(evaluate(data, metric="poisson"), wanted)
    del data.layers["raw"]
    with pytest.raises(ValueError, match="Expected the counts behind layer 'normalised'"):
        evaluate(data, metric="poisson")


def test_other_values_are_refused_and_the_remedy_works():
    data = fitted.anndata(n_obs=36, n_genes=12)
    data.layers["logs"] = data.X.log1p()
    gpnsf.tl.fit(data, "fa", layers="logs", **SHORT)
    with pytest.raises(ValueError, match=r"Expected .*; got .*\. Call gpnsf.pp.normalise"):
        evaluate(data, metric="poisson")
    assert evaluate(data, metric="rmse")["rmse"][0] > 0
    assert evaluate(data)["deviance"][0] > 0
    gpnsf.pp.normalise(data)
    gpnsf.tl.fit(data, "fa", layers="normalised", **SHORT)
    assert np.isfinite(evaluate(data, metric="poisson")["deviance"][0])


@pytest.mark.parametrize("options", [{}, {"target_sum": 30.0}])
def test_a_normalisation_that_saw_held_out_rows_is_told(options, caplog):
    data = expressed("gaussian", np.log1p(RATES), layer="logs")
    gpnsf.pp.normalise(data, **options)
    data.obs["gpnsf_total"] = np.asarray(data.layers["normalised"].sum(axis=1)).ravel()
    logging.getLogger("gpnsf").addHandler(caplog.handler)
    try:
        evaluate(data, metric="poisson")
    finally:
        logging.getLogger("gpnsf").removeHandler(caplog.handler)
    told = [line for line in caplog.messages if "holdout_key" in line]
    assert len(told) == (0 if options else 1)


@pytest.mark.slow
def test_all_models_stand_in_one_table_above_the_same_null_model():
    pytest.importorskip("mofapy2", reason="mofapy2 is not installed")
    data = held(fitted.anndata(n_obs=64, n_genes=24))
    gpnsf.pp.normalise(data, holdout_key="held")
    tables = []
    for model in ("gpnsf", "nsfh", "nsf", "pnmf", "rsf", "fa", "mefisto"):
        if model == "mefisto":
            gpnsf.tl.mefisto(
                data, n_factors=2, max_steps=25, holdout_key="held", progress=False, key_added=model
            )
        else:
            layers = "normalised" if model in ("rsf", "fa") else None
            options = {**SHORT, "max_steps": 40, "holdout_key": "held", "layers": layers}
            gpnsf.tl.fit(data, model, key_added=model, **options)
        tables.append(evaluate(data, metric="poisson", key=model).assign(model=model))
    table = pd.concat(tables).set_index(["rows", "model"])
    for rows in ("train", "holdout"):
        own = table.loc[rows]
        assert len(own) == 7
        np.testing.assert_allclose(own["null_deviance"], own["null_deviance"].iloc[0], rtol=1e-6)
        assert own["n_features"].nunique() == own["n_obs"].nunique() == 1
    assert (table.loc["train", "explained"] > 0.2).all()
    unseen = table.loc["holdout", "explained"]
    assert unseen[["nsf", "rsf", "mefisto"]].min() > unseen[["pnmf", "fa"]].max()


def test_sparsity_is_the_share_of_small_loadings_of_a_feature():
    data = fitted.mudata(n_obs=64)
    for mod in data.mod.values():
        W = np.tile([1.0, 0.02, 0.005, 0.0], (mod.n_vars, 1))
        W[0] = 0  # no loadings at all: left out
        mod.varm["gpnsf_loadings"] = W
    data.obsm["X_gpnsf"] = np.ones((64, 4)) * [1.0, 0.4, 1.0, 1.0]
    table = evaluate(data, metric="sparsity")
    # .02 * .4 is below a hundredth of 1.013
    assert table["sparsity"].tolist() == [0.75, 0.75]
    assert table["n_features"].tolist() == [data["rna"].n_vars - 1, data["atac"].n_vars - 1]
    data.obsm["X_gpnsf"][:, 1] = 1.0
    assert evaluate(data, metric="sparsity")["sparsity"].tolist() == [0.5, 0.5]


def test_signs_do_not_matter_to_sparsity():
    data = fitted.anndata(n_obs=64, likelihood="gaussian")
    wanted = evaluate(data, metric="sparsity")
    data.varm["gpnsf_loadings"][:, 1] *= -1
    data.obsm["X_gpnsf"][:, 2] *= -1
    pd.testing.assert_frame_equal(evaluate(data, metric="sparsity"), wanted)
    assert 0 < wanted["sparsity"][0] < 1


def test_moran_is_that_of_the_training_rows_in_their_slices():
    data = fitted.mudata(n_obs=49, n_slices=2)
    rows = np.arange(98)
    library = (rows >= 49).astype(int)
    data.obsm["X_gpnsf"][:, 3] = library + 1.0  # constant in each slice
    held(data, 7)
    train = ~data.obs["held"].to_numpy()
    table = evaluate(data, metric="moran")
    assert table["factor"].tolist() == ["spatial_1", "spatial_2", "nonspatial_1", "nonspatial_2"]
    assert table["n_obs"].tolist() == [84] * 4
    weights = np.zeros((98, 98))
    for code in (0, 1):
        own = np.flatnonzero(train & (library == code))
        coords = data.obsm["spatial"][own]
        weights[np.ix_(own, own)] = metrics.knn_weights(coords).toarray()
    H = data.obsm["X_gpnsf"].astype(float)
    for code in (0, 1):
        H[train & (library == code)] -= H[train & (library == code)].mean(0)
    H[~train] = 0
    wanted = [h @ weights @ h / weights.sum() / ((h @ h) / train.sum()) for h in H.T[:3]]
    np.testing.assert_allclose(table["moran"][:3], wanted, rtol=1e-6)
    assert table["moran"][3] == 0
    assert table["moran"][0] > 0.3


@pytest.mark.parametrize("metric", ["sparsity", "moran"])
def test_other_counts_have_no_factors_of_their_own(metric):
    with pytest.raises(ValueError, match=r"Expected `layers` only with a metric of counts"):
        evaluate(fitted.anndata(n_obs=64), metric=metric, layers="other")


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="`metric` to be one of 'deviance', 'poisson', 'rmse'"):
        evaluate(fitted.anndata(n_obs=64), metric="poison")
