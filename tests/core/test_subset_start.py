"""Large fits begin at the fit of a sample: its rows stand for all, and it costs no recovery."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from anndata import AnnData
from reference import toy_dataset

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.inference import fitting, initial, subset_start, training
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.model.build import build
from gpnsf.core.progress import Progress
from gpnsf.core.scores.metrics import match_factors
from gpnsf.core.types import Dataset
from gpnsf.datasets import tissue
from gpnsf.io.read import read

TWO = {"rna": "nb", "atac": "bernoulli"}
SHORT = Schedule(max_steps=12)


@pytest.fixture(autouse=True)
def _small_samples(monkeypatch):
    _small(monkeypatch)


def fitted(dataset: Dataset, preset: str = "gpnsf", **options) -> fitting.Outcome:
    def make(dataset: Dataset, n_spatial: int, n_factors: int = 3):
        return build(preset, dataset, n_factors=n_factors, n_spatial=n_spatial, n_inducing=20)

    n_spatial = {"pnmf": 0, "nsf": 3}.get(preset, 2)
    return fitting.fit(dataset, make, n_factors=3, n_spatial=n_spatial, schedule=SHORT, **options)


def test_small_data_have_no_sample():
    assert subset_start.sample(toy_dataset(TWO, n_obs=30), seed=0) is None


def test_every_slice_batch_and_set_of_modalities_is_in_the_sample():
    dataset = toy_dataset(TWO, n_obs=300, missing=5)
    library = np.where(np.arange(300) % 50 == 7, 1, 0)
    batch = np.where(np.arange(300) < 290, 0, 1)
    rows = subset_start.sample(replace(dataset, library=library, batch=batch), seed=0)
    assert (np.diff(rows) > 0).all()
    assert 30 <= len(rows) <= 30 + 4 * 4
    assert np.bincount(library[rows])[1] >= 4
    assert np.bincount(batch[rows])[1] >= 4
    assert (~dataset.views[1].observed[rows]).sum() >= 4
    other = subset_start.sample(replace(dataset, library=library, batch=batch), seed=1)
    assert rows.tolist() != other.tolist()


def test_many_nonzeros_make_a_smaller_sample(monkeypatch):
    dataset = toy_dataset(TWO, n_obs=40)
    monkeypatch.setattr(subset_start, "ROWS", 1000)
    assert subset_start.sample(dataset, seed=0) is None
    monkeypatch.setattr(subset_start, "NONZEROS", dataset.nnz // 4)
    assert len(subset_start.sample(dataset, seed=0)) == 20


@pytest.mark.broad(2)
@pytest.mark.parametrize("preset", ["gpnsf", "nsf", "pnmf"])
@pytest.mark.parametrize("block_size", [None, 17])
def test_every_model_of_counts_begins_at_its_sample(preset, block_size):
    dataset = toy_dataset(TWO, n_obs=90, missing=6)
    found = fitted(dataset, preset, block_size=block_size)
    assert len(found.history.starts) == 1
    assert found.posterior.mean.shape[0] == 90
    assert 1 <= found.posterior.mean.shape[1] <= 3
    assert np.isfinite(found.posterior.mean).all()
    assert np.isfinite(found.history.elbo).all()


def test_real_values_have_no_sample():
    assert subset_start.sample(toy_dataset({"rna": "gaussian"}, n_obs=90), seed=0) is None


@pytest.mark.slow
def test_a_sample_of_batches_with_slices():
    dataset = replace(toy_dataset(TWO, n_obs=90, n_libraries=2), batch=np.repeat([0, 1, 2], 30))
    assert fitted(dataset).posterior.multipliers["rna"].shape == (10, 3)


def recovered(truth: np.ndarray, found: np.ndarray, n_spatial: int) -> np.ndarray:
    """Mean correlation of spatial, and of nonspatial factors with the truth."""
    kinds = slice(n_spatial), slice(n_spatial, None)
    return np.array([match_factors(truth[:, kind], found[:, kind])[1].mean() for kind in kinds])


def section(n_obs: int, n_genes: int, n_spatial: int, depth: float) -> tuple[AnnData, np.ndarray]:
    """Simulated counts with known size factors and factors."""
    mdata = tissue(
        n_obs=n_obs,
        n_genes=n_genes,
        n_peaks=20,
        n_spatial=n_spatial,
        n_nonspatial=1,
        rna_depth=depth,
        seed=1,
    )
    adata = mdata["rna"].copy()
    adata.obsm["spatial"], adata.obs["size"] = (
        mdata.obsm["spatial"],
        np.asarray(mdata.obs["true_size_rna"]),
    )
    return adata, np.asarray(mdata.obsm["true_factors"])


def fit(adata: AnnData, n_spatial: int) -> np.ndarray:
    options = {
        "likelihoods": "poisson",
        "size_factors": "size",
        "split": "assumed",
        "progress": False,
    }
    gpnsf.tl.fit(adata, n_factors=n_spatial + 1, n_spatial=n_spatial, **options)
    return adata.obsm["X_gpnsf"]


@pytest.mark.slow
def test_rows_that_are_not_in_the_sample_come_as_near_to_their_truth(monkeypatch):
    monkeypatch.setattr(subset_start, "ROWS", 200)
    adata, truth = section(600, 60, 2, 1_000.0)
    begun = []
    load = training.Stepper.begin
    monkeypatch.setattr(
        training.Stepper, "begin", lambda self, start: (begun.append(start), load(self, start))[1]
    )
    fit(adata, 2)
    inside = np.zeros(600, bool)
    inside[subset_start.sample(read(adata)[0], seed=0)] = True
    seen, other = (recovered(truth[rows], begun[-1].factors[rows], 2) for rows in (inside, ~inside))
    assert seen.min() > 0.7
    assert (other > seen - 0.2).all()


@pytest.mark.slow
def test_the_sample_is_not_fitted_again_after_an_interruption(tmp_path, monkeypatch, adata):
    options = {
        "n_factors": 3,
        "n_spatial": 2,
        "max_steps": 8,
        "split": "assumed",
        "progress": False,
    }
    other = adata.copy()
    monkeypatch.setattr("gpnsf.core.inference.local_stage.local", _stopped)
    with pytest.raises(KeyboardInterrupt):
        gpnsf.tl.fit(adata, checkpoint=tmp_path / "fit.npz", **options)
    monkeypatch.undo()
    _small(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(initial, "starts", _stopped)
        gpnsf.tl.fit(adata, checkpoint=tmp_path / "fit.npz", **options)
    gpnsf.tl.fit(other, **options)
    np.testing.assert_array_equal(adata.obsm["X_gpnsf"], other.obsm["X_gpnsf"])


def _stopped(*_, **__):
    raise KeyboardInterrupt


def _small(monkeypatch) -> None:
    monkeypatch.setattr(subset_start, "ROWS", 30)
    monkeypatch.setattr(subset_start, "FEWEST", 20)
    monkeypatch.setattr(subset_start, "STRATUM", 4)


@pytest.mark.slow
def test_a_sample_costs_no_recovery(monkeypatch):
    adata, truth = section(5_000, 300, 4, 300.0)
    found = {}
    for rows in (1_250, 10**9):
        monkeypatch.setattr(subset_start, "ROWS", rows)
        found[rows] = recovered(truth, fit(adata, 4), 4)
    assert found[10**9][0] > 0.9
    assert (found[1_250] > found[10**9] - 0.01).all()


@pytest.mark.slow
def test_the_modality_that_tells_most_goes_ahead_of_larger_ones(monkeypatch):
    mdata = tissue(
        n_obs=400,
        n_genes=80,
        n_peaks=900,
        n_spatial=3,
        n_nonspatial=1,
        rna_depth=400.0,
        atac_depth=300.0,
        seed=0,
    )
    data, _ = read(mdata, Reading(size_factors="true_size"))
    assert subset_start.lone(data) is None  # small
    monkeypatch.setattr(subset_start, "MANY", 1_000)
    assert subset_start.lone(data) == "rna"
    assert subset_start.lone(replace(data, views=data.views[:1])) is None  # alone anyway
    real = tuple(replace(view, likelihood="gaussian") for view in data.views)
    assert subset_start.lone(replace(data, views=real)) is None

    def make(part, n_spatial):
        return build("gpnsf", part, n_factors=4, n_spatial=n_spatial)

    options = training.Options(
        schedule=Schedule(max_steps=100), block_size=None, seed=0, progress=Progress("fit", 1.0)
    )
    (start,) = subset_start.SubsetStart(data, None, "rna", make, 3, "smooth", options)
    assert set(start.loadings) == {"rna", "atac"}
    truth, weights = mdata.obsm["true_factors"], mdata["atac"].varm["true_loadings"]
    order, r = match_factors(truth[:, :3], start.factors[:, :3])
    assert r.min() > 0.9
    shares = [W / W.sum(1, keepdims=True) for W in (weights, start.loadings["atac"][:, :4])]
    r = [np.corrcoef(shares[0][:, k], shares[1][:, order[k]])[0, 1] for k in range(3)]
    assert min(r) > 0.6
