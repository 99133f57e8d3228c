"""Loadings: the Pyro sites, the closed form of them, and what steps and moves do to them."""

from __future__ import annotations

import math
from itertools import product

import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import Distribution
from torch.distributions import kl_divergence

from gpnsf.core.model.loadings import CHARGES, LEAST_OF_LEAD, SHAPES, GammaLoadings, PointLoadings

P, K = 12, 3


@pytest.fixture(autouse=True)
def _keep_random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def gamma(*, background: bool = True, n_batches: int = 1) -> GammaLoadings:
    """Loadings away from their start, exposed to something."""
    generator = torch.Generator().manual_seed(0)
    loadings = GammaLoadings(P, K, background=background, n_batches=n_batches)
    loadings.raw.data += torch.randn(P, K + 1, generator=generator)
    loadings.log_shape.data += 0.5 * torch.randn(K + 1, generator=generator)
    loadings.prepare(200 * torch.rand(P, generator=generator), leads=False)
    for batch in range(n_batches):
        loadings.see(batch, 3 * torch.rand(20, K + 1, generator=generator))
    loadings.end_pass()
    return loadings


def site(program, *arguments) -> dict:
    return poutine.trace(program).get_trace("W", *arguments).nodes["W"]


def law(found: dict) -> Distribution:
    return found["fn"].base_dist


def test_the_closed_form_is_that_of_the_sites(subtests):
    for background, weight in product((True, False), (1.0, 0.2)):
        with subtests.test(background=background, weight=weight):
            loadings = gamma(background=background)
            closed = loadings.posterior(None, weight)
            prior, own = site(loadings.model), site(loadings.guide, None, weight)
            assert law(own).batch_shape == law(prior).batch_shape == (P, K + background)
            assert own["scale"] == prior["scale"] == pytest.approx(loadings.charge.item())
            expected = own["scale"] * kl_divergence(own["fn"], prior["fn"]).double()
            torch.testing.assert_close(closed.divergence.double(), expected, rtol=1e-4, atol=1e-3)
            n = K + background
            torch.testing.assert_close(law(own).mean, closed.mean[:, :n])
            geometric = torch.exp(torch.digamma(law(own).concentration)) / law(own).rate
            torch.testing.assert_close(geometric, closed.geometric[:, :n], rtol=1e-4, atol=1e-6)
            if not background:
                assert (closed.mean[:, -1] == 0).all()
                assert (closed.geometric[:, -1] == 0).all()


def test_the_prior_has_a_mean_for_each_factor_and_level():
    loadings = gamma()
    prior = law(site(loadings.model))
    mu = (loadings.mean / loadings.level[:, None]).mean(0)
    torch.testing.assert_close(prior.mean, mu * loadings.level[:, None])
    torch.testing.assert_close(prior.concentration[0], loadings.log_shape.exp())
    assert loadings.level.mean() == pytest.approx(1)


def test_the_mean_of_the_prior_is_where_the_divergence_is_least():
    """Type-II maximum likelihood: that is why no gradient goes through it."""
    loadings = gamma()
    prior, own = (
        law(site(program, *args))
        for program, args in ((loadings.model, ()), (loadings.guide, (None, 1.0)))
    )

    def divergence(factor: float) -> float:
        return (
            kl_divergence(own, type(prior)(prior.concentration, prior.rate * factor)).sum().item()
        )

    assert divergence(1.0) < min(divergence(0.99), divergence(1.01))


def test_more_weight_or_exposure_makes_loadings_more_certain():
    loadings = gamma()
    spread = [law(site(loadings.guide, None, weight)).variance for weight in (0.5, 1.0, 2.0)]
    assert (spread[0] > spread[1]).all()
    assert (spread[1] > spread[2]).all()
    loadings.see(0, 100 * torch.ones(20, K + 1))
    loadings.end_pass()
    assert (law(site(loadings.guide, None, 1.0)).variance < spread[2]).all()


def test_the_exposure_is_the_sum_of_a_pass_in_blocks_of_any_size():
    one, other = gamma(), gamma()
    rows = torch.rand(30, K + 1)
    one.see(0, rows)
    for part in rows.split(7):
        other.see(0, part)
    before = other.exposure.clone()
    for loadings in (one, other):
        loadings.end_pass()
    torch.testing.assert_close(one.exposure, other.exposure)
    torch.testing.assert_close(one.exposure[0], rows.sum(0))
    assert not torch.equal(before, other.exposure)
    one.end_pass()  # nothing was seen: nothing changes
    torch.testing.assert_close(one.exposure, other.exposure)


def test_batches_see_loadings_through_their_multipliers():
    loadings = gamma(n_batches=2)
    multipliers = torch.rand(2, P) + 0.5
    own = (
        law(site(loadings.guide, multipliers, 1.0)).rate
        - law(site(loadings.guide, 0 * multipliers, 1.0)).rate
    )
    expected = (
        multipliers[0][:, None] * loadings.exposure[0]
        + multipliers[1][:, None] * loadings.exposure[1]
    )
    torch.testing.assert_close(own, expected / loadings.charge)


def test_features_with_few_counts_are_charged_less(subtests):
    for count, leads, charge in (
        (1.0, False, CHARGES[0]),
        (1.0, True, LEAST_OF_LEAD),
        (15.0, True, 0.15),
        (40.0, False, 0.4),
        (40.0, True, 0.4),
        (1e4, True, CHARGES[1]),
    ):
        with subtests.test(count=count, leads=leads, charge=charge):
            loadings = gamma()
            loadings.prepare(torch.full((P,), count), leads=leads)
            assert loadings.charge.item() == pytest.approx(charge)


def test_shapes_stay_inside_their_range():
    loadings = gamma()
    loadings.log_shape.data.copy_(torch.tensor([-50.0, 0.3, 50.0, 0.0]))
    loadings.clamp_()
    expected = [math.log(SHAPES[0]), 0.3, math.log(SHAPES[1]), 0.0]
    torch.testing.assert_close(loadings.log_shape.detach(), torch.tensor(expected))


def test_a_factor_can_be_replaced_and_switched_off():
    loadings = gamma()
    before, wanted = loadings.raw.detach().clone(), torch.rand(P) + 0.1
    loadings.put(1, wanted, like=2)
    torch.testing.assert_close(loadings.mean[:, 1].detach(), wanted)
    assert loadings.log_shape[1] == loadings.log_shape[2]
    loadings.switch_off(0)
    assert loadings.mean[:, 0].max() < 1e-4 * loadings.mean.mean()
    torch.testing.assert_close(loadings.raw[:, 2:].detach(), before[:, 2:], rtol=0, atol=0)
    assert torch.isfinite(loadings.posterior(None, 1.0).divergence)


def test_loadings_can_be_loaded(subtests):
    for background, kind in product((True, False), ("gamma", "point", "signed")):
        with subtests.test(background=background, kind=kind):
            if kind == "gamma":
                loadings = GammaLoadings(4, 2, background=background)
            else:
                loadings = PointLoadings(4, 2, background=background, nonnegative=kind == "point")
            wanted = torch.rand(4, 3) + 0.1
            loadings.load(wanted)
            seen = wanted.clone()
            seen[:, -1] *= background
            torch.testing.assert_close(loadings.mean.detach(), seen)
            loadings.load(torch.zeros(4, 3))
            assert torch.isfinite(loadings.raw).all()


def test_point_estimates_have_no_site_and_cost_nothing():
    loadings = PointLoadings(P, K, background=True, nonnegative=True)
    trace = poutine.trace(loadings.model).get_trace("W")
    assert "W" not in trace.nodes
    assert loadings.posterior(None, 1.0).divergence == 0
    assert loadings.posterior(None, 1.0).geometric is None
