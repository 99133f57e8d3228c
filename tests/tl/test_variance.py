from __future__ import annotations

import fitted
import numpy as np
import pytest

import gpnsf


@pytest.fixture
def toy():
    """Four factors: shared, of rna alone, of atac alone, of nobody."""
    data = fitted.mudata(n_obs=64)
    data.uns["gpnsf"]["variance_explained"] = {
        "rna": np.array([0.2, 0.2, 0.0, -0.01]),
        "atac": np.array([0.01, 0.0, 0.01, 0.0]),
    }
    return data


def test_lines_are_tidy(toy):
    table = gpnsf.tl.variance_explained(toy)
    assert list(table) == ["modality", "factor", "explained", "share", "private_to"]
    assert table["modality"].tolist() == ["rna"] * 4 + ["atac"] * 4
    wide = table.pivot(index="modality", columns="factor", values="explained")
    assert wide.loc["rna", "spatial_2"] == pytest.approx(0.2)
    np.testing.assert_allclose(table["share"], [0.5, 1, 0, 0, 0.5, 0, 1, 0])


def test_private_factors_are_named(toy):
    owners = gpnsf.tl.variance_explained(toy).groupby("factor", sort=False)["private_to"].unique()
    assert [list(owner) for owner in owners] == [[""], ["rna"], ["atac"], [""]]


def test_the_threshold_moves(toy):
    toy.uns["gpnsf"]["variance_explained"]["atac"] = np.array([0.01, 0.0025, 0.01, 0.0])
    owner = gpnsf.tl.variance_explained(toy, private=0.7).set_index(["modality", "factor"])[
        "private_to"
    ]
    assert owner["rna", "spatial_2"] == "rna"
    owner = gpnsf.tl.variance_explained(toy, private=0.9).set_index(["modality", "factor"])[
        "private_to"
    ]
    assert owner["rna", "spatial_2"] == ""


def test_one_modality_has_no_private_factors():
    table = gpnsf.tl.variance_explained(fitted.anndata(n_obs=64))
    assert (table["private_to"] == "").all()
    assert (table["share"] == 1).all()


def test_mistakes_are_explained(subtests, toy):
    for private in (0.5, 1.5, "most"):
        with (
            subtests.test(private=private),
            pytest.raises((ValueError, TypeError), match="`private`"),
        ):
            gpnsf.tl.variance_explained(toy, private=private)


def test_a_damaged_record_is_refused(toy):
    toy.uns["gpnsf"]["variance_explained"] = {"rna": np.zeros(3), "atac": np.zeros(4)}
    with pytest.raises(ValueError, match="'rna' in the explained deviances"):
        gpnsf.tl.variance_explained(toy)


@pytest.mark.slow
def test_a_planted_private_factor_is_found():
    data = gpnsf.datasets.tissue(
        n_obs=500, n_genes=150, n_peaks=400, n_spatial=3, n_nonspatial=1, rna_depth=800.0, seed=0
    )
    rng = np.random.default_rng(0)
    own = data.obsm["true_factors"][:, 0]
    loadings = data["atac"].varm["true_loadings"].copy()
    loadings[:, 0] = 0
    rate = data["atac"].obs["true_size"].to_numpy()[:, None] * (
        data.obsm["true_factors"] @ loadings.T
    )
    data["atac"].X = (rng.poisson(rate) > 0).astype(np.float32)
    gpnsf.tl.fit(
        data,
        n_factors=4,
        n_spatial=3,
        split="assumed",
        init="spot",
        size_factors="true_size",
        progress=False,
    )
    table = gpnsf.tl.variance_explained(data)
    k = np.argmax([np.corrcoef(own, column)[0, 1] for column in data.obsm["X_gpnsf"].T])
    owners = table.set_index("factor")["private_to"]
    name = data.uns["gpnsf"]["factor_names"][k]
    assert set(owners[name]) == {"rna"}
    assert set(owners.drop(name)) == {""}
