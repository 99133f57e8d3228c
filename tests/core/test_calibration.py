from __future__ import annotations

from itertools import product

import numpy as np

from gpnsf.core.scores import calibration
from gpnsf.core.scores.calibration import log_errors, log_moments, simulate_counts

N, P = 3_000, 6
A, W = np.random.default_rng(0).gamma(2, 1, (N, 2)), np.random.default_rng(1).gamma(1, 0.5, (P, 2))
RATE = A @ W.T
DISPERSION = np.linspace(0.5, 5, P)
MOMENTS = {
    "poisson": (RATE, RATE),
    "nb": (RATE, RATE + RATE**2 / DISPERSION),
    "bernoulli": (-np.expm1(-RATE), -np.expm1(-RATE) * np.exp(-RATE)),
    "bernoulli_clipped": (np.minimum(RATE, 1), np.minimum(RATE, 1) * (1 - np.minimum(RATE, 1))),
    "gaussian": (RATE, np.broadcast_to(DISPERSION**2, RATE.shape)),
}
ONE_BATCH = np.zeros(N, dtype=int), np.ones((1, P))


def test_draws_have_the_mean_and_the_variance_of_their_likelihood(subtests, monkeypatch):
    for likelihood, block in product(MOMENTS, (calibration.BLOCK, 50 * P)):
        with subtests.test(likelihood=likelihood, block=block):
            monkeypatch.setattr(calibration, "BLOCK", block)
            counts = simulate_counts(
                A, W, likelihood, DISPERSION, np.random.default_rng(2), ONE_BATCH
            )
            mean, variance = MOMENTS[likelihood]
            assert counts.shape == (N, P)
            assert counts.dtype == np.float32
            standard = (counts.toarray() - mean).mean(axis=0) / np.sqrt(variance.mean(axis=0) / N)
            assert np.abs(standard).max() < 4
            np.testing.assert_allclose(
                ((counts.toarray() - mean) ** 2).mean(axis=0), variance.mean(axis=0), rtol=0.35
            )


def test_rates_have_the_multipliers_of_their_batch(subtests, monkeypatch):
    for block in (calibration.BLOCK, 50 * P):
        with subtests.test(block=block):
            monkeypatch.setattr(calibration, "BLOCK", block)
            codes, multipliers = np.arange(N) % 3, np.random.default_rng(3).lognormal(size=(3, P))
            counts = simulate_counts(
                A, W, "poisson", np.nan, np.random.default_rng(2), (codes, multipliers)
            ).toarray()
            for code in range(3):
                mean = multipliers[code] * RATE[codes == code]
                standard = (counts[codes == code] - mean).sum(axis=0) / np.sqrt(mean.sum(axis=0))
                assert np.abs(standard).max() < 4


def test_log_moments_undo_those_of_a_log_normal():
    m, v = np.array([[-2.0, 0.3, 1.0]]), np.array([[0.1, 0.8, 3.0]])
    mean = np.exp(m + np.minimum(v, 1.0) / 2)
    centre, sd = log_moments(mean, mean * np.sqrt(np.expm1(v)), 1.0)
    np.testing.assert_allclose(centre, m)
    np.testing.assert_allclose(sd**2, v)


def test_errors_are_free_of_each_factors_scale():
    rng = np.random.default_rng(0)
    truth, noise = rng.lognormal(size=(20, 3)), rng.normal(size=(20, 3))
    centre = np.log(truth / truth.mean(axis=0)) + noise
    np.testing.assert_allclose(log_errors([1.0, 5.0, 0.1] * truth, centre), noise)
