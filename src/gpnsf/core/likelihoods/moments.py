"""First two moments of the factors, of which the bounds on the likelihoods are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["MEAN_CAP", "MEAN_RANGE", "Moments"]

MEAN_RANGE = (-12.0, 16.0)  # clamp of m before exponentials
MEAN_CAP = 17.0  # and of m + v/2 from above
VARIANCE_CAP = 9.0  # clamp of v


@dataclass(frozen=True)
class Moments:
    """First two moments of the factors under q [n, K+1], size factors included.

    The last column carries the background.
    """

    geometric: Tensor  # size * exp(m); for signed factors size * m
    mean: Tensor  # size * E H
    variance: Callable[[], Tensor]  # size^2 * Var H, which few ask for

    @classmethod
    def lognormal(cls, m: Tensor, v: Tensor, size: Tensor) -> Moments:
        """Moments of ``size * exp(h)``, ``h ~ N(m, v)`` [n, K], with ``size`` [n, 1]."""
        geometric, mean = _LogNormal.apply(m, v, size)
        return cls(
            geometric, mean, lambda: mean**2 * _beside(torch.expm1(v.clamp_max(VARIANCE_CAP)), 0.0)
        )

    @classmethod
    def normal(cls, m: Tensor, v: Tensor, size: Tensor) -> Moments:
        """Moments of ``size * h``, ``h ~ N(m, v)``."""
        mean = size * _beside(m, 1.0)
        return cls(mean, mean, lambda: size**2 * _beside(v, 0.0))

    @classmethod
    def certain(cls, A: Tensor) -> Moments:
        """Factors [n, K+1] that are known."""
        return cls(A, A, lambda: torch.zeros_like(A))


def _beside(values: Tensor, background: float) -> Tensor:
    """Values [n, K] with a constant column."""
    return torch.cat([values, values.new_full((len(values), 1), background)], 1)


class _LogNormal(torch.autograd.Function):
    """Geometric and arithmetic mean, in as few passes as possible.

    Where spots are many these outlast the counts.
    """

    @staticmethod
    def forward(ctx: Any, m: Tensor, v: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """``size exp(m)`` and ``size exp(m + v / 2)`` beside the size factors."""
        exponents = m, torch.add(m, v, alpha=0.5)
        # a GPU would be waited for
        ctx.clamps = m.device.type != "cpu" or not (
            MEAN_RANGE[0] <= float(m.min()) and float(exponents[1].max()) <= MEAN_RANGE[1]
        )
        means = []
        for exponent, ceiling in zip(exponents, (MEAN_RANGE[1], MEAN_CAP), strict=True):
            mean = m.new_zeros(len(m), m.shape[1] + 1)
            torch.clamp(exponent, MEAN_RANGE[0], ceiling, out=mean[:, :-1])
            means.append(mean.exp_().mul_(size))
        ctx.save_for_backward(*exponents, *means)
        return means[0], means[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Both means are their own derivatives, but for where they are clamped."""
        m, exponent, geometric, mean = ctx.saved_tensors
        by_m, by_exponent = (
            (gradient * value)[:, :-1]
            for gradient, value in zip(gradients, (geometric, mean), strict=True)
        )
        if ctx.clamps:
            by_m = torch.ops.aten.hardtanh_backward(by_m, m, *MEAN_RANGE)
            by_exponent = torch.ops.aten.hardtanh_backward(
                by_exponent, exponent, MEAN_RANGE[0], MEAN_CAP
            )
        return by_m.add_(by_exponent), 0.5 * by_exponent, None
