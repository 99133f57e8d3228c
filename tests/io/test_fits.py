from __future__ import annotations

import fitted
import mudata
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

from gpnsf.io import fits
from gpnsf.io.ranked import ranked


@pytest.fixture
def toy():
    return fitted.mudata(n_obs=49)


def test_a_fit_is_resolved(toy):
    fit = fits.find(toy)
    assert fit.names.tolist() == ["spatial_1", "spatial_2", "nonspatial_1", "nonspatial_2"]
    assert fit.is_spatial.tolist() == [True, True, False, False]
    assert list(fit.modalities) == ["rna", "atac"]
    assert fit.likelihoods == {"rna": "nb", "atac": "bernoulli"}
    assert fit.mean is toy.obsm["X_gpnsf"]
    assert fit.shares.sum() == pytest.approx(1)
    np.testing.assert_array_equal(fit.coords, toy.obsm["spatial"])
    assert fit.library is None
    assert not fit.signed


def test_precision_and_embedding_are_read_or_done_without(toy):
    """A record of another method, or of an earlier version, has neither."""
    fit = fits.find(toy)
    np.testing.assert_array_equal(fit.loadings_std["atac"], toy["atac"].varm["gpnsf_loadings_std"])
    slot = toy.obsm.pop("X_gpnsf_embedding")
    np.testing.assert_allclose(fits.find(toy).embedding, slot, atol=1e-6)
    toy.obsm["X_gpnsf_embedding"] = slot[:, :1]
    assert fits.find(toy).embedding.shape == (49, 1)
    for mod in toy.mod.values():
        del mod.varm["gpnsf_loadings_std"]
    assert fits.find(toy).loadings_std is None


def test_shares_are_those_of_the_expected_counts(toy):
    expected = [
        sum(
            np.outer(toy.obsm["X_gpnsf"][:, k], mod.varm["gpnsf_loadings"][:, k]).sum()
            for mod in toy.mod.values()
        )
        for k in range(4)
    ]
    np.testing.assert_allclose(fits.find(toy).shares, expected / np.sum(expected), rtol=1e-4)


def test_a_fit_is_resolved_after_a_round_trip(toy, tmp_path):
    toy.write(tmp_path / "fit.h5mu")
    fit = fits.find(mudata.read_h5mu(tmp_path / "fit.h5mu"))
    assert fit.names.tolist() == fits.find(toy).names.tolist()
    assert fit.is_spatial.dtype == bool
    np.testing.assert_array_equal(fit.loadings["atac"], toy["atac"].varm["gpnsf_loadings"])


def test_another_key_is_another_fit():
    data = fitted.anndata(n_obs=36, key="second")
    assert fits.find(data, "second").keys.factors == "X_second"
    with pytest.raises(KeyError, match=r"key=` one of \['second'\]"):
        fits.find(data)


def test_coordinates_and_columns_are_gathered_from_modalities_in_their_own_order(toy):
    rna, atac = toy["rna"][::-1].copy(), toy["atac"][10:].copy()
    order = toy.obs_names.get_indexer
    for mod in (rna, atac):
        mod.obsm["spatial"] = toy.obsm["spatial"][order(mod.obs_names)]
        mod.obs["slice"] = np.where(order(mod.obs_names) < 20, "a", "b")
    apart = MuData({"rna": rna, "atac": atac})
    rows = order(apart.obs_names)
    for name in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std"):
        apart.obsm[name] = toy.obsm[name][rows]
    apart.uns = toy.uns
    apart.uns["gpnsf"]["params"]["library_key"] = "slice"
    fit = fits.find(apart)
    np.testing.assert_allclose(fit.coords, toy.obsm["spatial"][rows])
    assert fit.library.tolist() == np.where(rows < 20, "a", "b").tolist()
    for name, mod in apart.mod.items():
        assert (apart.obs_names[fit.rows[name]] == mod.obs_names).all()


def test_a_subset_of_the_observations_is_still_a_fit(toy):
    part = toy[toy.obs_names[5:15]]
    assert fits.find(part).mean.shape == (10, 4)


def test_coordinates_that_some_observations_lack_are_refused(toy):
    atac = toy["atac"][:40].copy()
    atac.obsm["spatial"] = toy.obsm["spatial"][:40]
    part = MuData({"rna": toy["rna"], "atac": atac})
    for name in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std"):
        part.obsm[name] = toy.obsm[name][toy.obs_names.get_indexer(part.obs_names)]
    part.uns = toy.uns
    with pytest.raises(ValueError, match="none for 9 observation.*on the MuData itself"):
        _ = fits.find(part).coords


def _drop(data, *path):
    *parents, last = path
    holder = data
    for name in parents:
        holder = getattr(holder, name) if hasattr(holder, name) else holder[name]
    del holder[last]


def test_what_no_longer_fits_together_is_refused(subtests, toy):
    for change, error, message in (
        (lambda d: d.uns.pop("gpnsf"), KeyError, r"with fits \[\].*This looks like one modality"),
        (lambda d: _drop(d, "obsm", "X_gpnsf_smooth"), KeyError, "X_gpnsf_smooth.*fit` again"),
        (
            lambda d: _drop(d["rna"], "varm", "gpnsf_loadings"),
            KeyError,
            "gpnsf_loadings.*varm of 'rna'",
        ),
        (
            lambda d: _drop(d["rna"], "varm", "gpnsf_loadings_std"),
            KeyError,
            "gpnsf_loadings_std.*varm of 'rna'",
        ),
        (lambda d: d.mod.pop("atac"), KeyError, r"without \['atac'\]"),
        (
            lambda d: d.uns["gpnsf"].update(factor_names=["a"]),
            ValueError,
            r"shape \(49, 1\).*got \(49, 4\)",
        ),
        (
            lambda d: d.uns["gpnsf"].update(is_spatial=[True]),
            ValueError,
            r"is_spatial.*shape \(4,\).*got \(1,\)",
        ),
        (
            lambda d: d["atac"].varm.update({"gpnsf_loadings": np.ones((80, 2))}),
            ValueError,
            r"varm of 'atac' of shape \(80, 4\).*got \(80, 2\)",
        ),
    ):
        with subtests.test(message=message):
            data = toy.copy()
            change(data)
            with pytest.raises(error, match=message):
                fits.find(data)


def test_only_annotated_objects_are_accepted():
    with pytest.raises(TypeError, match=r"AnnData or MuData; got DataFrame\. Pass"):
        fits.find(pd.DataFrame())


def test_missing_columns_and_coordinates_are_named(toy):
    fit = fits.find(toy)
    with pytest.raises(KeyError, match="'region'.* Restore it"):
        fit.obs("region")
    with pytest.raises(KeyError, match="'x' in var of 'rna'"):
        fit.var("rna", "x")
    del toy.obsm["spatial"]
    assert not fit.has_coords
    with pytest.raises(KeyError, match="spatial_key"):
        _ = fit.coords


def test_factors_keep_the_order_asked_for(toy):
    fit = fits.find(toy)
    assert fit.factor_indices(["nonspatial_2", "spatial_1"]).tolist() == [3, 0]
    assert fit.factor_indices(None).tolist() == [0, 1, 2, 3]
    with pytest.raises(KeyError, match="spatial_7"):
        fit.factor_indices("spatial_7")


def test_a_factor_is_named_once(toy):
    with pytest.raises(ValueError, match="name each factor once; got 'spatial_1' more than once"):
        fits.find(toy).factor_indices(["spatial_1", "spatial_2", "spatial_1"])


def test_ranked_features_have_their_positions(toy):
    toy["rna"].var_names = ["same"] * toy["rna"].n_vars
    fit = fits.find(toy)
    table = ranked(fit, "rna", 0, n_features=3, method="loading")
    np.testing.assert_array_equal(fit.loadings["rna"][table.index, 0], table["loading"])
