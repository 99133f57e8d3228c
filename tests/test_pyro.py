"""What the models promise as Pyro programs."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from reference import toy_dataset
from torch.distributions import kl_divergence

import gpnsf
from gpnsf.core.model import FIELDS, PRESETS, Factorization, build

TWO = {"rna": "nb", "atac": "bernoulli"}
SPATIAL = {0.0: 0, 0.5: 2, 1.0: 3}
each_preset = pytest.mark.parametrize("preset", PRESETS)
each_field = pytest.mark.parametrize("field", FIELDS)


@pytest.fixture(autouse=True)
def _keep_random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def problem(preset: str, field: str = "hilbert"):
    """A dataset and a model away from its start, with its block."""
    likelihoods = TWO if PRESETS[preset].nonnegative else {"rna": "gaussian"}
    dataset = toy_dataset(likelihoods, n_obs=40)
    n_spatial = SPATIAL[PRESETS[preset].spatial]
    model = build(preset, dataset, n_factors=3, n_spatial=n_spatial, field=field, n_inducing=15)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return dataset, model, model.blocks(dataset)[0]


def latent(trace: poutine.Trace) -> dict[str, dist.Distribution]:
    """Distributions of the latent variables; factors count as observed."""
    sites = trace.nodes.items()
    return {name: site["fn"] for name, site in sites if site["type"] == "sample" and not site["is_observed"]}


@each_preset
@each_field
def test_model_and_guide_share_their_latent_variables(preset, field):
    _, model, block = problem(preset, field)
    prior, posterior = (latent(poutine.trace(part).get_trace(block)) for part in (model.model, model.guide))
    assert prior.keys() == posterior.keys()
    expected = {"u": model.spatial, "h_nonspatial": model.nonspatial}
    assert prior.keys() == {name for name, part in expected.items() if part is not None}


@each_preset
@each_field
def test_every_divergence_is_analytic(preset, field):
    """An unregistered pair would make TraceMeanField sample without a word."""
    _, model, block = problem(preset, field)
    prior, posterior = (latent(poutine.trace(part).get_trace(block)) for part in (model.model, model.guide))
    for name, q in posterior.items():
        assert kl_divergence(q, prior[name]).item() > 0
    objective = TraceMeanField_ELBO()
    values = {objective.differentiable_loss(model.model, model.guide, block).item() for _ in range(3)}
    assert len(values) == 1


@each_preset
@each_field
def test_sampled_and_analytic_bounds_agree(preset, field):
    _, model, block = problem(preset, field)
    with torch.no_grad():
        draws = torch.tensor([Trace_ELBO().loss(model.model, model.guide, block) for _ in range(120)])
        expected = TraceMeanField_ELBO().loss(model.model, model.guide, block)
    assert draws.mean().item() == pytest.approx(expected, abs=4 * draws.std().item() / 120**0.5 + 1e-3 * abs(expected))


@each_preset
def test_the_generative_process_draws_factors_then_counts(preset):
    dataset, model, _ = problem(preset)
    (block,) = model.blocks(dataset, counts=False)
    trace = poutine.trace(model.model).get_trace(block)
    names = [name for name, site in trace.nodes.items() if site["type"] == "sample"]
    assert names[-len(model.names) :] == list(model.names)
    assert set(names) - set(model.names) <= {"u", "h_spatial", "h_nonspatial"}
    assert torch.isfinite(trace.log_prob_sum())


@each_preset
def test_predictive_draws_every_modality(preset):
    dataset, model, _ = problem(preset)
    (block,) = model.blocks(dataset, counts=False)
    draws = Predictive(model.model, num_samples=4)(block)
    for name in model.names:
        assert draws[name].shape == (4, 40, 10)
        assert (draws[name][0] != draws[name][1]).any()


def test_counts_are_scored_only_where_a_block_holds_them():
    _, model, block = problem("gpnsf")
    sites = poutine.trace(model.model).get_trace(block).nodes
    scored = {name for name, site in sites.items() if site["type"] == "sample" and site["is_observed"]}
    assert scored == {"rna", "rna_prior", "atac", "atac_prior"}


@each_field
def test_pyro_can_train_the_model_by_itself(field):
    """The objective needs nothing of ours: any optimiser on Pyro's loss climbs."""
    _, model, block = problem("gpnsf", field)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        value = TraceMeanField_ELBO().differentiable_loss(model.model, model.guide, block)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 10


@each_field
@pytest.mark.parametrize("n_samples", [1, 3])
def test_monte_carlo_gradients_follow_the_draws(field, n_samples):
    """Reparametrised: with the same random numbers the gradient is the slope of the objective."""
    _, model, block = problem("gpnsf", field)
    model.n_samples = n_samples
    ways = [torch.randn_like(parameter) for parameter in model.parameters()]

    def move(step: float) -> None:
        for parameter, way in zip(model.parameters(), ways, strict=True):
            parameter.data += step * way

    def value() -> torch.Tensor:
        torch.manual_seed(7)
        return TraceMeanField_ELBO().differentiable_loss(model.model, model.guide, block)

    slopes = torch.autograd.grad(value(), list(model.parameters()))
    slope = sum((gradient * way).sum().item() for gradient, way in zip(slopes, ways, strict=True))
    move(2e-3)
    up = value().item()
    move(-4e-3)
    assert slope == pytest.approx((up - value().item()) / 4e-3, rel=0.02)


# ---- nothing is left behind -----------------------------------------------------------------------------------------


def test_the_parameter_store_is_never_used(simulated):
    pyro.clear_param_store()
    data = simulated.copy()
    gpnsf.tl.fit(data, n_factors=2, n_spatial=1, init="random", max_steps=3, progress=False)
    gpnsf.tl.predict(data)
    assert not list(pyro.get_param_store().keys())


def test_two_fits_in_one_process_do_not_meet(simulated):
    """A second fit, of other data in between, ends where it ends alone."""
    options = {"n_factors": 2, "n_spatial": 1, "init": "spot", "max_steps": 8, "progress": False}
    first, other, again = simulated.copy(), simulated["rna"][:, ::2].copy(), simulated.copy()
    other.obsm["spatial"] = simulated.obsm["spatial"]
    gpnsf.tl.fit(first, **options)
    gpnsf.tl.fit(other, **options)
    gpnsf.tl.fit(again, **options)
    np.testing.assert_array_equal(first.obsm["X_gpnsf"], again.obsm["X_gpnsf"])
    np.testing.assert_array_equal(first["atac"].varm["gpnsf_loadings"], again["atac"].varm["gpnsf_loadings"])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("objective", ["closed_form", "monte_carlo"])
def test_global_state_is_as_before(simulated, preset, objective):
    adata = simulated["rna"].copy()
    adata.obsm["spatial"] = simulated.obsm["spatial"]
    before = _global_state()
    gpnsf.tl.fit(adata, preset, n_factors=3, objective=objective, init="spot", max_steps=3, progress=False)
    assert _global_state() == before


def _global_state() -> dict:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "pyro": [
            pyro.settings.get(name) for name in ("validate_distributions_pyro", "validate_infer", "validate_poutine")
        ],
        "distributions": torch.distributions.Distribution._validate_args,
        "store": list(pyro.get_param_store().keys()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
    }


def test_parameters_belong_to_their_model():
    dataset, model, _ = problem("gpnsf")
    other = build("gpnsf", dataset, n_factors=3, n_spatial=2)
    assert isinstance(other, Factorization)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}
