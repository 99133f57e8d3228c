"""Starting points: legal, reproducible, and near the truth where there is one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from reference import toy_dataset

from gpnsf.arguments import Reading
from gpnsf.core.inference import bins, initial
from gpnsf.core.scores.metrics import match_factors
from gpnsf.core.types import Dataset, Start
from gpnsf.datasets import ggblocks
from gpnsf.io import read

TWO = {"rna": "nb", "atac": "bernoulli"}
NAMES = {
    "auto": ["smooth_0", "smooth_0.1", "spot"],
    "smooth": ["smooth_0", "smooth_0.1"],
    "wide": ["smooth_0.1"],
    "spot": ["spot"],
    "random": ["random"],
}


def starts(dataset: Dataset, n_factors: int = 3, n_spatial: int = 2, **options) -> list[Start]:
    return list(initial.starts(dataset, n_factors, n_spatial, **options))


def test_each_kind_has_its_starts(subtests):
    for kind in NAMES:
        with subtests.test(kind=kind):
            assert [start.name for start in starts(toy_dataset(TWO), kinds=[kind])] == NAMES[kind]


def test_without_spatial_factors_nothing_is_smoothed(subtests):
    for kind, expected in (("auto", ["spot"]), ("smooth", ["spot"]), ("random", ["random"])):
        with subtests.test(kind=kind):
            assert [
                start.name for start in starts(toy_dataset(TWO), n_spatial=0, kinds=[kind])
            ] == expected


def test_shallow_counts_get_more_bandwidths(monkeypatch):
    monkeypatch.setattr(initial, "DEEP", np.inf)
    names = [start.name for start in starts(toy_dataset(TWO))]
    assert names == ["smooth_0", "smooth_0.06", "smooth_0.1", "smooth_0.16", "spot"]
    assert [start.name for start in starts(toy_dataset(TWO), kinds=["wide"])] == ["smooth_0.16"]


def test_deep_counts_have_smaller_bins():
    assert bins.n_bins(4_000, 100) == bins.n_bins(4_000, 100, depth=999.0) == 500
    assert bins.n_bins(4_000, 100, depth=1_000.0) == 1_000


def test_many_spots_get_two_starts(monkeypatch):
    monkeypatch.setattr(initial, "LARGE", 50)
    assert [start.name for start in starts(toy_dataset(TWO))] == ["smooth_0", "spot"]


def test_a_start_is_legal(subtests):
    data = (
        {},
        {"n_dims": 1},
        {"n_libraries": 2, "missing": 9},
        {"n_dims": 3, "missing": 5},
    )
    for kind, (n_spatial, options) in product(NAMES, enumerate(data)):
        with subtests.test(kind=kind, n_spatial=n_spatial, **options):
            dataset = toy_dataset(TWO, **options)
            for start in starts(dataset, n_spatial=n_spatial, kinds=[kind]):
                assert start.factors.shape == (60, 3)
                assert start.factors.dtype == np.float32
                assert (start.factors > 0).all()
                np.testing.assert_allclose(start.factors.mean(0), 1, rtol=1e-4)
                for name in TWO:
                    assert start.loadings[name].shape == (10, 4)
                    assert np.isfinite(start.loadings[name]).all()
                    assert (start.loadings[name] >= 0).all()


def test_a_start_is_reproducible(subtests):
    dataset = toy_dataset(TWO)
    for kind in NAMES:
        with subtests.test(kind=kind):
            before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
            for one, other in zip(
                starts(dataset, kinds=[kind]), starts(dataset, kinds=[kind]), strict=True
            ):
                np.testing.assert_array_equal(one.factors, other.factors)
                np.testing.assert_array_equal(one.loadings["atac"], other.loadings["atac"])
            assert torch.equal(before[0], torch.get_rng_state())
            np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_seeds_give_different_starts(subtests):
    for kind in ("spot", "random", "smooth"):
        with subtests.test(kind=kind):
            first, second = (
                starts(toy_dataset(TWO), kinds=[kind], seed=seed)[0].factors for seed in (0, 1)
            )
            assert (first != second).any()


def test_expected_totals_are_near_the_observed_ones(subtests):
    """Loadings are fitted at the factors, with the constant column beside them."""
    dataset = toy_dataset({"rna": "poisson"})
    for kind in NAMES:
        with subtests.test(kind=kind):
            for start in starts(dataset, kinds=[kind]):
                A = np.column_stack([start.factors, np.ones(60)]) * dataset.views[0].size[:, None]
                assert (A @ start.loadings["rna"].T).sum() == pytest.approx(
                    dataset.views[0].counts.sum(), rel=0.01
                )


def test_signed_models_start_at_the_singular_vectors(subtests):
    dataset = toy_dataset({"rna": "gaussian"})
    Y = dataset.views[0].counts.toarray()
    left = np.linalg.svd(Y - Y.mean(0))[0][:, :3]
    for n_spatial in (0, 2):
        with subtests.test(n_spatial=n_spatial):
            (start,) = starts(dataset, n_spatial=n_spatial, nonnegative=False)
            assert start.name == "svd"
            correlation = np.abs(np.corrcoef(left.T, start.factors.T)[:3, 3:])
            np.testing.assert_allclose(np.sort(correlation.max(1)), 1, atol=1e-3)
            A = np.column_stack([start.factors, np.ones(60)])
            residual = Y - A @ start.loadings["rna"].T
            np.testing.assert_allclose(A.T @ residual, 0, atol=0.05)


def test_more_factors_than_singular_vectors_are_filled_up():
    dataset = toy_dataset({"rna": "gaussian"}, n_features=4)
    (start,) = starts(dataset, n_factors=4, n_spatial=0, nonnegative=False)
    assert start.factors.shape == (60, 4)
    assert np.isfinite(start.loadings["rna"]).all()


def test_values_around_zero_start_a_nonnegative_model_too():
    for start in starts(toy_dataset({"rna": "poisson", "protein": "gaussian"})):
        assert (start.loadings["protein"] >= 0).all()
        assert start.loadings["protein"].any()


def test_constant_values_have_a_start_too():
    dataset = toy_dataset({"rna": "gaussian"})
    view = replace(dataset.views[0], counts=sp.csr_matrix(np.full((60, 10), 2.0, np.float32)))
    (start,) = starts(replace(dataset, views=(view,)), nonnegative=False)
    assert np.isfinite(start.factors).all()
    np.testing.assert_allclose(start.loadings["rna"][:, -1], 2, rtol=1e-3)


def test_many_counts_have_two_starts(monkeypatch):
    monkeypatch.setattr(initial, "MANY", 100)
    monkeypatch.setattr(
        initial, "MAX_FEATURES", 1
    )  # few of the counts are looked at, but the steps that choose see all
    assert [start.name for start in starts(toy_dataset(TWO))] == ["smooth_0", "spot"]


def test_only_the_most_dispersed_features_are_looked_at(monkeypatch):
    monkeypatch.setattr(initial, "MAX_FEATURES", 4)
    for start in starts(toy_dataset(TWO)):
        assert start.loadings["rna"].shape == (10, 4)
        assert np.isfinite(start.loadings["rna"]).all()


def test_features_and_rows_without_counts_are_survived():
    dataset = toy_dataset({"rna": "poisson"})
    counts = dataset.views[0].counts.tolil()
    counts[:5], counts[:, :3] = 0, 0
    counts = counts.tocsr()
    counts.eliminate_zeros()
    view = dataset.views[0]
    changed = Dataset(
        dataset.coords,
        dataset.library,
        (type(view)(view.name, "poisson", counts, view.size, view.observed),),
    )
    for start in starts(changed):
        assert np.isfinite(start.factors).all()
        assert start.loadings["rna"][:3].max() < 1e-6


def test_slices_are_not_smoothed_into_each_other():
    """Two slices at the same coordinates, one bright and one dark in every feature of the first factor."""
    rng = np.random.default_rng(0)
    dataset = toy_dataset({"rna": "poisson"}, n_obs=80, n_libraries=2)
    bright = np.where(dataset.library == 0, 20.0, 0.2)
    view = dataset.views[0]
    counts = type(view.counts)(rng.poisson(np.outer(bright, np.ones(10))).astype(np.float32))
    counts.eliminate_zeros()
    ones = np.ones(80, np.float32)
    coords = np.repeat(dataset.coords[:40], 2, axis=0)  # rows take turns between the slices
    apart = Dataset(
        coords, dataset.library, (type(view)("rna", "poisson", counts, ones, view.observed),)
    )
    for start in starts(apart, n_factors=1, n_spatial=1, kinds=["smooth"]):
        factor = start.factors[:, 0]
        assert factor[dataset.library == 0].min() > 3 * factor[dataset.library == 1].max()


def test_a_start_is_near_a_clear_truth(subtests):
    mdata = ggblocks(n_side=18, n_genes=80, n_peaks=20, seed=1)
    dataset, _ = read.read(
        mdata, Reading(likelihoods="poisson", size_factors=None, modalities=["rna"])
    )

    def nearness(kind: str) -> float:
        truth = mdata.obsm["true_factors"][:, :4]
        return max(
            match_factors(truth, start.factors[:, :4])[1].mean()
            for start in starts(dataset, 7, 4, kinds=[kind])
        )

    for kind in ("smooth", "spot"):
        with subtests.test(kind=kind):
            assert nearness(kind) > 0.8
    assert nearness("random") < 0.3


def test_a_start_that_is_named_is_made_of_any_counts():
    """Half of the counts may be deep where the other half, which has named it, is not."""
    dataset = toy_dataset({"rna": "poisson"}, n_features=200)
    offered = initial.bandwidths(60, 1e3, deep=True)
    (missing, *_) = [own for own in initial.BANDWIDTHS if own not in offered]
    assert dataset.views[0].counts.sum(1).mean() > initial.DEEP
    (start,) = starts(dataset, kinds=[f"smooth_{missing:g}"])
    assert start.name == f"smooth_{missing:g}"
