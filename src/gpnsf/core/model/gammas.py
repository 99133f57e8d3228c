"""Gamma posteriors of loadings.

Geometric means for the log term, and their divergence from the prior.

With the prior ``W_jk ~ Gamma(alpha_k, beta_jk)`` and ``q(W_jk) = Gamma(a_jk, b_jk)``, b given and
``a = b E W``:

    W^G = exp(E log W) = exp(psi(a)) / b                                              (eq. L3)
    KL  = (a - alpha) psi(a) - lnGamma(a) + lnGamma(alpha) + alpha ln(b / beta) + beta E W - a
                                                                                  (eq. L4)

``beta = alpha / (mu_k m_j)``: mu_k is what a feature has of the factor on average, m_j the level of
the feature.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpnsf.core.counts.compiled import compiled

__all__ = ["gamma_posterior"]

SMALLEST_SHAPE = 1e-4  # of a posterior; below it the geometric mean is zero in single precision
LOG_ROOT = 0.5 * math.log(2 * math.pi)


def gamma_posterior(
    log_mean: Tensor, alpha: Tensor, mu: Tensor, level: Tensor, exposure: Tensor
) -> tuple[Tensor, Tensor]:
    """Geometric means [P, K] and summed divergence of posteriors with means ``exp(log_mean)``.

    Parameters
    ----------
    log_mean
        ``log E W`` [P, K].
    alpha, mu
        Shape and mean [K] of the prior; mu is held fixed, since it stands at its optimum.
    level
        Level of each feature [P], 1 on average.
    exposure
        ``b - beta`` [P, K], or [1, K] where all features have the same.
    """
    if log_mean.device.type == "cpu":
        return _Compiled.apply(log_mean, alpha, mu, level, exposure)
    return _by_torch(log_mean, alpha, mu, level, exposure)


def _by_torch(
    log_mean: Tensor, alpha: Tensor, mu: Tensor, level: Tensor, exposure: Tensor
) -> tuple[Tensor, Tensor]:
    """The formulas as they stand, in double precision, on any device."""
    mean, alpha = log_mean.double().exp(), alpha.double()
    beta = alpha / (mu.double() * level.double()[:, None])
    b = beta.detach() + exposure.double()
    a = mean * b
    a = a * (a.clamp_min(SMALLEST_SHAPE) / a).detach()  # a floor that leaves the slope
    geometric = torch.exp(torch.digamma(a)) / b
    shapes = (a - alpha) * torch.digamma(a) - torch.lgamma(a) + torch.lgamma(alpha)
    divergence = shapes + alpha * torch.log(b / beta) + beta * mean - a
    return geometric.to(log_mean.dtype), divergence.sum()


class _Compiled(torch.autograd.Function):
    """One pass over the loadings for values and slopes.

    Large terms cancel before they are made, so that single precision is enough for any shape.
    """

    @staticmethod
    def forward(
        ctx: Any, log_mean: Tensor, alpha: Tensor, mu: Tensor, level: Tensor, exposure: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values; slopes are kept for the way back."""
        geometric, by_geometric, by_divergence = (
            np.empty(log_mean.shape, np.float32) for _ in range(3)
        )
        divergence, by_alpha = np.zeros(len(alpha)), np.zeros(len(alpha))
        inputs = (
            x.detach().contiguous().numpy()
            for x in (log_mean, alpha, (alpha / mu).log(), level, exposure)
        )
        arrays = (*inputs, geometric, by_geometric, by_divergence, divergence, by_alpha)
        _pass(*arrays)
        n_features, wide = len(log_mean), alpha.double()
        slopes = torch.from_numpy(by_alpha) + n_features * torch.digamma(wide)
        ctx.save_for_backward(
            torch.from_numpy(by_geometric), torch.from_numpy(by_divergence), slopes
        )
        total = torch.from_numpy(divergence).sum() + n_features * torch.lgamma(wide).sum()
        return torch.from_numpy(geometric), total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the logarithm of the mean.

        ``dW^G / dlog E W = W^G a psi'(a)``,
        ``dKL / dlog E W = a [(a - alpha) psi'(a) - 1] + beta E W``.
        """
        by_geometric, by_divergence, by_alpha = ctx.saved_tensors
        own, weight = gradients[0] * by_geometric, gradients[1]
        slope = own.add_(by_divergence, alpha=float(weight))
        return slope, (weight * by_alpha).to(slope.dtype), None, None, None


@compiled(fastmath=("contract", "reassoc", "arcp"))
def _pass(  # type: ignore[no-untyped-def]
    log_mean,
    alpha,
    log_rate,
    level,
    exposure,
    geometric,
    by_geometric,
    by_divergence,
    divergence,
    by_alpha,
):
    """Fill the outputs: psi, psi', lnGamma by series at ``a + 2``, and the recurrence back.

    ``log_rate`` [K] is ``log(alpha / mu)``. ``divergence`` [K] lacks lnGamma(alpha), ``by_alpha``
    psi(alpha).
    """
    one, half = np.float32(1.0), np.float32(0.5)
    c6, c12, c30 = np.float32(1 / 6), np.float32(1 / 12), np.float32(1 / 30)
    c120, c360 = np.float32(1 / 120), np.float32(1 / 360)
    constant, least = np.float32(2 - LOG_ROOT), np.float32(SMALLEST_SHAPE)
    wide = exposure.shape[0] > 1
    for j in range(log_mean.shape[0]):
        log_level = np.log(level[j])
        for k in range(log_mean.shape[1]):
            log_beta = log_rate[k] - log_level
            beta = np.exp(log_beta)
            b = beta + exposure[j if wide else 0, k]
            mean = np.exp(log_mean[j, k])
            a = mean * b
            if a < least:
                a = least
            y = a + np.float32(2.0)
            inverse = one / y
            square = inverse * inverse
            product = a * (a + one)
            part = one / product
            ratio = (a + a + one) * part  # 1 / a + 1 / (a + 1)
            log_y, log_b = np.log(y), np.log(b)
            series = inverse * (half + inverse * (c12 - square * c120))  # log y - psi(y)
            digamma = log_y - series - ratio
            trigamma = inverse * (one + inverse * (half + inverse * (c6 - square * c30)))
            trigamma += (product + product + one) * part * part
            # a psi(a) - lnGamma(a) - a
            rest = constant - np.float32(1.5) * log_y - a * (series + ratio)
            rest += np.log(product) - inverse * (c12 - square * c360)
            log_ratio, of_prior = log_b - log_beta, mean * beta
            value = np.exp(digamma - log_b)
            geometric[j, k] = value
            by_geometric[j, k] = value * trigamma * a
            by_divergence[j, k] = a * ((a - alpha[k]) * trigamma - one) + of_prior
            divergence[k] += rest - alpha[k] * (digamma - log_ratio) + of_prior
            by_alpha[k] += log_ratio - digamma - one + of_prior / alpha[k]
