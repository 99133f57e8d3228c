from __future__ import annotations

import logging

import fitted
import numpy as np
import pytest

from gpnsf.tl.importance import spatial_importance

KEY = "gpnsf_spatial_importance"


def subset_factors(data, kept):
    """Keep some factors in every slot."""
    for holder in {id(item): item for item in [data, *getattr(data, "mod", {}).values()]}.values():
        for name in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std"):
            holder.obsm[name] = holder.obsm[name][:, kept]
    for mod in getattr(data, "mod", {"rna": data}).values():
        mod.varm["gpnsf_loadings"] = mod.varm["gpnsf_loadings"][:, kept]
    record = data.uns["gpnsf"]
    record["factor_names"] = [record["factor_names"][k] for k in kept]
    record["is_spatial"] = record["is_spatial"][kept]
    record["kernel"]["lengthscale"] = record["kernel"]["lengthscale"][kept]


def naive(mean, loadings, is_spatial):
    """Spatial share of the expected signal of each observation, entry by entry."""
    share = []
    for h in mean:
        signal = [h[k] * sum(W[:, k].sum() for W in loadings) for k in range(len(h))]
        share.append(sum(s for s, spatial in zip(signal, is_spatial, strict=True) if spatial) / sum(signal))
    return np.array(share)


@pytest.mark.parametrize("make", [fitted.mudata, fitted.anndata])
def test_an_untouched_fit_gives_what_the_fit_wrote(make):
    data = make(n_obs=64)
    before = data.obs[KEY].copy()
    assert spatial_importance(data) is None
    np.testing.assert_allclose(data.obs[KEY], before, rtol=1e-4)
    for mod in getattr(data, "mod", {"rna": data}).values():
        assert "gpnsf_spatial_importance_std" in mod.var


def test_values_follow_the_definition_over_all_modalities_and_over_each():
    data = fitted.mudata(n_obs=49)
    spatial_importance(data)
    loadings = {name: mod.varm["gpnsf_loadings"] for name, mod in data.mod.items()}
    is_spatial = data.uns["gpnsf"]["is_spatial"]
    np.testing.assert_allclose(data.obs[KEY], naive(data.obsm["X_gpnsf"], loadings.values(), is_spatial), rtol=1e-4)
    for name, mod in data.mod.items():
        np.testing.assert_allclose(mod.obs[KEY], naive(mod.obsm["X_gpnsf"], [loadings[name]], is_spatial), rtol=1e-4)


def test_leaving_out_factors_changes_importance_top_factor_and_drops_the_std(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("gpnsf"), "propagate", True)
    data = fitted.mudata(n_obs=64)
    before = data["rna"].var[KEY].copy()
    subset_factors(data, [0, 2])
    with caplog.at_level(logging.INFO, logger="gpnsf"):
        spatial_importance(data)
    assert not np.allclose(data["rna"].var[KEY], before)
    assert set(data["rna"].var["gpnsf_top_factor"]) <= {"spatial_1", "nonspatial_1", ""}
    assert "gpnsf_spatial_importance_std" not in data["rna"].var
    assert "standard deviation was removed" in caplog.text


@pytest.mark.parametrize(("kept", "value"), [([2, 3], 0.0), ([0, 1], 1.0)])
def test_one_kind_of_factors_gives_exactly_zero_or_one(kept, value):
    data = fitted.anndata(n_obs=36)
    subset_factors(data, kept)
    spatial_importance(data)
    np.testing.assert_array_equal(data.obs[KEY], np.float32(value))
    signal = data.varm["gpnsf_loadings"].any(axis=1)
    np.testing.assert_array_equal(data.var[KEY][signal], np.float32(value))
    np.testing.assert_array_equal(data.var[KEY][~signal], 0)


def test_leaving_out_features_changes_observations_alone():
    data = fitted.anndata(n_obs=64)
    part = data[:, :10].copy()
    spatial_importance(part)
    np.testing.assert_allclose(part.var[KEY], data.var[KEY][:10], rtol=1e-4)
    assert not np.allclose(part.obs[KEY], data.obs[KEY])


def test_copy_leaves_the_object_alone():
    data = fitted.mudata(n_obs=36)
    del data.obs[KEY]
    assert KEY in spatial_importance(data, copy=True).obs
    assert KEY not in data.obs


def test_views_and_disagreeing_slots_are_refused():
    data = fitted.anndata(n_obs=36)
    with pytest.raises(ValueError, match=r"a view of 10 observations.*copy"):
        spatial_importance(data[:10])
    data.obsm["X_gpnsf_std"] = data.obsm["X_gpnsf_std"][:, :2]
    with pytest.raises(ValueError, match=r"'X_gpnsf_std' in obsm of shape \(36, 4\).*got \(36, 2\)"):
        spatial_importance(data)
