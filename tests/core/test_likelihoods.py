"""Likelihoods: each closed form against the dense distribution that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from gpnsf.core.counts import rowblocks
from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.likelihoods import (
    LIKELIHOODS,
    AbstractLikelihood,
    NegativeBinomial,
    Poisson,
    bernoulli,
)
from gpnsf.core.likelihoods.moments import MEAN_CAP, MEAN_RANGE, Moments

N, P, K = 20, 6, 2
UNOBSERVED = (3, 19)  # rows without counts, size factor 0

# Scale of the loadings: probabilities of the clipped Bernoulli stay inside (0, 1), so that it is smooth
LOADINGS = {"poisson": 1.0, "nb": 1.0, "bernoulli": 0.4, "bernoulli_clipped": 0.08, "gaussian": 1.0}
BOUNDED = [name for name, kind in LIKELIHOODS.items() if kind.family.has_bound]
OBSERVED_INFORMATION = ["poisson", "bernoulli", "gaussian"]  # the others give Fisher's
each_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


@dataclass
class Case:
    """Log factors, size factors, loadings, and counts drawn from the likelihood."""

    likelihood: AbstractLikelihood
    m: Tensor  # [N, K]
    v: Tensor  # [N, K]
    size: Tensor  # [N, 1]
    W: Tensor  # [P, K+1]
    counts: SparseCounts

    @property
    def observed(self) -> Tensor:
        return self.size[:, 0] > 0

    @property
    def dense(self) -> Tensor:
        return self.counts.dense_rows(slice(0, len(self.m)))

    def moments(self, m: Tensor, v: Tensor, size: Tensor | None = None) -> Moments:
        """Moments with the constant column, as the model makes them."""
        size = self.size if size is None else size
        return (Moments.normal if self.likelihood.signed else Moments.lognormal)(m, v, size)

    def at(self, m: Tensor) -> Moments:
        """Moments without variance."""
        return self.moments(m, torch.zeros_like(m))

    def log_prob(self, A: Tensor, W: Tensor) -> Tensor:
        """Dense log-likelihood of the observed rows given factors A [N, K+1]."""
        return (
            self.likelihood.distribution((A @ W.T)[self.observed])
            .log_prob(self.dense[self.observed])
            .sum()
        )


def as_counts(values: Tensor) -> SparseCounts:
    return SparseCounts(sp.csr_matrix(values.detach().numpy()))


def make(name: str, seed: int = 0) -> Case:
    """A case of the named likelihood with parameters away from their start."""
    torch.manual_seed(seed)
    likelihood = LIKELIHOODS[name](P)
    for parameter in likelihood.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (0.5 if name == "nb" else 0.0)
    m, v = 0.5 * torch.randn(N, K), 0.1 + 0.4 * torch.rand(N, K)
    size = 0.5 + torch.rand(N, 1)
    size[list(UNOBSERVED)] = 0
    W = LOADINGS[name] * (0.2 + torch.rand(P, K + 1))
    case = Case(likelihood, m, v, size, W, as_counts(torch.zeros(N, P)))
    draws = likelihood.distribution(case.at(m).mean @ W.T).sample()
    draws[list(UNOBSERVED)] = 0
    case.counts = as_counts(draws)
    return case


@pytest.fixture(autouse=True)
def _keep_random_state():
    with torch.random.fork_rng(devices=[]):
        yield


def test_no_missing_likelihood():
    assert LIKELIHOODS.keys() == LOADINGS.keys()


# ---- values ---------------------------------------------------------------------------------------------------------


def test_bound_without_variance_is_the_log_likelihood(subtests):
    for name in LIKELIHOODS:
        with subtests.test(name=name):
            case = make(name)
            A = case.at(case.m).mean
            torch.testing.assert_close(
                case.likelihood.bound(case.counts, case.at(case.m), case.W),
                case.log_prob(A, case.W),
                rtol=1e-5,
                atol=1e-3,
            )


@pytest.mark.broad(2)
@each_likelihood
def test_the_expected_information_is_the_mean_of_the_curvature_over_counts(name):
    case = make(name)
    A = case.at(case.m).mean
    found = case.likelihood.expected_information(case.counts, A, case.W).detach()
    total = torch.zeros_like(found)
    for _ in range(400):
        draws = case.likelihood.distribution(A @ case.W.T).sample()
        draws[list(UNOBSERVED)] = 0
        total += case.likelihood.curvature(as_counts(draws), A, case.W, True)[1].detach()
    assert (found[list(UNOBSERVED)] == 0).all()
    scale = found.diagonal(dim1=1, dim2=2).sqrt()
    error = (total / 400 - found) / (scale[:, :, None] * scale[:, None, :]).clamp_min(1e-9)
    assert error.abs().max() < 0.15
    assert error.mean().abs() < 0.01


def test_of_many_features_those_with_many_counts_are_taken_for_certain(monkeypatch):
    monkeypatch.setattr(rowblocks, "MOST_FEATURES", 400)
    generator = torch.Generator().manual_seed(0)
    W = torch.exp(2 * torch.randn(5_000, 4, generator=generator))
    features, number = rowblocks._sampled(W.sum(1))
    assert 395 <= len(features) <= 400
    assert (number[W.sum(1)[features] > W.sum(1).quantile(0.997)] == 1).all()
    torch.testing.assert_close((number[:, None] * W[features]).sum(0), W.sum(0), rtol=0.1, atol=0)
    A = torch.exp(torch.randn(30, 4, generator=generator))
    found = rowblocks.outer_products(A, W, lambda rate, feature: 1 / rate)
    exact = torch.einsum("ij,jk,jl->ikl", 1 / (A @ W.T), W[:, :-1], W[:, :-1])
    assert ((found - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))).max() < 0.1


def test_what_is_lost_without_a_factor_is_the_difference_of_log_likelihoods(subtests):
    for name in LIKELIHOODS:
        with subtests.test(name=name):
            case = make(name)
            A = case.at(case.m).mean
            changes = case.size * A.mean(0) - A
            expected = []
            for k in range(A.shape[1]):
                changed = A.clone()
                changed[:, k] += changes[:, k]
                expected.append(case.log_prob(A, case.W) - case.log_prob(changed, case.W))
            found = case.likelihood.lost(case.counts, A, case.W, changes)
            torch.testing.assert_close(
                found, torch.stack(expected).detach().double(), rtol=1e-3, atol=5e-3
            )


def test_gradients_without_variance_are_those_of_the_log_likelihood(subtests):
    for name in LIKELIHOODS:
        with subtests.test(name=name):
            case = make(name)
            m, W = case.m.requires_grad_(), case.W.requires_grad_()
            inputs = [m, W, *case.likelihood.parameters()]
            found = torch.autograd.grad(case.likelihood.bound(case.counts, case.at(m), W), inputs)
            expected = torch.autograd.grad(case.log_prob(case.at(m).mean, W), inputs)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)


@pytest.mark.broad(3)
@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("seed", [0, 1])
def test_bound_is_below_the_expectation_and_close_to_it(name, seed):
    case = make(name, seed)
    draws = torch.stack(
        [
            case.log_prob(
                case.at(case.m + case.v.sqrt() * torch.randn_like(case.m)).mean, case.W
            ).detach()
            for _ in range(1500)
        ]
    )
    error = draws.std() / len(draws) ** 0.5
    bound = case.likelihood.bound(case.counts, case.moments(case.m, case.v), case.W)
    assert bound <= draws.mean() + 4 * error
    assert bound > case.likelihood.bound(case.counts, case.at(case.m + 1.5), case.W)


def test_gaussian_expectation_is_exact():
    case = make("gaussian")
    draws = torch.stack(
        [
            case.log_prob(
                case.at(case.m + case.v.sqrt() * torch.randn_like(case.m)).mean, case.W
            ).detach()
            for _ in range(3000)
        ]
    )
    bound = case.likelihood.bound(case.counts, case.moments(case.m, case.v), case.W)
    assert abs(bound - draws.mean()) < 4 * draws.std() / len(draws) ** 0.5


def test_gradient_of_the_bound_tends_to_that_of_the_log_likelihood(subtests):
    for name in BOUNDED:
        with subtests.test(name=name):
            case = make(name)
            m = case.m.requires_grad_()
            (expected,) = torch.autograd.grad(case.log_prob(case.at(m).mean, case.W), m)
            gaps = []
            for variance in (0.3, 0.03, 1e-6):
                bound = case.likelihood.bound(
                    case.counts, case.moments(m, torch.full_like(m, variance)), case.W
                )
                gaps.append((torch.autograd.grad(bound, m)[0] - expected).norm() / expected.norm())
            assert gaps[-1] < 1e-4
            assert (
                gaps == sorted(gaps, reverse=True) or name == "gaussian"
            )  # its gradient does not depend on the variance


@pytest.mark.broad(2)
@each_likelihood
def test_uncertain_loadings_take_their_geometric_mean_in_the_logarithms_alone(name):
    """With one log-normal factor of mean one on all loadings the bound stays below the expectation."""
    case = make(name)
    W, spread = case.W.requires_grad_(), 0.3
    certain = case.likelihood.bound(case.counts, case.at(case.m), W)
    same = case.likelihood.bound(case.counts, case.at(case.m), W, W)
    torch.testing.assert_close(certain, same, rtol=0, atol=0)
    lower = case.likelihood.bound(case.counts, case.at(case.m), W, W * np.exp(-spread))
    if not case.likelihood.uncertain_loadings:
        assert lower == certain
        return
    draws = []
    for _ in range(1500):
        factor = torch.exp(np.sqrt(2 * spread) * torch.randn(()) - spread)
        draws.append(case.log_prob(case.at(case.m).mean, W * factor).detach())
    draws = torch.stack(draws)
    assert lower < certain
    assert lower <= draws.mean() + 4 * draws.std() / len(draws) ** 0.5


def test_rows_with_size_zero_add_nothing(subtests):
    for name in LIKELIHOODS:
        with subtests.test(name=name):
            case = make(name)
            keep = torch.nonzero(case.observed)[:, 0]
            small = Case(
                case.likelihood,
                case.m[keep],
                case.v[keep],
                case.size[keep],
                case.W,
                as_counts(case.dense[keep]),
            )
            both = [c.likelihood.bound(c.counts, c.moments(c.m, c.v), c.W) for c in (case, small)]
            torch.testing.assert_close(*both)
            score, information = case.likelihood.curvature(
                case.counts, case.at(case.m).mean, case.W, True
            )
            rows = list(UNOBSERVED)
            contribution = (
                case.size[rows] * score[rows],
                case.size[rows][..., None] ** 2 * information[rows],
            )
            for part in contribution:
                torch.testing.assert_close(part, torch.zeros_like(part))


def everything(case: Case) -> list[Tensor]:
    """All numbers that a likelihood gives of a case."""
    A, moments = case.at(case.m).mean, case.moments(case.m, case.v)
    W = case.W.clone().requires_grad_()
    bound = case.likelihood.bound(case.counts, moments, W)
    slope = torch.autograd.grad(bound, W)[0]
    curvature = case.likelihood.curvature(case.counts, A, case.W, True)
    return [bound.detach(), slope, *curvature, *case.likelihood.totals(A, case.W)]


def test_row_blocks_change_nothing(subtests, monkeypatch):
    cases = {name: make(name) for name in LIKELIHOODS}
    whole = {name: everything(case) for name, case in cases.items()}
    monkeypatch.setattr(rowblocks, "ROW_BLOCK_ENTRIES", 2 * P + 1)
    for name, case in cases.items():
        with subtests.test(name=name):
            for one, other in zip(everything(case), whole[name], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_the_total_of_many_entries_is_estimated_from_some_rows(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    A, W = torch.rand(6_000, 4, generator=rng), torch.rand(50, 4, generator=rng).pow(3)
    A[::2] = 0  # rows that were not observed
    likelihood = LIKELIHOODS["bernoulli"](50)
    exact = likelihood.totals(A, W)
    monkeypatch.setattr(bernoulli, "MAX_ENTRIES", 10_000)  # one row in 16
    for one, other in zip(likelihood.totals(A, W), exact, strict=True):
        assert one != other
        torch.testing.assert_close(one, other, rtol=0.01, atol=0)


# ---- derivatives for the local stage --------------------------------------------------------------------------------


def test_curvature_is_the_gradient_in_the_factors(subtests):
    for name in LIKELIHOODS:
        with subtests.test(name=name):
            case = make(name)
            A = case.at(case.m).mean.requires_grad_()
            (expected,) = torch.autograd.grad(case.log_prob(A, case.W), A)
            found, nothing = case.likelihood.curvature(case.counts, A.detach(), case.W, False)
            assert nothing is None
            rows = case.observed
            torch.testing.assert_close(found[rows], expected[rows, :K], rtol=1e-3, atol=2e-3)


def log_prob_of_row(case: Case, i: int, constant: Tensor, a: Tensor) -> Tensor:
    """Dense log-likelihood of one row given its factors."""
    rate = case.W @ torch.cat([a, constant])
    return case.likelihood.distribution(rate).log_prob(case.dense[i]).sum()


def test_information_is_the_negative_hessian(subtests):
    for name in OBSERVED_INFORMATION:
        with subtests.test(name=name):
            case = make(name)
            A = case.at(case.m).mean
            _, found = case.likelihood.curvature(case.counts, A, case.W, True)
            for i in torch.nonzero(case.observed)[:6, 0].tolist():
                log_prob = partial(log_prob_of_row, case, i, A[i, K:])
                hessian = torch.autograd.functional.hessian(log_prob, A[i, :K])
                torch.testing.assert_close(found[i], -hessian, rtol=1e-3, atol=1e-3)


def test_information_is_the_covariance_of_the_score(subtests):
    """Fisher's identity for data drawn from the model itself; the mean score is zero."""
    for name in LIKELIHOODS:
        with subtests.test(name=name):
            case, n_draws = make(name, seed=3), 6000
            A = case.at(case.m).mean[:1].expand(n_draws, -1).contiguous()
            counts = as_counts(case.likelihood.distribution(A @ case.W.T).sample())
            score, information = case.likelihood.curvature(counts, A, case.W, True)
            scale = information.mean(0).diagonal().sqrt()
            mean, covariance = score.mean(0) / scale, torch.cov(score.T) / (scale[:, None] * scale)
            torch.testing.assert_close(mean, torch.zeros(K), rtol=0, atol=4 / n_draws**0.5)
            torch.testing.assert_close(
                covariance, information.mean(0) / (scale[:, None] * scale), rtol=0, atol=0.12
            )


def test_totals_are_the_expected_total_and_its_slope(subtests):
    for name in LIKELIHOODS:
        with subtests.test(name=name):
            case = make(name)
            A, log_scale = case.at(case.m).mean, torch.zeros((), requires_grad=True)
            expected = (
                case.likelihood.distribution(A @ (case.W * log_scale.exp()).T)
                .mean[case.observed]
                .sum()
            )
            (slope,) = torch.autograd.grad(expected, log_scale)
            total, derivative = case.likelihood.totals(A, case.W)
            torch.testing.assert_close(total.float(), expected.detach(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(derivative.float(), slope, rtol=1e-4, atol=1e-4)


# ---- single likelihoods ---------------------------------------------------------------------------------------------


def test_bernoulli_clips_rates_above_one_and_lets_them_come_back():
    likelihood = LIKELIHOODS["bernoulli_clipped"](1)
    rate = torch.tensor([0.5, 1.0, 7.0], requires_grad=True)
    probability = likelihood.distribution(rate).probs
    torch.testing.assert_close(probability.detach(), torch.tensor([0.5, 0.999, 0.999]))
    probability.sum().backward()
    assert (rate.grad > 0).all()


def test_negative_binomial_has_the_variance_of_its_docstring():
    torch.manual_seed(0)
    likelihood = NegativeBinomial(1)
    likelihood.log_theta.data.fill_(np.log(3.0))
    distribution = likelihood.distribution(torch.full((200_000, 1), 5.0))
    draws = distribution.sample()
    assert distribution.mean[0].item() == pytest.approx(5.0, rel=1e-5)
    assert draws.mean().item() == pytest.approx(5.0, rel=0.02)
    assert draws.var().item() == pytest.approx(5 + 25 / 3, rel=0.03)


def test_negative_binomial_tends_to_poisson():
    case, gaps = make("nb"), []
    case.counts = make("poisson").counts
    moments = case.moments(case.m, case.v)
    poisson = Poisson(P).bound(case.counts, moments, case.W)
    for theta in (1.0, 30.0, 3000.0):
        case.likelihood.log_theta.data.fill_(np.log(theta))
        gaps.append(abs(case.likelihood.bound(case.counts, moments, case.W) - poisson).item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3 * abs(poisson)


def test_the_surrogate_is_left_once(subtests):
    for name in LIKELIHOODS:
        with subtests.test(name=name):
            case = make(name)
            likelihood, moments = case.likelihood, case.at(case.m)
            assert not likelihood.in_surrogate
            likelihood.prepare([case.counts])
            assert likelihood.in_surrogate == (likelihood.surrogate is not None)
            if likelihood.surrogate:
                stand_in = LIKELIHOODS[likelihood.surrogate](P).bound(case.counts, moments, case.W)
                torch.testing.assert_close(likelihood.bound(case.counts, moments, case.W), stand_in)
            likelihood.leave_surrogate([(case.counts, moments, case.W)])
            assert not likelihood.in_surrogate


def test_negative_binomial_begins_as_poisson():
    case = make("nb")
    case.likelihood.prepare([case.counts])
    moments = case.moments(case.m, case.v)
    torch.testing.assert_close(
        case.likelihood.bound(case.counts, moments, case.W),
        Poisson(P).bound(case.counts, moments, case.W),
    )
    assert case.likelihood.log_prior() == 0.0


def test_negative_binomial_has_a_prior_on_theta():
    likelihood = NegativeBinomial(3)
    likelihood.log_theta.data = torch.tensor([1.0, 3.0, -1.0])
    assert likelihood.log_prior().item() == pytest.approx(-1.0)


def simulated_counts(
    theta: float, n: int = 1500, n_features: int = 8
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Factors [n, 2], loadings [P, 2] and negative binomial counts around their rates."""
    rng = np.random.default_rng(0)
    A = np.exp(0.5 * rng.standard_normal((n, 2))).astype(np.float32)
    W = rng.uniform(1, 5, (n_features, 2)).astype(np.float32)
    counts = rng.poisson(rng.gamma(theta, 1 / theta, (n, n_features)) * (A @ W.T)).astype(
        np.float32
    )
    return torch.as_tensor(A), torch.as_tensor(W), counts


def test_theta_is_recovered(subtests):
    for theta, n_blocks in product((2.0, 10.0), (1, 3)):
        with subtests.test(theta=theta, n_blocks=n_blocks):
            A, W, counts = simulated_counts(theta)
            likelihood = NegativeBinomial(len(W))
            likelihood.prepare([])
            parts = np.array_split(np.arange(len(A)), n_blocks)
            blocks = [
                (SparseCounts(sp.csr_matrix(counts[rows])), Moments.certain(A[rows]), W)
                for rows in parts
            ]
            likelihood.leave_surrogate(blocks)
            assert likelihood.dispersion().mean().item() == pytest.approx(theta, rel=0.15)
            assert not likelihood.in_surrogate


def test_theta_of_poisson_counts_is_at_its_cap():
    A, W, _ = simulated_counts(1.0)
    counts = SparseCounts(sp.csr_matrix(torch.poisson(0.2 * A @ W.T).numpy()))
    likelihood = NegativeBinomial(len(W))
    likelihood.leave_surrogate([(counts, Moments.certain(A), 0.2 * W)])
    assert likelihood.dispersion().median() > 20
    assert likelihood.dispersion().max() <= 100.001


def test_theta_survives_features_without_counts():
    A, W, counts = simulated_counts(2.0)
    counts[:, 0] = 0
    likelihood = NegativeBinomial(len(W))
    W[0] = 0
    likelihood.leave_surrogate([(SparseCounts(sp.csr_matrix(counts)), Moments.certain(A), W)])
    assert torch.isfinite(likelihood.log_theta).all()


def test_gaussian_prepares_its_noise_from_the_data():
    values = torch.randn(300, P) * torch.arange(1, P + 1)
    likelihood = LIKELIHOODS["gaussian"](P)
    likelihood.prepare([as_counts(values[:100]), as_counts(values[100:])])
    torch.testing.assert_close(
        likelihood.dispersion(), (values**2).mean(0).sqrt(), rtol=1e-4, atol=0
    )


def test_only_likelihoods_with_a_parameter_of_their_own_report_a_dispersion(subtests):
    for name in LIKELIHOODS:
        with subtests.test(name=name):
            likelihood = LIKELIHOODS[name](P)
            own = list(likelihood.parameters())
            assert (likelihood.dispersion() is None) is (not own)
            assert all(parameter.shape == (P,) for parameter in own)
            assert torch.as_tensor(likelihood.log_prior()).isfinite()


# ---- moments --------------------------------------------------------------------------------------------------------


def parts(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    return moments.geometric, moments.mean, moments.variance()


def test_lognormal_moments():
    m, v, size = torch.tensor([[0.3]]), torch.tensor([[0.4]]), torch.tensor([[2.0]])
    draws = 2 * torch.exp(
        0.3 + 0.4**0.5 * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    )
    geometric, mean, variance = parts(Moments.lognormal(m, v, size))
    assert mean[0].tolist() == pytest.approx([draws.mean().item(), 2.0], rel=0.01)
    assert geometric[0].tolist() == pytest.approx([draws.log().mean().exp().item(), 2.0], rel=0.01)
    assert variance[0].tolist() == pytest.approx([draws.var().item(), 0.0], rel=0.05)


def test_the_gradient_of_lognormal_moments_is_that_of_their_formula():
    generator = torch.Generator().manual_seed(0)
    m, v = (
        6 * torch.randn(40, 3, generator=generator),
        3 * torch.rand(40, 3, generator=generator),
    )  # some are clamped
    size = torch.rand(40, 1, generator=generator) + 0.5
    (a, b) = torch.randn(2, 40, 4, generator=generator)

    def gradients(means):
        at = m.clone().requires_grad_(), v.clone().requires_grad_()
        geometric, mean = means(*at)
        return torch.autograd.grad((a * geometric + b * mean).sum(), at)

    def plain(m, v):
        ones = torch.ones(40, 1)
        exponents = m.clamp(*MEAN_RANGE), (m + 0.5 * v).clamp(MEAN_RANGE[0], MEAN_CAP)
        return [size * torch.cat([exponent.exp(), ones], 1) for exponent in exponents]

    found = gradients(lambda m, v: parts(Moments.lognormal(m, v, size))[:2])
    torch.testing.assert_close(found, gradients(plain))


def test_normal_moments_keep_their_sign():
    moments = parts(
        Moments.normal(torch.tensor([[-0.3]]), torch.tensor([[0.4]]), torch.tensor([[2.0]]))
    )
    assert [part[0].tolist() for part in moments] == [
        pytest.approx(row) for row in ([-0.6, 2], [-0.6, 2], [1.6, 0])
    ]


def test_extreme_log_factors_have_finite_moments():
    m = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]])
    for v in (0.0, 1.0, 1e4):
        moments = parts(Moments.lognormal(m, torch.full_like(m, v), torch.ones(1, 1)))
        assert all(torch.isfinite(part).all() for part in moments)
