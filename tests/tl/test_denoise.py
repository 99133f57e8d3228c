from __future__ import annotations

import anndata
import fitted
import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from mudata import MuData
from sections import digest

import gpnsf
from gpnsf.core.families import FAMILIES

SHORT = {"n_factors": 4, "max_steps": 20, "init": "spot", "split": "assumed", "progress": False}
LAYER = "gpnsf_denoised"


@pytest.fixture(scope="module")
def partial(simulated):
    """A fit in which spots 30 to 59 have no ATAC, 0 to 9 are held out, and peak 7 is not used."""
    data = simulated.copy()
    kept = np.r_[0:30, 60:150][::-1]  # the modality has an order of its own
    data = MuData({"rna": data["rna"].copy(), "atac": data["atac"][kept].copy()})
    data.obsm["spatial"] = simulated[data.obs_names].obsm["spatial"]
    data.obs["held"] = data.obs_names.isin(simulated.obs_names[:10])
    data["atac"].var["used"] = np.arange(60) != 7
    gpnsf.tl.fit(data, holdout_key="held", use_var={"atac": "used"}, **SHORT)
    return data


@pytest.fixture
def data(partial):
    return partial.copy()


def rates(data, name):
    """Rates of all observations, as they were fitted."""
    mod = data[name]
    return (
        data.obsm["X_gpnsf"] @ mod.varm["gpnsf_loadings"].T + mod.var["gpnsf_background"].to_numpy()
    )


def seen(data):
    """Names of the peaks that the fit has seen."""
    mod = data["atac"]
    return mod.var_names[mod.varm["gpnsf_loadings"].any(axis=1)]


def rows(data, name):
    """Rows of the object of the cells of a modality."""
    return data.obs_names.get_indexer(data[name].obs_names)


def test_the_model_expects_rates_and_probabilities(data):
    assert gpnsf.tl.denoise(data, shrinkage=0.0) is None
    np.testing.assert_allclose(
        data["rna"].layers[LAYER], rates(data, "rna")[rows(data, "rna")], rtol=1e-4
    )
    probability = 1 - np.exp(-rates(data, "atac")[rows(data, "atac")])
    np.testing.assert_allclose(data["atac"].layers[LAYER], probability, rtol=1e-4, atol=1e-7)
    assert data["atac"].layers[LAYER].dtype == np.float32
    assert not data["atac"].layers[LAYER][:, 7].any()


def test_rare_features_are_pulled_towards_their_mean(data):
    gpnsf.tl.denoise(data, modality="atac", shrinkage=1e9)
    mod = data["atac"]
    trained = ~data.obs["held"].to_numpy()[rows(data, "atac")]
    counts = mod.X.tocsr()[:, np.arange(60) != 7]
    total = np.asarray(counts.sum(axis=1)).ravel()
    size = np.maximum(total / total[trained].mean(), 0.05)
    mean = 1 - np.exp(-FAMILIES["bernoulli"].null_rates(counts, size, rows=trained))
    values = np.delete(mod.layers[LAYER], 7, axis=1)
    np.testing.assert_allclose(values, np.broadcast_to(mean, values.shape), rtol=1e-3, atol=1e-6)
    gpnsf.tl.denoise(data, modality="atac")
    gpnsf.tl.denoise(data, modality="atac", shrinkage=0.0, layer_added="fitted")
    between = (mod.layers[LAYER] - mod.layers["fitted"])[:, :7] * (
        mean[:7] - mod.layers["fitted"][:, :7]
    )
    assert (between >= -1e-7).all()
    assert between.max() > 1e-5


def test_own_depth_multiplies_rates(data):
    gpnsf.tl.denoise(data, modality="rna", depth="own", shrinkage=0.0, layer_added="own")
    total = np.asarray(data["rna"].X.sum(axis=1)).ravel()
    trained = ~data.obs["held"].to_numpy()
    size = np.where(trained, np.maximum(total / total[trained].mean(), 0.05), 1.0)
    np.testing.assert_allclose(
        data["rna"].layers["own"], size[:, None] * rates(data, "rna"), rtol=1e-4
    )


def test_own_depth_is_that_of_each_cell_of_a_modality_in_its_own_order(data):
    gpnsf.tl.denoise(data, modality="atac", depth="own", shrinkage=0.0)
    at = rows(data, "atac")
    total = np.asarray(data["atac"].X.tocsr()[:, np.arange(60) != 7].sum(axis=1)).ravel()
    trained = ~data.obs["held"].to_numpy()[at]
    size = np.where(trained, np.maximum(total / total[trained].mean(), 0.05), 1.0)
    probability = 1 - np.exp(-size[:, None] * rates(data, "atac")[at])
    np.testing.assert_allclose(data["atac"].layers[LAYER], probability, rtol=1e-4, atol=1e-6)


def test_similarity_takes_means_over_measured_observations_alike(data):
    gpnsf.tl.denoise(data, modality="atac", method="similarity", n_neighbors=5)
    layer = data["atac"].layers[LAYER]
    assert sp.issparse(layer)
    assert layer.dtype == np.float32
    assert layer.max() <= 1
    mod, at = data["atac"], rows(data, "atac")
    measured = ~data.obs["held"].to_numpy()[at]
    counts = mod.X.toarray()
    counts[:, 7] = 0
    total = counts.sum(axis=1)
    size = np.maximum(total / total[measured].mean(), 0.05)
    shares = data.obsm["X_gpnsf"] * mod.varm["gpnsf_loadings"].sum(axis=0)
    unit = shares / np.linalg.norm(shares, axis=1, keepdims=True)
    for cell in (0, 20, 119):
        cosine = unit[at[measured]] @ unit[at[cell]]
        best = np.argsort(-cosine)[:5]
        expected = cosine[best] @ counts[measured][best] / (cosine[best] @ size[measured][best])
        np.testing.assert_allclose(
            layer[cell].toarray().ravel(), np.minimum(expected, 1), rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("method", ["model", "similarity"])
def test_imputed_values_are_the_denoised_ones_and_those_of_the_others(data, method):
    before = digest(data)
    imputed = gpnsf.tl.impute(data, modality="atac", method=method)
    assert digest(data) == before
    assert imputed.var_names.equals(seen(data))
    assert 30 < imputed.n_vars < 60
    assert imputed.obs_names.equals(data.obs_names)
    names = data.obs_names
    assert imputed.obs["measured"].sum() == 110
    assert not imputed.obs["measured"][
        data.obs["held"].to_numpy() | ~names.isin(data["atac"].obs_names)
    ].any()
    np.testing.assert_array_equal(imputed.obsm["spatial"], data.obsm["spatial"])
    gpnsf.tl.denoise(data, modality="atac", method=method)
    layer = data["atac"][:, imputed.var_names].layers[LAYER]
    values = imputed[data["atac"].obs_names].X
    if method == "similarity":
        layer, values = layer.toarray(), values.toarray()
    np.testing.assert_allclose(values, layer, rtol=1e-5)
    assert np.isfinite(imputed.X.sum())


def test_features_are_chosen_by_name(data):
    names = seen(data)[[9, 2]].tolist()
    chosen = gpnsf.tl.impute(data, modality="atac", features=names)
    assert chosen.var_names.tolist() == names
    everything = gpnsf.tl.impute(data, modality="atac")
    np.testing.assert_allclose(chosen.X, everything[:, names].X, rtol=1e-5)
    assert gpnsf.tl.impute(data, modality="atac", features="peak_2").shape == (150, 1)


def test_an_anndata_is_its_own_modality(adata):
    gpnsf.tl.fit(adata, **SHORT)
    copied = gpnsf.tl.denoise(adata, copy=True)
    assert LAYER not in adata.layers
    np.testing.assert_allclose(
        copied.layers[LAYER], gpnsf.tl.impute(adata, modality="rna").X, rtol=1e-5
    )
    np.testing.assert_allclose(copied.layers[LAYER].mean(), adata.X.mean(), rtol=0.3)


def test_layers_survive_files(data, tmp_path):
    gpnsf.tl.denoise(data, modality="rna")
    gpnsf.tl.denoise(data, modality="atac", method="similarity")
    data.write(tmp_path / "fit.h5mu")
    again = mudata.read(tmp_path / "fit.h5mu")
    np.testing.assert_array_equal(again["rna"].layers[LAYER], data["rna"].layers[LAYER])
    gpnsf.tl.impute(data, modality="atac").write(tmp_path / "imputed.h5ad")
    assert anndata.read_h5ad(tmp_path / "imputed.h5ad").shape[0] == 150


@pytest.mark.parametrize("method", ["model", "similarity"])
def test_what_would_not_fit_is_refused(data, method):
    with (
        gpnsf.settings.override(memory_budget=1000.0),
        pytest.raises(ValueError, match=r"150 x 40, up to .*tl\.impute"),
    ):
        gpnsf.tl.denoise(data, modality="rna", method=method)
    with gpnsf.settings.override(memory_budget=1000.0):
        assert gpnsf.tl.impute(data, modality="rna", features="gene_1").shape == (150, 1)
    assert LAYER not in data["rna"].layers


def test_mistakes_are_explained(subtests, data):
    for options, error, message in (
        ({"method": "magic"}, ValueError, "`method`"),
        ({"depth": "deep"}, ValueError, "`depth`"),
        ({"n_neighbors": 0}, ValueError, "`n_neighbors`"),
        ({"shrinkage": -1.0}, ValueError, "`shrinkage`"),
        ({"layer_added": 3}, TypeError, "`layer_added`"),
        ({"modality": "protein"}, KeyError, "protein"),
        ({"key": "absent"}, KeyError, "absent"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            gpnsf.tl.denoise(data, **options)


def test_signed_factors_have_no_shares(adata):
    adata.X = np.log1p(adata.X.toarray()) - 1
    gpnsf.tl.fit(adata, "rsf", n_factors=2, max_steps=5, progress=False)
    with pytest.raises(ValueError, match="nonnegative factors for method='similarity'"):
        gpnsf.tl.denoise(adata, method="similarity")
    gpnsf.tl.denoise(adata)
    np.testing.assert_allclose(
        adata.layers[LAYER],
        adata.obsm["X_gpnsf"] @ adata.varm["gpnsf_loadings"].T
        + adata.var["gpnsf_background"].to_numpy(),
        rtol=1e-3,
        atol=1e-4,
    )


def test_only_the_counts_that_are_needed_are_read(data):
    data["rna"].X = None
    gpnsf.tl.denoise(data, modality="atac")
    gpnsf.tl.impute(data, modality="rna", shrinkage=0.0)
    with pytest.raises(ValueError, match="the fit has read in X of modality 'rna'"):
        gpnsf.tl.impute(data, modality="rna")


def test_own_depth_has_the_multipliers_of_the_batch():
    data = fitted.anndata(n_obs=64)
    gpnsf.tl.denoise(data, depth="own", shrinkage=0.0, layer_added="before")
    data.obs["batch"] = np.where(np.arange(64) < 20, "a", "b")
    data.varm["gpnsf_batch"] = np.tile([[2.0, 0.5]], (data.n_vars, 1))
    data.uns["gpnsf"] |= {"batches": ["a", "b"]}
    data.uns["gpnsf"]["params"]["batch_key"] = "batch"
    gpnsf.tl.denoise(data, depth="own", shrinkage=0.0)
    factor = np.where(np.arange(64) < 20, 2.0, 0.5)[:, None]
    np.testing.assert_allclose(data.layers[LAYER], factor * data.layers["before"], rtol=1e-5)


def test_one_factor_makes_no_neighbours():
    with pytest.raises(ValueError, match="at least 2 factors for method='similarity'"):
        gpnsf.tl.denoise(fitted.anndata(n_obs=64, n_factors=1, n_spatial=1), method="similarity")
