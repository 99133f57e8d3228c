"""Out of the core: what `write` promises."""

from __future__ import annotations

import warnings
from dataclasses import replace

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import sections
from mudata import MuData
from sections import anndata, mudata

from gpnsf.arguments import Reading
from gpnsf.core.scores.embedding import composition
from gpnsf.core.scores.simplex import feature_importance, observation_importance
from gpnsf.core.types import Dataset, Posterior
from gpnsf.io.read import Layout, read
from gpnsf.io.write import factor_names, put, write
from gpnsf.keys import Keys

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning")

K = 3
INFO = {
    "params": {
        "model": "gpnsf",
        "kernel": "matern32",
        "modalities": ("rna", "atac"),
        "layers": None,
        "seed": np.int64(0),
    },
    "history": {
        "elbo": np.linspace(-9, -1, 4),
        "phase": np.array(["pick", "main", "main", "tail"]),
    },
    "converged": np.bool_(True),
    "repairs": [],
    "starts": {"smooth_0.06": -1.5, "best": "smooth_0.06"},
    "spatial_test": {},
    "versions": {"gpnsf": "0"},
    "seed": 0,
}


def posterior(dataset: Dataset, n_factors: int = K, n_spatial: int = 2) -> Posterior:
    """Random numbers in the shapes of a fit; the first feature of each modality has no signal."""
    rng = np.random.default_rng(0)
    sizes = {view.name: view.counts.shape[1] for view in dataset.views}
    loadings = {
        name: rng.gamma(1.0, size=(size, n_factors)).astype(np.float32)
        for name, size in sizes.items()
    }
    for W in loadings.values():
        W[0] = 0
    mean, smooth, coarse, std = rng.gamma(2.0, size=(4, dataset.n_obs, n_factors))
    is_spatial = np.arange(n_factors) < n_spatial
    return Posterior(
        mean=mean,
        smooth=smooth,
        coarse=coarse,
        std=std,
        loadings=loadings,
        loadings_std={name: rng.random((size, n_factors)) for name, size in sizes.items()},
        background={name: rng.random(size) for name, size in sizes.items()},
        dispersion={name: rng.random(size) for name, size in sizes.items() if name == "rna"},
        variance_explained={name: np.full(n_factors, 0.1) for name in sizes},
        importance_std={name: rng.random(size) for name, size in sizes.items()},
        is_spatial=is_spatial,
        lengthscale=np.where(is_spatial, 0.2, np.nan),
        amplitude=np.ones(n_factors),
        order=np.arange(n_factors),
        field={"kind": "hilbert", "u_loc": np.zeros((4, n_spatial), np.float32), "n_basis": 28},
    )


def fitted(
    data: MuData | ad.AnnData, key: str = "gpnsf", **options: object
) -> tuple[Posterior, Layout]:
    dataset, layout = read(data, Reading(**options))
    result = posterior(dataset)
    write(data, result, layout, keys=Keys(key), info=INFO)
    return result, layout


@pytest.fixture(name="adata")
def _adata() -> ad.AnnData:
    return anndata()


@pytest.fixture(name="partial")
def _partial() -> MuData:
    return sections.partial()


def test_factor_names_count_each_kind():
    assert factor_names(np.array([True, True, False])) == ["spatial_1", "spatial_2", "nonspatial_1"]
    assert factor_names(np.array([False])) == ["nonspatial_1"]


def test_factors_reach_the_object_and_the_cells_of_each_modality(partial):
    result, _ = fitted(partial)
    for slot, expected in [
        ("X_gpnsf", result.mean),
        ("X_gpnsf_smooth", result.smooth),
        ("X_gpnsf_std", result.std),
    ]:
        stored = partial.obsm[slot]
        assert type(stored) is np.ndarray
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, expected.astype(np.float32))
        table = pd.DataFrame(stored, index=partial.obs_names)
        for mod in partial.mod.values():
            np.testing.assert_array_equal(mod.obsm[slot], table.loc[mod.obs_names])
            assert not np.shares_memory(mod.obsm[slot], stored)


def test_the_embedding_is_that_of_the_spatial_factors_and_of_the_coarse_part_of_their_fields(
    partial,
):
    result, layout = fitted(partial)
    expected = composition(
        result.coarse[:, :2], {name: W[:, :2] for name, W in result.loadings.items()}
    )
    slot = partial.obsm["X_gpnsf_embedding"]
    assert slot.dtype == np.float32
    np.testing.assert_allclose(slot, expected, atol=1e-6)
    for name, mod in partial.mod.items():
        np.testing.assert_array_equal(mod.obsm["X_gpnsf_embedding"], slot[layout.rows[name]])


def test_loadings_are_spread_over_all_features(partial):
    chosen = np.array([False, True, True, False, True, True])
    partial["rna"].var["chosen"] = chosen
    result, _ = fitted(partial, use_var="chosen")
    rna, atac = partial["rna"], partial["atac"]
    assert rna.varm["gpnsf_loadings"].dtype == np.float32
    np.testing.assert_array_equal(rna.varm["gpnsf_loadings"][chosen], result.loadings["rna"])
    assert (rna.varm["gpnsf_loadings"][~chosen] == 0).all()
    np.testing.assert_array_equal(atac.varm["gpnsf_loadings"], result.loadings["atac"])
    np.testing.assert_allclose(
        rna.varm["gpnsf_loadings_std"][chosen], result.loadings_std["rna"], rtol=1e-6
    )
    assert (rna.varm["gpnsf_loadings_std"][~chosen] == 0).all()
    numbers = [
        "gpnsf_background",
        "gpnsf_spatial_importance",
        "gpnsf_spatial_importance_std",
        "gpnsf_dispersion",
    ]
    assert (rna.var.loc[~chosen, numbers] == 0).all(axis=None)
    assert (rna.var.dtypes[numbers] == np.float32).all()
    assert "gpnsf_dispersion" not in atac.var
    np.testing.assert_allclose(
        rna.var["gpnsf_background"][chosen], result.background["rna"], rtol=1e-6
    )


def test_batches_leave_features_that_were_not_fitted_as_they_are(partial):
    chosen = np.array([False, True, True, False, True, True])
    partial["rna"].var["chosen"] = chosen
    dataset, layout = read(partial, Reading(use_var="chosen"))
    multipliers = {"rna": np.full((4, 2), 0.5, np.float32)}
    result = replace(posterior(dataset), multipliers=multipliers)
    write(partial, result, layout, keys=Keys("gpnsf"), info=INFO)
    assert partial["rna"].varm["gpnsf_batch"].tolist() == [
        [0.5, 0.5] if fitted else [1, 1] for fitted in chosen
    ]
    assert "gpnsf_batch" not in partial["atac"].varm


def test_the_record_is_a_copy(adata):
    result, layout = fitted(adata)
    result.field["u_loc"] += 1
    stored = adata.uns["gpnsf"]["field"]
    assert (stored["u_loc"] == 0).all()
    assert not np.shares_memory(stored["centre"], layout.centre)
    assert not np.shares_memory(adata.uns["gpnsf"]["history"]["elbo"], INFO["history"]["elbo"])


def test_importance_and_top_factors(partial):
    result, layout = fitted(partial)
    expected = observation_importance(result.mean, result.loadings, result.is_spatial)
    np.testing.assert_allclose(partial.obs["gpnsf_spatial_importance"], expected, rtol=1e-6)
    for name, mod in partial.mod.items():
        own = observation_importance(result.mean, {name: result.loadings[name]}, result.is_spatial)
        np.testing.assert_allclose(
            mod.obs["gpnsf_spatial_importance"], own[layout.rows[name]], rtol=1e-6
        )
        shares = feature_importance(result.loadings[name], result.is_spatial)
        np.testing.assert_allclose(mod.var["gpnsf_spatial_importance"], shares, rtol=1e-6)
        names = np.array(partial.uns["gpnsf"]["factor_names"])
        top = mod.var["gpnsf_top_factor"]
        assert top.iloc[0] == ""
        assert top.iloc[1:].tolist() == names[result.loadings[name][1:].argmax(1)].tolist()


def test_uns_holds_plain_values_and_what_prediction_needs(adata):
    _, layout = fitted(adata)
    record = adata.uns["gpnsf"]
    assert record["factor_names"] == ["spatial_1", "spatial_2", "nonspatial_1"]
    assert record["is_spatial"].tolist() == [True, True, False]
    assert record["params"]["modalities"] == ["rna", "atac"]
    assert type(record["params"]["seed"]) is int
    assert record["converged"] is True
    assert record["kernel"]["name"] == "matern32"
    np.testing.assert_allclose(record["kernel"]["lengthscale"], [0.2 * 22.5, 0.2 * 22.5, np.nan])
    assert record["field"]["scale"] == layout.scale
    assert record["field"]["libraries"] == [""]
    np.testing.assert_array_equal(record["field"]["centre"], layout.centre)
    np.testing.assert_array_equal(record["variance_explained"]["rna"], [0.1, 0.1, 0.1])
    assert record["field"]["kind"] == "hilbert"
    assert record["modalities"] == ["rna"]
    assert record["likelihoods"] == {"rna": "nb"}


def test_fitting_again_replaces_everything_under_the_key(partial):
    fitted(partial)
    fitted(partial, key="other")
    partial.obs["rna:gpnsf_spatial_importance"] = 0.5  # what some versions of MuData pull on update
    dataset, layout = read(partial, Reading(modalities=["atac"]))
    again = posterior(dataset, n_factors=2, n_spatial=0)
    write(partial, again, layout, keys=Keys(), info=INFO)
    assert partial.obsm["X_gpnsf"].shape == (20, 2)
    assert (partial.obs["gpnsf_spatial_importance"] == 0).all()
    assert "rna:gpnsf_spatial_importance" not in partial.obs
    rna = partial["rna"]
    for slot in (rna.obs, rna.var, rna.obsm, rna.varm):
        names = [name for name in slot if "gpnsf" in name]
        assert not names
    assert rna.obsm["X_other"].shape == (18, K)
    assert partial.uns["gpnsf"]["modalities"] == ["atac"]
    assert partial.uns["other"]["modalities"] == ["rna", "atac"]


@pytest.mark.parametrize("breakage", ["modality", "info", "key"])
def test_an_error_leaves_the_object_as_it_was(partial, breakage):
    fitted(partial)
    before = partial.obsm["X_gpnsf"].copy(), list(partial["rna"].var), list(partial["atac"].var)
    dataset, layout = read(partial)
    result, info = posterior(dataset, n_factors=2), dict(INFO)
    if breakage == "modality":
        del result.importance_std["atac"]
    else:
        info["more"] = object() if breakage == "info" else {"a/b": 1}
    with pytest.raises((KeyError, TypeError, ValueError)):
        write(partial, result, layout, keys=Keys(), info=info)
    np.testing.assert_array_equal(partial.obsm["X_gpnsf"], before[0])
    assert partial["rna"].varm["gpnsf_loadings"].shape == (6, K)
    assert (list(partial["rna"].var), list(partial["atac"].var)) == before[1:]


def test_a_modality_that_is_a_view_gets_its_results(adata):
    fitted(adata)
    adata.obsm = {"spatial": adata.obsm["spatial"]}
    adata.varm = {}  # deleting from a view acts for arrays, but not for uns
    data = mudata(rna=adata[:, 1:])
    assert data["rna"].is_view
    dataset, layout = read(data)
    result = posterior(dataset)
    result.dispersion.clear()
    write(data, result, layout, keys=Keys(), info=INFO)
    assert not data["rna"].is_view
    assert "gpnsf_dispersion" not in data["rna"].var
    assert "gpnsf" not in data["rna"].uns
    np.testing.assert_array_equal(data["rna"].varm["gpnsf_loadings"], result.loadings["rna"])
    assert "gpnsf_loadings" not in adata.varm
    assert "gpnsf_dispersion" in adata.var


@pytest.mark.broad(1)
@pytest.mark.parametrize("suffix", ["h5mu", "zarr"])
def test_a_fitted_mudata_survives_a_file(partial, tmp_path, suffix):
    result, _ = fitted(partial)
    path = tmp_path / f"fit.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the writers, about their own formats
        partial.write(path) if suffix == "h5mu" else partial.write_zarr(path)
        again = md.read_h5mu(path) if suffix == "h5mu" else md.read_zarr(path)
    np.testing.assert_array_equal(again.obsm["X_gpnsf"], result.mean.astype(np.float32))
    np.testing.assert_array_equal(again["atac"].varm["gpnsf_loadings"], result.loadings["atac"])
    np.testing.assert_array_equal(
        again.obs["gpnsf_spatial_importance"], partial.obs["gpnsf_spatial_importance"].to_numpy()
    )
    record = again.uns["gpnsf"]
    assert list(record["factor_names"]) == ["spatial_1", "spatial_2", "nonspatial_1"]
    assert record["params"]["layers"] is None
    assert list(record["history"]["phase"]) == ["pick", "main", "main", "tail"]
    assert float(record["field"]["scale"]) == 22.5
    assert again["rna"].var["gpnsf_top_factor"].iloc[0] == ""
    fitted(again)  # and can be fitted again


def test_a_fitted_anndata_survives_a_file(adata, tmp_path):
    result, _ = fitted(adata)
    adata.write_h5ad(tmp_path / "fit.h5ad")
    again = ad.read_h5ad(tmp_path / "fit.h5ad")
    np.testing.assert_array_equal(again.obsm["X_gpnsf"], result.mean.astype(np.float32))
    assert again.uns["gpnsf"]["likelihoods"]["rna"] == "nb"


def test_an_update_keeps_the_results(partial):
    result, _ = fitted(partial)
    importance = partial.obs["gpnsf_spatial_importance"].to_numpy().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        partial.update()
    np.testing.assert_array_equal(partial.obsm["X_gpnsf"], result.mean.astype(np.float32))
    np.testing.assert_array_equal(partial.obs["gpnsf_spatial_importance"], importance)


def test_backed_mudata_is_read_and_written(partial, tmp_path):
    partial.write(tmp_path / "a.h5mu")
    backed = md.read_h5mu(tmp_path / "a.h5mu", backed="r")
    dataset, layout = read(backed)
    for one, other in zip(dataset.views, read(partial)[0].views, strict=True):
        np.testing.assert_array_equal(one.counts[:].toarray(), other.counts.toarray())
    write(backed, posterior(dataset), layout, keys=Keys(), info=INFO)
    assert backed["atac"].obsm["X_gpnsf"].shape == (17, K)
    backed.file.close()


@pytest.mark.parametrize(
    ("last", "error"),
    [(("obsm", "X", np.zeros((3, 2))), ValueError), (("var", "y", np.zeros(2)), ValueError)],
    ids=["rows", "features"],
)
def test_all_slots_are_written_or_none(mdata, last, error):
    rna = mdata["rna"]
    mdata.obsm["X_gpnsf"], rna.var["gpnsf_top_factor"] = np.ones((mdata.n_obs, 2)), "spatial_1"
    before = sections.digest(mdata)
    slots = [
        (mdata, "obsm", "X_gpnsf", np.zeros((mdata.n_obs, 2))),
        (rna, "varm", "gpnsf_loadings", np.zeros((rna.n_vars, 2))),
        (rna, "layers", "gpnsf_denoised", np.zeros(rna.shape)),
        (rna, *last),
    ]
    with pytest.raises(error):
        put(mdata, slots, instead_of=Keys().slots)
    assert sections.digest(mdata) == before
    put(mdata, slots[:-1], instead_of=Keys().slots)
    assert not mdata.obsm["X_gpnsf"].any()
    assert "gpnsf_top_factor" not in rna.var
