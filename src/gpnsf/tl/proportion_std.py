"""Standard deviations of proportions, from the errors of the same method on sections that resemble the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from gpnsf.core.companions.deconvolution import (
    Mixture,
    Penalties,
    accelerated,
    exact,
    normalised,
)
from gpnsf.core.companions.resemblance import Resembling
from gpnsf.core.companions.spread import Estimate, learned
from gpnsf.core.scores.neighbours import Ties

__all__ = ["Solve", "alone", "proportion_std", "tied"]

Solve: TypeAlias = Callable[[Mixture, Ties, np.ndarray], np.ndarray]  # the last: costs [N, C]

N_SECTIONS = 40
TOL = 1e-5  # of the solver on simulated sections


def proportion_std(
    like: Resembling, solve: Solve, V: np.ndarray, costs: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Standard deviations [N, C] of the abundances that ``solve`` has found in the data."""
    examples = []
    for one in like.sections(N_SECTIONS, rng):
        share = normalised(solve(one.mixture, one.ties, costs[one.rows]))[0]
        examples.append((Estimate(share, one.totals, one.ties), one.truth))
    found = Estimate(normalised(V)[0], like.places.totals, like.places.ties())
    return learned(examples).of(found)


def alone(mixture: Mixture, ties: Ties, costs: np.ndarray) -> np.ndarray:
    """Abundances of every spot by itself."""
    return exact(mixture)


def tied(unit: float, region_bandwidth: float, weights: dict[str, float]) -> Solve:
    """What finds the minimum of the graph's objective."""

    def found(mixture: Mixture, ties: Ties, costs: np.ndarray) -> np.ndarray:
        """Abundances at the minimum."""
        penalties = Penalties(ties.graph(unit, region_bandwidth), costs, **weights)
        return accelerated(mixture, penalties, tol=TOL).V

    return found
