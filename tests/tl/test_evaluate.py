from __future__ import annotations

import fitted
import numpy as np
import pytest
import scipy.sparse as sp
from mudata import MuData
from scipy.special import xlogy

from gpnsf.tl.evaluate import evaluate

COLUMNS = [
    "modality",
    "rows",
    "likelihood",
    "metric",
    "deviance",
    "null_deviance",
    "explained",
    "n_obs",
    "n_features",
]


def dense_rates(data, mod, size):
    """Expected counts, entry by entry."""
    rate = data.obsm["X_gpnsf"].astype(float) @ mod.varm["gpnsf_loadings"].T.astype(float)
    return size[:, None] * (rate + mod.var["gpnsf_background"].to_numpy())


def totals(mod, rows):
    """Size factors relative to the mean of the given rows, without the floor."""
    total = np.asarray(mod.X.sum(axis=1)).ravel()
    return total / total[rows].mean()


def poisson(y, rate):
    return 2 * (xlogy(y, y) - xlogy(y, rate) - y + rate)


def nb(y, rate, theta):
    return 2 * (xlogy(y, y) - xlogy(y, rate) - (y + theta) * np.log((y + theta) / (rate + theta)))


def bernoulli(y, rate):
    return -2 * np.where(y > 0, np.log(-np.expm1(-np.maximum(rate, 1e-30))), -rate)


@pytest.fixture
def toy():
    return fitted.mudata(n_obs=100)


def line(table, modality, rows):
    (found,) = table[(table["modality"] == modality) & (table["rows"] == rows)].to_dict("records")
    return found


def test_training_rows_equal_the_dense_formulas(toy):
    table = evaluate(toy)
    assert list(table.columns) == COLUMNS
    assert table[["modality", "rows", "likelihood"]].values.tolist() == [
        ["rna", "train", "nb"],
        ["atac", "train", "bernoulli"],
    ]
    everything = np.ones(100, dtype=bool)
    for name, formula in {"rna": lambda y, r: nb(y, r, 20.0), "atac": bernoulli}.items():
        mod = toy[name]
        y = mod.X.toarray()[:, :-1]  # the last feature has no counts
        rate = dense_rates(toy, mod, totals(mod, everything))[:, :-1]
        assert line(table, name, "train")["deviance"] == pytest.approx(
            formula(y, rate).mean(), rel=1e-5
        )
        assert line(table, name, "train")["n_features"] == mod.n_vars - 1
    assert (table["explained"] > 0.03).all()
    np.testing.assert_allclose(table["explained"], 1 - table["deviance"] / table["null_deviance"])


def test_rates_are_those_of_the_batch_of_a_row():
    data = fitted.anndata(n_obs=100, likelihood="poisson")
    batch = np.arange(100) % 2
    multipliers = np.random.default_rng(0).lognormal(0, 0.3, (data.n_vars, 2))
    data.obs["run"] = np.array(["one", "two"])[batch]
    data.varm["gpnsf_batch"] = multipliers
    data.uns["gpnsf"]["batches"] = ["one", "two"]
    data.uns["gpnsf"]["params"]["batch_key"] = "run"
    rate = dense_rates(data, data, totals(data, np.ones(100, dtype=bool))) * multipliers.T[batch]
    found = line(evaluate(data), "rna", "train")["deviance"]
    assert found == pytest.approx(poisson(data.X.toarray(), rate)[:, :-1].mean(), rel=1e-5)


def test_null_model_has_one_rate_per_feature_from_the_training_rows():
    data = fitted.anndata(n_obs=100, likelihood="poisson")
    held = np.arange(100) % 4 == 0
    data.obs["held"] = held
    data.uns["gpnsf"]["params"]["holdout_key"] = "held"
    table = evaluate(data)
    size, y = totals(data, ~held), data.X.toarray()[:, :-1]
    null = size[:, None] * y[~held].sum(axis=0) / size[~held].sum()
    rate = dense_rates(data, data, size)[:, :-1]
    for rows, selected in {"train": ~held, "holdout": held}.items():
        found = line(table, "rna", rows)
        assert found["n_obs"] == selected.sum()
        assert found["null_deviance"] == pytest.approx(poisson(y, null)[selected].mean(), rel=1e-5)
        assert found["deviance"] == pytest.approx(poisson(y, rate)[selected].mean(), rel=1e-5)


def test_the_true_rates_of_thinned_counts_have_a_deviance_near_one():
    rng = np.random.default_rng(0)
    data = fitted.anndata(n_obs=400, n_genes=40, likelihood="poisson")
    data.obsm["X_gpnsf"] = rng.lognormal(0, 0.5, (400, 4)).astype(np.float32)
    data.varm["gpnsf_loadings"] = rng.gamma(2, 4, (40, 4)).astype(np.float32)
    rate = dense_rates(data, data, np.ones(400))
    counts = rng.poisson(rate)
    train = rng.binomial(counts, 0.5)
    data.X = sp.csr_matrix(counts.astype(np.float32))
    data.layers["train"] = sp.csr_matrix(train.astype(np.float32))
    data.obs["gpnsf_total"] = train.sum(axis=1).astype(np.float32)
    data.layers["test"] = sp.csr_matrix((counts - train).astype(np.float32))
    data.varm["gpnsf_loadings"] /= 2
    data.var["gpnsf_background"] /= 2
    data.uns["gpnsf"]["params"] |= {"layers": "train", "size_factors": None}
    table = evaluate(data, layers={"rna": "test"})
    assert table["rows"].tolist() == ["train", "thinned"]
    np.testing.assert_allclose(table["deviance"], 1, atol=0.05)


@pytest.mark.parametrize("size_factors", ["total", None, "depth"])
def test_rates_are_scaled_to_the_depth_of_other_counts(size_factors):
    data = fitted.anndata(n_obs=100, likelihood="poisson")
    data.obs["depth"] = np.linspace(1, 2, 100)
    data.uns["gpnsf"]["params"]["size_factors"] = size_factors
    data.layers["triple"] = data.X * 3
    table = evaluate(data, layers="triple")
    # three times the counts at three times the rates: y log y/r - y + r is three times as large
    np.testing.assert_allclose(table["deviance"][1] / table["deviance"][0], 3, rtol=1e-4)
    assert table["explained"][1] == pytest.approx(table["explained"][0], rel=1e-4)


def test_features_of_use_var_alone_count(toy):
    rna = toy["rna"]
    rna.varm["gpnsf_loadings"][:10] = 0
    rna.var.loc[rna.var_names[:10], "gpnsf_background"] = 0
    counts = rna.X.toarray()
    counts[0, 0] = 0.5  # would be refused, were it read
    rna.X = sp.csr_matrix(counts)
    assert line(evaluate(toy), "rna", "train")["n_features"] == rna.n_vars - 11


def test_cells_that_lack_a_modality_are_not_judged():
    data = fitted.mudata(n_obs=64)
    partial = MuData({"rna": data["rna"], "atac": data["atac"][::-2].copy()})
    for name, value in data.obsm.items():
        if name not in ("rna", "atac"):
            partial.obsm[name] = value[data.obs_names.get_indexer(partial.obs_names)]
    partial.uns = data.uns
    table = evaluate(partial)
    assert table["n_obs"].tolist() == [64, 32]
    y = partial["atac"].X.toarray()
    rows = partial.obs_names.get_indexer(partial["atac"].obs_names)
    seen = y.any(axis=0)
    H = partial.obsm["X_gpnsf"][rows]
    rate = totals(partial["atac"], slice(None))[:, None] * (
        H @ partial["atac"].varm["gpnsf_loadings"].T
        + partial["atac"].var["gpnsf_background"].to_numpy()
    )
    assert table["deviance"][1] == pytest.approx(bernoulli(y, rate)[:, seen].mean(), rel=1e-4)


def test_gaussian_has_no_size_factors():
    data = fitted.anndata(n_obs=64, likelihood="gaussian")
    data.var["gpnsf_dispersion"] = 2.0
    y, rate = data.X.toarray()[:, :-1], dense_rates(data, data, np.ones(64))[:, :-1]
    assert evaluate(data)["deviance"][0] == pytest.approx((((y - rate) / 2) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [({"protein": "counts"}, "protein"), ({"rna": "missing"}, "missing"), ("missing", "missing")],
)
def test_unknown_modalities_and_layers_are_refused(toy, layers, message):
    with pytest.raises(KeyError, match=message):
        evaluate(toy, layers=layers)
