"""Simulated sections that resemble the data, to learn from and to judge by.

How smooth, how mixed and how rough the compositions of a section are is learnt from the proportions
that least squares finds in it: sections are drawn over wide ranges of these properties, and those
whose least squares look like those of the data say what the properties of the data are (regression
adjustment of approximate Bayesian computation, Beaumont, Zhang and Balding 2002).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import cdist
from scipy.special import softmax

from gpnsf.core.companions.deconvolution import Mixture, exact, gene_weights, normalised
from gpnsf.core.companions.pseudospots import Places
from gpnsf.core.scores.neighbours import Ties

__all__ = ["Makeup", "Products", "Resembling", "Simulated", "looks", "resembling"]

N_PILOT = 300  # sections over wide ranges
N_PATCHES = 8  # of the data, whose looks are averaged
NEAREST = 0.5  # share of the pilot sections that count
RIDGE = 0.01
EDGE = 5.0  # largest logit of a property within its range
TINY, JITTER = 1e-12, 1e-4
PRESENT, MOST = 0.05, 0.5  # shares of a type that is there, and of one that is most of a spot


class Makeup(NamedTuple):
    """Properties of compositions."""

    lengthscale: float  # of the smooth part, in the unit of the coordinates
    amplitude: float  # standard deviation of the smooth part of the logits
    noise: float  # the same of what single spots have of their own
    abundance: float  # the same of constants by type
    cells: float  # mean number of a spot, of which the composition is that of a draw
    regional: float  # standard deviation of constants by type and region


@dataclass(frozen=True)
class Simulated:
    """One simulated section."""

    rows: np.ndarray  # [n] spots of the data whose places it has
    mixture: Mixture
    ties: Ties
    truth: np.ndarray  # [n, C] proportions
    totals: np.ndarray  # [n] counts


@dataclass(frozen=True)
class Products:
    """First two moments of what one count adds to the products with the profiles, by its type.

    Counts of a spot are multinomial given their total, so their products with the profiles, all
    that least squares sees of them, are sums of that many independent draws: normal, with these
    moments. Nothing here is as long as the genes.
    """

    gram: np.ndarray  # [C, C]
    total: np.ndarray  # [C] sums of the profiles
    mean: np.ndarray  # [C, C] row: type that the count is of
    root: np.ndarray  # [C, C, C] square roots of the covariances of the types
    noise: np.ndarray  # [C] expected squared length of one count, genes weighted

    @classmethod
    def of(cls, profiles: np.ndarray) -> Products:
        """Products of profiles [P, C], in the units of a :class:`Mixture`."""
        weights, total = gene_weights(profiles), profiles.sum(axis=0)
        B = weights[:, None] * profiles
        gram = B.T @ B
        unit = np.trace(gram) / len(gram)
        score = weights[:, None] * B * (total.mean() / unit)  # [P, C]
        share = profiles / total
        mean = share.T @ score
        second = np.array([(score * of[:, None]).T @ score for of in share.T])
        values, vectors = np.linalg.eigh(second - mean[:, :, None] * mean[:, None, :])
        root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
        noise = np.square(weights) @ share * total.mean() ** 2 / unit
        return cls(gram / unit, total, mean, root, noise)

    def excess(self, mixture: Mixture, totals: np.ndarray) -> float:
        """How many times more the counts scatter around their least squares than counts of such totals [N] do, at least 1."""
        V, some = exact(mixture), totals > 0
        left = mixture.squares + np.sum((mixture.step(V) - 2 * mixture.cross) * V, axis=1)
        expected = (normalised(V * self.total)[0] @ self.noise)[some] / totals[some]
        return max(float(left[some].sum() / max(expected.sum(), TINY)), 1.0)

    def drawn(self, V: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> Mixture:
        """What least squares sees of spots with proportions [N, C] and so many counts [N]."""
        share = V * self.total
        share = share / share.sum(axis=1, keepdims=True)
        counts = rng.multinomial(totals.astype(np.int64), share)  # [N, C] of each type
        noise = np.sqrt(counts)[:, :, None] * rng.standard_normal((*counts.shape, len(self.gram)))
        cross = counts @ self.mean + np.tensordot(noise, self.root.transpose(0, 2, 1), axes=2)
        return Mixture(cross / totals[:, None], self.gram, np.zeros(len(V)), np.ones(len(V)))


@dataclass(frozen=True)
class Resembling:
    """Makeups [S, 6] that sections like the data have, and how well each explains it [S]."""

    places: Places  # with the totals of counts that scatter as much and have no excess
    products: Products
    makeups: np.ndarray
    weights: np.ndarray
    excess: float

    def sections(self, number: int, rng: np.random.Generator) -> Iterator[Simulated]:
        """Simulated sections that resemble the data."""
        for _ in range(number):
            chosen = rng.choice(len(self.makeups), p=self.weights)
            yield _section(self.places, self.products, Makeup(*self.makeups[chosen]), rng)


def resembling(
    places: Places, profiles: np.ndarray, mixture: Mixture, rng: np.random.Generator
) -> Resembling:
    """Learn what sections like the data are made of, from the least squares of some of its patches."""
    products, (low, high) = Products.of(profiles), _ranges(places)
    patches = [places.patch(rng) for _ in range(N_PATCHES)]
    spots = np.unique(np.concatenate(patches))
    excess = products.excess(mixture.at(spots), places.totals[spots])
    places = replace(places, totals=places.totals / excess)
    data = np.mean([_looks(places, rows, mixture.at(rows)) for rows in patches], axis=0)
    at = rng.uniform(size=(N_PILOT, len(low)))
    pilot = [
        _section(places, products, Makeup(*values), rng)
        for values in _made(low + (high - low) * at)
    ]
    seen = np.array([_looks(places, one.rows, one.mixture) for one in pilot])  # [N_PILOT, L]
    scale = np.maximum(seen.std(axis=0), TINY)
    apart = (seen - data.clip(seen.min(axis=0), seen.max(axis=0))) / scale
    logit = np.log(at / (1 - at)).clip(-EDGE, EDGE)
    adjusted, weights = _adjusted(logit, apart)
    chosen = low + (high - low) / (1 + np.exp(-adjusted.clip(-EDGE, EDGE)))
    return Resembling(places, products, _made(chosen), weights, excess)


def looks(V: np.ndarray, ties: Ties, labels: np.ndarray | None) -> np.ndarray:
    """Numbers [L] that say how smooth, mixed and rough proportions [N, C] are."""
    mean = V.mean(axis=0)
    apart = V - mean
    spread = max(float(np.square(apart).sum()), TINY)
    order = [
        (apart * (ring @ apart)).sum() / max(ring.sum(), 1.0) * len(V) / spread
        for ring in _rings(ties)
    ]
    numbers = [
        *np.arctanh(np.clip(order, -0.99, 0.99)),
        np.log(np.square(V).sum(axis=1).mean()),
        np.log(np.square(mean).sum()),
        np.log((V > PRESENT).sum(axis=1).mean()),
        np.log((V > MOST).sum(axis=1).mean() + PRESENT),
    ]
    if labels is not None:
        code = np.unique(labels, return_inverse=True)[1]
        means = np.column_stack([np.bincount(code, v) for v in apart.T])
        numbers.append((np.square(means).sum(axis=1) / np.bincount(code)).sum() / spread)
    return np.array(numbers)


def _rings(ties: Ties) -> list[sp.csr_matrix]:
    """Pairs [N, N] of spots that are one, two and three steps from each other."""
    pairs = (np.ones(len(ties.row)), (ties.row, ties.column))
    near = sp.csr_matrix(pairs, shape=(ties.n_obs, ties.n_obs))
    inside, rings = near + sp.identity(ties.n_obs), [near]
    for _ in range(2):
        reached = (rings[-1] @ near).sign()
        rings.append(reached - reached.multiply(inside.sign()))
        inside = inside + rings[-1]
    return rings


def _ranges(places: Places) -> np.ndarray:
    """Lowest and highest properties [2, 6], those that are sizes as logarithms."""
    extent = max(float(np.ptp(places.coords, axis=0).max()) / 2, 3 * places.unit)
    regional = 0.0 if places.labels is None else 3.0
    sizes = np.log([[places.unit, extent], [0.5, 6.0], [0.3, 2.5], [3.0, 1000.0]])
    lengthscale, amplitude, abundance, cells = sizes
    return np.array(
        [lengthscale, amplitude, [0.0, 1.5], abundance, cells, [0.0, regional]], dtype=float
    ).T


def _made(values: np.ndarray) -> np.ndarray:
    """Properties [S, 6] with sizes in place of their logarithms."""
    return np.column_stack(
        [*np.exp(values[:, :2]).T, values[:, 2], *np.exp(values[:, 3:5]).T, values[:, 5]]
    )


def _adjusted(logit: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [S, 6] of properties, moved by regression to where the looks are those of the data, and weights [S]."""
    distance = np.linalg.norm(apart, axis=1)
    width = max(float(np.quantile(distance, NEAREST)), TINY)
    weights = np.maximum(1 - np.square(distance / width), 0)
    design = np.column_stack([np.ones(len(apart)), apart])
    weighed = design.T * weights
    penalty = RIDGE * weights.sum() * np.eye(design.shape[1])
    slope = np.linalg.solve(weighed @ design + penalty, weighed @ logit)
    return logit - apart @ slope[1:], weights / weights.sum()


def _looks(places: Places, rows: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Looks of the least squares of some spots of the data, or of their places."""
    labels = None if places.labels is None else places.labels[rows]
    return looks(normalised(exact(mixture))[0], places.at(rows).ties(), labels)


def _section(
    places: Places, products: Products, makeup: Makeup, rng: np.random.Generator
) -> Simulated:
    """One section on a patch of the data, with totals of the data."""
    rows = places.patch(rng)
    truth = _composed(places, rows, len(products.gram), makeup, rng)
    totals = rng.choice(np.maximum(places.totals[places.totals > 0], 1).round(), len(rows))
    mixture = products.drawn(truth, totals, rng)
    return Simulated(rows, mixture, places.at(rows).ties(), truth, totals)


def _composed(
    places: Places, rows: np.ndarray, n_types: int, makeup: Makeup, rng: np.random.Generator
) -> np.ndarray:
    """Proportions [n, C] of a makeup: softmax of Gaussian processes, and a draw of cells from it."""
    shape = len(rows), n_types
    distance = cdist(places.coords[rows], places.coords[rows], "sqeuclidean")
    kernel = np.exp(-distance / (2 * makeup.lengthscale**2)) + JITTER * np.identity(len(rows))
    logits = makeup.amplitude * (np.linalg.cholesky(kernel) @ rng.standard_normal(shape))
    logits += makeup.abundance * rng.standard_normal(n_types)
    logits += makeup.noise * rng.standard_normal(shape)
    if places.labels is not None:
        names, code = np.unique(places.labels[rows], return_inverse=True)
        logits += makeup.regional * rng.standard_normal((len(names), n_types))[code]
    number = np.maximum(rng.poisson(makeup.cells, len(rows)), 1)
    return rng.multinomial(number, softmax(logits, axis=1)) / number[:, None]
