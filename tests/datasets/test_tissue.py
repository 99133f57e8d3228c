from __future__ import annotations

import tracemalloc
from importlib import import_module
from itertools import product

import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial import cKDTree

from gpnsf.core.scores.metrics import knn_weights, morans_i
from gpnsf.datasets import tissue

SMALL = {"n_obs": 150, "n_genes": 40, "n_peaks": 60, "n_spatial": 3, "n_nonspatial": 1}
module = import_module("gpnsf.datasets.tissue")


def rates(mdata, name):
    """Expected counts by the documented formula."""
    signal = mdata.obsm["true_factors"] @ mdata[name].varm["true_loadings"].T
    return mdata.obs[f"true_size_{name}"].to_numpy()[:, None] * signal


def distances(coords):
    return cKDTree(coords).query(coords, 7)[0][:, 1:]


def test_every_slot_is_there_with_its_shape():
    mdata = tissue(**SMALL)
    assert list(mdata.mod) == ["rna", "atac"]
    for name, n_features in {"rna": 40, "atac": 60}.items():
        mod = mdata[name]
        assert mod.shape == (150, n_features)
        assert sp.isspmatrix_csr(mod.X)
        assert mod.X.dtype == np.float32
        assert mod.X.has_canonical_format
        assert mod.varm["true_loadings"].shape == (n_features, 4)
        np.testing.assert_array_equal(mod.obsm["spatial"], mdata.obsm["spatial"])
        np.testing.assert_array_equal(mod.obs["true_size"], mdata.obs[f"true_size_{name}"])
        assert mod.obs["true_size"].mean() == pytest.approx(1)
        loadings = mod.varm["true_loadings"]
        share = loadings[:, :3].sum(axis=1) / loadings.sum(axis=1)
        np.testing.assert_allclose(mod.var["true_spatial_importance"], share, rtol=1e-4)
    truth = mdata.uns["truth"]
    assert truth["factor_names"] == ["spatial_1", "spatial_2", "spatial_3", "nonspatial_1"]
    assert truth["settings"]["n_obs"] == 150
    width = np.ptp(mdata.obsm["spatial"][:, 0])
    np.testing.assert_allclose(truth["lengthscale"][[0, -1]] / width, [0.06, 0.3], rtol=1e-5)


def test_the_number_of_spots_is_exact(subtests):
    for n_obs, layout in product((10, 61, 600), ("hex", "random")):
        with subtests.test(n_obs=n_obs, layout=layout):
            mdata = tissue(**SMALL | {"n_obs": n_obs}, layout=layout)
            coords = mdata.obsm["spatial"]
            assert coords.shape == (n_obs, 2)
            assert len(np.unique(coords, axis=0)) == n_obs
            assert (coords.min(axis=0) == 0).all()


def test_spots_of_the_hexagonal_layout_have_six_neighbours_at_100_units():
    to_neighbours = distances(tissue(**SMALL | {"n_obs": 600}).obsm["spatial"])
    inner = to_neighbours.max(axis=1) < 101
    assert inner.mean() > 0.8
    np.testing.assert_allclose(to_neighbours[inner], 100, rtol=1e-4)
    np.testing.assert_allclose(to_neighbours[:, 0], 100, rtol=1e-4)


def test_cells_of_the_random_layout_are_scattered_at_the_same_density():
    spread = {
        layout: tissue(**SMALL | {"n_obs": 600}, layout=layout).obsm["spatial"]
        for layout in ("hex", "random")
    }
    np.testing.assert_allclose(
        np.ptp(spread["random"], axis=0), np.ptp(spread["hex"], axis=0), rtol=0.1
    )
    assert distances(spread["random"])[:, 0].std() > 20


def test_factors_have_mean_one_and_only_the_spatial_ones_are_smooth():
    mdata = tissue(n_obs=600, n_genes=20, n_peaks=20)
    factors = mdata.obsm["true_factors"]
    assert (factors > 0).all()
    np.testing.assert_allclose(factors.mean(axis=0), 1, rtol=1e-4)
    moran = morans_i(np.log(factors), knn_weights(mdata.obsm["spatial"]))
    assert moran[:8].min() > 0.6
    assert np.abs(moran[8:]).max() < 0.15
    assert moran[7] > moran[0]


def test_fields_have_the_covariance_of_a_matern_process():
    coords, lengthscale = np.column_stack([np.linspace(0, 3, 7), np.zeros(7)]), 1.3
    rng = np.random.default_rng(0)
    draws = np.array([module._matern32(coords, lengthscale, rng) for _ in range(3000)])
    scaled = np.sqrt(3) * np.abs(coords[:, :1] - coords[:, 0]) / lengthscale
    np.testing.assert_allclose(np.cov(draws.T), (1 + scaled) * np.exp(-scaled), atol=0.08)
    assert np.abs(draws.mean(axis=0)).max() < 0.08


def test_counts_follow_the_truth(subtests, monkeypatch):
    for dispersion, block in product((None, 2.0), (module.BLOCK, 500)):
        with subtests.test(dispersion=dispersion, block=block):
            monkeypatch.setattr(module, "BLOCK", block)
            mdata = tissue(
                n_obs=400, n_genes=200, n_peaks=10, rna_depth=600.0, dispersion=dispersion
            )
            mean, counts = rates(mdata, "rna"), mdata["rna"].X.toarray()
            variance = mean + (0 if dispersion is None else mean**2 / dispersion)
            z = (counts - mean) / np.sqrt(variance)
            assert abs((counts - mean).sum()) < 5 * np.sqrt(variance.sum())
            assert abs(z.mean()) < 5 / np.sqrt(z.size)
            assert z.var() == pytest.approx(1, abs=0.15)  # rare counts have heavy tails
            empty = np.exp(-mean) if dispersion is None else (1 + mean / dispersion) ** -dispersion
            assert (
                abs((counts == 0).mean() - empty.mean())
                < 5 * np.sqrt((empty * (1 - empty)).sum()) / empty.size
            )


def test_peaks_are_binary_and_follow_the_truth():
    mdata = tissue(n_obs=400, n_genes=10, n_peaks=300)
    probability, counts = -np.expm1(-rates(mdata, "atac")), mdata["atac"].X
    assert (counts.data == 1).all()
    assert abs(counts.sum() - probability.sum()) < 5 * np.sqrt(
        (probability * (1 - probability)).sum()
    )
    z = (counts.toarray() - probability) / np.sqrt(probability * (1 - probability))
    assert abs(z.mean()) < 5 / np.sqrt(z.size)


def test_depth_is_the_expected_total_of_a_spot():
    mdata = tissue(n_obs=300, n_genes=80, n_peaks=90, rna_depth=500.0, atac_depth=30.0)
    assert rates(mdata, "rna").sum(axis=1).mean() == pytest.approx(500, rel=1e-4)
    assert rates(mdata, "atac").sum(axis=1).mean() == pytest.approx(30, rel=1e-4)
    assert mdata["rna"].X.sum(axis=1).mean() == pytest.approx(500, rel=0.05)
    default = tissue(n_obs=300, n_genes=80, n_peaks=90)
    assert rates(default, "atac").sum(axis=1).mean() == pytest.approx(0.05 * 90, rel=1e-4)


def test_no_dense_array_of_all_entries_is_made():
    dense = 1500 * 16_000 * 4
    tracemalloc.start()
    mdata = tissue(n_obs=1500, n_genes=10, n_peaks=16_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mdata["atac"].X.nnz > 500_000
    assert peak < dense / 2


def test_the_seed_decides_and_modalities_do_not_disturb_each_other():
    first, again, other = tissue(**SMALL), tissue(**SMALL), tissue(**SMALL, seed=1)
    more_genes = tissue(**SMALL | {"n_genes": 50})
    for name in first.mod:
        assert (first[name].X != again[name].X).nnz == 0
        assert (first[name].X != other[name].X).nnz > 0
    assert (first["atac"].X != more_genes["atac"].X).nnz == 0
    np.testing.assert_array_equal(first.obsm["true_factors"], more_genes.obsm["true_factors"])


def test_one_kind_of_factor_is_enough():
    assert (tissue(**SMALL | {"n_nonspatial": 0})["rna"].var["true_spatial_importance"] == 1).all()
    assert (tissue(**SMALL | {"n_spatial": 0})["rna"].obs["true_spatial_importance"] == 0).all()


def test_files_keep_the_truth(tmp_path):
    mdata = tissue(**SMALL, dispersion=None)
    mdata.write(tmp_path / "simulated.h5mu")
    read = mudata.read_h5mu(tmp_path / "simulated.h5mu")
    np.testing.assert_array_equal(read.obsm["true_factors"], mdata.obsm["true_factors"])
    np.testing.assert_array_equal(read.obs["true_size_atac"], mdata.obs["true_size_atac"])
    assert read.uns["truth"]["settings"]["dispersion"] is None


def test_bad_arguments_say_what_is_wrong(subtests):
    for wrong, error, message in (
        ({"n_obs": 9}, ValueError, r"`n_obs` .*at least 10; got 9"),
        ({"n_genes": "many"}, TypeError, r"`n_genes` .*integer.*got 'many'"),
        ({"n_spatial": -1}, ValueError, r"`n_spatial` .*at least 0; got -1"),
        ({"n_spatial": 0, "n_nonspatial": 0}, ValueError, r"at least one factor; got n_spatial=0"),
        ({"rna_depth": 0}, ValueError, r"`rna_depth` .*above 0; got 0"),
        ({"atac_depth": float("nan")}, ValueError, r"`atac_depth` .*got nan"),
        ({"dispersion": -2.0}, ValueError, r"`dispersion` .*above 0 or None; got -2\.0"),
        ({"amplitude": None}, TypeError, r"`amplitude` .*got None"),
        ({"lengthscales": (0.3, 0.06)}, ValueError, r"`lengthscales` .*got \(0\.3, 0\.06\)"),
        ({"lengthscales": 0.3}, ValueError, r"`lengthscales` .*got 0\.3"),
        ({"layout": "square"}, ValueError, r"`layout` .*'hex', 'random'; got 'square'"),
        ({"seed": 1.5}, TypeError, r"`seed` .*integer.*got 1\.5"),
    ):
        with subtests.test(wrong=wrong), pytest.raises(error, match=message):
            tissue(**SMALL | wrong)


def test_sections_share_loadings_and_have_fields_and_multipliers_of_their_own():
    mdata = tissue(
        **SMALL | {"n_obs": 450}, n_libraries=3, batch_effect=0.5, rna_depth=5e4, dispersion=None
    )
    library = mdata.obs["library"].cat.codes.to_numpy()
    assert np.bincount(library).tolist() == [150] * 3
    np.testing.assert_allclose(mdata.obsm["true_factors"].mean(axis=0), 1, rtol=1e-4)
    for code in range(3):
        assert (mdata.obsm["spatial"][library == code].min(axis=0) == 0).all()
    for name, mod in mdata.mod.items():
        assert (mod.obs["library"].to_numpy() == mdata.obs["library"].to_numpy()).all()
        multipliers = mod.varm["true_batch"]
        assert multipliers.shape == (mod.n_vars, 3)
        np.testing.assert_allclose(multipliers.mean(axis=1), 1, rtol=1e-5)
        assert np.log(multipliers).std() == pytest.approx(0.5, rel=0.3)
        expected = rates(mdata, name) * multipliers.T[library]
        if name == "rna":
            ratio = np.asarray(mod.X.sum(axis=0)).ravel() / expected.sum(axis=0)
            np.testing.assert_allclose(ratio, 1, atol=0.2)
    first, second = (mdata.obsm["true_factors"][library == code][:, 0] for code in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_sections_without_batch_effects_have_multipliers_of_one():
    mdata = tissue(**SMALL, n_libraries=2)
    assert (mdata["rna"].varm["true_batch"] == 1).all()
    alone = tissue(**SMALL)
    assert "true_batch" not in alone["rna"].varm
    assert "library" not in alone.obs


def test_sections_of_fewer_than_ten_spots_are_refused():
    with pytest.raises(ValueError, match="at least 10 spots in each section"):
        tissue(**SMALL, n_libraries=16)


def test_planted_links_lie_near_their_genes_and_share_their_loadings():
    mdata = tissue(n_obs=50, n_genes=150, n_peaks=400, seed=4)
    links, rna, atac = mdata.uns["true_links"], mdata["rna"], mdata["atac"]
    assert 150 < len(links) < 250
    genes, peaks = rna.var.loc[links["gene"]], atac.var.loc[links["peak"]]
    assert (genes["chrom"].to_numpy() == peaks["chrom"].to_numpy()).all()
    site = np.where(genes["strand"] == "+", genes["chromStart"], genes["chromEnd"])
    assert np.abs(peaks[["chromStart", "chromEnd"]].mean(axis=1) - site).max() <= 150_001
    first, second = (mod.varm["true_loadings"] for mod in (rna, atac))
    first, second = (W / np.linalg.norm(W, axis=1, keepdims=True) for W in (first, second))
    cosine = first @ second.T
    i, j = rna.var_names.get_indexer(links["gene"]), atac.var_names.get_indexer(links["peak"])
    np.testing.assert_allclose(cosine[i, j], cosine.max(axis=0)[j], rtol=1e-5)
