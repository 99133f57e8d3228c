"""Open or closed: two readings of the probability that a peak is open."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.special import exprel

from gpnsf.core.families.base import Family
from gpnsf.core.families.rates import nonzero_rates, observed_pieces, prepared, with_values
from gpnsf.core.types import RowReader

__all__ = ["Bernoulli", "ClippedBernoulli"]

NEWTON_STEPS = 30


class _Binary(Family):
    """Values above zero are open peaks."""

    binary = True
    link = "cloglog"

    def draw(
        self, rate: np.ndarray, dispersion: np.ndarray | float, rng: np.random.Generator
    ) -> np.ndarray:
        """Peaks that are open, drawn as 0 and 1."""
        return rng.random(rate.shape) < self.mean(rate)


class Bernoulli(_Binary):
    """``P(y = 1) = 1 - exp(-r)``: a peak is open where at least one event of rate r happened."""

    events = True

    def mean(self, rate: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """``1 - exp(-r)``."""
        closed = np.expm1(np.negative(rate, out=out), out=out)
        return np.negative(closed, out=out)

    def split(
        self,
        counts: sp.csr_matrix,
        dispersion: np.ndarray | None,
        share: float,
        rng: np.random.Generator,
        *,
        n_rows: int | None = None,
    ) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Binomial parts of the events behind open peaks, which are first drawn."""
        values = _events_behind(counts, counts.shape[0] if n_rows is None else n_rows, rng)
        first = rng.binomial(values, share)
        second = values - first
        return with_values(counts, np.minimum(first, 1)), with_values(counts, np.minimum(second, 1))

    def deviance(
        self,
        counts: sp.csr_matrix,
        A: np.ndarray,
        W: np.ndarray,
        dispersion: np.ndarray | None = None,
        *,
        rows: np.ndarray | None = None,
    ) -> tuple[float, int]:
        """``-2 [sum_open log(1 - exp(-r)) - sum_closed r]``."""
        counts, A, W = prepared(counts, A, W, rows)
        rate = nonzero_rates(counts, A, W)
        with np.errstate(divide="ignore"):
            log_open = np.log(-np.expm1(-rate)).sum()
        closed = A.sum(axis=0) @ W.sum(axis=0) - rate.sum()
        return float(-2 * (log_open - closed)), int(np.prod(counts.shape))

    def null_rates(
        self,
        counts: sp.csr_matrix | RowReader,
        size: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        pseudocount: float = 0.0,
    ) -> np.ndarray:
        """Solve ``sum_open s / expm1(s r) = sum_closed s`` by feature, Newton steps on ``log r``.

        The likelihood is concave in the log rate. Steps are at most one unit, so that the rate of a
        feature that is open everywhere grows to a large value and not to infinity.
        """
        n_features = counts.shape[1]
        n_open, closed = np.full(n_features, pseudocount), np.zeros(n_features)
        mass = 0.0
        for part, own in observed_pieces(counts, size, rows):
            n_open += np.bincount(part.indices, minlength=n_features)
            opened = np.bincount(part.indices, _open_size(part, own), minlength=n_features)
            closed += own.sum() - opened
            mass += own.sum()
        seen = n_open > 0
        log_rate = np.full(n_features, -np.inf)
        log_rate[seen] = np.log(n_open[seen] / mass)
        for _ in range(NEWTON_STEPS):
            rate = np.exp(log_rate)
            extra, extra_slope = _open_terms(rate)
            gradient = pseudocount * extra - rate * closed
            curvature = pseudocount * extra_slope + rate * closed
            for part, own in observed_pieces(counts, size, rows):
                share, slope = _open_terms(_open_size(part, own) * rate[part.indices])
                gradient += np.bincount(part.indices, share, minlength=n_features)
                curvature += np.bincount(part.indices, slope, minlength=n_features)
            usable = seen & (curvature > 0)
            step = np.divide(gradient, curvature, out=np.zeros(n_features), where=usable)
            log_rate[seen] += np.clip(step, -1, 1)[seen]
            if np.abs(step).max(initial=0) < 1e-7:  # the next step would be its square
                break
        return np.exp(log_rate)

    def events_per_rate(
        self, values: np.ndarray, rate: np.ndarray, exposure: np.ndarray
    ) -> np.ndarray:
        """An open peak stands for ``r / (1 - exp(-r))`` events."""
        return exposure / -np.expm1(-exposure * rate)


class ClippedBernoulli(_Binary):
    """``y ~ Bernoulli(min(r, 1))``: kept for comparison."""

    has_bound = False
    has_deviance = False
    fast = "bernoulli"

    def mean(self, rate: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """``min(r, 1)``."""
        return np.minimum(rate, 1.0, out=out)


def _events_behind(counts: sp.csr_matrix, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of events [nnz] behind open peaks, drawn above zero at the rate of their feature."""
    closed = 1 - np.bincount(counts.indices, minlength=counts.shape[1]) / max(n_rows, 1)
    rate = -np.log(np.clip(closed, 1e-3, 1 - 1e-9))[counts.indices]
    # the first event happens at a time that is exponential, cut off at 1; the others come later
    first = -np.log1p(rng.random(len(rate)) * np.expm1(-rate)) / rate
    return 1 + rng.poisson(rate * (1 - first))


def _open_size(counts: sp.csr_matrix, size: np.ndarray) -> np.ndarray:
    """Size factors [nnz] at the nonzeros."""
    return np.repeat(size, np.diff(counts.indptr))


def _open_terms(rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and negative second derivative of ``log(1 - exp(-r))`` in ``log r``."""
    rate = np.minimum(rate, 700.0)  # exp overflows beyond
    first = 1 / exprel(rate)  # r / expm1(r)
    return first, first * (first * np.exp(rate) - 1)
