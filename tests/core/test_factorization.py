"""The joint model: what a preset builds, what it draws, and what its objective adds up."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
from bounds import loss
from drawn import prior_predictive
from reference import toy_dataset
from torch.distributions import kl_divergence

from gpnsf.arguments import RULES
from gpnsf.core.families import FAMILIES
from gpnsf.core.fields.kernels import KERNELS
from gpnsf.core.likelihoods import LIKELIHOODS
from gpnsf.core.model.build import FIELDS, build
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.presets import PRESETS

TWO = {"rna": "nb", "atac": "bernoulli"}
SPATIAL = {"fa": 0, "rsf": 3, "pnmf": 0, "nsf": 3, "nsfh": 2, "gpnsf": 2}  # of three factors
SIGNED = ("fa", "rsf")


def model_of(
    preset: str = "gpnsf",
    likelihoods: dict[str, str] | None = None,
    *,
    seed: int = 0,
    **options: Any,
):
    """A dataset, and a model of it whose parameters are away from their start."""
    likelihoods = likelihoods or ({"rna": "gaussian"} if preset in SIGNED else TWO)
    data = {
        key: options.pop(key)
        for key in ("n_obs", "n_libraries", "n_dims", "missing")
        if key in options
    }
    dataset = toy_dataset(likelihoods, **data)
    model = build(
        preset,
        dataset,
        **{"n_factors": 3, "n_spatial": SPATIAL[preset], "n_inducing": 20, **options},
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in learnt(model).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return dataset, model


def learnt(model: Factorization) -> dict[str, torch.nn.Parameter]:
    """Parameters that steps move."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def gradients(model: Factorization, blocks: list[Block]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss(model, blocks).backward()
    return {name: parameter.grad for name, parameter in learnt(model).items()}


def divergence(model: Factorization, block: Block) -> torch.Tensor:
    """Sum of the divergences of all latent variables, each as the scale of its site has it, without the weight of all."""
    drawn = poutine.trace(model.guide).get_trace(block)
    prior = poutine.trace(poutine.replay(model.model, drawn)).get_trace(block).nodes
    sites = drawn.nodes
    latent = {name: site for name, site in sites.items() if site["type"] == "sample"}
    parts = [
        site["scale"] * kl_divergence(site["fn"], prior[name]["fn"])
        for name, site in latent.items()
    ]
    return sum(parts) / model.kl_weight


def expected_log_likelihood(model: Factorization, block: Block) -> torch.Tensor:
    """What the counts of the block say of the posteriors, with the log priors of point estimates."""
    total = 0.0
    for name, view in model.items():
        W = view.loadings.posterior(view.multipliers, view.weight / model.kl_weight)
        total += view.weight * view.likelihood.bound(
            block.counts[name], model.moments(name, block), *W[:2]
        )
        total += block.share * view.log_prior()
    return total


# ---- registries -----------------------------------------------------------------------------------------------------


def test_no_missing_preset():
    assert PRESETS.keys() == SPATIAL.keys()


def test_what_users_may_ask_for_is_what_there_is():
    assert FAMILIES.keys() == LIKELIHOODS.keys()
    assert set(RULES["kernel"].options) == KERNELS.keys()
    assert set(RULES["field"].options) == FIELDS.keys()


def test_a_preset_builds_its_blocks(subtests):
    for preset, field in product(PRESETS, FIELDS):
        with subtests.test(preset=preset, field=field):
            _, model = model_of(preset, field=field)
            assert model.n_factors == 3
            assert model.n_spatial == SPATIAL[preset]
            assert (model.spatial is None) == (SPATIAL[preset] == 0)
            assert (model.nonspatial is None) == (SPATIAL[preset] == 3)
            for _, view in model.items():
                W = view.loadings.mean
                assert W.shape == (10, 4)
                assert (
                    (W[:, -1] != 0).all() if PRESETS[preset].background else (W[:, -1] == 0).all()
                )
                assert (W >= 0).all() or preset in SIGNED
            if model.spatial is not None:
                assert isinstance(model.spatial.field, FIELDS[field])


# ---- parameters -----------------------------------------------------------------------------------------------------


def test_every_parameter_is_trained(subtests):
    """A parameter that no gradient reaches would stay where it began, without a word."""
    for preset, field in product(PRESETS, FIELDS):
        with subtests.test(preset=preset, field=field):
            dataset, model = model_of(preset, field=field)
            for name, gradient in gradients(model, model.blocks(dataset)).items():
                assert gradient is not None, name
                assert torch.isfinite(gradient).all(), name
                assert gradient.abs().sum() > 0, name


def test_every_parameter_of_a_likelihood_is_trained(subtests):
    for likelihood in LIKELIHOODS:
        with subtests.test(likelihood=likelihood):
            preset = "rsf" if likelihood == "gaussian" else "gpnsf"
            dataset, model = model_of(
                preset,
                {"rna": likelihood},
                n_samples=2 if likelihood == "bernoulli_clipped" else None,
            )
            for name, gradient in gradients(model, model.blocks(dataset)).items():
                assert torch.isfinite(gradient).all(), name
                assert gradient.abs().sum() > 0, name


def test_parameters_without_a_part_in_the_objective_are_the_known_ones(monkeypatch):
    """theta waits for the end of the Poisson phase; a diagonal covariance has no triangle; a given length scale stays."""
    monkeypatch.setattr("gpnsf.core.model.build.DEFAULT_INDUCING", 10)
    dataset, model = model_of(field="inducing", lengthscale=0.3)
    for _, view in model.items():
        view.likelihood.prepare([])
    model.zero_grad()
    loss(model, model.blocks(dataset)).backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    exposures = {"views.0.loadings.exposure", "views.1.loadings.exposure"}  # set by the steps
    assert idle - exposures == {
        "spatial.field.u_tril",
        "spatial.field.log_lengthscale",
        "views.0.likelihood.log_theta",
    }
    assert idle > exposures


def test_many_inducing_points_get_a_diagonal_covariance(monkeypatch):
    dataset = toy_dataset(TWO)
    for limit, expected in ((20, "full"), (19, "diagonal")):
        monkeypatch.setattr("gpnsf.core.model.build.DEFAULT_INDUCING", limit)
        model = build("nsf", dataset, n_factors=2, n_spatial=2, field="inducing", n_inducing=20)
        assert model.spatial.field.covariance == expected


def test_inducing_points_are_centres_or_all_coordinates(subtests):
    for asked, n_libraries, expected in ((20, 1, 20), (500, 1, 60), (20, 2, 20), (None, 1, 60)):
        with subtests.test(asked=asked, n_libraries=n_libraries):
            dataset = toy_dataset(TWO, n_libraries=n_libraries)
            field = build(
                "nsf", dataset, n_factors=2, n_spatial=2, field="inducing", n_inducing=asked
            ).spatial.field
            assert len(field.centres) == len(field.centre_library) == expected
            assert np.abs(field.centres.numpy()).max() <= 1
            if expected == 60:
                np.testing.assert_array_equal(
                    np.sort(field.centres.numpy(), axis=0),
                    np.sort(dataset.coords, axis=0).astype(np.float32),
                )
            if n_libraries == 2:
                assert field.centre_library.bincount().tolist() == [10, 10]


def test_a_model_is_built_the_same_and_leaves_the_random_state_alone():
    dataset, before = toy_dataset({"rna": "gaussian"}), torch.get_rng_state()
    first, second = (build("rsf", dataset, n_factors=2, n_spatial=2).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


# ---- the generative process -----------------------------------------------------------------------------------------

SUPPORT = {
    "poisson": lambda y: ((y >= 0) & (y == y.round())).all(),
    "nb": lambda y: ((y >= 0) & (y == y.round())).all(),
    "bernoulli": lambda y: np.isin(y, (0, 1)).all(),
    "bernoulli_clipped": lambda y: np.isin(y, (0, 1)).all(),
    "gaussian": lambda y: np.isfinite(y).all() and (y < 0).any(),
}


def test_no_missing_support():
    assert SUPPORT.keys() == LIKELIHOODS.keys()


def test_every_modality_is_drawn_from_the_prior(subtests):
    for preset, field in product(PRESETS, FIELDS):
        with subtests.test(preset=preset, field=field):
            kinds = (
                {"a": "gaussian", "b": "gaussian"}
                if preset in SIGNED
                else {name: name for name in LIKELIHOODS}
            )
            dataset, model = model_of(preset, kinds, field=field)
            draws = prior_predictive(model, dataset, seed=1)
            assert draws.keys() == kinds.keys()
            for name, kind in kinds.items():
                assert draws[name].shape == (60, 10)
                assert SUPPORT[kind](draws[name]), name


def test_draws_have_the_mean_of_the_model(subtests):
    """``E y = size (sum_k W_jk exp(v_k / 2) + b_j)`` under the prior, with v the variance of a log factor."""
    for field in FIELDS:
        with subtests.test(field=field):
            dataset, model = model_of(
                likelihoods={"rna": "poisson"}, field=field, n_obs=40, loadings="point"
            )
            for parameter in (
                model.spatial.field.slope,
                model.spatial.field.log_amplitude,
                model.nonspatial.log_sigma,
            ):
                parameter.data.fill_(0.0 if parameter is model.spatial.field.slope else np.log(0.5))
            model.spatial.field.log_lengthscale.data.fill_(np.log(0.2))
            draws = np.mean(
                [prior_predictive(model, dataset, seed=seed)["rna"] for seed in range(200)], axis=0
            )
            W = dict(model.items())["rna"].loadings.mean.detach().numpy()
            rate = W[:, :3].sum(1) * np.exp(0.125) + W[:, 3]
            inside = np.abs(dataset.coords).max(1) < 0.8
            ratio = draws[inside].sum(0) / (dataset.views[0].size[inside].sum() * rate)
            np.testing.assert_allclose(ratio, 1, atol=0.1)


def test_rows_that_were_not_measured_draw_no_counts():
    dataset, model = model_of(missing=7)
    draws = prior_predictive(model, dataset)
    assert (draws["atac"][:7] == 0).all()
    assert draws["rna"][:7].any()


# ---- the objective --------------------------------------------------------------------------------------------------


def test_the_objective_is_expected_log_likelihood_minus_divergence(subtests):
    for preset, field in product(PRESETS, FIELDS):
        with subtests.test(preset=preset, field=field):
            dataset, model = model_of(preset, field=field)
            (block,) = model.blocks(dataset)
            found = -loss(model, [block])
            expected = expected_log_likelihood(model, block) - divergence(model, block)
            torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-2)


def test_blocks_are_the_full_batch(subtests):
    for preset, field, block_size in product(("gpnsf", "nsf", "pnmf", "rsf"), FIELDS, (13, 59, 60)):
        with subtests.test(preset=preset, field=field, block_size=block_size):
            dataset, model = model_of(preset, field=field, n_libraries=2, missing=5)
            whole, parts = model.blocks(dataset), model.blocks(dataset, block_size)
            assert len(parts) == -(-60 // block_size)
            torch.testing.assert_close(loss(model, parts), loss(model, whole), rtol=1e-5, atol=1e-3)
            expected = gradients(model, whole)
            for name, gradient in gradients(model, parts).items():
                torch.testing.assert_close(
                    gradient,
                    expected[name],
                    rtol=1e-4,
                    atol=1e-4 * float(expected[name].abs().max()),
                )


def test_kl_weight_scales_the_divergence_alone(subtests):
    for field in FIELDS:
        with subtests.test(field=field):
            dataset, model = model_of(field=field, loadings="point")
            blocks, values = model.blocks(dataset), []
            for weight in (1e-6, 1.0, 2.0, 0.5):
                model.kl_weight = weight
                values.append(loss(model, blocks).item())
            expected = divergence(model, blocks[0]).item()
            assert expected > 1
            assert [value - values[0] for value in values[1:]] == pytest.approx(
                [expected, 2 * expected, expected / 2], rel=1e-3
            )


def test_weights_of_modalities_scale_their_likelihood_alone():
    dataset, model = model_of(likelihoods={"rna": "poisson", "atac": "bernoulli"}, loadings="point")
    (block,) = model.blocks(dataset)
    before = loss(model, [block])
    view = dict(model.items())["atac"]
    view.weight = 3.0
    term = view.likelihood.bound(
        block.counts["atac"], model.moments("atac", block), view.loadings.mean
    )
    torch.testing.assert_close(loss(model, [block]), before - 2 * term, rtol=1e-5, atol=1e-2)


def test_weights_of_modalities_scale_the_charge_of_their_loadings_too():
    dataset, model = model_of()
    blocks = model.blocks(dataset)
    before = loss(model, blocks)
    view = dict(model.items())["rna"]
    view.weight = 3.0
    W = view.loadings.posterior(view.multipliers, 1 / model.kl_weight)
    moments = model.moments("rna", blocks[0])
    own = view.likelihood.bound(blocks[0].counts["rna"], moments, *W[:2]) + view.log_prior()
    assert W.divergence > 1
    torch.testing.assert_close(
        loss(model, blocks), before - 2 * (own - W.divergence), rtol=1e-5, atol=1e-2
    )


def test_rows_without_counts_take_no_part_in_the_likelihood(subtests):
    for preset in ("pnmf", "nsfh", "gpnsf"):
        with subtests.test(preset=preset):
            dataset, model = model_of(preset, missing=4)
            gradient = gradients(model, model.blocks(dataset))["nonspatial.loc"]
            (block,) = model.blocks(dataset)
            view = dict(model.items())["atac"]
            bound = view.likelihood.bound(
                block.counts["atac"], model.moments("atac", block), view.loadings.mean
            )
            (own,) = torch.autograd.grad(bound, model.nonspatial.loc)
            assert (own[:4] == 0).all()
            assert (own[4:] != 0).any(1).all()
            assert (
                (gradient[:4] != 0).any(1).all()
            )  # the other modality and the prior still speak of these rows


@pytest.mark.broad(1)
@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli", "nb"])
def test_monte_carlo_is_never_below_the_closed_form_on_average(likelihood):
    dataset, model = model_of(likelihoods={"rna": likelihood})
    blocks = model.blocks(dataset)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        closed = loss(model, blocks)
        model.n_samples = 3
        draws = torch.stack([loss(model, blocks) for _ in range(150)])
    assert draws.mean() <= closed + 4 * draws.std() / len(draws) ** 0.5
    assert draws.mean() > 0.5 * closed


def test_draws_without_variance_have_gradients():
    """As where the spectrum of an RBF kernel underflows."""
    dataset, model = model_of("nsf", {"rna": "poisson"}, kernel="rbf", n_samples=1)
    model.spatial.field.log_amplitude.data.fill_(-30.0)
    model.spatial.field.u_log_scale.data.fill_(-25.0)
    blocks = model.blocks(dataset)
    assert not model.marginals(blocks[0])[1].any()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model, blocks).values())
