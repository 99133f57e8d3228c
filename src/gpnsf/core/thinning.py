"""Two parts of the counts that are independent given the rates, whatever the likelihood."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

__all__ = ["divided", "events", "part_dispersion", "with_values"]

LARGEST_THETA = 1e6  # from here on the counts are those of a Poisson distribution


def divided(
    counts: sp.csr_matrix, likelihood: str, dispersion: np.ndarray | None, share: float, rng: np.random.Generator
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    r"""Two matrices [N, P] with the ``share`` f and 1 - f of the rates (the same mean with a share of the precision, for "gaussian").

    Binomial parts of Poisson counts are independent. Those of negative binomial counts of size theta share the gamma noise of their
    rate unless the probability of each count is itself drawn from Beta(f theta, (1 - f) theta). Open peaks are first given
    a number of events. Real values with noise of sd sigma become ``y + a e`` and ``y - e / a``, where e has sd sigma too and ``a^2 = (1 - f) / f``.
    """
    if likelihood == "gaussian":
        dense, ratio = counts.toarray(), np.sqrt((1 - share) / share)
        noise = rng.standard_normal(dense.shape) * np.asarray(dispersion)
        pair = dense + ratio * noise, dense - noise / ratio
        return sp.csr_matrix(pair[0].astype(np.float32)), sp.csr_matrix(pair[1].astype(np.float32))
    values, probability = counts.data.astype(np.int64), np.full(counts.nnz, share)
    if likelihood == "bernoulli":
        values = events(counts, counts.shape[0], rng)
    elif likelihood == "nb":
        theta = np.asarray(dispersion)
        theta = np.where(theta > 0, theta, LARGEST_THETA)  # 0: a feature that the fit has not seen
        theta = np.minimum(theta, LARGEST_THETA)[counts.indices]
        probability = rng.beta(share * theta, (1 - share) * theta)
    first = rng.binomial(values, probability)
    second = values - first
    if likelihood == "bernoulli":
        first, second = np.minimum(first, 1), np.minimum(second, 1)
    return with_values(counts, first), with_values(counts, second)


def part_dispersion(likelihood: str, dispersion: np.ndarray, share: float) -> np.ndarray:
    """NB size, or Gaussian sd, of a part with this share."""
    return dispersion * (share if likelihood == "nb" else 1 / np.sqrt(share))


def events(counts: sp.csr_matrix, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of events [nnz] behind open peaks: Poisson draws above zero at the mean rate of their feature."""
    closed = 1 - np.bincount(counts.indices, minlength=counts.shape[1]) / max(n_rows, 1)
    rate = -np.log(np.clip(closed, 1e-3, 1 - 1e-9))[counts.indices]
    # the first event happens at a time that is exponential, cut off at 1; the others fall into what is left
    first = -np.log1p(rng.random(len(rate)) * np.expm1(-rate)) / rate
    return 1 + rng.poisson(rate * (1 - first))


def with_values(counts: sp.csr_matrix, values: np.ndarray) -> sp.csr_matrix:
    """Another matrix on the pattern of the counts, its zeros removed."""
    matrix = sp.csr_matrix((values.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    matrix.eliminate_zeros()
    return matrix
