"""Loadings at fixed factors: the formulas, and what they are for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import toy_dataset

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.inference import loading_stage, moves, training
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.spatial_test import halves
from gpnsf.core.likelihoods.moments import Moments
from gpnsf.core.model.build import build
from gpnsf.io.read import read

POISSON = {"rna": "poisson", "atac": "bernoulli"}
BRIEF = Schedule(max_steps=15, pick_steps=5, moves=0)


def trained(dataset, **options):
    """A model after a few steps, and its blocks."""
    model = build("gpnsf", dataset, n_factors=3, n_spatial=2, **options)
    training.fit(model, dataset, init="spot", schedule=BRIEF)
    return model, model.blocks(dataset)


def by_hand(counts, A, W, level, multipliers, weight):
    """Eqs. L5 and L6 with dense arrays; ``multipliers`` [N, P] are those of the batch of each spot."""
    alpha = 0.5
    exposure = weight * (multipliers.T @ A)

    def rates(W):
        return alpha / ((W / level[:, None]).mean(0) * level[:, None]) + exposure

    n = np.maximum(W * rates(W) - alpha, 0)
    for _ in range(loading_stage.N_PASSES):
        own = n / n.sum(1, keepdims=True) * min(weight, 1)
        others = (alpha + n - own) / rates(W)
        ratio = counts / (A @ others.T)  # multipliers of a batch cancel
        n = weight * others * (ratio.T @ A)
        W = (alpha + n) / rates(W)
    return W


@pytest.mark.parametrize("kl_weight", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("n_batches", [1, 2])
def test_loadings_are_those_of_the_formulas(kl_weight, n_batches):
    dataset = toy_dataset({"rna": "poisson"})
    if n_batches > 1:
        dataset = replace(dataset, batch=np.arange(dataset.n_obs) // (dataset.n_obs // n_batches))
    model, blocks = trained(dataset, kl_weight=kl_weight)
    view = dict(model.items())["rna"]
    A = torch.cat([model.moments("rna", block).mean for block in blocks]).detach().double().numpy()
    seen = [view.as_seen(torch.ones(view.loadings.shape[0], 1), block.batch) for block in blocks]
    multipliers = np.concatenate(
        [
            np.tile(own.detach().numpy().T, (block.rows.stop - block.rows.start, 1))
            for own, block in zip(seen, blocks, strict=True)
        ]
    )
    expected = by_hand(
        dataset.views[0].counts.toarray(),
        A,
        view.loadings.mean.detach().double().numpy(),
        view.loadings.level.double().numpy(),
        multipliers,
        1 / kl_weight,
    )
    loading_stage.settle(model, blocks)
    np.testing.assert_allclose(view.loadings.mean.detach().numpy(), expected, rtol=2e-3, atol=1e-6)


def test_row_blocks_add_up():
    dataset = toy_dataset({"rna": "nb", "atac": "bernoulli"})
    model, blocks = trained(dataset)
    before = {name: view.loadings.raw.detach().clone() for name, view in model.items()}
    found = []
    for parts in (blocks, model.blocks(dataset, 7)):
        for name, view in model.items():
            view.loadings.raw.data.copy_(before[name])
        loading_stage.settle(model, parts)
        found.append([view.loadings.mean.detach().numpy() for _, view in model.items()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_point_estimates_stay():
    dataset = toy_dataset({"rna": "poisson"})
    model, _ = trained(dataset, loadings="point")
    before = dict(model.items())["rna"].loadings.mean.detach().clone()
    loading_stage.settle(model, model.blocks(dataset))
    assert torch.equal(before, dict(model.items())["rna"].loadings.mean.detach())


def test_loadings_of_shallow_peaks_predict_held_out_counts():
    """Half of the counts, nine a peak, predict the other half half as well again as with mean field."""
    mdata = gpnsf.datasets.ggblocks(atac_open=(0.06, 0.01), seed=0)
    dataset, _ = read(mdata, Reading(size_factors=None, likelihoods=POISSON))
    fitted, kept = halves(dataset, np.random.default_rng(0))
    model = build("gpnsf", fitted, n_factors=7, n_spatial=4)
    training.fit(model, fitted, init="smooth_0")
    blocks, others = model.blocks(fitted), model.blocks(kept)
    view = dict(model.items())["atac"]

    def score(W: torch.Tensor) -> float:
        pairs = zip(blocks, others, strict=True)
        moments = [
            (block.counts["atac"], Moments.certain(model.moments("atac", own).mean))
            for own, block in pairs
        ]
        return sum(float(view.likelihood.bound(*pair, W)) for pair in moments)

    with torch.no_grad():
        flat = torch.zeros_like(view.loadings.mean)
        total = sum(block.counts["atac"].column_sums for block in blocks)
        flat[:, -1] = (total + 0.5) / dataset.n_obs
        before = score(view.loadings.mean) - score(flat)
        loading_stage.settle(model, blocks)
        after = score(view.loadings.mean) - score(flat)
    assert after > 1.5 * before > 0


def test_loadings_are_those_of_adopted_factors_not_of_their_fields():
    def found(log_factor=None):
        model, blocks = trained(toy_dataset({"rna": "poisson"}))
        with torch.no_grad():
            field = torch.cat([model.marginals(block)[0] for block in blocks])[:, 0]
        adopted = {} if log_factor is None else {0: moves.Adopted(log_factor(field), 0.1)}
        loading_stage.settle(model, blocks, adopted)
        assert model.spatial.deviations is None, "the local stage looks for them"
        return model.views[0].loadings.mean.detach()

    plain = found()
    torch.testing.assert_close(found(lambda field: field), plain)
    noise = torch.randn(
        toy_dataset({"rna": "poisson"}).n_obs, generator=torch.Generator().manual_seed(3)
    )
    change = (found(lambda field: field + noise) - plain).norm(dim=0) / plain.norm(dim=0)
    assert change[0] > 0.1
