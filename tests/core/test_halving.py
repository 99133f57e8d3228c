from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.core.halving import SPREAD, halves

N, THETA = 60_000, 0.8


def correlation(first, second):
    """Correlation of the entries of two matrices of one column."""
    return np.corrcoef(first.toarray().ravel(), second.toarray().ravel())[0, 1]


def column(values):
    return sp.csr_matrix(np.asarray(values, dtype=np.float32)[:, None])


def drawn(likelihood, rng):
    """Many observations of one feature with a constant rate."""
    if likelihood == "poisson":
        return column(rng.poisson(3.0, N))
    if likelihood == "nb":
        return column(rng.poisson(3.0 * rng.gamma(THETA, 1 / THETA, N)))
    if likelihood == "gaussian":
        return column(2.0 + THETA * rng.standard_normal(N))
    return column(rng.poisson(0.3, N) > 0)


@pytest.mark.parametrize("likelihood", ["poisson", "nb", "bernoulli", "gaussian"])
def test_halves_are_independent_and_alike(likelihood):
    rng = np.random.default_rng(0)
    counts = drawn(likelihood, rng)
    first, second = halves(counts, likelihood, np.array([THETA]), rng)
    assert abs(correlation(first, second)) < 4 / np.sqrt(N)
    assert first.mean() == pytest.approx(second.mean(), rel=0.05)


def test_binomial_halves_of_negative_binomial_counts_are_not():
    rng = np.random.default_rng(0)
    first, second = halves(drawn("nb", rng), "poisson", None, rng)
    assert correlation(first, second) > 0.5


def test_counts_add_up_and_keep_their_pattern():
    rng = np.random.default_rng(1)
    counts = sp.random(50, 20, 0.3, format="csr", random_state=1, data_rvs=lambda n: rng.integers(1, 9, n)).astype("f4")
    for likelihood in ("poisson", "nb"):
        first, second = halves(counts, likelihood, np.full(20, 2.0), rng)
        np.testing.assert_array_equal((first + second).toarray(), counts.toarray())
        assert first.data.all()
        assert first.dtype == np.float32


def test_dispersion_of_a_half():
    rng = np.random.default_rng(2)
    first, _ = halves(drawn("nb", rng), "nb", np.array([THETA]), rng)
    half = first.toarray()
    assert half.mean() ** 2 / (half.var() - half.mean()) == pytest.approx(THETA * SPREAD["nb"], rel=0.1)
    first, _ = halves(drawn("gaussian", rng), "gaussian", np.array([THETA]), rng)
    assert first.toarray().std() == pytest.approx(THETA * SPREAD["gaussian"], rel=0.02)


def test_open_peaks_have_half_the_rate():
    rng = np.random.default_rng(3)
    first, second = halves(drawn("bernoulli", rng), "bernoulli", None, rng)
    for half in (first, second):
        assert -np.log1p(-half.mean()) == pytest.approx(0.15, rel=0.04)
        assert set(half.data) == {1.0}
