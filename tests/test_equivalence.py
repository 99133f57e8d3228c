"""Identities of the system: different ways to the same number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from bounds import loss as loss_over
from reference import toy_dataset

from gpnsf.core.companions import deconvolution
from gpnsf.core.companions.unrolling import Network, Section, solve
from gpnsf.core.fields.hilbert import HilbertField
from gpnsf.core.fields.inducing import InducingField
from gpnsf.core.fields.kernels import KERNELS
from gpnsf.core.inference import bound, training
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.likelihoods import LIKELIHOODS
from gpnsf.core.model.build import FIELDS, build
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.scores.neighbours import ties
from gpnsf.core.types import Dataset, View

K = 3
TWO = {"rna": "poisson", "atac": "bernoulli"}
each_field = pytest.mark.parametrize("field", FIELDS)


def perturbed(model: Factorization, seed: int = 0) -> Factorization:
    """Parameters away from their start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def model_of(preset: str, dataset: Dataset, n_spatial: int, **options: Any) -> Factorization:
    return perturbed(
        build(preset, dataset, n_factors=K, n_spatial=n_spatial, n_inducing=20, **options)
    )


def loss(model: Factorization, dataset: Dataset, block_size: int | None = None) -> torch.Tensor:
    """Negative objective."""
    return loss_over(model, model.blocks(dataset, block_size))


def gradients(model: Factorization, dataset: Dataset, **options: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss(model, dataset, **options).backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def same(one: torch.Tensor, other: torch.Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.detach().abs().max()))


def one_value_per_spot(values: np.ndarray, coords: np.ndarray) -> Dataset:
    """A dataset of one real-valued feature."""
    counts = sp.csr_matrix(values[:, None].astype(np.float32))
    everywhere = np.ones(len(values), bool)
    view = View("rna", "gaussian", counts, everywhere.astype(np.float32), everywhere)
    return Dataset(coords, np.zeros(len(coords), np.int64), (view,))


def exact_kernel(coords: np.ndarray, lengthscale: float) -> torch.Tensor:
    places = torch.as_tensor(coords).double()
    return KERNELS["matern32"].covariance(
        torch.cdist(places, places), torch.tensor(lengthscale).double()
    )


# ---- Gaussian processes ---------------------------------------------------------------------------------------------


def test_inducing_points_everywhere_are_gaussian_process_regression():
    """At the exact posterior the bound is the log evidence; away from it, it is lower."""
    rng, noise, amplitude, lengthscale = np.random.default_rng(0), 0.4, 1.2, 0.5
    coords = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
    kernel = amplitude**2 * exact_kernel(coords, lengthscale)
    values = rng.multivariate_normal(np.zeros(40), (kernel + noise**2 * torch.eye(40)).numpy())
    dataset = one_value_per_spot(values, coords)
    model = build(
        "rsf", dataset, n_factors=1, n_spatial=1, field="inducing", lengthscale=lengthscale
    )
    view, field = dict(model.items())["rna"], model.spatial.field
    view.loadings.raw.data = torch.tensor([[1.0, 0.0]])
    view.likelihood.log_sd.data.fill_(np.log(noise))
    field.log_amplitude.data.fill_(np.log(amplitude))
    y = torch.as_tensor(values)
    root = torch.linalg.cholesky(exact_kernel(field.centres.numpy(), lengthscale))
    order = [int(np.flatnonzero((coords == centre).all(1))[0]) for centre in field.centres.numpy()]
    A = amplitude * root[np.argsort(order)]  # values at the coordinates = A u
    precision = torch.eye(40).double() + A.T @ A / noise**2
    mean = torch.linalg.solve(precision, A.T @ y) / noise**2
    tril = torch.linalg.cholesky(torch.linalg.inv(precision))
    field.u_loc.data = mean[None].float()
    field.u_tril.data, field.u_log_scale.data = (
        tril[None].float(),
        tril.diagonal().log()[None].float(),
    )
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros(40).double(), kernel + noise**2 * torch.eye(40)
    )
    expected = evidence.log_prob(y).item()
    assert bound.elbo(model, model.blocks(dataset)) == pytest.approx(expected, abs=0.05)
    m, v = (moment.detach()[:, 0].double() for moment in model.marginals(model.blocks(dataset)[0]))
    gain = kernel @ torch.linalg.inv(kernel + noise**2 * torch.eye(40))
    torch.testing.assert_close(m, gain @ y, atol=5e-3, rtol=0)
    torch.testing.assert_close(v, (kernel - gain @ kernel).diagonal(), atol=5e-3, rtol=0)
    field.u_loc.data += 0.3
    assert bound.elbo(model, model.blocks(dataset)) < expected - 1


@pytest.mark.parametrize("field", ["hilbert", "inducing"])
def test_the_start_of_a_field_is_gaussian_process_regression(field):
    """The ridge solution over whitened weights is the posterior mean of the process, whatever the basis."""
    coords = np.random.default_rng(0).uniform(-0.8, 0.8, (50, 2)).astype(np.float32)
    target = torch.as_tensor(
        np.sin(4 * coords[:, :1]) + 0.3 * np.random.default_rng(1).standard_normal((50, 1))
    ).float()
    library = np.zeros(50, np.int64)
    if field == "hilbert":
        process = HilbertField("matern32", 1, 1, [1.0, 1.0], lengthscale=0.4, n_basis=24)
    else:
        process = InducingField("matern32", 1, 1, coords, library, lengthscale=0.4)
    process.load(target, [process.locate(coords, library)], noise_sd=0.3)
    kernel = target.std().double() ** 2 * exact_kernel(coords, 0.4)
    expected = kernel @ torch.linalg.solve(kernel + 0.09 * torch.eye(50), target.double())
    found = process.marginals(process.locate(coords, library))[0].detach().double()
    torch.testing.assert_close(found, expected, atol=0.06 if field == "hilbert" else 0.01, rtol=0)


@each_field
def test_slices_are_sections_that_are_infinitely_far_apart(field):
    """Two slices as such, or as one section whose halves know nothing of each other: the same marginals."""
    coords = np.random.default_rng(0).uniform(-1, 1, (30, 2)).astype(np.float32)
    both = np.repeat([0, 1], 15)
    if field == "hilbert":
        apart = HilbertField("matern32", 1, 2, [1.0, 1.0], n_basis=8)
        alone = [HilbertField("matern32", 1, 1, [1.0, 1.0], n_basis=8) for _ in range(2)]
        weights = torch.randn(
            2, 1, apart.u_loc.shape[2], generator=torch.Generator().manual_seed(0)
        )
        apart.u_loc.data = weights
        for one, own in zip(alone, weights, strict=True):
            one.u_loc.data = own[None]
    else:
        apart = InducingField("matern32", 1, 2, coords, both)
        alone = [
            InducingField("matern32", 1, 1, coords[both == code], np.zeros(15, np.int64))
            for code in (0, 1)
        ]
        weights = torch.randn(1, 30, generator=torch.Generator().manual_seed(0))
        apart.u_loc.data = weights
        for one, own in zip(alone, weights.split(15, dim=1), strict=True):
            one.u_loc.data = own
    for code, one in enumerate(alone):
        rows = both == code
        found = apart.marginals(apart.locate(coords[rows], both[rows]))
        expected = one.marginals(one.locate(coords[rows], np.zeros(15, np.int64)))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


# ---- presets nest ---------------------------------------------------------------------------------------------------


@each_field
@pytest.mark.parametrize(
    ("general", "special", "n_spatial"), [("nsfh", "nsf", K), ("nsfh", "pnmf", 0)]
)
def test_a_hybrid_with_one_kind_of_factors_is_the_pure_model(general, special, n_spatial, field):
    dataset = toy_dataset(TWO)
    hybrid, pure = (
        model_of(preset, dataset, n_spatial, field=field) for preset in (general, special)
    )
    assert hybrid.state_dict().keys() == pure.state_dict().keys()
    torch.testing.assert_close(loss(hybrid, dataset), loss(pure, dataset), rtol=0, atol=0)


@each_field
def test_without_background_gpnsf_is_the_hybrid(field):
    dataset = toy_dataset(TWO)
    full, hybrid = (
        model_of(preset, dataset, 2, field=field, loadings="point") for preset in ("gpnsf", "nsfh")
    )
    assert (loss(full, dataset) - loss(hybrid, dataset)).abs() > 1
    for view in full.views:
        view.loadings.raw.data[:, -1] = -80.0
    torch.testing.assert_close(loss(full, dataset), loss(hybrid, dataset), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize(("general", "special", "n_spatial"), [("rsf", "fa", 0), ("fa", "rsf", K)])
def test_signed_models_differ_in_their_prior_alone(general, special, n_spatial):
    dataset = toy_dataset({"rna": "gaussian"})
    one, other = (model_of(preset, dataset, n_spatial) for preset in (general, special))
    torch.testing.assert_close(loss(one, dataset), loss(other, dataset), rtol=0, atol=0)


# ---- likelihoods in the model ---------------------------------------------------------------------------------------


def test_negative_binomial_is_poisson_for_large_theta():
    counts, gaps = toy_dataset({"rna": "poisson"}), []
    expected = loss(model_of("gpnsf", counts, 2), counts)
    (view,) = counts.views
    as_nb = Dataset(
        counts.coords, counts.library, (View("rna", "nb", view.counts, view.size, view.observed),)
    )
    model = build("gpnsf", as_nb, n_factors=K, n_spatial=2)
    model.load_state_dict(model_of("gpnsf", counts, 2).state_dict(), strict=False)
    likelihood = dict(model.items())["rna"].likelihood
    for theta in (10.0, 1000.0):
        likelihood.log_theta.data.fill_(np.log(theta))
        gaps.append((loss(model, as_nb) + likelihood.log_prior() - expected).abs().item())
    assert gaps[1] < 0.02 * gaps[0]
    likelihood.prepare([])
    torch.testing.assert_close(loss(model, as_nb), expected, rtol=1e-5, atol=1e-2)


def narrow(model: Factorization, log_scale: float) -> None:
    """Shrink the spread of the guide."""
    for name, parameter in model.named_parameters():
        if name.endswith("log_scale"):
            parameter.data.fill_(log_scale)
        if name.endswith("u_tril"):
            parameter.data.zero_()


@pytest.mark.parametrize(
    "likelihood", [name for name, kind in LIKELIHOODS.items() if kind.family.has_bound]
)
@each_field
def test_the_closed_form_tends_to_monte_carlo_as_the_guide_narrows(likelihood, field):
    """Value and gradients agree in the limit; the divergence is the same on both sides."""
    dataset = toy_dataset({"rna": likelihood}, n_obs=40)
    preset = "rsf" if likelihood == "gaussian" else "nsfh"
    model = model_of(preset, dataset, K if preset == "rsf" else 2, field=field)
    narrow(model, -9.0)
    if (
        field == "inducing"
    ):  # what is left of the prior between inducing points would keep the spread up
        model.spatial.field.log_amplitude.data.fill_(-5.0)
        model.spatial.field.u_loc.data.mul_(100.0)
    values, slopes = [], []
    for n_samples in (None, 1):
        model.n_samples = n_samples
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            values.append(loss(model, dataset).detach())
            slopes.append(gradients(model, dataset))
    torch.testing.assert_close(values[0], values[1], rtol=2e-3, atol=0.1)
    for name in ("views.0.loadings.raw", "spatial.field.u_loc"):
        cosine = torch.cosine_similarity(
            slopes[0][name].flatten(), slopes[1][name].flatten(), dim=0
        )
        assert cosine > 0.999, name
        assert slopes[1][name].norm() / slopes[0][name].norm() == pytest.approx(1, abs=0.02), name


@pytest.mark.broad(2)
@pytest.mark.parametrize(
    "likelihood", [name for name, kind in LIKELIHOODS.items() if kind.family.has_bound]
)
def test_the_closed_form_is_a_bound(likelihood):
    dataset = toy_dataset({"rna": likelihood}, n_obs=40)
    preset = "rsf" if likelihood == "gaussian" else "nsfh"
    model = model_of(preset, dataset, K if preset == "rsf" else 2)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        closed = loss(model, dataset)
        model.n_samples = 4
        draws = torch.stack([loss(model, dataset) for _ in range(200)])
    error = draws.std() / len(draws) ** 0.5
    assert draws.mean() <= closed + 4 * error
    if likelihood == "gaussian":
        assert abs(draws.mean() - closed) <= 4 * error


# ---- bookkeeping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["gpnsf", "nsf", "pnmf"])
@each_field
def test_blocks_are_the_full_batch(preset, field):
    n_spatial = {"gpnsf": 2, "nsf": K, "pnmf": 0}[preset]
    dataset = toy_dataset(TWO, missing=7)
    model = model_of(preset, dataset, n_spatial, field=field)
    same(loss(model, dataset, 11), loss(model, dataset))
    whole = gradients(model, dataset)
    for name, gradient in gradients(model, dataset, block_size=11).items():
        same(gradient, whole[name])


@each_field
def test_the_order_of_spots_does_not_matter(field):
    dataset, order = toy_dataset(TWO, missing=7), np.random.default_rng(0).permutation(60)
    views = tuple(
        View(v.name, v.likelihood, v.counts[order], v.size[order], v.observed[order], v.weight)
        for v in dataset.views
    )
    shuffled = Dataset(dataset.coords[order], dataset.library[order], views)
    model, other = (model_of("nsf", dataset, K, field=field) for _ in range(2))
    same(loss(other, shuffled), loss(model, dataset), rtol=1e-5)


def test_the_order_of_modalities_and_features_does_not_matter():
    dataset, order = toy_dataset(TWO), np.random.default_rng(0).permutation(10)
    model = model_of("gpnsf", dataset, 2)
    expected = loss(model, dataset)
    views = tuple(
        View(v.name, v.likelihood, v.counts[:, order], v.size, v.observed, v.weight)
        for v in dataset.views[::-1]
    )
    other = build(
        "gpnsf", Dataset(dataset.coords, dataset.library, views), n_factors=K, n_spatial=2
    )
    state = {
        name.replace("views.0", "views.x")
        .replace("views.1", "views.0")
        .replace("views.x", "views.1"): value
        for name, value in model.state_dict().items()
    }
    state = {name: value[order] if name.endswith("raw") else value for name, value in state.items()}
    other.load_state_dict(state)
    same(loss(other, Dataset(dataset.coords, dataset.library, views)), expected, rtol=1e-5)


def test_size_factors_and_loadings_share_their_scale():
    dataset = toy_dataset({"rna": "poisson"})
    model = model_of("gpnsf", dataset, 2)
    expected = loss(model, dataset)
    (view,) = dataset.views
    doubled = View("rna", "poisson", view.counts, 2 * view.size, view.observed)
    model.views[0].loadings.raw.data -= np.log(2.0)
    same(loss(model, Dataset(dataset.coords, dataset.library, (doubled,))), expected, rtol=1e-5)


def test_a_modality_of_weight_two_is_there_twice():
    dataset = toy_dataset({"rna": "poisson"})
    (view,) = dataset.views
    weighted = View("rna", "poisson", view.counts, view.size, view.observed, 2.0)
    twice = (view, View("again", "poisson", view.counts, view.size, view.observed))
    heavy = Dataset(dataset.coords, dataset.library, (weighted,))
    both = heavy, Dataset(dataset.coords, dataset.library, twice)
    model, other = (model_of("nsf", data, K, loadings="point") for data in both)
    other.load_state_dict(model.state_dict(), strict=False)
    other.views[1].load_state_dict(model.views[0].state_dict())
    same(
        loss(other, Dataset(dataset.coords, dataset.library, twice)), loss(model, heavy), rtol=1e-5
    )


def test_held_out_rows_are_rows_that_are_not_there():
    """With spatial factors alone nothing but counts belongs to a row."""
    dataset, keep = toy_dataset({"rna": "nb"}, missing=9), np.arange(9, 60)
    (view,) = dataset.views
    small = Dataset(
        dataset.coords[keep],
        dataset.library[keep],
        (View("rna", "nb", view.counts[keep], view.size[keep], view.observed[keep]),),
    )
    model = model_of("nsf", dataset, K)
    same(loss(model, small), loss(model, dataset), rtol=1e-5)


def test_one_row_per_block_walks_like_all_rows_at_once():
    dataset, walks = toy_dataset({"rna": "nb"}, n_obs=30), []
    for block_size in (None, 1):
        model = build("gpnsf", dataset, n_factors=K, n_spatial=2)
        history = training.fit(
            model, dataset, init="spot", schedule=Schedule(max_steps=8), block_size=block_size
        )
        walks.append(history.elbo)
    np.testing.assert_allclose(*walks, rtol=1e-4)


# ---- deconvolution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_layers_that_have_learned_nothing_are_steps_of_the_solver(shared):
    """The unrolled network with constant penalties and exponent 1, from even proportions, is so many multiplicative updates."""
    rng, n_types, n_layers = np.random.default_rng(0), 4, 30
    coords = rng.uniform(0, 5, (40, 2))
    profiles = rng.lognormal(0, 1, (60, n_types))
    counts = sp.csr_matrix(
        rng.poisson(5 * rng.dirichlet(np.ones(n_types), 40) @ profiles.T).astype(float)
    )
    mixture = deconvolution.summarised(counts, profiles)
    tied, costs = ties(coords, np.zeros(40), n_neighbors=5), rng.dirichlet(np.ones(n_types), 40)
    penalties = deconvolution.Penalties(tied.graph(0.8), costs, spatial=0.3, total=0.2, group=0.4)
    network = Network(n_layers, shared=shared, spatial=0.3, total=0.2, group=0.4)
    network.restore({**network.arrays(), "even": np.array([60.0])})
    found = solve(network, Section.of(mixture, tied, unit=0.8, groups=costs))
    expected = deconvolution.multiplicative(mixture, penalties, max_steps=n_layers, tol=1e-30).V
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-8)
