from __future__ import annotations

import sys

import anndata
import fitted
import mudata
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from gpnsf.palette import CATEGORIES
from gpnsf.tl.domains import domains

NAME = "gpnsf_domain"


@pytest.fixture
def toy():
    return fitted.mudata(n_obs=100, n_factors=4, n_spatial=3)


def with_domains(n_obs=120, seed=0, keys=("gpnsf",)):
    """A fitted AnnData whose factors follow four domains and have loadings of their own, and the domains."""
    data = fitted.anndata(n_obs=n_obs, n_factors=4, n_spatial=4, seed=seed)
    truth = np.arange(n_obs) * 4 // n_obs
    rng = np.random.default_rng(seed)
    for key in keys:
        H = 0.05 + np.eye(4)[truth] + rng.uniform(0, 0.1, (n_obs, 4))
        fitted.fill(data, H, n_spatial=4, key=key)
        data.obsm[f"X_{key}_smooth"] = H.astype(np.float32)
        data.varm[f"{key}_loadings"] = (0.2 + np.eye(4)[np.arange(data.n_vars) % 4]).astype(
            np.float32
        )
        del data.obsm[f"X_{key}_embedding"]  # it would no longer be theirs
    return data, truth


@pytest.mark.parametrize("method", ["kmeans", "gmm", "leiden"])
def test_domains_are_found(method):
    data, truth = with_domains()
    assert domains(data, n_domains=4, method=method) is None
    assert adjusted_rand_score(truth, data.obs[NAME]) == 1
    assert data.obs[NAME].cat.categories.tolist() == ["1", "2", "3", "4"]
    assert data.uns[f"{NAME}_colors"] == list(CATEGORIES[:4])


def test_auto_finds_their_number_and_says_how_stable_they_are():
    data, truth = with_domains()
    domains(data, n_domains="auto", max_domains=7)
    assert adjusted_rand_score(truth, data.obs[NAME]) == 1
    record = data.uns[f"{NAME}_stability"]
    assert record["n_domains"].tolist() == [2, 3, 4, 5, 6, 7]
    assert record["adjusted_rand_index"][2] > 0.99
    domains(data, n_domains=4)
    assert f"{NAME}_stability" not in data.uns


def test_modalities_get_their_rows(toy):
    toy.mod["atac"] = toy["atac"][10:60].copy()
    toy.update()
    toy.obs[f"rna:{NAME}"] = "old"
    domains(toy, n_domains=3)
    assert f"rna:{NAME}" not in toy.obs
    assert toy["atac"].obs[NAME].tolist() == toy.obs.loc[toy["atac"].obs_names, NAME].tolist()
    assert toy["rna"].obs[NAME].tolist() == toy.obs[NAME].tolist()
    assert toy["atac"].uns[f"{NAME}_colors"] == toy.uns[f"{NAME}_colors"]


def test_files_keep_them(toy, tmp_path):
    domains(toy, n_domains="auto", max_domains=4, n_init=1)
    toy.write_h5mu(tmp_path / "fit.h5mu")
    again = mudata.read_h5mu(tmp_path / "fit.h5mu")
    assert again.obs[NAME].tolist() == toy.obs[NAME].tolist()
    assert list(again.uns[f"{NAME}_colors"]) == toy.uns[f"{NAME}_colors"]
    adata = toy["rna"]
    adata.write_h5ad(tmp_path / "fit.h5ad")
    assert (
        anndata.read_h5ad(tmp_path / "fit.h5ad")
        .obs[NAME]
        .cat.categories.equals(adata.obs[NAME].cat.categories)
    )


def test_the_embedding_of_the_fit_is_what_is_clustered(toy):
    """The slot, and the same worked out where there is none."""
    domains(toy, n_domains=3)
    before = toy.obs[NAME].tolist()
    slot = toy.obsm.pop("X_gpnsf_embedding")
    domains(toy, n_domains=3)
    assert toy.obs[NAME].tolist() == before
    toy.obsm["X_gpnsf_embedding"] = np.repeat(
        [[0.0], [1.0], [5.0], [9.0]], [70, 10, 10, 10], axis=0
    )
    domains(toy, n_domains=4)
    assert toy.obs[NAME].tolist() == ["1"] * 70 + ["2"] * 10 + ["3"] * 10 + ["4"] * 10
    toy.obsm["X_gpnsf_embedding"] = slot[:, :1] + np.nan
    with pytest.raises(ValueError, match="finite values"):
        domains(toy, n_domains=3)


def test_patches_with_equal_loadings_are_one_domain():
    """One homogeneous layer that three factors divide into patches, beside another: the layers are the domains."""
    rng = np.random.default_rng(0)
    data, patch = with_domains()
    layers = rng.gamma(0.5, 1, (data.n_vars, 2))
    data.varm["gpnsf_loadings"] = layers[:, [0, 0, 0, 1]].astype(np.float32)
    domains(data, n_domains=2)
    assert adjusted_rand_score(patch == 3, data.obs[NAME]) == 1


def test_factors_that_are_left_out_do_not_matter(toy):
    domains(toy, n_domains=3, key_added="before")
    other = toy.obsm["X_gpnsf_smooth"].copy()
    other[:, 3] = np.random.default_rng(0).uniform(0, 5, len(other))  # the nonspatial one
    toy.obsm["X_gpnsf_smooth"] = other
    domains(toy, n_domains=3, factors="spatial")
    domains(toy, n_domains=3, factors=["spatial_1", "spatial_2", "spatial_3"], key_added="named")
    domains(toy, n_domains=3, factors="all", key_added="all")
    assert toy.obs[NAME].tolist() == toy.obs["before"].tolist() == toy.obs["named"].tolist()
    assert toy.obs["all"].tolist() != toy.obs["before"].tolist()


def test_consensus_does_not_depend_on_the_order_of_fits_and_factors():
    data, truth = with_domains(keys=("a", "b"))
    for slot in ("X_b", "X_b_smooth", "X_b_std"):
        data.obsm[slot] = data.obsm[slot][:, ::-1].copy()
    data.varm["b_loadings"] = data.varm["b_loadings"][:, ::-1].copy()
    domains(data, n_domains=4, consensus=["a", "b"])
    domains(data, n_domains=4, consensus=["b", "a"], key_added="turned")
    assert adjusted_rand_score(truth, data.obs[NAME]) == 1
    assert data.obs[NAME].tolist() == data.obs["turned"].tolist()


def test_consensus_of_noisy_fits_is_better_than_each():
    keys = [f"fit{i}" for i in range(5)]
    data, truth = with_domains(keys=keys)
    rng = np.random.default_rng(1)
    for key in keys:
        data.obsm[f"X_{key}_smooth"] *= rng.lognormal(0, 1.4, (data.n_obs, 4)).astype(np.float32)
    single = []
    for key in keys:
        domains(data, n_domains=4, key=key)
        single.append(adjusted_rand_score(truth, data.obs[NAME]))
    domains(data, n_domains=4, consensus=keys)
    assert adjusted_rand_score(truth, data.obs[NAME]) > max(single) + 0.05


def test_domains_follow_the_neighbours_unless_told_not_to():
    data, truth = with_domains(n_obs=400)
    rng = np.random.default_rng(2)
    data.obsm["X_gpnsf_smooth"] *= rng.lognormal(0, 1.2, (400, 4)).astype(np.float32)
    found = {}
    for smoothness in (None, 0, 4.0):
        domains(data, n_domains=4, smoothness=smoothness)
        found[smoothness] = data.obs[NAME].tolist()
    assert found[None] == found[4.0]
    assert adjusted_rand_score(truth, found[4.0]) > adjusted_rand_score(truth, found[0]) + 0.1


def test_slices_have_no_neighbours_in_common():
    """Two slices at the same coordinates: what one has in a place says nothing of the other."""
    data = fitted.anndata(n_obs=200, n_factors=2, n_spatial=2)
    data.obsm["spatial"] = np.tile(np.arange(100.0), 2)[:, None] * [1.0, 0.0]
    data.obs["slice"] = np.repeat(["a", "b"], 100)
    data.uns["gpnsf"]["params"]["library_key"] = "slice"
    sides = np.tile(np.arange(100) // 50, 2)
    sides[100:] = 1 - sides[100:]
    rng = np.random.default_rng(3)
    noisy = sides + 0.45 * rng.standard_normal(200)
    data.obsm["X_gpnsf_embedding"] = np.column_stack([noisy, 0 * noisy]).astype(np.float32)
    domains(data, n_domains=2)
    assert adjusted_rand_score(sides, data.obs[NAME]) > 0.9


def test_without_coordinates_clusters_stay_as_they_are(toy):
    domains(toy, n_domains=3, smoothness=0, key_added="clusters")
    for holder in (toy, toy["rna"], toy["atac"]):
        if "spatial" in holder.obsm:
            del holder.obsm["spatial"]
    with pytest.raises(ValueError, match="Leave smoothness out"):
        domains(toy, n_domains=3, smoothness=2.0)
    domains(toy, n_domains=3)
    assert toy.obs[NAME].tolist() == toy.obs["clusters"].tolist()


def test_signed_factors(toy):
    data = fitted.anndata(n_obs=64, likelihood="gaussian")
    for slot in ("X_gpnsf", "X_gpnsf_smooth"):
        data.obsm[slot] = data.obsm[slot] - 1
    domains(data, n_domains=3)
    assert data.obs[NAME].nunique() == 3


def test_leiden_without_igraph_says_what_to_install(toy, monkeypatch):
    monkeypatch.setattr(sys.modules[domains.__module__], "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'gpnsf\[leiden\]'"):
        domains(toy, n_domains=3, method="leiden")


def test_a_fit_without_spatial_factors_asks_for_others():
    data = fitted.anndata(n_obs=36, n_factors=2, n_spatial=0)
    with pytest.raises(ValueError, match="factors='all'"):
        domains(data, n_domains=2, factors="spatial")
    domains(data, n_domains=2, factors="all")
    domains(data, n_domains=2, key_added="by_default")
    assert data.obs[NAME].tolist() == data.obs["by_default"].tolist()


def test_wrong_arguments_leave_the_object_as_it_is(subtests, toy):
    for arguments, error, message in (
        ({"n_domains": 0}, ValueError, "`n_domains`"),
        ({"n_domains": 101}, ValueError, "`n_domains`"),
        ({"n_domains": "many"}, ValueError, "'auto'"),
        ({"n_domains": 2.5}, TypeError, "`n_domains`"),
        ({"n_domains": "auto", "method": "leiden"}, ValueError, "leiden"),
        ({"n_domains": "auto", "max_domains": 1}, ValueError, "`max_domains`"),
        ({"n_domains": "auto", "max_domains": 81}, ValueError, "at most 80"),
        ({"n_domains": 3, "method": "mclust"}, ValueError, "`method`"),
        ({"n_domains": 3, "factors": "spatial_9"}, KeyError, "spatial_9"),
        ({"n_domains": 3, "consensus": "gpnsf"}, TypeError, "`consensus`"),
        ({"n_domains": 3, "consensus": ["other"]}, KeyError, "other"),
        ({"n_domains": 3, "n_init": 0}, ValueError, "`n_init`"),
        ({"n_domains": 3, "key_added": "a/b"}, ValueError, "key_added"),
        ({"n_domains": 3, "key_added": "gpnsf_spatial_importance"}, ValueError, "key_added"),
        ({"n_domains": 3, "seed": -1}, ValueError, "`seed`"),
        ({"n_domains": 3, "smoothness": -1}, ValueError, "`smoothness`"),
        ({"n_domains": 3, "smoothness": "much"}, TypeError, "`smoothness`"),
    ):
        with subtests.test(arguments=arguments):
            before = list(toy.obs)
            with pytest.raises(error, match=message):
                domains(toy, **arguments)
            assert list(toy.obs) == before


def test_one_factor_has_no_composition_to_compare():
    data = fitted.mudata(n_obs=60, n_factors=3, n_spatial=1)
    with pytest.raises(ValueError, match=r"at least two factors.*'spatial_1' alone.*factors='all'"):
        domains(data, n_domains=2, factors="spatial")
    assert "gpnsf_domain" not in data.obs
    domains(data, n_domains=2)  # of all factors
    single = fitted.anndata(n_obs=36, n_factors=1, n_spatial=1)
    with pytest.raises(ValueError, match=r"at least two factors.*'spatial_1' alone"):
        domains(single, n_domains=2)


def test_a_view_is_refused(toy):
    with pytest.raises(ValueError, match="view of 50"):
        domains(toy[:50], n_domains=2)


def test_few_observations_and_all_fits_of_a_consensus_are_minded():
    data, _ = with_domains(n_obs=12, keys=("a", "b"))
    with pytest.raises(ValueError, match="slots of the fits"):
        domains(data, n_domains=2, consensus=["a", "b"], key_added="b_spatial_importance")
    domains(data, n_domains=2, key="a")
    assert data.obs[NAME].nunique() == 2
