"""Gamma posteriors: the compiled pass is the formulas, and these are what the distributions say."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.distributions import Gamma, kl_divergence

from gpnsf.core.model import gammas
from gpnsf.core.model.gammas import SMALLEST_SHAPE, gamma_posterior

P, K = 40, 3


def problem(spread: float, width: int = 1, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Log means [P, K], shapes and means [K] of the prior, levels [P], exposures [1 or P, K]."""
    rng = np.random.default_rng(seed)
    arrays = (
        rng.normal(-2, spread, (P, K)),
        np.array([0.05, 0.5, 20.0]),
        rng.lognormal(-2, 1, K),
        rng.lognormal(0, 1, P),
        rng.lognormal(3, 1, (width, K)),
    )
    return tuple(torch.as_tensor(array, dtype=torch.float32) for array in arrays)


def distributions(log_mean, alpha, mu, level, exposure) -> tuple[Gamma, Gamma]:
    """Posterior and prior in double precision."""
    alpha, beta = alpha.double(), alpha.double() / (mu.double() * level.double()[:, None])
    b = beta + exposure.double()
    a = (log_mean.double().exp() * b).clamp_min(SMALLEST_SHAPE)
    return Gamma(a, b), Gamma(alpha.expand_as(beta), beta)


def slopes(
    function, inputs: tuple[torch.Tensor, ...], weights: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Values, and gradients of a weighted sum of them in log means and shapes."""
    log_mean, alpha = (value.clone().requires_grad_() for value in inputs[:2])
    geometric, divergence = function(log_mean, alpha, *inputs[2:])
    total = (weights * geometric.double()).sum() + 1.7 * divergence.double()
    return geometric.detach(), divergence.detach(), *torch.autograd.grad(total, (log_mean, alpha))


def test_the_divergence_is_that_of_two_gamma_distributions(subtests):
    for width, spread in product((1, P), (0.3, 2.0)):
        with subtests.test(width=width, spread=spread):
            inputs = problem(spread, width)
            q, p = distributions(*inputs)
            expected = kl_divergence(q, p).sum()
            for function in (gamma_posterior, gammas._by_torch):
                torch.testing.assert_close(
                    function(*inputs)[1].double(), expected, rtol=1e-5, atol=1e-3
                )


def test_the_geometric_mean_is_that_of_draws():
    inputs = problem(0.3)
    q, _ = distributions(*inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logs = q.sample((4000,)).log()
    error = logs.std(0) / 4000**0.5
    assert ((gamma_posterior(*inputs)[0].log() - logs.mean(0)).abs() < 4.5 * error).all()


def test_the_compiled_pass_is_the_formulas(subtests):
    """Values and gradients, from shapes of a posterior far below 1 to thousands."""
    for width, spread in product((1, P), (0.3, 2.0, 5.0)):
        with subtests.test(width=width, spread=spread):
            inputs = problem(spread, width)
            shape = distributions(*inputs)[0].concentration
            assert spread < 5 or (shape.min() < 1e-2 and shape.max() > 1e3)
            weights = torch.randn(P, K, generator=torch.Generator().manual_seed(1)).double()
            found, expected = (
                slopes(function, inputs, weights)
                for function in (gamma_posterior, gammas._by_torch)
            )
            torch.testing.assert_close(found[0], expected[0], rtol=3e-5, atol=1e-9)
            torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(
                found[2], expected[2], rtol=1e-3, atol=2e-4 * float(expected[2].abs().max())
            )
            torch.testing.assert_close(
                found[3], expected[3], rtol=1e-3, atol=1e-4 * float(expected[3].abs().max())
            )


def test_gradients_are_slopes():
    """Central differences of the divergence in double precision, mean and rate of the prior held fixed."""
    inputs = problem(1.0)
    log_mean, alpha, mu, level, exposure = (value.double() for value in inputs)
    q, _ = distributions(*inputs)
    b, step = q.rate, 1e-4

    def value(log_mean: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        prior = Gamma(alpha.expand(P, K), alpha / (mu * level[:, None]))
        return kl_divergence(Gamma(log_mean.exp() * b, b), prior).sum()

    _, _, by_mean, by_alpha = slopes(gamma_posterior, inputs, torch.zeros(P, K).double())
    for k in range(K):
        up, down = torch.zeros(P, K).double(), torch.zeros(K).double()
        up[:, k], down[k] = step, step * alpha[k]
        expected = (value(log_mean + up, alpha) - value(log_mean - up, alpha)) / (2 * step)
        assert by_mean[:, k].sum().item() == pytest.approx(1.7 * expected.item(), rel=1e-3)
        expected = (value(log_mean, alpha + down) - value(log_mean, alpha - down)) / (
            2 * step * alpha[k]
        )
        assert by_alpha[k].item() == pytest.approx(1.7 * expected.item(), rel=1e-3)


def test_loadings_that_are_all_but_zero_are_finite_and_can_come_back():
    inputs = list(problem(0.1))
    inputs[0] = inputs[0] - 40.0
    geometric, divergence, slope, _ = slopes(
        gamma_posterior, tuple(inputs), torch.ones(P, K).double()
    )
    assert all(torch.isfinite(values).all() for values in (geometric, divergence, slope))
    assert (geometric == 0).all() or geometric.max() < 1e-10
    assert (slope != 0).all()
