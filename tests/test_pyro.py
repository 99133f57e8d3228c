"""What the models promise as Pyro programs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from bounds import loss
from drawn import without_counts
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.optim import Adam, ClippedAdam
from reference import toy_dataset
from torch.distributions import kl_divergence

import gpnsf
from gpnsf.core.inference import training
from gpnsf.core.inference.initial import starts
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.model.build import FIELDS, build
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.model.objective import ClosedFormELBO
from gpnsf.core.presets import PRESETS

TWO = {"rna": "nb", "atac": "bernoulli"}
each_preset = pytest.mark.parametrize("preset", PRESETS)
each_field = pytest.mark.parametrize("field", FIELDS)


@pytest.fixture(autouse=True)
def _keep_random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    pyro.clear_param_store()


def problem(preset: str, field: str = "hilbert", **options):
    """A dataset and a model away from its start, with its block."""
    likelihoods = TWO if PRESETS[preset].nonnegative else {"rna": "gaussian"}
    dataset = toy_dataset(likelihoods, n_obs=40)
    n_spatial = round(3 * PRESETS[preset].spatial)
    model = build(
        preset, dataset, n_factors=3, n_spatial=n_spatial, field=field, n_inducing=15, **options
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    blocks = model.blocks(dataset)
    model.prepare(blocks)
    for view in model.views:
        view.likelihood.in_surrogate = False  # the program is that of the likelihood itself
    model.look(blocks)
    return dataset, model, blocks[0]


def toy(n_obs: int = 40, **options):
    """A model of Poisson counts that begins at a start, with its block."""
    dataset = toy_dataset({"rna": "poisson"}, n_obs=n_obs, n_features=8)
    model = build("gpnsf", dataset, n_factors=2, n_spatial=1, lengthscale=0.4, **options)
    blocks = model.blocks(dataset)
    model.load(next(iter(starts(dataset, 2, 1, nonnegative=True, kinds=("spot",)))), blocks)
    return dataset, model, blocks[0]


def latent(trace: poutine.Trace) -> dict[str, dist.Distribution]:
    """Distributions of the latent variables; counts and log priors count as observed."""
    sites = trace.nodes.items()
    return {
        name: site["fn"]
        for name, site in sites
        if site["type"] == "sample" and not site["is_observed"]
    }


def both(model: Factorization, block) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of the guide, and of the model with the guide's draws."""
    guide = poutine.trace(model.guide).get_trace(block)
    return guide, poutine.trace(poutine.replay(model.model, guide)).get_trace(block)


def test_model_and_guide_share_their_latent_variables(subtests):
    for preset, field in product(PRESETS, FIELDS):
        with subtests.test(preset=preset, field=field):
            _, model, block = problem(preset, field)
            posterior, prior = map(latent, both(model, block))
            assert prior.keys() == posterior.keys()
            expected = {"u": model.spatial, "f": model.spatial if field == "inducing" else None}
            expected |= {"h_nonspatial": model.nonspatial}
            expected |= {
                f"{name}_loadings": PRESETS[preset].nonnegative or None for name in model.names
            }
            assert prior.keys() == {name for name, part in expected.items() if part is not None}
            assert all(prior[name].shape() == posterior[name].shape() for name in prior)


def test_every_divergence_is_analytic(subtests):
    """Prior and guide of each variable are of one family; what u leaves open of f is drawn from the prior."""
    for preset, field in product(PRESETS, FIELDS):
        with subtests.test(preset=preset, field=field):
            _, model, block = problem(preset, field)
            posterior, prior = map(latent, both(model, block))
            for name, q in posterior.items():
                divergence = kl_divergence(q, prior[name]).item()
                assert divergence > 0 if name != "f" else abs(divergence) < 1e-3
            values = {ClosedFormELBO().loss(model, model.guide, block) for _ in range(3)}
            assert len(values) == 1


@pytest.mark.broad(4)
@each_preset
@each_field
def test_the_closed_form_is_a_bound_on_what_draws_say(preset, field):
    """The negative bound of Pyro, on average over draws, is no larger; for real values both are the same."""
    _, model, block = problem(preset, field)
    with torch.no_grad():
        draws = torch.tensor(
            [Trace_ELBO().loss(model.model, model.guide, block) for _ in range(60)]
        )
        closed = ClosedFormELBO().loss(model, model.guide, block)
    error = 4 * draws.std().item() / 60**0.5
    assert draws.mean().item() <= closed + error
    if not PRESETS[preset].nonnegative:
        assert draws.mean().item() >= closed - error - 1e-3 * abs(closed)


def test_the_bound_holds_under_weights_of_divergences_and_modalities():
    _, model, block = problem("gpnsf", kl_weight=3.0)
    next(iter(model.views)).weight = 2.0
    with torch.no_grad():
        draws = torch.tensor(
            [Trace_ELBO().loss(model.model, model.guide, block) for _ in range(60)]
        )
        closed = ClosedFormELBO().loss(model, model.guide, block)
    error = 4 * draws.std().item() / 60**0.5
    assert 0.6 * closed <= draws.mean().item() <= closed + error


def test_the_generative_process_draws_factors_then_loadings_then_counts(subtests):
    for preset in PRESETS:
        with subtests.test(preset=preset):
            dataset, model, _ = problem(preset)
            (block,) = without_counts(model, dataset)
            trace = poutine.trace(model.model).get_trace(block)
            names = [
                name
                for name, site in trace.nodes.items()
                if site["type"] == "sample" and name[-6:] != "_prior"
            ]
            factors = [name for name in names if name in ("u", "h_nonspatial")]
            assert names[: len(factors)] == factors
            loadings = [f"{name}_loadings" for name in model.names]
            expected = (loadings if PRESETS[preset].nonnegative else []) + list(model.names)
            assert names[len(factors) :] == expected
            assert torch.isfinite(trace.log_prob_sum())


def test_predictive_draws_every_modality_from_the_prior(subtests):
    for preset in PRESETS:
        with subtests.test(preset=preset):
            dataset, model, _ = problem(preset)
            (block,) = without_counts(model, dataset)
            draws = Predictive(model, num_samples=4)(block)
            for name in model.names:
                assert draws[name].shape == (4, 40, 10)
                assert (draws[name][0] != draws[name][1]).any()


def test_predictive_draws_from_the_posterior_are_like_the_data():
    dataset, model, _ = toy()
    training.fit(model, dataset, init="spot", schedule=Schedule(max_steps=60, moves=0))
    (block,) = without_counts(model, dataset)
    (view,) = dataset.views
    with torch.no_grad():
        prior = Predictive(model, num_samples=100)(block)["rna"]
        draws = Predictive(model, guide=model.guide, num_samples=100)(block)["rna"]
    mean, counts = draws.mean(0).numpy(), view.counts.toarray()
    found, before = (
        np.corrcoef(values.ravel(), counts.ravel())[0, 1]
        for values in (mean, prior.median(0)[0].numpy())
    )
    assert found > max(0.8, before + 0.1)  # levels of features are known a priori
    assert mean.sum() == pytest.approx(counts.sum(), rel=0.05)


def test_counts_are_scored_only_where_a_block_holds_them():
    _, model, block = problem("gpnsf")
    sites = poutine.trace(model.model).get_trace(block).nodes
    scored = {
        name for name, site in sites.items() if site["type"] == "sample" and site["is_observed"]
    }
    assert scored == {"rna", "rna_prior", "atac", "atac_prior"}


@pytest.mark.broad(4)
@each_preset
@pytest.mark.parametrize(
    ("objective", "field"), [(ClosedFormELBO, "hilbert"), (Trace_ELBO, "inducing")]
)
def test_pyro_can_train_the_model_by_itself(preset, objective, field):
    _, model, block = problem(preset, field)
    before = loss(model, [block]).item()
    svi = SVI(model, model.guide, Adam({"lr": 0.05}), loss=objective())
    for _ in range(15):
        svi.step(block)
    assert loss(model, [block]).item() < before - 10
    if objective is ClosedFormELBO:
        assert svi.evaluate_loss(block) == pytest.approx(loss(model, [block]).item(), rel=1e-4)


def test_models_have_names_of_their_own_in_the_store():
    models = [problem("gpnsf")[1:] for _ in range(2)]
    names = []
    for model, block in models:
        pyro.clear_param_store()
        SVI(model, model.guide, Adam({"lr": 0.05}), loss=ClosedFormELBO()).step(block)
        names.append(set(pyro.get_param_store().keys()))
        learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {name.split(".", 1)[1] for name in names[-1]} == learnt
        assert all(name.startswith("gpnsf_") for name in names[-1])
    assert not names[0] & names[1]


def test_an_objective_that_does_not_draw_has_nothing_to_trace():
    _, model, block = problem("gpnsf")
    with pytest.raises(TypeError, match=r"got ClosedFormELBO\. Pass pyro\.infer\.Trace_ELBO"):
        next(ClosedFormELBO()._get_traces(model, model.guide, (block,), {}))


@pytest.mark.slow
def test_draws_lead_to_about_the_same_optimum():
    values, rates = [], []
    for objective in (ClosedFormELBO(), Trace_ELBO()):
        _, model, block = toy()
        svi = SVI(model, model.guide, ClippedAdam({"lr": 0.1, "lrd": 0.98}), loss=objective)
        for _ in range(180):
            svi.step(block)
        with torch.no_grad():
            draws = [Trace_ELBO().loss(model.model, model.guide, block) for _ in range(50)]
            rates.append(
                (model.moments("rna", block).mean @ model.views[0].loadings.mean.T).numpy()
            )
        values.append(np.mean(draws))
    assert values[1] == pytest.approx(values[0], rel=0.03)
    assert np.corrcoef(rates[0].ravel(), rates[1].ravel())[0, 1] > 0.98


@pytest.mark.slow
def test_hamiltonian_draws_agree_with_the_guide():
    """The exact posterior at the learnt hyperparameters, from draws that know nothing of the guide."""
    dataset = toy_dataset({"rna": "poisson"}, n_obs=25, n_features=6, n_dims=1)
    model = build("gpnsf", dataset, n_factors=2, n_spatial=1, lengthscale=0.5)
    training.fit(model, dataset, init="spot", schedule=Schedule(max_steps=200, moves=0))
    model.requires_grad_(False)
    (view,), (block,) = model.views, model.blocks(dataset)
    view.loadings.charge.fill_(1.0)
    kernel = NUTS(model.model, max_tree_depth=5)
    sampler = MCMC(kernel, num_samples=100, warmup_steps=60, disable_progbar=True)
    sampler.run(block)
    own = sampler.get_samples()
    without = replace(block, counts={})
    guide = Predictive(model.model, guide=model.guide, num_samples=100)(block)

    def rates(samples) -> torch.Tensor:
        found = []
        for i in range(100):
            values = {name: samples[name][i].reshape(own[name][0].shape) for name in own}
            trace = poutine.trace(poutine.condition(model.model, data=values)).get_trace(without)
            found.append(trace.nodes["rna"]["fn"].base_dist.mean)
        return torch.stack(found).mean(0)

    exact, approximate = rates(own), rates(guide)
    assert torch.corrcoef(torch.stack([exact.ravel(), approximate.ravel()]))[0, 1] > 0.95
    assert approximate.sum() / exact.sum() == pytest.approx(1, abs=0.05)


@each_field
@pytest.mark.parametrize("n_samples", [1, 3])
def test_monte_carlo_gradients_follow_the_draws(field, n_samples):
    """Reparametrised: with the same random numbers the gradient is the slope of the objective."""
    _, model, block = problem("gpnsf", field)
    model.n_samples = n_samples
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ways = [torch.randn_like(parameter) for parameter in learnt]

    def move(step: float) -> None:
        for parameter, way in zip(learnt, ways, strict=True):
            parameter.data += step * way

    def value() -> torch.Tensor:
        torch.manual_seed(7)
        return ClosedFormELBO().differentiable_loss(model, model.guide, block)

    slopes = torch.autograd.grad(value(), learnt)
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


@pytest.mark.slow
def test_two_fits_in_one_process_do_not_meet(simulated):
    """A second fit, of other data in between, ends where it ends alone."""
    options = {"n_factors": 2, "n_spatial": 1, "init": "spot", "max_steps": 8, "progress": False}
    first, other, again = simulated.copy(), simulated["rna"][:, ::2].copy(), simulated.copy()
    other.obsm["spatial"] = simulated.obsm["spatial"]
    gpnsf.tl.fit(first, **options)
    gpnsf.tl.fit(other, **options)
    gpnsf.tl.fit(again, **options)
    np.testing.assert_array_equal(first.obsm["X_gpnsf"], again.obsm["X_gpnsf"])
    np.testing.assert_array_equal(
        first["atac"].varm["gpnsf_loadings"], again["atac"].varm["gpnsf_loadings"]
    )


@pytest.mark.broad(1)
@pytest.mark.parametrize("part", range(3))
def test_global_state_is_as_before(part, adata, subtests):
    options = {"n_factors": 3, "init": "spot", "max_steps": 3, "progress": False}
    for preset, objective in list(product(PRESETS, ("closed_form", "monte_carlo")))[part::3]:
        with subtests.test(preset=preset, objective=objective):
            before = _global_state()
            gpnsf.tl.fit(adata, preset, objective=objective, **options)
            assert _global_state() == before


def _global_state() -> dict:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "pyro": [
            pyro.settings.get(name)
            for name in ("validate_distributions_pyro", "validate_infer", "validate_poutine")
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
