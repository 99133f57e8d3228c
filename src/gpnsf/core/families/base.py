"""Parts of a likelihood without a gradient: legal counts, mean, draws, parts, deviance.

Here a likelihood is the distribution of counts ``y`` given rates ``r_ij = sum_k A_ik W_jk``. ``A``
holds the factors with the constant column, multiplied by the size factors, ``W`` the loadings with
the background. Bounds and derivatives are in :mod:`gpnsf.core.likelihoods`, which needs torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from gpnsf.core.families.rates import observed_pieces, with_values
from gpnsf.core.types import RowReader, parts

__all__ = ["NEGATIVE", "Family", "Illegal"]


class Illegal(NamedTuple):
    """Counts that a likelihood does not take."""

    found: Callable[[np.ndarray], np.ndarray]  # values [nnz] -> bool [nnz]
    wanted: str  # what they have to be
    word: str  # what the others are called


NEGATIVE = Illegal(lambda values: values < 0, "nonnegative counts", "negative")


class Family(ABC):
    """One likelihood, as numbers see it; it has no parameters of its own.

    A new one states what it is by the attributes below, writes `draw` and `deviance`, and whatever
    else differs from what is written here.
    """

    signed = False  # whether values and rates may be negative: real values, not counts
    binary = False  # whether all that counts is that a value is above zero
    events = False  # whether counts are events that add up, seen one by one or as open and closed
    link = "log"  # of multiplicative updates; "cloglog" where an open peak hides how many events
    has_bound = True  # whether the expected log-likelihood has a bound in closed form
    has_deviance = True
    has_dispersion = False  # whether features have a parameter of their own
    illegal: tuple[Illegal, ...] = (NEGATIVE,)
    fast: str | None = None  # name of the likelihood that stands in for it in short fits
    scorer: str | None = None  # name of the likelihood that judges factors in its place

    def mean(self, rate: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Mean of the counts at some rates; ``out`` may be the rates themselves."""
        return rate

    @abstractmethod
    def draw(
        self, rate: np.ndarray, dispersion: np.ndarray | float, rng: np.random.Generator
    ) -> np.ndarray:
        """Counts [n, P] drawn at some rates."""

    # ---- parts that are independent given the rates ----------------------------------------------

    def split(
        self,
        counts: sp.csr_matrix,
        dispersion: np.ndarray | None,
        share: float,
        rng: np.random.Generator,
        *,
        n_rows: int | None = None,
    ) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Two matrices [N, P] with the ``share`` f and 1 - f of the rates.

        Binomial parts of Poisson counts are independent. ``n_rows`` is the number of rows that were
        observed, if not all were.
        """
        values = counts.data.astype(np.int64)
        first = rng.binomial(values, share)
        return with_values(counts, first), with_values(counts, values - first)

    def halves(
        self, counts: sp.csr_matrix, observed: np.ndarray, rng: np.random.Generator
    ) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Two halves [N, P] where no dispersion is known yet; some rows [N] bool were observed."""
        return self.split(counts, None, 0.5, rng, n_rows=int(observed.sum()))

    def part_dispersion(self, dispersion: np.ndarray, share: float) -> np.ndarray:
        """Dispersion of a part with this share."""
        return dispersion

    # ---- deviance --------------------------------------------------------------------------------

    def deviance(
        self,
        counts: sp.csr_matrix,
        A: np.ndarray,
        W: np.ndarray,
        dispersion: np.ndarray | None = None,
        *,
        rows: np.ndarray | None = None,
    ) -> tuple[float, int]:
        """Twice the log-likelihood that the saturated model has more, and the number of entries.

        ``rows`` [N] bool selects observations. The result is infinite where a positive count meets
        a rate of exactly zero.
        """
        raise NotImplementedError

    def null_rates(
        self,
        counts: sp.csr_matrix | RowReader,
        size: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        pseudocount: float = 0.0,
    ) -> np.ndarray:
        """Constant rate [P] of each feature per unit of ``size``: the ratio of the totals."""
        total, mass = np.full(counts.shape[1], pseudocount), 0.0
        for part, own in observed_pieces(counts, size, rows):
            total = total + np.bincount(part.indices, part.data, minlength=len(total))
            mass = mass + own.sum()
        return total / mass

    def null_deviance(
        self,
        counts: sp.csr_matrix | RowReader,
        size: np.ndarray,
        dispersion: np.ndarray | None = None,
        *,
        rows: np.ndarray | None = None,
        train: np.ndarray | None = None,
        pseudocount: float = 0.0,
    ) -> tuple[float, int]:
        """Deviance on ``rows`` of one rate per feature, times ``size`` [N], estimated on ``train``.

        A feature without counts in ``train`` has rate zero, so that counts in other rows cost an
        infinite deviance: a positive ``pseudocount`` per feature avoids it.
        """
        size = np.asarray(size, dtype=np.float64)
        rate = self.null_rates(counts, size, rows=train, pseudocount=pseudocount)[:, None]
        total, n_entries = 0.0, 0
        for at, part in parts(counts):
            kept = None if rows is None else rows[at]
            added = self.deviance(part, size[at, None], rate, dispersion, rows=kept)
            total, n_entries = total + added[0], n_entries + added[1]
        return total, n_entries

    # ---- updates of loadings ---------------------------------------------------------------------

    def events_per_rate(
        self, values: np.ndarray, rate: np.ndarray, exposure: np.ndarray
    ) -> np.ndarray:
        """Events that are expected behind the nonzeros [nnz], whose rates are ``exposure * rate``.

        They come divided by ``rate``, as a multiplicative update of the loadings takes them.
        """
        return values / rate
