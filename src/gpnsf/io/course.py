"""How a fit went, as its record tells it."""

from __future__ import annotations

import numpy as np

from gpnsf.core import stored
from gpnsf.io.fits import LARGEST, Fit

__all__ = ["explained", "outcome", "starts", "trace"]


def trace(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """ELBO and name of the phase, for each step of the optimisation."""
    fit.needs("a course of the optimisation", there="history" in fit.uns)
    history = stored.record(fit.uns, "history", where=fit.where)
    elbo = stored.array(history, "elbo", (None,), where="the history")
    phase = stored.names(history, "phase", unique=False, where="the history")
    if len(phase) != len(elbo):
        rule = f"{len(elbo)} phases, one a step, in the history"
        raise ValueError(stored.problem(rule, str(len(phase))))
    return elbo.astype(float), np.array(phase)


def starts(fit: Fit) -> tuple[dict[str, float], str]:
    """ELBO at the end of each start, and the name of the one that was kept."""
    fit.needs("several starts", there="starts" in fit.uns)
    found, where = stored.record(fit.uns, "starts", where=fit.where), "the starts"
    ends = {
        name: stored.number(found, name, low=-np.inf, where=where)
        for name in found
        if name != "best"
    }
    return ends, stored.option(found, "best", ends, where=where)


def outcome(fit: Fit) -> tuple[bool, int, float]:
    """Whether the fit has converged, the number of its repairs, and the seconds it took."""
    repairs = fit.uns.get("repairs", ())
    seconds = stored.number(fit.uns, "seconds", low=0, where=fit.where)
    converged = stored.flag(fit.uns, "converged", where=fit.where)
    return converged, len(np.atleast_1d(repairs)), seconds


def explained(fit: Fit) -> np.ndarray:
    """Share [modalities, K] of each modality's null deviance that each factor explains."""
    fit.needs("explained deviances", there="variance_explained" in fit.uns)
    found = stored.record(fit.uns, "variance_explained", where=fit.where)
    shape, where = (len(fit.names),), "the explained deviances"
    rows = [stored.array(found, name, shape, low=-LARGEST, where=where) for name in fit.modalities]
    return np.array(rows, dtype=float)
