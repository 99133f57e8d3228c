from __future__ import annotations

import anndata
import fitted
import numpy as np
import pytest
from mudata import MuData

from gpnsf.tl.factor_adata import factor_adata


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=100, n_factors=5, n_spatial=3)


def test_arrays_and_names(toy):
    factors = factor_adata(toy)
    assert factors.var_names.tolist() == [
        "spatial_1",
        "spatial_2",
        "spatial_3",
        "nonspatial_1",
        "nonspatial_2",
    ]
    np.testing.assert_array_equal(factors.X, toy.obsm["X_gpnsf"])
    np.testing.assert_array_equal(factors.layers["smooth"], toy.obsm["X_gpnsf_smooth"])
    np.testing.assert_array_equal(factors.layers["std"], toy.obsm["X_gpnsf_std"])
    np.testing.assert_array_equal(factors.obsm["spatial"], toy.obsm["spatial"])
    assert factors.var["is_spatial"].tolist() == [True] * 3 + [False] * 2
    assert factors.var["lengthscale"].isna().tolist() == [False] * 3 + [True] * 2
    assert factors.var["importance"].sum() == pytest.approx(1)
    assert factors.obs_names.equals(toy.obs_names)


def test_nothing_is_shared_with_the_object(toy):
    before = toy.obsm["X_gpnsf"].copy(), toy.obsm["spatial"].copy()
    factors = factor_adata(toy)
    factors.X[:] = -1
    factors.obsm["spatial"][:] = -1
    factors.obs["new"] = 0
    np.testing.assert_array_equal(toy.obsm["X_gpnsf"], before[0])
    np.testing.assert_array_equal(toy.obsm["spatial"], before[1])
    assert "new" not in toy.obs


def test_columns_of_modalities_come_with_a_prefix_and_gaps():
    toy = fitted.mudata(n_obs=64)
    rna = toy["rna"][::-1].copy()[:50].copy()
    rna.obs["n_genes"] = np.arange(50)
    rna.obs["doublet"] = rna.obs["n_genes"] > 30
    rna.obs["spot"] = rna.obs_names.to_numpy()
    partial = MuData({"rna": rna, "atac": toy["atac"]})
    for name in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std", "spatial"):
        rows = toy.obs_names.get_indexer(partial.obs_names)
        partial.obsm[name] = toy.obsm[name][rows]
    partial.uns = toy.uns
    partial.obs = partial.obs[[]]
    factors = factor_adata(partial)
    measured = factors.obs["rna:spot"].notna()
    assert measured.sum() == 50
    assert (factors.obs["rna:spot"][measured] == factors.obs_names[measured]).all()
    assert factors.obs["rna:n_genes"].isna().sum() == 14
    assert factors.obs["rna:doublet"].dtype == "boolean"


def test_palettes_and_images_come_along():
    toy = fitted.anndata(n_obs=36)
    toy.obs["region"] = np.repeat(["a", "b"], 18)
    toy.uns |= {"region_colors": ["#000000", "#ffffff"], "spatial": {"s1": {}}, "neighbors": {}}
    assert set(factor_adata(toy).uns) == {"region_colors", "spatial"}


def test_models_without_coordinates_do_without():
    toy = fitted.anndata(n_obs=36)
    del toy.obsm["spatial"]
    assert set(factor_adata(toy).obsm) == {"X_gpnsf", "X_gpnsf_embedding"}


def test_it_can_be_written(toy, tmp_path):
    factors = factor_adata(toy)
    factors.write_h5ad(tmp_path / "factors.h5ad")
    again = anndata.read_h5ad(tmp_path / "factors.h5ad")
    np.testing.assert_array_equal(again.X, factors.X)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::PendingDeprecationWarning"
)  # of matplotlib, about scanpy's own calls
def test_scanpy_draws_and_clusters_factors(toy):
    sc = pytest.importorskip("scanpy")
    factors = factor_adata(toy)
    axes = sc.pl.embedding(
        factors, basis="spatial", color=["spatial_1", "nonspatial_1"], show=False
    )
    assert [ax.get_title() for ax in axes] == ["spatial_1", "nonspatial_1"]
    sc.pp.neighbors(factors, use_rep="X_gpnsf", n_neighbors=6)
    assert factors.obsp["connectivities"].shape == (100, 100)


@pytest.mark.filterwarnings("ignore")  # squidpy and what it imports warn about themselves
def test_squidpy_finds_the_spatial_factors_autocorrelated(toy):
    sq = pytest.importorskip("squidpy")
    factors = factor_adata(toy)
    sq.gr.spatial_neighbors_knn(factors, n_neighs=6)
    sq.gr.spatial_autocorr(
        factors, mode="moran", genes=factors.var_names.tolist(), show_progress_bar=False
    )
    moran = factors.uns["moranI"]["I"]
    assert moran[factors.var_names[factors.var["is_spatial"]]].min() > 0.5
    assert moran[factors.var_names[~factors.var["is_spatial"]]].max() < 0.3
    sq.pl.spatial_scatter(factors, color="spatial_1", shape=None)


def test_an_object_without_a_fit_is_refused(toy):
    with pytest.raises(KeyError, match="pass the MuData itself"):
        factor_adata(toy["rna"])
