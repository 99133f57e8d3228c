"""Factors in relation to the totals of spots (eq. 4b).

Where size factors are totals, the rates of a spot add up to the same whatever its factors are. A
factor of a spot is then exp(h) over what all factors of the spot have together, in counts. With
log factors that are independent a priori, nothing else says that one is lower where others are high.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from gpnsf.core.likelihoods.moments import MEAN_CAP, MEAN_RANGE
from gpnsf.core.types import TINY

__all__ = ["expected", "relative", "same_total", "sample"]

N_SPOTS = 100  # whose nonspatial factors stand for those of any spot
ROWS = 20_000  # at a time


class Model(Protocol):
    """What is asked of a factorization here."""

    by_total: bool

    def mass(self) -> Tensor:
        """Expected counts [K] of a factor of size one."""

    def items(self) -> Iterator[tuple[str, Any]]:
        """Modalities by name."""


def relative(m: Tensor, v: Tensor | None, mass: Tensor) -> Tensor:
    """Means [n, K] of h less the logarithm of the mean of exp(h), weighted by ``mass`` [K].

    With the variances v the mean is that under q. Then ``E log r`` is not below its bound. The sum of
    ``E r`` over features is exact with one modality; with several whose size factors differ it is an
    approximation (eq. 29).
    """
    mean = (m if v is None else m + 0.5 * v).clamp(MEAN_RANGE[0], MEAN_CAP)
    share = torch.log_softmax((mass + TINY).log(), 0)
    return m - torch.logsumexp(mean + share, 1, keepdim=True)


@contextmanager
def same_total(model: Model, total: Tensor | None = None) -> Iterator[None]:
    """Factors change; afterwards their expected counts in a spot are what they were, or as given.

    Relative factors need it, since those counts are the sum of all loadings.
    """
    if not model.by_total:
        yield
        return
    before = model.mass().detach().sum() if total is None else total
    yield
    shift = (before / (model.mass().detach().sum() + TINY)).log()
    for _, view in model.items():
        view.loadings.raw.data[:, :-1] += shift


def sample(log_factors: Tensor, seen: Tensor) -> Tensor:
    """Nonspatial factors [S, k] of some spots among those seen [N], from their logarithms [N, k]."""
    rows = torch.nonzero(seen)[:, 0]
    n = min(N_SPOTS, len(rows))
    at = torch.linspace(0, len(rows) - 1, n, device=rows.device).long()
    return log_factors[rows[at]].exp()


def expected(field: Tensor, others: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Means [n, K] of relative factors, where the spatial ones have the field ``field`` [n, T].

    They are over the nonspatial factors ``others`` [S, K-T] of a sample of spots. With them comes
    the variance [n, 1] that these bring into log factors.
    """
    T, share, means, variances = field.shape[1], mass / mass.sum(), [], []
    beside = others @ share[T:]
    for part in field.split(ROWS):
        inverse = 1 / ((part @ share[:T])[:, None] + beside)  # [n, S]
        nonspatial = inverse @ others / len(others)
        means.append(torch.cat([part * inverse.mean(1, keepdim=True), nonspatial], 1))
        variances.append(inverse.log().var(1, correction=0, keepdim=True))
    return torch.cat(means), torch.cat(variances)
