"""Blocks of factors: prior and guide speak of the same variables, and the marginals are those of the guide."""

from __future__ import annotations

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
from torch.distributions import kl_divergence

from gpnsf.core.fields.hilbert import HilbertField
from gpnsf.core.fields.inducing import InducingField
from gpnsf.core.model.factors import AbstractFactors, FieldFactors, NormalFactors

N, T = 30, 2
COORDS = np.random.default_rng(0).uniform(-1, 1, (N, 2)).astype(np.float32)


def spatial() -> tuple[FieldFactors, object]:
    """A block over a field away from its prior, with the place of its rows."""
    field = HilbertField("matern32", T, 1, [1.0, 1.0], n_basis=8)
    torch.manual_seed(1)
    field.u_loc.data.normal_()
    return FieldFactors(field), field.locate(COORDS, np.zeros(N, np.int64))


def nonspatial() -> tuple[NormalFactors, None]:
    """A block of independent factors away from its prior."""
    block = NormalFactors(N, T)
    torch.manual_seed(1)
    block.loc.data.normal_()
    block.log_scale.data.normal_(-1, 0.3)
    block.log_sigma.data.copy_(torch.tensor([-0.5, 0.2]))
    return block, None


BLOCKS = {FieldFactors: spatial, NormalFactors: nonspatial}
each_block = pytest.mark.parametrize(
    "build", BLOCKS.values(), ids=[kind.__name__ for kind in BLOCKS]
)
every_row = slice(0, N)


@pytest.fixture(autouse=True)
def _keep_random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def latent(trace: poutine.Trace) -> dict[str, torch.Size]:
    """Names and shapes of the latent variables."""
    return {
        name: site["value"].shape for name, site in trace.nodes.items() if site["type"] == "sample"
    }


def test_no_missing_block():
    assert set(BLOCKS) == set(AbstractFactors.__subclasses__())


@each_block
def test_model_and_guide_have_the_same_sites(build):
    block, located = build()
    model = poutine.trace(block.model).get_trace(every_row, located)
    guide = poutine.trace(block.guide).get_trace(every_row, located)
    assert latent(model) == latent(guide)
    assert latent(model)


@each_block
def test_the_model_draws_log_factors(build):
    block, located = build()
    drawn = block.model(every_row, located)
    assert drawn.shape == (N, T)
    assert torch.isfinite(drawn).all()


@each_block
def test_the_prior_has_the_moments_it_claims(build):
    block, located = build()
    if isinstance(block, FieldFactors):
        block.field.log_amplitude.data.copy_(torch.tensor([-0.5, 0.2]))
    with torch.no_grad():
        draws = torch.stack([block.model(every_row, located) for _ in range(800)])
    inside = torch.as_tensor(np.abs(COORDS).max(1) < 0.8)
    expected = torch.tensor([-0.5, 0.2]).exp()
    torch.testing.assert_close(
        draws.mean(0)[inside] / expected, torch.zeros(int(inside.sum()), T), atol=0.2, rtol=0
    )
    torch.testing.assert_close(
        draws.std(0)[inside].mean(0) / expected, torch.ones(T), atol=0.15, rtol=0
    )


@each_block
def test_marginals_are_those_of_the_guide(build):
    block, located = build()
    with torch.no_grad():
        if isinstance(block, FieldFactors):
            u = block.field.posterior().expand((3000,)).sample()
            draws = torch.stack([block.field.conditional(one, located)[0] for one in u])
        else:
            draws = torch.stack(
                [
                    poutine.trace(block.guide)
                    .get_trace(every_row, None)
                    .nodes["h_nonspatial"]["value"]
                    for _ in range(3000)
                ]
            )
        mean, variance = block.marginals(every_row, located)
    torch.testing.assert_close(
        (draws.mean(0) - mean) / variance.sqrt(), torch.zeros(N, T), atol=0.12, rtol=0
    )
    tolerance = 0.35 if isinstance(block, FieldFactors) else 0.15  # the grid interpolates variances
    torch.testing.assert_close(draws.var(0) / variance, torch.ones(N, T), atol=tolerance, rtol=0)


def test_local_blocks_have_variables_for_their_rows_alone():
    block, _ = nonspatial()
    assert block.is_local
    rows = slice(5, 12)
    trace = poutine.trace(block.guide).get_trace(rows, None)
    assert trace.nodes["h_nonspatial"]["value"].shape == (7, T)
    mean, variance = block.marginals(rows, None)
    torch.testing.assert_close(mean, block.loc[5:12])
    torch.testing.assert_close(variance, (2 * block.log_scale[5:12]).exp())


def test_a_field_has_the_same_variables_whatever_the_rows():
    block, _ = spatial()
    assert not block.is_local
    few = block.field.locate(COORDS[:3], np.zeros(3, np.int64))
    trace = poutine.trace(block.model).get_trace(slice(0, 3), few)
    assert trace.nodes["u"]["value"].shape == block.field.u_loc.shape


@each_block
def test_the_divergence_is_that_of_the_sites(build):
    block, located = build()
    prior = poutine.trace(block.model).get_trace(every_row, located).nodes
    sites = poutine.trace(block.guide).get_trace(every_row, located).nodes
    expected = sum(
        kl_divergence(site["fn"], prior[name]["fn"]) for name, site in sites.items() if "fn" in site
    )
    torch.testing.assert_close(block.divergence(every_row), expected)
    halves = [block.divergence(rows) for rows in (slice(0, 12), slice(12, N))]
    torch.testing.assert_close(sum(halves) if block.is_local else halves[0], expected)


def test_a_process_that_still_varies_has_a_site_of_its_own():
    """Between inducing points f is not known where u is: prior and guide draw it from the same law."""
    field = InducingField("matern32", T, 1, COORDS[::3], np.zeros(10, np.int64))
    block, located = FieldFactors(field), field.locate(COORDS, np.zeros(N, np.int64))
    guide = poutine.trace(block.guide).get_trace(every_row, located)
    model = poutine.trace(poutine.replay(block.model, guide)).get_trace(every_row, located)
    assert latent(model).keys() == latent(guide).keys() == {"u", "f"}
    torch.testing.assert_close(model.nodes["f"]["fn"].mean, guide.nodes["f"]["fn"].mean)
    assert kl_divergence(guide.nodes["f"]["fn"], model.nodes["f"]["fn"]).abs() < 1e-3


def test_with_a_nugget_spots_deviate_from_their_field():
    """Eq. 3: h = f + e, in the model and in the guide that the local stage leaves."""
    block, located = spatial()
    plain = block.marginals(every_row, located)
    block.nugget.copy_(torch.tensor([0.3, 0.1]))
    block.deviations = torch.full((N, T), 0.5), torch.full((N, T), 0.04)
    with torch.no_grad():
        model, guide = (
            poutine.trace(part).get_trace(every_row, located) for part in (block.model, block.guide)
        )
        assert latent(model) == latent(guide)
        assert latent(model).keys() == {"u", "e"}
        field = block.field.conditional(model.nodes["u"]["value"], located)[0]
    torch.testing.assert_close(model.nodes["_RETURN"]["value"], field + model.nodes["e"]["value"])
    torch.testing.assert_close(
        model.nodes["e"]["fn"].base_dist.scale[0], torch.tensor([0.3, 0.1]).sqrt()
    )
    mean, variance = block.marginals(every_row, located)
    torch.testing.assert_close(mean, plain[0] + 0.5)
    torch.testing.assert_close(variance, plain[1] + 0.04)
