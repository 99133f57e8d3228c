"""One modality of a fit, as it is judged: what was counted beside what was expected of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gpnsf import checks
from gpnsf.core.families import FAMILIES
from gpnsf.core.families.rates import row_slices
from gpnsf.core.scores.normalising import Return
from gpnsf.core.types import row_sums
from gpnsf.io import measured
from gpnsf.io.normalised import normalised_by, normalised_of
from gpnsf.io.sizes import relative_totals

if TYPE_CHECKING:
    import scipy.sparse as sp

    from gpnsf.io.fits import Fit
    from gpnsf.io.normalised import Normalised

__all__ = ["Judged", "as_counts", "judged", "other_counts"]

_log = logging.getLogger("gpnsf")


@dataclass(frozen=True)
class Judged:
    """One modality: its n cells, and the P features that have counts in the training rows."""

    name: str
    likelihood: str
    kind: str  # likelihood by which the counts are read
    counts: sp.csr_matrix  # [n, P] as fitted, or the counts behind them
    size: np.ndarray  # [n]
    by_total: bool  # size factors follow the totals of the counts
    seen: np.ndarray  # [P_full] bool
    factors: np.ndarray  # [n, K + 1], the last column is the constant one
    loadings: np.ndarray  # [P, K + 1], the last column is the background
    dispersion: np.ndarray | None  # [P]
    held_out: np.ndarray  # [n] bool
    batch: np.ndarray  # [n] code of the batch
    multipliers: np.ndarray  # [S, P] of the batches
    # from expected values of a Gaussian model to counts, where these are judged
    back: Return | None = None

    def has(self, rows: str) -> bool:
        """Whether there are rows of this kind."""
        return rows != "holdout" or bool(self.held_out.any())

    def select(self, rows: str) -> np.ndarray:
        """Rows [n] bool of this kind; thinned counts are those of training rows."""
        return self.held_out if rows == "holdout" else ~self.held_out

    def rates(self, rows: np.ndarray) -> np.ndarray:
        """Rates [b, P] of some rows [b] at size factor 1; of a Gaussian model the expected values."""
        rate = self.factors[rows].astype(np.float64) @ self.loadings.T.astype(np.float64)
        return rate if len(self.multipliers) == 1 else rate * self.multipliers[self.batch[rows]]

    @cached_property
    def level(self) -> np.ndarray:
        """What rates are multiplied by [n], 1 for training rows.

        Size factors that are totals fix the sum of the rates of a row, which is about the same in all training rows.
        Factors of a held-out row, told by fields, each by itself, do not keep to it. But the depth of the row is
        given, not predicted: so its rates are brought to the mean of that sum.
        """
        level = np.ones(len(self.held_out))
        if self.by_total and self.held_out.any():
            sums = self._sums()
            wanted = sums[~self.held_out].mean()
            np.divide(wanted, sums, out=level, where=self.held_out & (sums > 0))
        return level

    def _sums(self) -> np.ndarray:
        """Sum of the rates [n] of all features at size factor 1, in counts."""
        if self.back is None:
            return ((self.multipliers @ self.loadings)[self.batch] * self.factors).sum(axis=1)
        n_rows, parts = len(self.factors), row_slices(len(self.factors), len(self.loadings))
        rows = (np.arange(*part.indices(n_rows)) for part in parts)
        return np.concatenate([self._at_size_one(part).sum(axis=1) for part in rows])

    def _at_size_one(self, rows: np.ndarray) -> np.ndarray:
        """Rates [b, P] of some rows [b] in counts."""
        rate = self.rates(rows)
        return rate if self.back is None else self.back.rates(rate)

    def expected(self, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Expected counts [b, P] of some rows [b] at size factors [n]."""
        rate = (size * self.level)[rows, None] * self._at_size_one(rows)
        return rate if self.back is not None else FAMILIES[self.likelihood].mean(rate)

    def null_rates(self) -> np.ndarray:
        """Counts over size factors [P] of the training rows."""
        return FAMILIES["poisson"].null_rates(self.counts, self.size, rows=~self.held_out)


def judged(fit: Fit, name: str) -> Judged:
    """Read one modality as the fit did."""
    if fit.std is None:
        rule = "a fit with expected counts"
        found = f"{fit.keys.key!r}, which has factors and loadings only"
        remedy = "Pass metric='sparsity' or 'moran', or the `key` of a fit by gpnsf.tl.fit or gpnsf.tl.mefisto"
        raise KeyError(checks.problem(rule, found, remedy))
    mod, rows, likelihood = fit.modalities[name], fit.rows[name], fit.likelihoods[name]
    held_out = measured.held_out(fit, name)
    loadings = np.column_stack([fit.loadings[name], fit.offset(name)])
    seen = np.any(loadings, axis=1)
    counts = measured.counts_of(fit, name, seen)
    counted = counts[~held_out].getnnz(axis=0) > 0
    seen[seen], counts = counted, counts[:, counted]
    if fit.normalised is not None:
        counts = normalised_by(fit, name, seen).own_values
    batch, multipliers = fit.batches(name)
    return Judged(
        name=name,
        likelihood=likelihood,
        kind=likelihood,
        counts=counts,
        size=measured.size_factors(fit, name, counts, ~held_out),
        by_total=not FAMILIES[likelihood].signed and fit.param("size_factors") == "total",
        seen=seen,
        factors=np.column_stack([fit.mean[rows], np.ones(mod.n_obs)]),
        loadings=loadings[seen],
        dispersion=_dispersion(fit, name, seen),
        held_out=held_out,
        batch=batch,
        multipliers=multipliers[:, seen],
    )


def _dispersion(fit: Fit, name: str, seen: np.ndarray) -> np.ndarray | None:
    """Dispersion of the features that the fit has seen, where its likelihood has one."""
    if not FAMILIES[fit.likelihoods[name]].has_dispersion:
        return None
    key = fit.keys.dispersion
    return checks.positive(fit.var(name, key)[seen], what=f"var[{key!r}] of {name!r}")


def as_counts(fit: Fit, own: Judged, *, only: bool) -> Judged:
    """The same, with the counts behind the values of a Gaussian model; ``only`` refuses values that were not made of counts."""
    if not FAMILIES[own.likelihood].signed:
        return own
    made = normalised_of(fit, own.name, own.seen)
    if made is not None:
        return _undone(own, made)
    if not any(bad.found(own.counts.data).any() for bad in FAMILIES["poisson"].illegal):
        return _with_return(replace(own, kind="poisson"), log=False)
    if not only:
        return own
    rule = f"counts in modality {own.name!r}, or values that `gpnsf.pp.normalise` made of counts"
    found = "other values, which cannot be turned back into counts"
    remedy = (
        "Call gpnsf.pp.normalise on an object with counts and fit the layer that it writes, by layers='normalised'; or pass "
        "metric='deviance' or 'rmse', which judge the values as they are"
    )
    raise ValueError(checks.problem(rule, found, remedy))


def _undone(own: Judged, made: Normalised) -> Judged:
    """Counts and size factors that were there before the values."""
    if made.peeks is not None:
        _log.warning(
            "The unit of the size factors of layer %r was computed with held-out rows. Pass the `holdout_key` of the fit to "
            "gpnsf.pp.normalise too, and fit again.",
            made.peeks,
        )
    counts = {"counts": made.counts, "size": made.size, "by_total": made.by_total}
    return _with_return(replace(own, kind="poisson", **counts), log=made.log, unit=made.unit)


def _with_return(own: Judged, *, log: bool, unit: float = 1.0) -> Judged:
    """The same with the way back from its values to counts."""
    assert own.dispersion is not None  # a Gaussian model has noise
    return replace(own, back=Return(log, unit, own.null_rates(), own.dispersion))


def other_counts(fit: Fit, own: Judged, layer: str) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts [n, P] of the same cells in another layer, and their size factors [n], in units of the training counts.

    Where values that were made of counts are judged, values made alike of these.
    """
    made = normalised_of(fit, own.name, own.seen) if FAMILIES[own.kind].signed else None
    if made is not None:
        other, size = other_counts(fit, _undone(own, made), layer)
        return made.values(other, size), np.ones(len(size))
    counts = measured.counts_of(fit, own.name, own.seen, layer=layer, kind=own.kind)
    return counts, _other_size(own, counts)


def _other_size(own: Judged, counts: sp.csr_matrix) -> np.ndarray:
    """Size factors [n] of other counts of the same cells, in units of the training counts."""
    train, totals, before = ~own.held_out, row_sums(counts), row_sums(own.counts)
    ratio = 1.0 if FAMILIES[own.kind].signed else totals[train].mean() / before[train].mean()
    if not own.by_total:
        return ratio * own.size
    unit = own.size[train].mean() / relative_totals(before, train)[train].mean()
    return ratio * unit * relative_totals(totals, train)
