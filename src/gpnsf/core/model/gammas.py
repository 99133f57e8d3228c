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
LOG2, LOG_ROOT = math.log(2), 0.5 * math.log(2 * math.pi)
SPAN = 256  # features that are summed up in single precision


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
        outputs = geometric, *slopes = [np.empty(log_mean.shape, np.float32) for _ in range(3)]
        divergence, by_alpha = np.zeros(len(alpha)), np.zeros(len(alpha))
        inputs = (log_mean, alpha, (alpha / mu).log(), level.log(), exposure)
        arrays = (x.detach().contiguous().numpy() for x in inputs)
        _pass(*arrays, *outputs, divergence, by_alpha)
        n_features, wide = len(log_mean), alpha.double()
        by_shape = torch.from_numpy(by_alpha) + n_features * torch.digamma(wide)
        ctx.save_for_backward(*map(torch.from_numpy, slopes), by_shape)
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


_quick = compiled(fastmath=("contract", "reassoc", "arcp"))


@_quick
def _log(x):  # type: ignore[no-untyped-def]
    """Logarithm of a positive ``2^n m``: n log 2 + 2 artanh s, s = (m - 1) / (m + 1).

    What is not finite stays so.
    """
    one, bits = np.float32(1.0), np.float32(x).view(np.int32)
    n = (bits - np.int32(0x3F3504F3)) >> 23  # the bits of the root of 1/2
    m = np.int32(bits - (n << 23)).view(np.float32)
    s = (m - one) / (m + one)
    q = s * s
    series = np.float32(2 / 7) + q * np.float32(2 / 9)
    series = np.float32(2) + q * (np.float32(2 / 3) + q * (np.float32(2 / 5) + q * series))
    return np.float32(n) * np.float32(LOG2) + s * series + np.float32(0) * x


@_quick
def _exp(x):  # type: ignore[no-untyped-def]
    """Exponential ``2^n exp(t)``, ``x = n log 2 + t``, in the range of normal numbers.

    What is not finite becomes not a number.
    """
    inside = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(inside * np.float32(1 / LOG2) + np.float32(0.5))
    t = inside - n * np.float32(0.693359375) + n * np.float32(0.693359375 - LOG2)
    series = np.float32(1 / 120) + t * np.float32(1 / 720)
    series = np.float32(1 / 6) + t * (np.float32(1 / 24) + t * series)
    series = np.float32(1) + t * (np.float32(1) + t * (np.float32(0.5) + t * series))
    power = np.int32((np.int32(n) + np.int32(127)) << 23).view(np.float32)
    return series * power + np.float32(0) * x


@_quick
def _pass(  # type: ignore[no-untyped-def]
    log_mean,
    alpha,
    log_rate,
    log_level,
    exposure,
    geometric,
    by_geometric,
    by_divergence,
    divergence,
    by_alpha,
):
    """Fill the outputs: psi, psi', lnGamma by series at ``a + 2``, and the recurrence back.

    ``log_rate`` [K] is ``log(alpha / mu)``. ``divergence`` [K] lacks lnGamma(alpha), ``by_alpha``
    psi(alpha). A few features of one factor at a time are copied to one buffer: a loop over it,
    with neither calls nor branches, becomes vector instructions.
    """
    n_features, n_factors = log_mean.shape
    wide = exposure.shape[0] > 1
    buffer = np.empty(6 * SPAN, np.float32)
    for start in range(0, n_features, SPAN):
        n = min(SPAN, n_features - start)
        for k in range(n_factors):
            for j in range(n):
                buffer[j] = log_mean[start + j, k]
                buffer[SPAN + j] = log_rate[k] - log_level[start + j]
                buffer[2 * SPAN + j] = exposure[start + j if wide else 0, k]
            total, slope = _of_factor(buffer, n, alpha[k])
            divergence[k] += total
            by_alpha[k] += slope
            for j in range(n):
                geometric[start + j, k] = buffer[3 * SPAN + j]
                by_geometric[start + j, k] = buffer[4 * SPAN + j]
                by_divergence[start + j, k] = buffer[5 * SPAN + j]


@_quick
def _of_factor(buffer, n, alpha):  # type: ignore[no-untyped-def]
    """Turn log E W, log beta and exposure of n features into the three outputs; sums come back."""
    one, half, two = np.float32(1.0), np.float32(0.5), np.float32(2.0)
    c6, c12, c30 = np.float32(1 / 6), np.float32(1 / 12), np.float32(1 / 30)
    c120, c360 = np.float32(1 / 120), np.float32(1 / 360)
    constant, least = np.float32(2 - LOG_ROOT), np.float32(SMALLEST_SHAPE)
    total, slope, inverse_alpha = np.float32(0.0), np.float32(0.0), one / alpha
    for j in range(n):
        mean, log_beta = _exp(buffer[j]), buffer[SPAN + j]
        beta = _exp(log_beta)
        b = beta + buffer[2 * SPAN + j]
        a = max(mean * b, least)
        y, product = a + two, a * (a + one)
        inverse, part = one / y, one / product
        square = inverse * inverse
        ratio = (a + a + one) * part  # 1 / a + 1 / (a + 1)
        log_y, log_b = _log(y), _log(b)
        series = inverse * (half + inverse * (c12 - square * c120))  # log y - psi(y)
        digamma = log_y - series - ratio
        trigamma = inverse * (one + inverse * (half + inverse * (c6 - square * c30)))
        trigamma += (product + product + one) * part * part
        # a psi(a) - lnGamma(a) - a
        rest = constant - np.float32(1.5) * log_y - a * (series + ratio)
        rest += _log(product) - inverse * (c12 - square * c360)
        log_ratio, of_prior = log_b - log_beta, mean * beta
        value = _exp(digamma - log_b)
        buffer[3 * SPAN + j] = value
        buffer[4 * SPAN + j] = value * trigamma * a
        buffer[5 * SPAN + j] = a * ((a - alpha) * trigamma - one) + of_prior
        total += rest - alpha * (digamma - log_ratio) + of_prior
        slope += log_ratio - digamma - one + of_prior * inverse_alpha
    return total, slope
