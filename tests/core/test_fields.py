"""Fields: both backends keep one contract, and each tends to the exact process."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from pyro.distributions import MultivariateNormal
from reference import gaussian_kl
from torch import Tensor
from torch.distributions import kl_divergence

from gpnsf.core.fields.base import (
    AMPLITUDE_RANGE,
    LENGTHSCALE_RANGE,
    MAX_LOG_SCALE,
    AbstractField,
    Located,
    evidence_scale,
)
from gpnsf.core.fields.hilbert import HilbertField
from gpnsf.core.fields.inducing import InducingField
from gpnsf.core.fields.kernels import KERNELS
from gpnsf.core.fields.resolution import retained_variance
from gpnsf.core.model.build import FIELDS, restore_field

T = 2


def points(n: int, n_dims: int = 2, seed: int = 0, reach: float = 1.0) -> np.ndarray:
    """Coordinates [n, D] in half-width units."""
    return np.random.default_rng(seed).uniform(-reach, reach, (n, n_dims)).astype(np.float32)


def zeros(n: int) -> np.ndarray:
    return np.zeros(n, np.int64)


def hilbert(
    n_dims: int = 2, n_libraries: int = 1, n_factors: int = T, kernel: str = "matern32", **options
) -> HilbertField:
    return HilbertField(kernel, n_factors, n_libraries, [1.0] * n_dims, **{"n_basis": 8, **options})


def inducing(
    n_dims: int = 2,
    n_libraries: int = 1,
    n_factors: int = T,
    kernel: str = "matern32",
    n_points: int = 12,
    **options,
) -> InducingField:
    library = np.repeat(np.arange(n_libraries), n_points)
    return InducingField(
        kernel, n_factors, n_libraries, points(len(library), n_dims, seed=9), library, **options
    )


BACKENDS: dict[str, Callable[..., AbstractField]] = {
    "hilbert": hilbert,
    "inducing": inducing,
    "inducing, diagonal": lambda **options: inducing(covariance="diagonal", **options),
}


def randomise(field: AbstractField, seed: int = 0) -> AbstractField:
    """Parameters away from their start."""
    generator = torch.Generator().manual_seed(seed)

    def noise(parameter: Tensor, scale: float) -> Tensor:
        return scale * torch.randn(parameter.shape, generator=generator)

    field.u_loc.data = noise(field.u_loc, 1.0)
    field.u_log_scale.data = -0.5 + noise(field.u_log_scale, 0.3)
    field.log_amplitude.data = noise(field.log_amplitude, 0.3)
    field.log_lengthscale.data = math.log(0.4) + noise(field.log_lengthscale, 0.3)
    field.slope.data = noise(field.slope, 0.5)
    if isinstance(field, InducingField):
        field.u_tril.data = noise(field.u_tril, 0.2)
    return field


def at_prior(field: AbstractField) -> AbstractField:
    """q(u) = p(u), amplitudes 0.5 and 1.5, .."""
    field.u_loc.data.zero_()
    field.u_log_scale.data.zero_()
    field.log_amplitude.data = torch.linspace(0.5, 1.5, field.n_factors).log()
    return field


@torch.no_grad()
def weights(field: AbstractField, located: Located) -> tuple[Tensor, Tensor]:
    """Matrix [T, n, M] from the flattened weights to the values, and the rest of the variance [n, T]."""
    shape = field.u_loc.shape
    origin, rest = field.conditional(torch.zeros(shape), located)
    columns = []
    for j in range(math.prod(shape) // field.n_factors):
        u = torch.zeros(shape)
        index = (j,) if u.ndim == 2 else divmod(j, shape[2])
        u[(slice(None), *index) if u.ndim == 2 else (index[0], slice(None), index[1])] = 1.0
        columns.append((field.conditional(u, located)[0] - origin).T)
    return torch.stack(columns, 2), torch.zeros_like(origin) if rest is None else rest


@torch.no_grad()
def weight_covariance(field: AbstractField) -> Tensor:
    """Covariance [T, M, M] of q(u), flattened as in :func:`weights`."""
    q = field.posterior().base_dist
    if isinstance(q, MultivariateNormal):
        return q.covariance_matrix
    scale = q.scale if q.scale.ndim == 2 else q.scale.transpose(0, 1).reshape(field.n_factors, -1)
    return torch.diag_embed(scale**2)


def on_nodes(field: AbstractField, n: int = 15) -> Located:
    """Places where the grid needs no interpolation; anywhere for inducing points."""
    if not isinstance(field, HilbertField):
        coords = points(n, field.n_dims)
        return field.locate(coords, np.arange(n) % field.n_libraries)
    axes = [
        np.linspace(-reach, reach, size)
        for reach, size in zip(field.reach, field.shape, strict=True)
    ]
    rng = np.random.default_rng(0)
    coords = np.column_stack([rng.choice(axis[1:-1], n) for axis in axes])
    return field.locate(coords, np.arange(n) % field.n_libraries)


def exact(coords: np.ndarray, kernel: str, lengthscale: float) -> Tensor:
    """Exact covariance matrix in double precision."""
    places = torch.as_tensor(coords).double()
    distance = ((places[:, None] - places[None]) ** 2).sum(-1).sqrt()
    return KERNELS[kernel].covariance(distance, torch.tensor(lengthscale, dtype=torch.float64))


def test_no_missing_field():
    kinds = {type(build()).kind for build in BACKENDS.values()}
    assert kinds == FIELDS.keys() == {kind.kind for kind in AbstractField.__subclasses__()}


# ---- the contract ---------------------------------------------------------------------------------------------------


def test_marginals_are_those_of_the_dense_gaussian(subtests):
    for name, n_dims, n_libraries in product(BACKENDS, (1, 2), (1, 2)):
        with subtests.test(name=name, n_dims=n_dims, n_libraries=n_libraries):
            field = randomise(BACKENDS[name](n_dims=n_dims, n_libraries=n_libraries))
            located = on_nodes(field)
            A, rest = weights(field, located)
            loc = (
                field.u_loc if field.u_loc.ndim == 2 else field.u_loc.transpose(0, 1).reshape(T, -1)
            )
            origin = field.conditional(torch.zeros_like(field.u_loc), located)[0]
            mean, variance = field.marginals(located)
            dense_mean = torch.einsum("tnm,tm->nt", A, loc) + origin
            dense_variance = torch.einsum("tnm,tml,tnl->nt", A, weight_covariance(field), A) + rest
            torch.testing.assert_close(mean, dense_mean, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(variance, dense_variance, rtol=1e-3, atol=1e-4)


@pytest.mark.broad(1)
@pytest.mark.parametrize("name", BACKENDS)
def test_marginals_are_those_of_sampled_weights(name):
    field = randomise(BACKENDS[name]())
    located = on_nodes(field)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack(
            [field.conditional(field.posterior().sample(), located)[0] for _ in range(2000)]
        )
        rest = weights(field, located)[1]
        mean, variance = field.marginals(located)
    spread = variance.sqrt()
    assert ((draws.mean(0) - mean).abs() / spread).max() < 0.15
    torch.testing.assert_close(
        (draws.var(0) + rest) / variance, torch.ones_like(variance), rtol=0.2, atol=0
    )


def test_trend_is_linear_in_the_coordinates(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = at_prior(make(n_libraries=2))
            field.slope.data = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-1.0, 3.0], [0.5, 0.0]]])
            coords, library = np.array([[0.2, 0.4], [0.2, 0.4]], np.float32), np.array([0, 1])
            mean, _ = field.marginals(field.locate(coords, library))
            torch.testing.assert_close(mean, torch.tensor([[0.2, 0.8], [1.0, 0.1]]))


def test_trend_is_held_beyond_the_tissue(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = make()
            field.slope.data.fill_(2.0)
            far = field.locate(np.array([[30.0, 40.0], [1.05, 1.05]], np.float32), zeros(2))
            mean, _ = field.marginals(far)
            torch.testing.assert_close(mean, torch.full((2, T), 2 * 2.0 * 1.05))


def test_divergence_is_analytic_and_right(subtests):
    """A pair that is not registered would make Pyro sample without a word; a wrong one shows against the definition."""
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = randomise(make())
            q, p = field.posterior(), field.prior()
            found = kl_divergence(q, p).item()
            covariance = weight_covariance(field).double().numpy()
            expected = sum(
                gaussian_kl(loc.detach().double().numpy(), cov)
                for loc, cov in zip(field.u_loc.reshape(T, -1), covariance, strict=True)
            )
            assert found == pytest.approx(expected, rel=1e-4)
            torch.manual_seed(0)
            with torch.no_grad():
                draws = q.expand((4000,)).sample()
                ratio = q.log_prob(draws) - p.log_prob(draws)
            assert ratio.mean().item() == pytest.approx(
                found, abs=4 * ratio.std().item() / 4000**0.5
            )


def test_divergence_vanishes_at_the_prior(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = at_prior(make())
            assert kl_divergence(field.posterior(), field.prior()).item() == pytest.approx(
                0, abs=1e-5
            )


def test_slices_are_independent(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = randomise(make(n_libraries=2))
            coords = points(10)
            first, second = (field.locate(coords, np.full(10, code)) for code in (0, 1))
            before = [field.marginals(place) for place in (first, second)]
            half = field.u_loc.shape[1] // 2
            with torch.no_grad():
                if field.u_loc.ndim == 3:
                    field.u_loc[1] += 1.0
                else:
                    field.u_loc[:, half:] += 1.0
            after = [field.marginals(place) for place in (first, second)]
            torch.testing.assert_close(after[0], before[0])
            assert (after[1][0] - before[1][0]).abs().max() > 0.1


def test_far_from_all_data_the_prior_returns(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = randomise(make())
            field.slope.data.zero_()
            far = np.array([[60.0, 0.0], [-60.0, 60.0]], np.float32)
            mean, variance = field.marginals(field.locate(far, zeros(2)))
            torch.testing.assert_close(mean, torch.zeros(2, T), atol=1e-5, rtol=0)
            torch.testing.assert_close(
                variance, (2 * field.log_amplitude).exp().expand(2, T), atol=1e-5, rtol=1e-5
            )


def test_beyond_its_nodes_the_grid_leaves_continuously():
    field = randomise(hilbert())
    edge = field.reach[0]
    coords = np.array([[edge, 0.1], [edge + 1e-4, 0.1]], np.float32)
    for moments in field.marginals(field.locate(coords, zeros(2))):
        torch.testing.assert_close(moments[0], moments[1], atol=2e-3, rtol=0)


def test_beyond_its_nodes_the_grid_knows_the_nearest_node_alone():
    """``E f = c E g`` and ``Var f = c^2 Var g + a^2 (1 - c^2)``, c the correlation with its value g."""
    field = randomise(hilbert())
    field.slope.data.zero_()
    edge = field.reach[0]
    coords = np.array([[edge, 0.1], [edge + 0.3, 0.1]], np.float32)
    (mean, far_mean), (variance, far_variance) = field.marginals(field.locate(coords, zeros(2)))
    c = field.kernel.covariance(torch.tensor(0.3), field.log_lengthscale.exp())
    prior = (2 * field.log_amplitude).exp()
    torch.testing.assert_close(far_mean, c * mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        far_variance, c**2 * variance + prior * (1 - c**2), rtol=1e-4, atol=0
    )


def test_beyond_its_nodes_the_weights_leave_the_rest_to_the_prior():
    """Moments given the weights and moments of the weights make the marginals, as inside."""
    field = randomise(hilbert())
    node = np.linspace(-field.reach[1], field.reach[1], field.shape[1])[4]
    located = field.locate(np.array([[field.reach[0] + 0.3, node]], np.float32), zeros(1))
    A, rest = weights(field, located)
    assert (rest > 0.1).all()
    origin = field.conditional(torch.zeros_like(field.u_loc), located)[0]
    mean, variance = field.marginals(located)
    loc = field.u_loc.transpose(0, 1).reshape(T, -1)
    torch.testing.assert_close(
        mean, torch.einsum("tnm,tm->nt", A, loc) + origin, rtol=1e-4, atol=1e-4
    )
    spread = torch.einsum("tnm,tml,tnl->nt", A, weight_covariance(field), A)
    torch.testing.assert_close(variance, spread + rest, rtol=1e-3, atol=1e-4)


def test_state_restores_the_field(subtests):
    for name, n_libraries, refined in product(BACKENDS, (1, 2), (False, True)):
        with subtests.test(name=name, n_libraries=n_libraries, refined=refined):
            field = randomise(BACKENDS[name](n_libraries=n_libraries))
            coords, library = (
                np.concatenate([points(20), [[5.0, 5.0]]]),
                np.arange(21) % n_libraries,
            )
            located = field.locate(coords, library)
            if refined:
                field.set_precision([located], [torch.rand(21, T)])
            restored = restore_field(field.state())
            assert not any(parameter.requires_grad for parameter in restored.parameters())
            for found, expected in zip(
                restored.marginals(restored.locate(coords, library)),
                field.marginals(located),
                strict=True,
            ):
                torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_state_holds_plain_values(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            assert all(
                isinstance(value, str | int | float | np.ndarray)
                for value in make().state().values()
            )


def test_gradients_are_finite_and_reach_every_parameter_of_q(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = randomise(make())
            coords = (
                field.centres.numpy() if isinstance(field, InducingField) else points(12)
            )  # inducing: distances of zero
            mean, variance = field.marginals(field.locate(coords, zeros(len(coords))))
            (mean.sin().sum() + variance.sum()).backward()
            unused = {"u_tril"} if name == "inducing, diagonal" else set()
            for key, parameter in field.named_parameters():
                if key not in unused:
                    assert torch.isfinite(parameter.grad).all(), key
                    assert parameter.grad.abs().sum() > 0, key


def test_kernel_parameters_stay_in_their_range(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = make()
            field.log_lengthscale.data = torch.tensor([-30.0, 30.0])
            field.log_amplitude.data = torch.tensor([30.0, -30.0])
            field.clamp_()
            torch.testing.assert_close(
                field.log_lengthscale.exp().detach(), torch.tensor(LENGTHSCALE_RANGE)
            )
            torch.testing.assert_close(
                field.log_amplitude.exp().detach(), torch.tensor(AMPLITUDE_RANGE[::-1])
            )


def test_a_fixed_lengthscale_is_not_moved_into_the_range(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = make(lengthscale=5.0)
            field.log_lengthscale.requires_grad_(False)
            field.clamp_()
            torch.testing.assert_close(field.log_lengthscale.exp(), torch.full((T,), 5.0))


def test_a_start_is_taken_over(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            options = {"n_points": 60} if "inducing" in name else {}
            field = make(**options)
            coords = points(150)
            target = torch.as_tensor(
                np.column_stack([np.sin(3 * coords[:, 0]), 2 * np.cos(2 * coords[:, 1])])
            )
            target = target - target.mean(0)
            places = [field.locate(coords[:90], zeros(90)), field.locate(coords[90:], zeros(60))]
            field.load(target, places, noise_sd=0.1)
            mean = torch.cat([field.marginals(place)[0] for place in places]).detach()
            assert ((mean - target) ** 2).mean() < 0.05 * target.var()
            torch.testing.assert_close(
                field.log_amplitude.exp().detach(), target.std(0).clamp(0.3, 3.0)
            )
            assert all(parameter.grad is None for parameter in field.parameters())


# ---- the Hilbert basis ----------------------------------------------------------------------------------------------


@torch.no_grad()
def basis_covariance(
    coords: np.ndarray, kernel: str, n_basis: int, lengthscale: float, n_dims: int
) -> Tensor:
    """``Phi S Phi^T`` [n, n] by conditioning on one weight after the other, one factor each."""
    n_weights = math.prod(hilbert(n_dims, n_basis=n_basis).sizes)
    field = hilbert(
        n_dims, n_factors=n_weights, kernel=kernel, n_basis=n_basis, lengthscale=lengthscale
    )
    A = field.conditional(torch.eye(n_weights)[None], field.locate(coords, zeros(len(coords))))[0]
    return A @ A.T


def test_covariance_tends_to_the_kernel_as_the_basis_grows(subtests):
    for kernel, n_dims in product(KERNELS, (1, 2)):
        with subtests.test(kernel=kernel, n_dims=n_dims):
            coords = points(40, n_dims, reach=0.7)
            target = exact(coords, kernel, 0.25).float()
            errors = [
                (basis_covariance(coords, kernel, n_basis, 0.25, n_dims) - target)
                .abs()
                .mean()
                .item()
                for n_basis in ((6, 12, 24) if n_dims == 2 else (6, 20, 80))
            ]
            assert errors[0] > errors[1] > errors[2]
            assert errors[2] < (0.01 if kernel == "matern12" and n_dims == 2 else 0.005)


def test_prior_variance_is_the_squared_amplitude_inside_the_tissue(subtests):
    for kernel, tolerance in (
        ("matern12", 0.2),
        ("matern32", 0.05),
        ("matern52", 0.03),
        ("rbf", 0.03),
    ):
        with subtests.test(kernel=kernel):
            field = at_prior(hilbert(kernel=kernel, n_basis=28, lengthscale=0.2))
            mean, variance = field.marginals(field.locate(points(200, reach=0.85), zeros(200)))
            ratio = variance / (2 * field.log_amplitude).exp()
            assert mean.abs().max() == 0
            assert (ratio - 1).abs().max() < tolerance


def test_what_the_basis_keeps_of_the_prior_variance_in_the_middle(subtests):
    for kernel, extent in product(KERNELS, ((1.0,), (1.0, 0.6))):
        with subtests.test(kernel=kernel, extent=extent):
            middle = np.zeros((1, len(extent)), np.float32)
            fields = [
                at_prior(HilbertField(kernel, 1, 1, extent, lengthscale=0.15, n_basis=n))
                for n in (20, 200)
            ]
            few, many = (
                field.marginals(field.locate(middle, zeros(1)))[1].item() for field in fields
            )
            kept, almost_one = (
                retained_variance(kernel, np.array([0.15]), extent, n) for n in (20, 200)
            )
            np.testing.assert_allclose(
                kept, few / many, rtol=0.06 if kernel == "matern12" else 0.02
            )
            np.testing.assert_allclose(almost_one, 1.0, atol=0.03)


def test_rough_kernels_and_short_length_scales_need_more_basis_functions():
    kept = {
        kernel: retained_variance(kernel, np.array([0.05, 0.2, np.nan]), (1.0, 1.0), 28)
        for kernel in KERNELS
    }
    assert all(values[0] < values[1] and np.isnan(values[2]) for values in kept.values())
    order = [kept[kernel][1] for kernel in ("matern12", "matern32", "matern52", "rbf")]
    assert order == sorted(order)
    assert order[0] == pytest.approx(0.88, abs=0.01)
    assert order[1] > 0.98


@pytest.mark.parametrize("n_dims", [1, 2])
def test_a_field_is_the_same_with_more_basis_functions(n_dims):
    few = randomise(hilbert(n_dims, n_factors=2, n_basis=10))
    many = hilbert(n_dims, n_factors=2, n_basis=23)
    for k in range(2):
        many.take(k, few, 1 - k)
    coords = points(60, n_dims=n_dims)
    for name in ("log_lengthscale", "log_amplitude", "slope"):
        expected = getattr(few, name).flip(few.factor_axis(name))
        torch.testing.assert_close(getattr(many, name), expected)
    one, other = (field.marginals(field.locate(coords, zeros(60)))[0] for field in (few, many))
    assert np.corrcoef(one.detach().T.flip(0).ravel(), other.detach().T.ravel())[0, 1] > 0.995
    new = torch.ones(many.sizes, dtype=torch.bool)
    new[tuple(slice(m) for m in few.sizes)] = False
    scale = many.u_log_scale.unflatten(-1, many.sizes)[:, :, new]
    assert ((scale <= 0) & (scale > -2)).all(), "surer than the prior, as little as they are told"


@pytest.mark.parametrize(("n_dims", "n_libraries"), [(1, 1), (2, 2)])
def test_variance_of_fine_basis_functions_is_close_to_the_exact_one(
    n_dims, n_libraries, monkeypatch
):
    """Where information differs between places, as that on a factor does."""
    coords, library = points(900, n_dims=n_dims), np.arange(900) % n_libraries
    information = torch.as_tensor(np.exp(3 * coords[:, :1]))
    found = []
    for inner in (64, 8):
        monkeypatch.setattr("gpnsf.core.fields.hilbert.INNER", inner)
        field = at_prior(hilbert(n_dims, n_libraries, n_factors=1, n_basis=18, lengthscale=0.1))
        located = field.locate(coords, library)
        field.set_precision([located], [information])
        found.append(field.marginals(located)[1])
    exact, close = (variance.log() / 2 for variance in found)
    assert abs((close - exact).mean()) < 0.05
    assert (close - exact).std() < 0.08
    assert exact.std() > 0.2, "the places differ"


def test_the_fine_part_is_what_the_inner_functions_leave(monkeypatch):
    monkeypatch.setattr("gpnsf.core.fields.hilbert.INNER", 6)
    field = randomise(hilbert(n_factors=2, n_basis=12))
    located = field.locate(points(40), zeros(40))
    whole, fine = field.marginals(located)[0], field.fine(located)
    weights = field.u_loc.data.unflatten(-1, field.sizes)
    weights[..., field.inner[0] :, :] = 0.0
    weights[..., :, field.inner[1] :] = 0.0
    torch.testing.assert_close(whole - fine, field.marginals(located)[0])
    assert field.fine(located).abs().max() == 0
    monkeypatch.setattr("gpnsf.core.fields.hilbert.INNER", 12)
    assert hilbert(n_basis=12).fine(located) is None


def test_a_strip_gets_a_basis_by_its_aspect():
    field = HilbertField("matern32", 1, 1, [1.0, 0.1], n_basis=28)
    assert field.sizes[0] > 2 * field.sizes[1]
    at_prior(field)
    coords = points(50) * np.array([0.9, 0.1], np.float32)
    variance = field.marginals(field.locate(coords, zeros(50)))[1]
    assert (variance / (2 * field.log_amplitude).exp() - 1).abs().max() < 0.1


# ---- inducing points ------------------------------------------------------------------------------------------------


def test_prior_variance_is_the_squared_amplitude_everywhere(subtests):
    for kernel, covariance in product(KERNELS, ("full", "diagonal")):
        with subtests.test(kernel=kernel, covariance=covariance):
            field = at_prior(inducing(kernel=kernel, covariance=covariance))
            mean, variance = field.marginals(field.locate(points(60, reach=2.0), zeros(60)))
            assert mean.abs().max() == 0
            torch.testing.assert_close(
                variance, (2 * field.log_amplitude).exp().expand(60, T), rtol=1e-3, atol=0
            )


def test_at_the_inducing_points_the_conditional_returns_their_values(subtests):
    for n_dims in (1, 2, 3):
        with subtests.test(n_dims=n_dims):
            field = inducing(n_dims=n_dims, n_points=15, lengthscale=0.4)
            centres = field.centres.numpy()
            u = torch.randn(T, 15, generator=torch.Generator().manual_seed(0))
            values = torch.linalg.cholesky(exact(centres, "matern32", 0.4)) @ u.double().T
            mean, variance = field.conditional(u, field.locate(centres, zeros(15)))
            torch.testing.assert_close(
                mean.detach().double(), values, atol=0.03, rtol=0
            )  # jitter keeps close points apart
            assert variance.max() < 1e-3


def test_the_conditional_is_that_of_the_exact_process():
    """``k(s, Z) K^-1 f`` and ``1 - k(s, Z) K^-1 k(Z, s)``."""
    field, coords = inducing(n_points=15, lengthscale=0.4), points(9, seed=5)
    joint = exact(np.concatenate([field.centres.numpy(), coords]), "matern32", 0.4)
    K, cross = joint[:15, :15], joint[15:, :15]
    values = torch.randn(15, dtype=torch.float64)
    u = torch.linalg.solve_triangular(torch.linalg.cholesky(K), values[:, None], upper=False)[:, 0]
    mean, variance = field.conditional(u.float().expand(T, -1), field.locate(coords, zeros(9)))
    solved = torch.linalg.solve(K, cross.T)
    torch.testing.assert_close(mean[:, 0].double(), solved.T @ values, atol=5e-3, rtol=0)
    torch.testing.assert_close(
        variance[:, 0].double(), 1 - (cross.T * solved).sum(0), atol=1e-3, rtol=0
    )


def test_weights_are_kept_while_the_lengthscale_is_fixed_and_remade_when_it_moves():
    field = inducing()
    field.log_lengthscale.requires_grad_(False)
    located = field.locate(points(5), zeros(5))
    first = field.marginals(located)[1]
    torch.testing.assert_close(field.marginals(located)[1], first)
    field.log_lengthscale += 0.5
    fresh = field.locate(points(5), zeros(5))
    torch.testing.assert_close(field.marginals(located), field.marginals(fresh))


def test_a_kernel_matrix_beyond_repair_is_an_error():
    field = inducing()
    field.log_lengthscale.data.fill_(math.nan)
    with pytest.raises(ArithmeticError, match="12 inducing points could not be factorised"):
        field.marginals(field.locate(points(3), zeros(3)))


def test_coinciding_inducing_points_are_survived():
    centres = np.repeat(points(4), 2, axis=0)
    field = randomise(InducingField("rbf", T, 1, centres, zeros(8)))
    assert all(
        torch.isfinite(part).all() for part in field.marginals(field.locate(points(6), zeros(6)))
    )


# ---- the exact covariance given what the spots say ------------------------------------------------------------------


def test_set_precision_is_the_exact_posterior_with_all_coordinates_inducing(subtests):
    for covariance in ("full", "diagonal"):
        with subtests.test(covariance=covariance):
            coords = points(30)
            field = InducingField(
                "matern32", 1, 1, coords, zeros(30), lengthscale=0.4, covariance=covariance
            )
            field.log_amplitude.data.fill_(math.log(1.3))
            information = 5 * torch.rand(30, 1, generator=torch.Generator().manual_seed(0))
            places = [field.locate(coords[:10], zeros(10)), field.locate(coords[10:], zeros(20))]
            field.set_precision(places, [information[:10], information[10:]])
            K = 1.3**2 * exact(coords, "matern32", 0.4)
            expected = torch.linalg.inv(
                torch.linalg.inv(K) + torch.diag(information[:, 0].double())
            ).diagonal()
            found = (
                torch.cat([field.marginals(place)[1][:, 0] for place in places]).detach().double()
            )
            torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-3)


def test_set_precision_is_the_dense_posterior_of_the_basis(subtests):
    for n_libraries in (1, 2):
        with subtests.test(n_libraries=n_libraries):
            field = randomise(hilbert(n_libraries=n_libraries, n_basis=10))
            located = on_nodes(field, 40)
            information = 3 * torch.rand(40, T, generator=torch.Generator().manual_seed(0))
            A, _ = weights(field, located)  # [T, n, M]
            precision = torch.eye(A.shape[2]) + torch.einsum("tnm,nt,tnl->tml", A, information, A)
            # not by torch.linalg.inv: with two threads it was wrong for a few matrices of this size (torch 2.13 with MKL)
            covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
            expected = torch.einsum("tnm,tml,tnl->nt", A, covariance, A)
            field.set_precision([located], [information])
            torch.testing.assert_close(field.marginals(located)[1], expected, rtol=0.03, atol=3e-3)


def test_between_the_nodes_set_precision_is_close_to_the_exact_process():
    coords = points(120, reach=0.8)
    field = at_prior(hilbert(n_factors=1, n_basis=24, lengthscale=0.3))
    field.log_amplitude.data.zero_()
    information = torch.full((120, 1), 4.0)
    located = field.locate(coords, zeros(120))
    field.set_precision([located], [information])
    expected = torch.linalg.inv(
        torch.linalg.inv(exact(coords, "matern32", 0.3)) + 4 * torch.eye(120)
    ).diagonal()
    torch.testing.assert_close(
        field.marginals(located)[1][:, 0].double(), expected, rtol=0.15, atol=0.01
    )


def test_without_information_set_precision_returns_the_prior(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = randomise(make())
            located = on_nodes(field)
            field.set_precision([located], [torch.zeros(15, T)])
            found = field.marginals(located)[1]
            torch.testing.assert_close(
                found, at_prior_like(field).marginals(located)[1], rtol=1e-3, atol=1e-4
            )


def at_prior_like(field: AbstractField) -> AbstractField:
    """The same kernel parameters with q(u) = p(u)."""
    other = BACKENDS["hilbert" if isinstance(field, HilbertField) else "inducing"]()
    other.load_state_dict(
        {key: value for key, value in field.state_dict().items() if not key.startswith("u_")},
        strict=False,
    )
    other.u_loc.data.zero_()
    other.u_log_scale.data.zero_()
    return other


def test_the_scale_with_the_highest_evidence_is_that_of_the_dense_marginal_likelihood():
    generator = torch.Generator().manual_seed(0)
    A, u = torch.randn(60, 8, generator=generator), torch.randn(8, generator=generator)
    noise_var = 0.3
    y = 2.5 * A @ torch.randn(8, generator=generator) + noise_var**0.5 * torch.randn(
        60, generator=generator
    )
    found = evidence_scale([(A.T @ A / noise_var, A.T @ (y - A @ u) / noise_var, u)])
    log_s = torch.linspace(-MAX_LOG_SCALE, MAX_LOG_SCALE, 61)
    dense = []
    for scale in log_s.double().exp():
        covariance = scale**2 * (A @ A.T).double() + noise_var * torch.eye(60, dtype=torch.float64)
        zero = torch.zeros(60, dtype=torch.float64)
        dense.append(torch.distributions.MultivariateNormal(zero, covariance).log_prob(y.double()))
    assert found == log_s[torch.stack(dense).argmax()]
    assert 0 < found < MAX_LOG_SCALE


def test_another_amplitude_leaves_the_mean_where_it_is(subtests):
    for name, make in BACKENDS.items():
        with subtests.test(name):
            field = randomise(make())
            located = on_nodes(field)
            before, amplitude = (
                field.marginals(located)[0].detach(),
                field.log_amplitude.detach().clone(),
            )
            generator = torch.Generator().manual_seed(1)
            information = 5 + torch.rand(15, T, generator=generator)
            gradient = 9 * torch.randn(15, T, generator=generator)
            field.rescale([located], [information], [gradient])
            assert (field.log_amplitude - amplitude).abs().min() > 0.01
            torch.testing.assert_close(
                field.marginals(located)[0].detach(), before, rtol=1e-4, atol=1e-4
            )
