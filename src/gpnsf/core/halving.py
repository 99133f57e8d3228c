"""Two halves of the counts that are independent given the rates, whatever the likelihood."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

__all__ = ["SPREAD", "events", "halves"]

LARGEST_THETA = 1e6  # from here on the shares of a half are one half
# dispersion of a half over that of the whole: the halves of a negative binomial have half its size; noise doubles in variance
SPREAD = {"nb": 0.5, "gaussian": np.sqrt(2.0)}


def halves(
    counts: sp.csr_matrix, likelihood: str, dispersion: np.ndarray | None, rng: np.random.Generator
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    r"""Two matrices [N, P] with half the rates each (the same mean, for "gaussian").

    Binomial halves of Poisson counts are independent. Negative binomial counts of size theta share the gamma noise of their rate
    unless the probability of each count is itself drawn from Beta(theta / 2, theta / 2). Open peaks are first given a number of events.
    Gaussian values get noise ``e`` of their own standard deviation, added to one and taken from the other.
    """
    if likelihood == "gaussian":
        dense = counts.toarray()
        noise = rng.standard_normal(dense.shape) * np.asarray(dispersion)
        return sp.csr_matrix((dense + noise).astype(np.float32)), sp.csr_matrix((dense - noise).astype(np.float32))
    values, share = counts.data.astype(np.int64), 0.5 * np.ones(counts.nnz)
    if likelihood == "bernoulli":
        values = events(counts, counts.shape[0], rng)
    elif likelihood == "nb":
        theta = np.asarray(dispersion)
        theta = np.where(theta > 0, theta, LARGEST_THETA)  # 0: a feature that the fit has not seen
        half = np.minimum(theta, LARGEST_THETA)[counts.indices] / 2
        share = rng.beta(half, half)
    first = rng.binomial(values, share)
    second = values - first
    if likelihood == "bernoulli":
        first, second = np.minimum(first, 1), np.minimum(second, 1)
    return _with_values(counts, first), _with_values(counts, second)


def events(counts: sp.csr_matrix, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of events [nnz] behind open peaks: Poisson draws above zero at the mean rate of their feature."""
    closed = 1 - np.bincount(counts.indices, minlength=counts.shape[1]) / max(n_rows, 1)
    rate = -np.log(np.clip(closed, 1e-3, 1 - 1e-9))[counts.indices]
    # the first event happens at a time that is exponential, cut off at 1; the others fall into what is left
    first = -np.log1p(rng.random(len(rate)) * np.expm1(-rate)) / rate
    return 1 + rng.poisson(rate * (1 - first))


def _with_values(counts: sp.csr_matrix, values: np.ndarray) -> sp.csr_matrix:
    """Another matrix on the pattern of the counts, its zeros removed."""
    matrix = sp.csr_matrix((values.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    matrix.eliminate_zeros()
    return matrix
