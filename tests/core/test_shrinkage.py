from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.core.families import FAMILIES
from gpnsf.core.scores import metrics
from gpnsf.core.scores.shrinkage import best_strength, known, shrunk


def drawn(likelihood, mean, *, structure, n_obs=300, n_features=60, seed=0):
    """Counts of features that follow one of two factors to some part; factors with the constant column, fitted loadings."""
    rng = np.random.default_rng(seed)
    factors = np.column_stack([rng.gamma(0.5, 2.0, (n_obs, 2)), np.ones(n_obs)])
    truth = mean * structure * np.eye(3)[np.arange(n_features) % 2]
    truth[:, 2] += mean * (1 - structure)
    counts = sp.csr_matrix(rng.poisson(factors @ truth.T).astype(np.float32))
    if likelihood == "bernoulli":
        counts.data[:] = 1
    W = np.full((n_features, 3), mean / 3)
    for _ in range(100):
        rate = factors @ W.T
        dense = counts.toarray()
        ratio = np.where(
            dense > 0, 1 / -np.expm1(-rate) if likelihood == "bernoulli" else dense / rate, 0
        )
        W = W * (ratio.T @ factors) / factors.sum(axis=0)
    return (
        counts,
        np.ones(n_obs),
        factors,
        W,
        np.zeros(n_obs, dtype=np.int64),
        np.ones((1, n_features)),
    )


@pytest.mark.parametrize("likelihood", ["nb", "bernoulli"])
def test_features_without_structure_are_pulled_far_and_others_are_not(likelihood):
    assert best_strength(likelihood, *drawn(likelihood, 0.05, structure=0.0)) >= 30
    assert best_strength(likelihood, *drawn(likelihood, 0.5, structure=1.0)) <= 3


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli"])
def test_the_pull_improves_predictions_of_new_counts(likelihood):
    counts, size, factors, W, *batches = drawn(likelihood, 0.05, structure=0.4)
    new, _, new_factors, *_ = drawn(likelihood, 0.05, structure=0.4, seed=1)
    mean = FAMILIES[likelihood].null_rates(counts, size)
    n_counts = np.asarray(counts.sum(axis=0)).ravel()
    strength = best_strength(likelihood, counts, size, factors, W, *batches)
    before, after, flat = (
        metrics.deviance(likelihood, new, new_factors, shrunk(W, mean, n_counts, a) + 1e-6)[0]
        for a in (0.0, strength, 1e9)
    )
    assert after < before
    assert after < flat


def test_what_is_pulled_keeps_its_mean():
    W, mean = np.array([[1.0, 3.0, 1.0], [0.0, 2.0, 0.0]]), np.array([5.0, 2.0])
    result = shrunk(W, mean, np.array([10, 30]), 10.0)
    np.testing.assert_allclose(result, [[0.5, 1.5, 3.0], [0.0, 1.5, 0.5]])
    np.testing.assert_allclose(result.sum(axis=1), mean)
    np.testing.assert_array_equal(shrunk(W, mean, np.zeros(2), 0.0), W)
    np.testing.assert_allclose(shrunk(W, mean, np.zeros(2), 1.0)[:, -1], mean)


def test_counts_are_added_up_and_open_entries_are_counted():
    counts = sp.csr_matrix(np.array([[4.0, 0.0], [2.0, 1.0]]))
    size = np.array([1.0, 3.0])
    batch = np.array([0, 1])
    multipliers = np.array([[2.0, 1.0], [1.0, 1.0]])
    mean, n_counts = known("nb", counts, size, batch, multipliers)
    np.testing.assert_array_equal(n_counts, [6, 1])
    np.testing.assert_allclose(mean, [6 / 5, 1 / 4])
    np.testing.assert_array_equal(
        known("bernoulli", counts, size, batch, multipliers, extra=0.5)[1], [2.5, 1.5]
    )


def test_features_without_loadings_have_no_say():
    counts, size, factors, W, batch, multipliers = drawn("nb", 0.5, structure=1.0)
    expected = best_strength("nb", counts, size, factors, W, batch, multipliers)
    more = sp.csr_matrix(sp.hstack([counts, np.ones((300, 1))]))
    W, multipliers = np.vstack([W, np.zeros(3)]), np.ones((1, 61))
    assert best_strength("nb", more, size, factors, W, batch, multipliers) == expected


@pytest.mark.parametrize("likelihood", ["nb", "bernoulli"])
def test_multipliers_of_batches_are_no_structure(likelihood):
    batch, rng = np.arange(600) % 2, np.random.default_rng(2)
    factors = np.column_stack([1.9 * (batch == 0) + 0.05, 1.9 * (batch == 1) + 0.05, np.ones(600)])
    multipliers = np.stack([np.where(rng.random(60) < 0.5, 20.0, 1.0), np.ones(60)])
    counts = sp.csr_matrix(rng.poisson(0.05 * multipliers[batch]).astype(np.float32))
    counts.data = np.minimum(counts.data, 1 if likelihood == "bernoulli" else np.inf)
    given = counts, np.ones(600), factors, np.full((60, 3), 0.02), batch
    assert best_strength(likelihood, *given, multipliers) >= 30
    assert best_strength(likelihood, *given, np.ones((2, 60))) < 30
