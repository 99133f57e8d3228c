from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.core.thinning import divided, part_dispersion

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


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("likelihood", ["poisson", "nb", "bernoulli", "gaussian"])
def test_parts_are_independent(likelihood, share):
    rng = np.random.default_rng(0)
    first, second = divided(drawn(likelihood, rng), likelihood, np.array([THETA]), share, rng)
    assert abs(correlation(first, second)) < 4 / np.sqrt(N)
    ratio = {"gaussian": 1.0, "bernoulli": np.expm1(-0.3 * share) / np.expm1(-0.3 * (1 - share))}
    assert first.mean() / second.mean() == pytest.approx(ratio.get(likelihood, share / (1 - share)), rel=0.05)


def test_binomial_parts_of_negative_binomial_counts_are_not():
    rng = np.random.default_rng(0)
    first, second = divided(drawn("nb", rng), "poisson", None, 0.5, rng)
    assert correlation(first, second) > 0.5


def test_counts_add_up_and_keep_their_pattern():
    rng = np.random.default_rng(1)
    counts = sp.random(50, 20, 0.3, format="csr", random_state=1, data_rvs=lambda n: rng.integers(1, 9, n)).astype("f4")
    for theta in (np.full(20, 2.0), np.zeros(20)):
        first, second = divided(counts, "nb", theta, 0.8, rng)
        np.testing.assert_array_equal((first + second).toarray(), counts.toarray())
        assert first.data.all()
        assert first.dtype == np.float32


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_dispersion_of_a_part(share):
    rng = np.random.default_rng(2)
    part = divided(drawn("nb", rng), "nb", np.array([THETA]), share, rng)[0].toarray()
    assert part.mean() ** 2 / (part.var() - part.mean()) == pytest.approx(part_dispersion("nb", THETA, share), rel=0.1)
    first, second = divided(drawn("gaussian", rng), "gaussian", np.array([THETA]), share, rng)
    assert first.toarray().std() == pytest.approx(part_dispersion("gaussian", THETA, share), rel=0.02)
    assert second.toarray().std() == pytest.approx(part_dispersion("gaussian", THETA, 1 - share), rel=0.02)


def test_open_peaks_have_their_share_of_the_rate():
    rng = np.random.default_rng(3)
    for part, rate in zip(divided(drawn("bernoulli", rng), "bernoulli", None, 0.8, rng), (0.24, 0.06), strict=True):
        assert -np.log1p(-part.mean()) == pytest.approx(rate, rel=0.05)
        assert set(part.data) == {1.0}
