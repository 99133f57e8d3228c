"""Factors in relation to the totals of spots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import toy_dataset

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.inference import moves, standing
from gpnsf.core.inference.regroup import regrouped
from gpnsf.core.likelihoods.moments import Moments
from gpnsf.core.model.build import build
from gpnsf.core.model.relative import expected, relative, same_total, sample
from gpnsf.io.read import read

LIKELIHOODS = {"rna": "poisson", "atac": "poisson"}


def problem(by_total: bool = True, n_spatial: int = 2, **options):
    """A model of three factors away from its start, with its block."""
    torch.manual_seed(0)
    dataset = toy_dataset(LIKELIHOODS, by_total=by_total, **options)
    model = build("gpnsf", dataset, n_factors=3, n_spatial=n_spatial)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    blocks = model.blocks(dataset)
    model.prepare(blocks)
    model.look(blocks)
    return dataset, model, blocks


def totals(model, block) -> torch.Tensor:
    """Expected counts [n] of factors, over the modalities, at equal size factors."""
    m, v = model.relative_marginals(block)
    return (m + v / 2).exp() @ model.mass()


def test_factors_of_every_spot_add_up_to_the_same():
    _, model, (block,) = problem()
    found = totals(model, block)
    torch.testing.assert_close(found, model.mass().sum().expand_as(found))


def test_nothing_is_relative_without_totals():
    _, model, (block,) = problem(by_total=False)
    for relative_one, own in zip(
        model.relative_marginals(block), model.marginals(block), strict=True
    ):
        torch.testing.assert_close(relative_one, own)


def test_what_is_relative_stays_and_a_common_factor_goes():
    m, mass = torch.randn(20, 3), torch.tensor([1.0, 5.0, 0.3])
    once = relative(m, None, mass)
    torch.testing.assert_close(relative(once, None, mass), once)
    torch.testing.assert_close(relative(m + torch.randn(20, 1), None, mass), once)


def test_totals_of_some_modalities_make_nothing_relative(mdata):
    """A section whose RNA has totals and whose ATAC has other size factors."""
    mdata["rna"].obs["depth"] = np.asarray(mdata["rna"].X.sum(1)).ravel()
    mdata["atac"].obs["depth"] = np.linspace(1.0, 2.0, mdata["atac"].n_obs)
    dataset, _ = read(mdata, Reading(size_factors="depth"))
    assert [view.by_total for view in dataset.views] == [True, False]
    assert not build("gpnsf", dataset, n_factors=3, n_spatial=2).by_total


@pytest.mark.parametrize(("open_peaks", "by_total"), [(0.05, True), (0.3, False)])
def test_many_open_peaks_are_no_total(mdata, open_peaks, by_total):
    atac = mdata["atac"]
    atac.X = (np.random.default_rng(0).random(atac.shape) < open_peaks).astype(np.float32)
    dataset, _ = read(mdata, Reading(size_factors="total"))
    assert [view.by_total for view in dataset.views] == [True, by_total]


def test_peaks_alone_make_nothing_relative():
    alone = toy_dataset({"atac": "bernoulli"}, by_total=True)
    assert not build("gpnsf", alone, n_factors=3, n_spatial=2).by_total


def test_a_single_factor_is_relative_to_nothing(mdata):
    gpnsf.tl.fit(mdata, n_factors=1, n_spatial=1, split="assumed", max_steps=40, progress=False)
    assert "mass" not in mdata.uns["gpnsf"]["field"]
    assert mdata.obsm["X_gpnsf"].std() > 0.05


@pytest.mark.parametrize("n_spatial", [3, 1])
def test_the_bound_is_one(n_spatial):
    """It is not above the mean of the log likelihood over draws of the log factors."""
    _, model, (block,) = problem(n_spatial=n_spatial)
    h, bound, mean = model.marginals(block), 0.0, 0.0
    with torch.no_grad():
        seen = model.relative_marginals(block)
        m, v = h
        draws = m + v.sqrt() * torch.randn(400, *m.shape)
        for name, view in model.items():
            W, size = view.loadings.mean, block.size[name]
            moments = Moments.lognormal(*seen, size)
            bound += float(view.likelihood.bound(block.counts[name], moments, W))
            values = []
            for draw in draws:
                A = torch.cat([size * model.relative(draw).exp(), size], 1)
                values.append(
                    float(view.likelihood.bound(block.counts[name], Moments.certain(A), W))
                )
            mean += np.mean(values)
    assert bound < mean + 0.5
    assert bound > mean - 0.05 * abs(mean)


def test_gradients_reach_what_all_factors_share():
    """Where one log factor rises, the rates of the others fall."""
    _, model, (block,) = problem(n_spatial=0)
    m, v = model.relative_marginals(block)
    (slope,) = torch.autograd.grad(m[3, 0], model.nonspatial.loc)
    assert slope[3, 0] > 0
    assert (slope[3, 1:] < 0).all()


def test_changes_of_factors_keep_what_is_expected_of_a_spot():
    dataset, model, blocks = problem()
    before = model.mass().sum()
    with same_total(model):
        for _, view in model.items():
            view.loadings.raw.data[:, 0] += 1.0
    torch.testing.assert_close(model.mass().sum(), before)
    graph = standing.neighbours(blocks)
    moves.make(moves.Move(((0, 1),)), model, blocks)
    torch.testing.assert_close(model.mass().sum(), before)
    moves.join(model, blocks, graph)
    torch.testing.assert_close(model.mass().sum(), before)
    fewer = build("gpnsf", dataset, n_factors=2, n_spatial=1)
    regrouped(model, fewer, fewer.blocks(dataset), standing.log_factors(model, blocks), [0, 2])
    torch.testing.assert_close(fewer.mass().sum(), before)


def test_factors_are_joined_by_what_is_beyond_the_mean_profile():
    """A spot with more of a factor has less of all others: loadings hold what all spots have in common."""
    _, model, blocks = problem()
    with torch.no_grad():
        for _, view in model.items():
            own = view.loadings.raw[:, :-1].exp()
            profile = torch.linspace(1.0, 30.0, len(own))[:, None]
            view.loadings.raw.data[:, :-1] = (own + profile * own.mean()).log()
    m, graph = standing.log_factors(model, blocks), standing.neighbours(blocks)
    model.by_total = False
    alike = standing.Standing(model, blocks, graph, m=m).likeness
    assert alike.min() > moves.EQUAL
    model.by_total = True
    assert not moves.join(model, blocks, graph)


def test_a_merger_of_equal_factors_leaves_the_rates_alone():
    """Two factors with the same loadings, whose sum takes their place."""
    _, model, blocks = problem(n_spatial=0)
    for _, view in model.items():
        view.loadings.raw.data[:, 1] = view.loadings.raw[:, 0]

    def rates() -> torch.Tensor:
        with torch.no_grad():
            m = model.relative(standing.log_factors(model, blocks))
            return m.exp() @ model.views[0].loadings.mean[:, :-1].T

    before = rates()
    moves.make(moves.Move(((0, 1),)), model, blocks)
    torch.testing.assert_close(rates(), before, rtol=0.01, atol=1e-3)


def test_means_over_the_factors_of_other_spots():
    field, others, mass = torch.rand(5, 2), torch.rand(40, 1) * 3, torch.tensor([2.0, 1.0, 4.0])
    means, added = expected(field, others, mass)
    every = [
        relative(torch.cat([field, other.expand(5, 1)], 1).log(), None, mass) for other in others
    ]
    torch.testing.assert_close(means, torch.stack(every).exp().mean(0))
    torch.testing.assert_close(added, torch.stack(every)[:, :, :1].var(0, correction=0))


def test_without_nonspatial_factors_fields_say_it_all():
    field, mass = torch.rand(5, 2), torch.tensor([2.0, 1.0])
    others = sample(torch.zeros(30, 0), torch.ones(30, dtype=torch.bool))
    means, added = expected(field, others, mass)
    torch.testing.assert_close(means @ mass, mass.sum().expand(5))
    torch.testing.assert_close(added, torch.zeros(5, 1))


def test_a_sample_is_of_spots_that_were_seen():
    seen = torch.arange(300) % 3 == 0
    found = sample(torch.arange(300.0)[:, None] / 100, seen).log() * 100
    assert len(found) == 100
    assert (found.round() % 3 == 0).all()


def test_expected_totals_of_spots_are_their_totals():
    """Without deviations of single spots, whatever else a factor of single spots does."""
    mdata = gpnsf.datasets.tissue(n_obs=300, n_genes=80, n_peaks=10, n_spatial=2, seed=0)
    adata = mdata["rna"].copy()
    gpnsf.tl.fit(adata, n_factors=4, n_spatial=2, split="assumed", refine=False, progress=False)
    rates = adata.obsm["X_gpnsf"] @ adata.varm["gpnsf_loadings"].sum(0)
    assert rates.std() / rates.mean() < 0.05


@pytest.mark.parametrize("name", ["mass", "others"])
@pytest.mark.parametrize("change", [lambda a: a[:, None], lambda a: np.nan * a, lambda a: "words"])
def test_damage_to_what_is_stored_is_refused(adata, name, change):
    gpnsf.tl.fit(adata, n_factors=3, n_spatial=2, split="assumed", max_steps=4, progress=False)
    gpnsf.tl.predict(adata, adata.obsm["spatial"] + 0.1)
    state = adata.uns["gpnsf"]["field"]
    state[name] = change(state[name])
    with pytest.raises((TypeError, ValueError), match=name):
        gpnsf.tl.predict(adata, adata.obsm["spatial"] + 0.1)


@pytest.mark.slow
def test_dilution_is_no_loss_of_a_factor():
    """Factors of a simulated tissue, relative to totals: intervals hold, as they do not without (eq. 4b)."""
    adata = gpnsf.datasets.tissue(rna_depth=4000, n_obs=1500, n_peaks=10, seed=6)["rna"].copy()
    gpnsf.tl.fit(adata, n_factors=10, n_spatial=8, progress=False)
    total = np.asarray(adata.X.sum(1)).ravel()
    ratio = adata.obs["true_size"].to_numpy() / total
    truth = np.log(adata.obsm["true_factors"] * ratio[:, None])
    mean = adata.obsm["X_gpnsf"].astype(np.float64)
    place, _ = gpnsf.core.scores.metrics.match_factors(np.exp(truth), mean)
    error = np.log(mean[:, place]) - truth
    error = (error - np.log(np.exp(error).mean(0)))[:, :8]
    assert np.sqrt((error**2).mean()) < 0.39
