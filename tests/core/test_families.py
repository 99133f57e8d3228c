"""Likelihoods without gradients: what one may ask of every one of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.core.families import FAMILIES
from gpnsf.core.likelihoods import LIKELIHOODS

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


# ---- what they are --------------------------------------------------------------------------------------------------


def test_every_family_has_a_bound_of_its_own_and_the_other_way_round():
    assert list(FAMILIES) == list(LIKELIHOODS)
    assert all(kind.family is FAMILIES[name] for name, kind in LIKELIHOODS.items())


def test_nothing_stands_in_for_what_stands_in_for_another(subtests):
    for name in FAMILIES:
        with subtests.test(name=name):
            for other in {
                FAMILIES[name].fast,
                FAMILIES[name].scorer,
                LIKELIHOODS[name].surrogate,
            } - {None}:
                assert (
                    FAMILIES[other].fast
                    is FAMILIES[other].scorer
                    is LIKELIHOODS[other].surrogate
                    is None
                )


def test_draws_are_legal_and_have_the_mean_that_is_expected(subtests):
    for name in FAMILIES:
        with subtests.test(name=name):
            rng, family = np.random.default_rng(0), FAMILIES[name]
            rate = np.linspace(0.05, 0.9, 8) * np.ones((20_000, 1))
            values = family.draw(rate, 2.0, rng)
            assert not any(illegal.found(values).any() for illegal in family.illegal)
            assert set(np.unique(values)) == {0, 1} or not family.binary
            assert (values.min() < 0) == family.signed
            np.testing.assert_allclose(
                values.mean(axis=0), family.mean(rate)[0], rtol=0.05, atol=0.06
            )
            own = rate.copy()
            np.testing.assert_array_equal(family.mean(own, out=own), family.mean(rate))


# ---- parts that are independent -------------------------------------------------------------------------------------


def test_parts_are_independent(subtests):
    for share, likelihood in product((0.5, 0.8), ("poisson", "nb", "bernoulli", "gaussian")):
        with subtests.test(share=share, likelihood=likelihood):
            rng = np.random.default_rng(0)
            first, second = FAMILIES[likelihood].split(
                drawn(likelihood, rng), np.array([THETA]), share, rng
            )
            assert abs(correlation(first, second)) < 4 / np.sqrt(N)
            ratio = {
                "gaussian": 1.0,
                "bernoulli": np.expm1(-0.3 * share) / np.expm1(-0.3 * (1 - share)),
            }
            assert first.mean() / second.mean() == pytest.approx(
                ratio.get(likelihood, share / (1 - share)), rel=0.05
            )


def test_binomial_parts_of_negative_binomial_counts_are_not():
    rng = np.random.default_rng(0)
    first, second = FAMILIES["poisson"].split(drawn("nb", rng), None, 0.5, rng)
    assert correlation(first, second) > 0.5


def test_counts_add_up_and_keep_their_pattern():
    rng = np.random.default_rng(1)
    counts = sp.random(
        50, 20, 0.3, format="csr", random_state=1, data_rvs=lambda n: rng.integers(1, 9, n)
    ).astype("f4")
    for theta in (np.full(20, 2.0), np.zeros(20)):
        first, second = FAMILIES["nb"].split(counts, theta, 0.8, rng)
        np.testing.assert_array_equal((first + second).toarray(), counts.toarray())
        assert first.data.all()
        assert first.dtype == np.float32


def test_dispersion_of_a_part(subtests):
    for share in (0.5, 0.8):
        with subtests.test(share=share):
            rng, nb, gaussian = np.random.default_rng(2), FAMILIES["nb"], FAMILIES["gaussian"]
            part = nb.split(drawn("nb", rng), np.array([THETA]), share, rng)[0].toarray()
            assert part.mean() ** 2 / (part.var() - part.mean()) == pytest.approx(
                nb.part_dispersion(THETA, share), rel=0.1
            )
            first, second = gaussian.split(drawn("gaussian", rng), np.array([THETA]), share, rng)
            assert first.toarray().std() == pytest.approx(
                gaussian.part_dispersion(THETA, share), rel=0.02
            )
            assert second.toarray().std() == pytest.approx(
                gaussian.part_dispersion(THETA, 1 - share), rel=0.02
            )


def test_open_peaks_have_their_share_of_the_rate():
    rng = np.random.default_rng(3)
    for part, rate in zip(
        FAMILIES["bernoulli"].split(drawn("bernoulli", rng), None, 0.8, rng),
        (0.24, 0.06),
        strict=True,
    ):
        assert -np.log1p(-part.mean()) == pytest.approx(rate, rel=0.05)
        assert set(part.data) == {1.0}


def test_halves_without_a_dispersion_are_those_of_poisson_counts():
    counts = sp.csr_matrix(np.full((200, 3), 40.0, np.float32))
    observed = np.ones(200, bool)
    first, second = FAMILIES["nb"].halves(counts, observed, np.random.default_rng(0))
    np.testing.assert_array_equal((first + second).toarray(), counts.toarray())
    assert first.toarray().var() == pytest.approx(10, rel=0.3)  # binomial
