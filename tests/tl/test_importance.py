from __future__ import annotations

import logging

import fitted
import numpy as np
import pytest
import scipy.sparse as sp

import gpnsf
from gpnsf.tl import importance
from gpnsf.tl.importance import spatial_importance

KEY = "gpnsf_spatial_importance"


def subset_factors(data, kept):
    """Keep some factors in every slot."""
    for holder in {id(item): item for item in [data, *getattr(data, "mod", {}).values()]}.values():
        for name in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std"):
            holder.obsm[name] = holder.obsm[name][:, kept]
    for mod in getattr(data, "mod", {"rna": data}).values():
        for name in ("gpnsf_loadings", "gpnsf_loadings_std"):
            mod.varm[name] = mod.varm[name][:, kept]
    record = data.uns["gpnsf"]
    record["factor_names"] = [record["factor_names"][k] for k in kept]
    record["is_spatial"] = record["is_spatial"][kept]
    record["kernel"]["lengthscale"] = record["kernel"]["lengthscale"][kept]


def naive(mean, loadings, is_spatial):
    """Spatial share of the expected signal of each observation, entry by entry."""
    share = []
    for h in mean:
        signal = [h[k] * sum(W[:, k].sum() for W in loadings) for k in range(len(h))]
        share.append(
            sum(s for s, spatial in zip(signal, is_spatial, strict=True) if spatial) / sum(signal)
        )
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
    np.testing.assert_allclose(
        data.obs[KEY], naive(data.obsm["X_gpnsf"], loadings.values(), is_spatial), rtol=1e-4
    )
    for name, mod in data.mod.items():
        np.testing.assert_allclose(
            mod.obs[KEY], naive(mod.obsm["X_gpnsf"], [loadings[name]], is_spatial), rtol=1e-4
        )


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
    assert f"{KEY}_std was removed" in caplog.text


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
    with pytest.raises(
        ValueError, match=r"'X_gpnsf_std' in obsm of shape \(36, 4\).*got \(36, 2\)"
    ):
        spatial_importance(data)


def test_the_null_model_has_size_factors_and_the_nonspatial_factors(monkeypatch):
    asked = []

    def p_values(counts, spatial, null, *arguments, **options):
        asked.append((spatial, null))
        return np.full(counts.shape[1], 0.5)

    monkeypatch.setattr(importance, "permutation_p_values", p_values)
    data = fitted.anndata(n_obs=64)
    spatial_importance(data, null="permutation")
    ((spatial, null),) = asked
    size = np.asarray(data.X.sum(axis=1)).ravel()
    expected = (
        np.column_stack([data.obsm["X_gpnsf"][:, 2:], np.ones(64)]) * (size / size.mean())[:, None]
    )
    np.testing.assert_allclose(null, expected, rtol=1e-5)
    np.testing.assert_array_equal(spatial, data.obsm["X_gpnsf_smooth"][:, :2])


def simulated(depth=0.3):
    """A fit of genes of which a third follow no spatial pattern."""
    data = gpnsf.datasets.ggblocks(n_side=18, n_genes=150, n_peaks=36, seed=3)["rna"]
    rng = np.random.default_rng(0)
    data.var["null"] = np.arange(150) % 3 == 0
    loadings = data.varm["true_loadings"].copy()
    loadings[data.var["null"], :4] = 0
    mean = data.obsm["true_factors"] @ loadings.T + data.var["true_background"].to_numpy()
    mean[:, 1] = 0
    data.X = sp.csr_matrix(rng.poisson(depth * mean).astype(np.float32))
    gpnsf.tl.fit(
        data, n_factors=7, n_spatial=4, size_factors=None, max_steps=60, init="spot", progress=False
    )
    return data


@pytest.fixture(scope="module")
def tested():
    data = simulated()
    spatial_importance(data, null="permutation", n_permutations=100)
    return data


@pytest.mark.slow
def test_permutation_finds_the_spatial_genes_and_leaves_the_others(tested):
    p, q = tested.var[f"{KEY}_p"], tested.var[f"{KEY}_q"]
    null = tested.var["null"].to_numpy()
    spatial = ~null & (np.arange(150) != 1)
    assert (q[spatial] < 0.05).mean() > 0.95
    assert (p[null] < 0.05).mean() < 0.16  # 50 genes: two standard deviations above .05 are .11
    assert p.iloc[1] == q.iloc[1] == 1  # no counts
    np.testing.assert_array_less(p - 1e-12, q)


@pytest.mark.slow
def test_permutation_takes_what_batches_multiply_for_no_pattern():
    data = gpnsf.datasets.ggblocks(n_side=18, n_genes=150, n_peaks=36, seed=3)["rna"]
    rng = np.random.default_rng(0)
    null = np.arange(150) % 3 == 0
    loadings = data.varm["true_loadings"].copy()
    loadings[null, :4] = 0
    half = (data.obsm["spatial"][:, 0] > np.median(data.obsm["spatial"][:, 0])).astype(int)
    multipliers = rng.lognormal(0, 0.7, (2, 150))
    mean = data.obsm["true_factors"] @ loadings.T + data.var["true_background"].to_numpy()
    data.X = sp.csr_matrix(rng.poisson(0.5 * multipliers[half] * mean).astype(np.float32))
    data.obs["run"] = np.array(["b", "a"])[half]
    options = {
        "n_factors": 7,
        "n_spatial": 4,
        "size_factors": None,
        "max_steps": 60,
        "init": "spot",
        "progress": False,
    }
    gpnsf.tl.fit(data, batch_key="run", split="assumed", **options)
    spatial_importance(data, null="permutation", n_permutations=50)
    assert (data.var[f"{KEY}_p"][null] < 0.05).mean() < 0.16
    assert (data.var[f"{KEY}_p"][~null] < 0.05).mean() > 0.9


def test_permutation_without_a_spatial_factor_gives_one():
    data = fitted.anndata(n_obs=36)
    subset_factors(data, [2, 3])
    spatial_importance(data, null="permutation", n_permutations=20)
    assert (data.var[[f"{KEY}_p", f"{KEY}_q"]] == 1).all(axis=None)


@pytest.mark.slow
def test_permutation_reads_every_modality_by_the_arguments_of_the_fit():
    data = gpnsf.datasets.ggblocks(n_side=12, n_genes=40, n_peaks=60, seed=0)
    data["rna"].layers["raw"], data["rna"].X = data["rna"].X, data["rna"].X / 2
    data["atac"].var["used"] = np.arange(60) < 50
    data.obs["out"] = np.arange(144) < 10
    gpnsf.tl.fit(
        data,
        layers={"rna": "raw"},
        use_var={"atac": "used"},
        holdout_key="out",
        n_factors=6,
        max_steps=2,
        init="spot",
        progress=False,
    )
    spatial_importance(data, null="permutation", n_permutations=20)
    assert (data["atac"].var[f"{KEY}_p"][50:] == 1).all()
    assert (data["atac"].var[f"{KEY}_p"][:50] < 1).any()
    assert (data["rna"].var[f"{KEY}_p"] < 1).any()
    gpnsf.tl.fit(data, layers={"rna": "raw"}, n_factors=6, max_steps=2, progress=False)
    assert f"{KEY}_p" not in data["rna"].var
    assert f"{KEY}_q" not in data["atac"].var


@pytest.mark.slow
def test_p_values_go_with_the_importance_that_they_belong_to(tested):
    data = tested.copy()
    spatial_importance(data)
    assert f"{KEY}_p" in data.var
    subset_factors(data, [0, 5])
    spatial_importance(data)
    assert f"{KEY}_p" not in data.var
    assert f"{KEY}_q" not in data.var


def test_bad_arguments_are_refused(subtests):
    for arguments, error, message in (
        (
            {"null": "bootstrap"},
            ValueError,
            r"`null` to be one of 'permutation' or None.*'bootstrap'",
        ),
        (
            {"null": "permutation", "n_permutations": 5},
            ValueError,
            r"`n_permutations`.*at least 20.*5",
        ),
        ({"null": "permutation", "seed": -1}, ValueError, "`seed`"),
        ({"null": "permutation", "seed": 0.5}, TypeError, "`seed`"),
    ):
        with subtests.test(arguments=arguments), pytest.raises(error, match=message):
            spatial_importance(fitted.anndata(n_obs=36), **arguments)


def test_values_that_are_no_counts_have_no_permutation_test():
    data = fitted.anndata(n_obs=36, likelihood="gaussian")
    before = data.var.copy()
    with pytest.raises(
        ValueError, match=r"counts for null='permutation'.*'gaussian' of modality 'rna'.*raw counts"
    ):
        spatial_importance(data, null="permutation")
    assert data.var.equals(before)
