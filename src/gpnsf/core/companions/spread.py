"""How far estimated proportions are from true ones, learned from sections whose truth is known.

The logarithm of the expected squared error of a proportion is linear in what is known of it; the
weights maximise the likelihood of normal errors, and factors for small, middle and large ones then bring the intervals
to their level on sections that had no part in that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from gpnsf.core.scores.neighbours import Ties

__all__ = ["LEVEL", "Estimate", "Spread", "learned"]

LEVEL = 0.9  # of the intervals
FLOOR = 0.01  # added to shares before their logarithms are taken
LEAST = 1e-4  # standard deviation of an error
RIDGE = 1.0
N_KNOWN = 5  # numbers that are known of a proportion, beside its type
SIZES = (0.02, 0.1)  # proportions below, between and above have a factor of their own
ENOUGH = 100  # of them
SMALLEST, LARGEST = -20.0, 2.0  # logarithm of a squared error
ROWS = 50_000  # spots at a time


class Estimate(NamedTuple):
    """Proportions that were found, and what they were found from."""

    share: np.ndarray  # [N, C]
    totals: np.ndarray  # [N] counts
    ties: Ties


@dataclass(frozen=True)
class Spread:
    """Standard deviations of proportions, as a function of what is known of them."""

    weights: np.ndarray  # [C + 5]
    scale: np.ndarray  # [3] by the size of the proportion

    def of(self, found: Estimate) -> np.ndarray:
        """Standard deviations [N, C]."""
        near = _neighbours(found)
        parts = np.array_split(np.arange(len(found.share)), len(found.share) // ROWS + 1)
        return np.concatenate(
            [self._some(found.share[at], found.totals[at], near[at]) for at in parts]
        )

    def _some(self, share: np.ndarray, totals: np.ndarray, near: np.ndarray) -> np.ndarray:
        power = (_known(share, totals, near) @ self.weights).clip(SMALLEST, LARGEST)
        return self.scale[np.digitize(share, SIZES)] * np.exp(power / 2)


def learned(examples: Sequence[tuple[Estimate, np.ndarray]]) -> Spread:
    """Learn from estimates and their truths; every second one decides about the factor."""
    train, test = examples[::2], examples[1::2]
    known = np.concatenate([_known(*found[:2], _neighbours(found)) for found, _ in train])
    square = np.concatenate([np.square(found.share - truth) for found, truth in train])
    square = square + LEAST**2

    def cost(weights: np.ndarray) -> tuple[float, np.ndarray]:
        power = (known @ weights).clip(SMALLEST, LARGEST)
        miss = square * np.exp(-power)
        value = (miss + power).mean() + RIDGE * np.square(weights[-N_KNOWN:]).sum() / square.size
        slope = np.tensordot(1 - miss, known, axes=2) / square.size
        slope[-N_KNOWN:] += 2 * RIDGE * weights[-N_KNOWN:] / square.size
        return float(value), slope

    start = np.zeros(known.shape[-1])
    start[:-N_KNOWN] = np.log(square.mean())
    weights = minimize(cost, start, jac=True, method="L-BFGS-B").x
    plain = Spread(weights, np.ones(len(SIZES) + 1))
    ratio = np.concatenate([np.abs(found.share - truth) / plain.of(found) for found, truth in test])
    size = np.digitize(np.concatenate([found.share for found, _ in test]), SIZES)
    every = np.quantile(ratio, LEVEL)
    level = [
        np.quantile(ratio[size == k], LEVEL) if (size == k).sum() >= ENOUGH else every
        for k in range(len(SIZES) + 1)
    ]
    return Spread(weights, np.array(level) / norm.ppf((1 + LEVEL) / 2))


def _known(share: np.ndarray, totals: np.ndarray, near: np.ndarray) -> np.ndarray:
    """What is known of each proportion [N, C, C + 5]: its type, its size, its depth, and how far its neighbours are."""
    size, n_types = np.log(share + FLOOR), share.shape[1]
    depth = np.broadcast_to(np.log(np.maximum(totals, 1.0))[:, None], share.shape)
    apart = np.log(np.abs(share - near) + FLOOR)
    numbers = np.stack([size, np.square(size), np.log1p(FLOOR - share), depth, apart], axis=-1)
    types = np.broadcast_to(np.identity(n_types), (len(share), n_types, n_types))
    return np.concatenate([types, numbers], axis=-1)


def _neighbours(found: Estimate) -> np.ndarray:
    """Mean proportions [N, C] of the neighbours."""
    graph = found.ties.graph(np.inf, np.inf)
    number = np.maximum(np.asarray(graph.sum(axis=1)), np.finfo(float).tiny)
    return (graph @ found.share) / number
