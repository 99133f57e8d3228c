"""Batch effects through `tl.fit`: slots, order of rows, predictions, and the recovery that they restore."""

from __future__ import annotations

import mudata as md
import numpy as np
import pytest
from anndata import AnnData
from mudata import MuData

import gpnsf
from gpnsf.core.scores.metrics import match_factors

SHORT = {
    "n_factors": 4,
    "max_steps": 20,
    "init": "random",
    "split": "assumed",
    "progress": False,
}


def fit(data: MuData | AnnData, **options):
    return gpnsf.tl.fit(data, **{**SHORT, **options})


@pytest.fixture
def sliced():
    return slices()


def slices(seed: int = 0) -> MuData:
    """Simulated slices with batch effects; cells of the two alternate."""
    mdata = gpnsf.datasets.tissue(
        n_obs=160,
        n_genes=40,
        n_peaks=60,
        n_spatial=2,
        rna_depth=800,
        n_libraries=2,
        batch_effect=0.5,
        seed=seed,
    )
    order = np.argsort(np.arange(160) % 80, kind="stable")
    mods = {name: mod[order].copy() for name, mod in mdata.mod.items()}
    result = MuData(mods)
    result.obs["library"] = mdata.obs["library"].to_numpy()[order]
    return result


@pytest.mark.slow
def test_multipliers_are_written_with_the_names_of_their_batches(sliced, tmp_path):
    fit(sliced, library_key="library", batch_key="library")
    assert list(sliced.uns["gpnsf"]["batches"]) == ["section_1", "section_2"]
    for mod in sliced.mod.values():
        multipliers = mod.varm["gpnsf_batch"]
        assert multipliers.dtype == np.float32
        assert multipliers.shape == (mod.n_vars, 2)
        assert (multipliers > 0).all()
        assert multipliers.mean(1) == pytest.approx(1, abs=0.2)
    estimate, truth = (
        np.log(sliced["rna"].varm[key])[:, 0] for key in ("gpnsf_batch", "true_batch")
    )
    assert np.corrcoef(estimate, truth)[0, 1] > 0.8
    sliced.write(tmp_path / "a.h5mu")
    again = md.read_h5mu(tmp_path / "a.h5mu")
    assert list(again.uns["gpnsf"]["batches"]) == ["section_1", "section_2"]
    fit(sliced)
    assert "gpnsf_batch" not in sliced["rna"].varm
    assert list(sliced.uns["gpnsf"]["batches"]) == []


@pytest.mark.slow
def test_the_order_of_rows_does_not_matter(sliced):
    order = np.argsort(sliced.obs["library"].to_numpy(), kind="stable")
    rna = sliced["rna"].copy()
    rna.obs["library"] = sliced.obs["library"].to_numpy()
    other = rna[order].copy()
    for data in (rna, other):
        fit(data, batch_key="library")
    for slot in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std"):
        np.testing.assert_allclose(rna.obsm[slot][order], other.obsm[slot], rtol=1e-5)
    np.testing.assert_allclose(rna.varm["gpnsf_batch"], other.varm["gpnsf_batch"], rtol=1e-5)
    importance = rna.obs["gpnsf_spatial_importance"].to_numpy()
    np.testing.assert_allclose(importance[order], other.obs["gpnsf_spatial_importance"], rtol=1e-5)


@pytest.mark.slow
def test_cells_of_a_modality_in_another_order_get_their_own_row(sliced):
    rna, atac = sliced["rna"], sliced["atac"][::-1][:150].copy()
    library = sliced.obs["library"].copy()
    data = MuData({"rna": rna, "atac": atac})
    data.obs["library"] = library.reindex(data.obs_names)
    fit(data, batch_key="library")
    rows = data.obs_names.get_indexer(atac.obs_names)
    np.testing.assert_array_equal(data["atac"].obsm["X_gpnsf"], data.obsm["X_gpnsf"][rows])


def test_expected_totals_of_each_batch_are_the_observed_ones(sliced):
    rna = sliced["rna"].copy()
    rna.obs["library"] = sliced.obs["library"].to_numpy()
    fit(rna, batch_key="library", likelihoods="poisson", max_steps=80)
    total = np.asarray(rna.X.sum(1)).ravel()
    code = (rna.obs["library"] == "section_2").to_numpy().astype(int)
    rate = (
        rna.obsm["X_gpnsf"] @ rna.varm["gpnsf_loadings"].T + rna.var["gpnsf_background"].to_numpy()
    )
    expected = (total / total.mean())[:, None] * rna.varm["gpnsf_batch"].T[code] * rate
    for batch in (0, 1):
        observed = np.asarray(rna.X[code == batch].sum(0)).ravel()
        assert (
            np.corrcoef(np.log(observed + 1), np.log(expected[code == batch].sum(0) + 1))[0, 1]
            > 0.98
        )


@pytest.mark.slow
def test_multipliers_serve_to_judge_rows_that_were_held_out():
    sliced = slices(seed=1)
    sliced.obs["held"] = np.arange(sliced.n_obs) % 5 == 0
    explained = []
    for batch_key in (None, "library"):
        fit(
            sliced,
            library_key="library",
            batch_key=batch_key,
            holdout_key="held",
            init="spot",
            max_steps=60,
        )
        table = gpnsf.tl.evaluate(sliced).set_index(["modality", "rows"])
        explained.append(table.loc[("rna", "holdout"), "explained"])
    assert explained[1] > explained[0] + 0.01
    sliced["rna"].varm["gpnsf_batch"] = np.ones_like(sliced["rna"].varm["gpnsf_batch"])
    without = (
        gpnsf.tl.evaluate(sliced)
        .set_index(["modality", "rows"])
        .loc[("rna", "holdout"), "explained"]
    )
    assert without < explained[1] - 0.01


@pytest.mark.slow
def test_one_batch_has_no_multipliers_and_says_so(adata, caplog):
    adata.obs["run"] = "first"
    other = adata.copy()
    with caplog.at_level("WARNING", logger="gpnsf"):
        fit(adata, batch_key="run")
    assert sum("batch_key='run' has no effect" in record.message for record in caplog.records) == 1
    fit(other)
    np.testing.assert_array_equal(adata.obsm["X_gpnsf"], other.obsm["X_gpnsf"])
    assert "gpnsf_batch" not in adata.varm


@pytest.mark.parametrize("model", ["fa", "rsf"])
def test_signed_models_have_no_batches(adata, model):
    adata.obs["run"] = ["a", "b"] * 75
    with pytest.raises(ValueError, match="Expected no batches for model=.*got batch_key='run'"):
        fit(adata, model=model, batch_key="run")


@pytest.mark.parametrize("block_size", [None, 30])
def test_a_batch_may_be_wholly_held_out(sliced, block_size):
    sliced.obs["held"] = (sliced.obs["library"] == "section_2").to_numpy()
    fit(sliced, batch_key="library", holdout_key="held", block_size=block_size, max_steps=6)
    assert np.isfinite(sliced.obsm["X_gpnsf"]).all()
    np.testing.assert_allclose(sliced["rna"].varm["gpnsf_batch"][:, 0], 1, rtol=1e-5)


def three_slices(effect: float, seed: int) -> AnnData:
    """Simulated RNA of three slices whose depths are as 320, 160 and 75."""
    mdata = gpnsf.datasets.tissue(
        n_obs=2400,
        n_genes=600,
        n_peaks=1,
        n_spatial=6,
        rna_depth=320,
        dispersion=10.0,
        lengthscales=(0.12, 0.4),
        amplitude=1.0,
        n_libraries=3,
        batch_effect=effect,
        seed=seed,
    )
    rna = mdata["rna"].copy()
    kept = np.array([1, 160 / 320, 75 / 320])[np.arange(2400) // 800]
    counts = rna.X.data.astype(int)
    rna.X.data = (
        np.random.default_rng(seed)
        .binomial(counts, np.repeat(kept, np.diff(rna.X.indptr)))
        .astype(np.float32)
    )
    rna.obs["size"] = rna.obs["true_size"] * kept
    return rna


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_multipliers_give_back_what_batch_effects_take(seed):
    recovery = {}
    options = {"n_factors": 8, "n_spatial": 6, "size_factors": "size", "progress": False}
    options |= {"init": "spot", "split": "assumed"}
    for effect in (0.0, 0.6):
        rna = three_slices(effect, seed)
        for batch_key in (None, "library"):
            gpnsf.tl.fit(rna, library_key="library", batch_key=batch_key, **options)
            found = match_factors(rna.obsm["true_factors"][:, :6], rna.obsm["X_gpnsf"][:, :6])[1]
            recovery[effect, batch_key] = found.mean()
    clean = recovery[0.0, None]
    assert clean > 0.95
    assert recovery[0.0, "library"] > clean - 0.01
    assert recovery[0.6, None] < clean - 0.2
    assert recovery[0.6, "library"] > clean - 0.02
