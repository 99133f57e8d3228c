from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.core.scores import association
from gpnsf.core.scores.association import permutation_p_values

N, P = 400, 120


@pytest.fixture
def problem():
    """Half of the features follow a spatial pattern, all a nonspatial factor; factors as they are."""
    rng = np.random.default_rng(0)
    spatial = np.column_stack([np.arange(N) < 100, np.arange(N) >= 300]).astype(float) + 0.1
    nonspatial = rng.lognormal(0, 1, N)
    follows = np.arange(P) % 2 == 0
    rate = (
        nonspatial[:, None] * rng.gamma(2, 0.5, P)
        + follows * spatial[:, np.arange(P) % 4 // 2]
        + 0.05
    )
    null = np.column_stack([nonspatial, np.ones(N)])
    return sp.csr_matrix(rng.poisson(rate).astype(np.float32)), spatial, null, follows


def values(
    counts, spatial, null, *, library=None, batches=None, binary=False, n_permutations=50, seed=0
):
    library = np.zeros(N, dtype=int) if library is None else library
    batches = (
        (np.zeros(N, dtype=int), np.ones((1, counts.shape[1]))) if batches is None else batches
    )
    options = {"binary": binary, "n_permutations": n_permutations, "seed": seed}
    return permutation_p_values(counts, spatial, null, library, batches, **options)


@pytest.mark.parametrize("binary", [False, True])
def test_features_of_a_pattern_are_found_and_the_others_have_uniform_p_values(problem, binary):
    counts, spatial, null, follows = problem
    if binary:
        counts = (counts > 0).astype(np.float32)
    p = values(counts, spatial, null, binary=binary)
    assert (p[follows] < 0.05).mean() > (0.7 if binary else 0.95)
    assert p[follows].min() < 1 / 1000  # the pool reaches below one over the number of permutations
    assert (p[~follows] < 0.1).mean() < 0.25
    assert 0.4 < p[~follows].mean() < 0.6


def test_p_values_equal_a_loop_over_permutations(problem):
    counts, spatial, null, _ = problem
    counts = counts[:, :7]  # one pool
    p = values(counts, spatial, null, n_permutations=30)
    residuals = np.empty((N, 7))
    for j in range(7):
        y, w = counts[:, j].toarray().ravel(), np.ones(2)
        for _ in range(3000):
            w = w * (null.T @ (y / (null @ w))) / null.sum(0)
        residuals[:, j] = y - null @ w
    rng, scores = np.random.default_rng(0), []
    for number in range(31):
        H = spatial if number == 0 else spatial[rng.permutation(N)]
        correlation = np.corrcoef(H.T, residuals.T)[:2, 2:]
        scores.append(correlation.max(axis=0))
    scores = np.array(scores)
    naive = [(1 + (scores[1:] >= scores[0, j]).sum()) / (1 + 30 * 7) for j in range(7)]
    np.testing.assert_allclose(
        p, naive, atol=3 / 211
    )  # the loadings are not quite at their maximum


def test_blocks_of_features_change_nothing(problem, monkeypatch):
    counts, spatial, null, _ = problem
    whole = values(counts, spatial, null)
    monkeypatch.setattr(association, "BLOCK", 10 * N)
    np.testing.assert_allclose(values(counts, spatial, null), whole, atol=1e-3)


def test_a_level_that_differs_between_slices_is_no_pattern(problem):
    _, _, null, _ = problem
    library = (np.arange(N) >= 200).astype(int)
    rng = np.random.default_rng(1)
    counts = sp.csr_matrix(rng.poisson(1.0 + 3 * library[:, None], (N, P)).astype(np.float32))
    spatial = np.column_stack([library + 0.1 * rng.random(N), 1 + rng.random(N)])
    assert (values(counts, spatial, null) < 0.05).mean() > 0.9
    assert (values(counts, spatial, null, library=library) < 0.05).mean() < 0.15


@pytest.mark.parametrize("binary", [False, True])
def test_what_batches_multiply_is_no_pattern(binary):
    rng = np.random.default_rng(1)
    codes, multipliers = (np.arange(N) >= 200).astype(int), rng.lognormal(0, 1, (2, P))
    nonspatial = rng.lognormal(0, 1, N)
    counts = rng.poisson(multipliers[codes] * (0.3 * nonspatial[:, None] + 0.2))
    counts = sp.csr_matrix((np.minimum(counts, 1) if binary else counts).astype(np.float32))
    spatial = codes[:, None] + 0.1 * rng.random((N, 1))
    null = np.column_stack([nonspatial, np.ones(N)])
    assert (values(counts, spatial, null, binary=binary) < 0.05).mean() > 0.3
    p = values(counts, spatial, null, batches=(codes, multipliers), binary=binary)
    assert (p < 0.05).mean() < 0.12
    assert 0.4 < p.mean() < 0.6


def test_the_seed_decides(problem):
    counts, spatial, null, _ = problem
    first = values(counts, spatial, null)
    np.testing.assert_array_equal(values(counts, spatial, null), first)
    assert (values(counts, spatial, null, seed=1) != first).any()


def test_a_feature_without_residuals_has_a_p_value_and_is_not_found(problem):
    counts, spatial, null, _ = problem
    counts = sp.hstack([np.ones((N, 1), np.float32), counts]).tocsr()
    assert values(counts, spatial, np.ones((N, 1)))[0] > 0.05
