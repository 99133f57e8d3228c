"""Several slices, modalities of any kind and number, and observations that lack some of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

import gpnsf
from gpnsf.core.scores.metrics import match_factors

SHORT = {"n_factors": 4, "n_spatial": 2, "split": "assumed", "progress": False}


def protein(
    data: MuData, *, n_features: int = 12, gaussian: bool = False, seed: int = 0
) -> AnnData:
    """Simulated counts of proteins, or their logarithms, that follow the factors of a simulated section."""
    rng = np.random.default_rng(seed)
    factors = data.obsm["true_factors"]
    loadings = 20 * np.eye(factors.shape[1])[np.arange(n_features) % factors.shape[1]]
    counts = rng.poisson(factors @ loadings.T + 2).astype(np.float32)
    values = np.log1p(counts) if gaussian else counts
    names = [f"protein_{j}" for j in range(n_features)]
    return AnnData(
        values, obs=pd.DataFrame(index=data.obs_names.copy()), var=pd.DataFrame(index=names)
    )


def three(data: MuData, **options) -> MuData:
    """RNA of all but the first 20 spots, peaks of all but the last 30, proteins of every second one."""
    mods = {
        "rna": data["rna"][20:].copy(),
        "atac": data["atac"][:-30].copy(),
        "protein": protein(data, **options)[::2].copy(),
    }
    joined = MuData(mods)
    joined.obsm["spatial"] = data[joined.obs_names].obsm["spatial"]
    joined.obsm["true_factors"] = data[joined.obs_names].obsm["true_factors"]
    return joined


@pytest.fixture(scope="module", params=["nb", "gaussian"])
def fitted(request, simulated):
    """Three modalities, each of them lacking in some spots."""
    data = three(simulated, gaussian=request.param == "gaussian")
    mods = ["rna", "atac", "protein"]
    gpnsf.tl.fit(
        data,
        modalities=mods,
        likelihoods={"protein": request.param},
        max_steps=30,
        init="spot",
        **SHORT,
    )
    return data


def test_three_modalities_share_the_factors_of_all_spots(fitted):
    assert fitted.obsm["X_gpnsf"].shape == (150, 4)
    assert np.isfinite(fitted.obsm["X_gpnsf"]).all()
    assert list(fitted.uns["gpnsf"]["likelihoods"]) == ["rna", "atac", "protein"]
    for name, mod in fitted.mod.items():
        assert mod.varm["gpnsf_loadings"].shape == (mod.n_vars, 4)
        rows = fitted.obs_names.get_indexer(mod.obs_names)
        np.testing.assert_array_equal(
            mod.obsm["X_gpnsf"], fitted.obsm["X_gpnsf"][rows], err_msg=name
        )


def test_every_modality_is_explained(fitted):
    table = gpnsf.tl.evaluate(fitted).set_index("modality")
    assert table["n_obs"].to_dict() == {"rna": 130, "atac": 120, "protein": 75}
    assert (table["explained"] > 0).all()
    assert table.loc["protein", "explained"] > 0.3
    explained = gpnsf.tl.variance_explained(fitted)
    assert set(explained["modality"]) == {"rna", "atac", "protein"}
    np.testing.assert_allclose(explained.groupby("factor")["share"].sum(), 1)


def test_spots_without_proteins_get_theirs_from_the_rest(fitted, simulated):
    imputed = gpnsf.tl.impute(fitted, modality="protein")
    lacking = ~imputed.obs["measured"].to_numpy()
    assert lacking.sum() == 75
    kind = fitted.uns["gpnsf"]["likelihoods"]["protein"]
    hidden = protein(simulated, gaussian=kind == "gaussian")[fitted.obs_names[lacking]].X
    r = [np.corrcoef(hidden[:, j], imputed.X[lacking][:, j])[0, 1] for j in range(hidden.shape[1])]
    assert np.mean(r) > 0.5


def test_other_tools_know_the_third_modality(fitted):
    names = gpnsf.tl.rank_features(fitted, modality="protein", n_features=2)["feature"]
    assert names.str.startswith("protein_").all()
    predicted = gpnsf.tl.predict(
        fitted, fitted.obsm["spatial"][:5], features={"protein": "protein_3", "atac": "peak_1"}
    )
    assert list(predicted.obsm["expected"]) == ["protein:protein_3", "atac:peak_1"]
    assert len(gpnsf.pl.top_features(fitted, show=False)) == 4
    assert len(gpnsf.pl.variance_explained(fitted, show=False).get_yticklabels()) == 3


def test_modalities_of_other_names_are_counts_by_default(simulated):
    metabolites = protein(simulated, seed=1)
    metabolites.var_names = [f"metabolite_{j}" for j in range(metabolites.n_vars)]
    data = MuData({"metabolites": metabolites, "protein": protein(simulated)})
    data.obsm["spatial"] = simulated.obsm["spatial"]
    gpnsf.tl.fit(data, max_steps=5, **SHORT)
    assert data.uns["gpnsf"]["likelihoods"] == {"metabolites": "nb", "protein": "nb"}


def turned_slices(**options) -> MuData:
    """Three simulated sections, the second turned by a right angle, the third mirrored and far away."""
    data = gpnsf.datasets.tissue(n_libraries=3, **options)
    coords, library = data.obsm["spatial"].copy(), data.obs["library"].cat.codes.to_numpy()
    coords[library == 1] = coords[library == 1] @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    coords[library == 2] = coords[library == 2] * [-1, 1] + 1e5
    data.obsm["spatial"] = coords
    return data


def test_where_a_slice_lies_does_not_matter():
    data = turned_slices(n_obs=90, n_genes=30, n_peaks=30, n_spatial=2)
    moved = data.copy()
    moved.obsm["spatial"] = (
        data.obsm["spatial"] - np.where(data.obs["library"] == "section_3", 9e4, 0)[:, None]
    )
    for each in (data, moved):
        gpnsf.tl.fit(each, library_key="library", max_steps=4, init="random", **SHORT)
    np.testing.assert_allclose(moved.obsm["X_gpnsf"], data.obsm["X_gpnsf"], rtol=1e-3, atol=1e-3)


def test_slices_may_lack_modalities():
    data = turned_slices(n_obs=90, n_genes=30, n_peaks=30, n_spatial=2)
    library = data.obs["library"].astype(str)
    part = MuData(
        {
            "rna": data["rna"].copy(),
            "atac": data["atac"][(library != "section_2").to_numpy()].copy(),
        }
    )
    part.obsm["spatial"], part.obs["library"] = data.obsm["spatial"], library
    gpnsf.tl.fit(part, library_key="library", max_steps=4, init="random", **SHORT)
    measured = gpnsf.tl.impute(part, modality="atac").obs["measured"].to_numpy()
    np.testing.assert_array_equal(measured, (library != "section_2").to_numpy())


def recovery(data: MuData, rows: np.ndarray, n_spatial: int) -> float:
    """Mean correlation of the true spatial factors with those matched to them, on some rows."""
    truth, estimate = data.obsm["true_factors"], data.obsm["X_gpnsf"]
    columns, _ = match_factors(truth, estimate)
    return float(
        np.mean(
            [
                np.corrcoef(truth[rows, k], estimate[rows, columns[k]])[0, 1]
                for k in range(n_spatial)
            ]
        )
    )


@pytest.mark.slow
def test_slices_together_are_recovered_no_worse_than_alone():
    data = turned_slices(
        n_obs=600, n_genes=200, n_peaks=300, n_spatial=3, n_nonspatial=1, rna_depth=600.0
    )
    names = data.obs["library"].astype(str).to_numpy()
    options = {**SHORT, "n_spatial": 3, "init": "spot"}
    joint = gpnsf.tl.fit(data, library_key="library", copy=True, **options)
    for name in np.unique(names):
        single = data[names == name].copy()
        gpnsf.tl.fit(single, **options)
        assert (
            recovery(joint, names == name, 3)
            >= recovery(single, np.ones(single.n_obs, bool), 3) - 0.01
        )
