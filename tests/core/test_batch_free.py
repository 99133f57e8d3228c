"""Multipliers of batches: what they change in the model, and that they change nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
from bounds import loss
from drawn import prior_predictive
from reference import toy_dataset

from gpnsf.core.inference.batch_free import corrected
from gpnsf.core.inference.local_stage import local, mean_field
from gpnsf.core.inference.posterior import summarise
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.training import fit
from gpnsf.core.model.build import build
from gpnsf.core.model.factorization import BATCH_SD
from gpnsf.core.types import Dataset

TWO = {"rna": "nb", "atac": "bernoulli"}
BATCH = np.repeat([0, 1, 2], [25, 5, 30])


def batched(likelihoods: dict[str, str] | None = None) -> Dataset:
    return replace(toy_dataset(likelihoods or TWO), batch=BATCH)


def model_of(dataset: Dataset, *, sd: float = 0.0, **options: str):
    """A model away from its start; the multipliers have the given spread."""
    model = build("gpnsf", dataset, n_factors=3, n_spatial=2, **options)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if "log_multipliers" in name:
            own = torch.Generator().manual_seed(1)
            parameter.data = sd * torch.randn(parameter.shape, generator=own)
        elif parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def test_without_batches_there_is_nothing_to_estimate():
    model = build("gpnsf", toy_dataset(TWO), n_factors=3, n_spatial=2)
    assert not [name for name, _ in model.named_parameters() if "multipliers" in name]
    view = next(iter(model.views))
    torch.testing.assert_close(view.loadings_of(0), view.loadings.mean, rtol=0, atol=0)


@pytest.mark.parametrize("block_size", [None, 7, 100])
def test_row_blocks_never_mix_batches(block_size):
    dataset = batched()
    blocks = model_of(dataset).blocks(dataset, block_size)
    assert [i for block in blocks for i in range(block.rows.start, block.rows.stop)] == list(
        range(60)
    )
    for block in blocks:
        assert (dataset.batch[block.rows] == block.batch).all()
    assert sum(block.share for block in blocks) == pytest.approx(1)


def test_multipliers_of_one_are_no_multipliers():
    dataset = batched()
    plain = replace(dataset, batch=None)
    model, other = model_of(dataset), model_of(plain)
    expected = loss(other, other.blocks(plain)).item()
    assert loss(model, model.blocks(dataset)).item() == pytest.approx(expected, rel=1e-5)


def test_a_multiplier_scales_the_rates_of_its_batch_and_costs_its_prior():
    dataset = batched({"rna": "poisson"})
    model, plain = (model_of(dataset, sd=sd, loadings="point") for sd in (0.4, 0.0))
    (name, view), (_, other) = next(model.items()), next(plain.items())
    expected = (
        loss(plain, plain.blocks(dataset)).item()
        + (0.5 * (view.log_multipliers / BATCH_SD) ** 2).sum().item()
    )
    for block in plain.blocks(dataset):
        moments = plain.moments(name, block)
        own, multipliers = other.loadings.mean, view.log_multipliers[block.batch].exp()[:, None]
        for W, sign in ((own, 1), (multipliers * own, -1)):
            expected += sign * view.likelihood.bound(block.counts[name], moments, W).item()
    assert loss(model, model.blocks(dataset)).item() == pytest.approx(expected, rel=1e-5)


def test_loadings_are_exposed_to_the_multipliers_of_their_feature():
    dataset = batched({"rna": "poisson"})
    model = model_of(dataset, sd=0.4)
    blocks, (name, view) = model.blocks(dataset), next(model.items())
    model.look(blocks)
    own = torch.stack(
        [model.moments(name, block).mean.sum(0) for block in blocks]
    )  # a block is a batch here
    site = poutine.trace(view.loadings.guide).get_trace("W", view.multipliers, 1.0).nodes["W"]
    without = (
        poutine.trace(view.loadings.guide).get_trace("W", 0 * view.multipliers, 1.0).nodes["W"]
    )
    rates = site["fn"].base_dist.rate - without["fn"].base_dist.rate
    torch.testing.assert_close(
        rates, view.multipliers.T @ own / view.loadings.charge, rtol=1e-4, atol=1e-2
    )


def test_blocks_of_any_size_add_up_to_the_same_objective():
    dataset = batched()
    model = model_of(dataset, sd=0.4)
    expected = loss(model, model.blocks(dataset)).item()
    assert loss(model, model.blocks(dataset, 4)).item() == pytest.approx(expected, rel=1e-5)


def test_counts_drawn_from_the_prior_carry_the_multipliers():
    dataset = batched({"rna": "poisson"})
    model = build("gpnsf", dataset, n_factors=3, n_spatial=2, loadings="point")
    view = next(iter(model.views))
    view.loadings.raw.data += 5
    view.log_multipliers.data[1, 0], view.log_multipliers.data[2, 1] = -30.0, -30.0
    counts = prior_predictive(model, dataset)["rna"]
    assert counts.shape == dataset.views[0].counts.shape
    assert (counts[BATCH == 1, 0] == 0).all()
    assert (counts[BATCH == 2, 1] == 0).all()
    assert counts[BATCH == 0][:, :2].min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [local, mean_field])
def test_what_is_reported_has_mean_one_and_the_rates_of_the_model(stage):
    dataset = batched({"rna": "poisson"})
    model = model_of(dataset, sd=0.4)
    blocks = model.blocks(dataset, 20)
    result = summarise(model, dataset, blocks, stage(model, blocks))
    multipliers, size = result.multipliers["rna"], dataset.views[0].size
    np.testing.assert_allclose(size @ multipliers.T[BATCH] / size.sum(), 1, rtol=1e-5)
    ratio = np.log(multipliers).T - next(iter(model.views)).log_multipliers.detach().numpy()
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), atol=1e-5)
    rates = (
        size[:, None]
        * multipliers.T[BATCH]
        * (result.mean @ result.loadings["rna"].T + result.background["rna"])
    )
    assert rates.sum() == pytest.approx(dataset.views[0].counts.sum(), rel=0.01)


def test_the_information_on_loadings_goes_through_the_multipliers():
    """A batch that is seen twice as deeply by its multipliers tells as much as one with twice the size factors."""
    dataset = batched({"rna": "poisson"})
    view = dataset.views[0]
    model, other = model_of(dataset), model_of(dataset)
    next(iter(model.views)).log_multipliers.data[0] = np.log(2.0)
    deeper = replace(view, size=view.size * np.where(BATCH == 0, np.float32(2), np.float32(1)))
    results = []
    for candidate, data in ((model, dataset), (other, replace(dataset, views=(deeper,)))):
        blocks = candidate.blocks(data)
        results.append(
            summarise(candidate, data, blocks, mean_field(candidate, blocks)).importance_std["rna"]
        )
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3)


def test_starts_see_counts_without_the_difference_between_batches():
    dataset = batched({"rna": "poisson"})
    view = dataset.views[0]
    counts = view.counts.toarray() + 20
    counts[BATCH == 2, 0] *= 8
    dataset = replace(
        dataset,
        views=(replace(view, counts=type(view.counts)(counts), size=np.ones(60, np.float32)),),
    )
    seen = corrected(dataset).views[0].counts.toarray()
    per_batch = np.array([seen[BATCH == code].mean(0) for code in range(3)])
    np.testing.assert_allclose(
        per_batch, np.broadcast_to(per_batch.mean(0), per_batch.shape), rtol=0.05
    )
    assert dataset.views[0].counts[BATCH == 2][:, 0].mean() > 100


def test_starts_see_open_peaks_as_at_most_one():
    dataset = batched({"atac": "bernoulli"})
    assert corrected(dataset).views[0].counts.max() <= 1
    assert corrected(replace(dataset, batch=None)).views[0] is dataset.views[0]


@pytest.mark.slow
@pytest.mark.parametrize("likelihoods", [TWO, {"rna": "poisson", "protein": "gaussian"}])
def test_a_fit_finds_the_gene_that_one_batch_lacks(likelihoods):
    dataset = batched(likelihoods)
    name = next(iter(likelihoods))
    (view,) = (view for view in dataset.views if view.name == name)
    counts = view.counts.toarray()
    counts[BATCH == 0, 3] = 0
    views = tuple(
        replace(v, counts=type(v.counts)(counts)) if v is view else v for v in dataset.views
    )
    dataset = replace(dataset, views=views)
    model = build("gpnsf", dataset, n_factors=3, n_spatial=2)
    fit(model, dataset, schedule=Schedule(max_steps=60))
    first = dict(model.items())[name].log_multipliers.detach()
    assert torch.isfinite(first).all()
    assert first[0, 3] < first[2, 3] - 0.5
    assert first[0, 3] < first[0].median() - 0.5
