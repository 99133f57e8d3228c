from __future__ import annotations

import mudata
import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.datasets import ggblocks, quilt

SMALL = {"n_side": 18, "n_genes": 60, "n_peaks": 80}
RECIPES = pytest.mark.parametrize("simulate", [ggblocks, quilt])


def expected(mdata, name):
    """Expected counts, or probabilities to be open, by the documented formula."""
    mod = mdata[name]
    return (
        mdata.obsm["true_factors"] @ mod.varm["true_loadings"].T
        + mod.var["true_background"].to_numpy()
    )


@RECIPES
def test_every_slot_is_there_with_its_shape(simulate):
    mdata = simulate(**SMALL)
    assert list(mdata.mod) == ["rna", "atac"]
    for name, n_features in {"rna": 60, "atac": 80}.items():
        mod = mdata[name]
        assert mod.shape == (324, n_features)
        assert sp.isspmatrix_csr(mod.X)
        assert mod.X.dtype == np.float32
        assert mod.varm["true_loadings"].shape == (n_features, 7)
        assert mod.varm["true_loadings"].dtype == np.float32
        np.testing.assert_array_equal(mod.obsm["spatial"], mdata.obsm["spatial"])
        np.testing.assert_array_equal(mod.obsm["true_factors"], mdata.obsm["true_factors"])
        share = mod.var["true_spatial_importance"]
        assert share.between(0, 1).all()
        assert mod.obs["true_spatial_importance"].between(0, 1).all()
    assert mdata.obsm["true_factors"].dtype == np.float32
    assert set(np.unique(mdata.obsm["true_factors"])) == {0, 1}
    truth = mdata.uns["truth"]
    assert (truth["n_spatial"], truth["simulated"], truth["recipe"]) == (4, True, simulate.__name__)
    assert len(truth["factor_names"]) == 7
    assert not mdata.obs.columns.size


@pytest.mark.parametrize(("simulate", "n_side"), [(ggblocks, 30), (quilt, 36)])
def test_the_defaults_are_those_of_the_paper(simulate, n_side):
    mdata = simulate()
    assert mdata["rna"].shape == mdata["atac"].shape == (n_side**2, 500)
    x, y = mdata.obsm["spatial"].T
    assert sorted(zip(x, y, strict=True)) == [(i, j) for i in range(n_side) for j in range(n_side)]
    bursts = mdata.obsm["true_factors"][:, 4:]
    np.testing.assert_allclose(bursts.mean(axis=0), 0.2, atol=0.05)
    assert mdata["rna"].var["pattern"].value_counts().between(90, 160).all()


def test_ggblocks_are_four_separate_shapes_in_their_own_quadrants():
    mdata = ggblocks(**SMALL)
    shapes, (x, y) = mdata.obsm["true_factors"][:, :4], mdata.obsm["spatial"].T
    assert shapes.sum(axis=1).max() == 1
    np.testing.assert_allclose(shapes.mean(axis=0) * 36, [7, 8, 6, 5])
    right, top = x > x.mean(), y > y.mean()
    for shape, quadrant in zip(
        shapes.T, [~right & top, right & top, ~right & ~top, right & ~top], strict=True
    ):
        assert quadrant[shape == 1].all()


def test_quilt_patterns_overlap_without_being_alike():
    shapes = quilt(**SMALL).obsm["true_factors"][:, :4]
    assert set(shapes.sum(axis=1)) == {0, 1, 2, 3, 4}
    correlation = np.corrcoef(shapes.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.1


@RECIPES
def test_a_larger_grid_shows_the_same_picture(simulate):
    small, large = (simulate(**SMALL | {"n_side": n}).obsm["true_factors"][:, :4] for n in (18, 36))
    coarse = large.reshape(18, 2, 18, 2, 4)[:, 1, :, 1].reshape(324, 4)
    np.testing.assert_array_equal(coarse, small)


@RECIPES
@pytest.mark.parametrize("depth", [1.0, 0.1])
def test_counts_follow_the_truth(simulate, depth):
    mdata = simulate(depth=depth)
    mean, counts = expected(mdata, "rna"), mdata["rna"].X.toarray()
    z = (counts - mean) / np.sqrt(mean + mean**2 / 10)
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert z.var() == pytest.approx(1, abs=0.02)
    assert set(np.unique((mean / depth).round(4))) == {0.2, 9.1, 11.1, 20.0}


@RECIPES
def test_peaks_are_binary_and_follow_the_truth(simulate):
    mdata = simulate(atac_open=(0.3, 0.1))
    probability, counts = expected(mdata, "atac"), mdata["atac"].X
    assert (counts.data == 1).all()
    assert set(np.unique(probability.round(4))) == {np.float64(0.1), np.float64(0.3)}
    z = (counts.toarray() - probability) / np.sqrt(probability * (1 - probability))
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert not mdata["atac"].varm["true_loadings"][:, 4:].any()


def test_depth_thins_the_same_genes_and_leaves_peaks_alone():
    full, thin = ggblocks(**SMALL), ggblocks(**SMALL, depth=0.25)
    assert (full["rna"].X - thin["rna"].X).min() == 0
    assert thin["rna"].X.sum() == pytest.approx(0.25 * full["rna"].X.sum(), rel=0.05)
    np.testing.assert_allclose(
        thin["rna"].varm["true_loadings"], 0.25 * full["rna"].varm["true_loadings"]
    )
    assert (full["atac"].X != thin["atac"].X).nnz == 0


def test_importance_is_the_spatial_share_of_the_signal_without_background():
    mdata = ggblocks(**SMALL)
    factors, rna = mdata.obsm["true_factors"], mdata["rna"]
    for gene in range(5):
        spatial, burst = np.flatnonzero(rna.varm["true_loadings"][gene])
        from_pattern, from_burst = 10.9 * factors[:, spatial].mean(), 8.9 * factors[:, burst].mean()
        assert rna.var["pattern"].iloc[gene] == f"spatial_{spatial + 1}"
        share = from_pattern / (from_pattern + from_burst)
        assert rna.var["true_spatial_importance"].iloc[gene] == pytest.approx(share, rel=1e-5)
    silent = factors.sum(axis=1) == 0
    assert (rna.obs["true_spatial_importance"][silent] == 0).all()
    assert (
        rna.obs["true_spatial_importance"][factors[:, 4:].sum(axis=1) == 0][lambda s: s > 0] == 1
    ).all()
    assert (mdata["atac"].var["true_spatial_importance"] == 1).all()


def test_without_nonspatial_factors_everything_is_spatial():
    mdata = ggblocks(**SMALL, nonspatial=False)
    assert mdata.obsm["true_factors"].shape == (324, 4)
    assert (mdata["rna"].var["true_spatial_importance"] == 1).all()
    assert set(np.unique(expected(mdata, "rna").round(4))) == {0.1, 11.0}


@RECIPES
def test_the_seed_decides_and_modalities_do_not_disturb_each_other(simulate):
    first, again, other = simulate(**SMALL), simulate(**SMALL), simulate(**SMALL, seed=1)
    more_peaks = simulate(**SMALL | {"n_peaks": 90})
    for name in first.mod:
        assert (first[name].X != again[name].X).nnz == 0
        assert (first[name].X != other[name].X).nnz > 0
    assert (first["rna"].X != more_peaks["rna"].X).nnz == 0


@RECIPES
def test_files_keep_the_truth(simulate, tmp_path):
    mdata = simulate(**SMALL)
    mdata.write(tmp_path / "simulated.h5mu")
    read = mudata.read_h5mu(tmp_path / "simulated.h5mu")
    np.testing.assert_array_equal(read.obsm["true_factors"], mdata.obsm["true_factors"])
    np.testing.assert_array_equal(
        read["atac"].varm["true_loadings"], mdata["atac"].varm["true_loadings"]
    )
    assert read.uns["truth"]["settings"]["n_side"] == 18
    assert list(read.uns["truth"]["factor_names"]) == mdata.uns["truth"]["factor_names"]


def test_bad_arguments_say_what_is_wrong(subtests):
    for wrong, error, message in (
        ({"n_side": 16}, ValueError, r"multiple of 6.*got 16.*n_side=18"),
        ({"n_side": 0}, ValueError, r"`n_side` .*at least 1; got 0"),
        ({"n_genes": 2.5}, TypeError, r"`n_genes` .*integer.*got 2\.5"),
        ({"n_peaks": -3}, ValueError, r"`n_peaks` .*at least 1; got -3"),
        ({"depth": 0}, ValueError, r"`depth` .*above 0; got 0"),
        ({"depth": 1.5}, ValueError, r"`depth` of at most 1.*got 1\.5"),
        ({"seed": -1}, ValueError, r"`seed` .*at least 0; got -1"),
        ({"atac_open": (0.2, 1.2)}, ValueError, r"two probabilities.*got \(0\.2, 1\.2\)"),
        ({"atac_open": 0.2}, ValueError, r"two probabilities.*got 0\.2"),
        ({"nonspatial": "no"}, TypeError, r"`nonspatial` .*got 'no'"),
    ):
        with subtests.test(wrong=wrong), pytest.raises(error, match=message):
            ggblocks(**wrong)
