from __future__ import annotations

import numpy as np

from gpnsf.core.scores.expected import expected, expected_shares


def test_expected_values_by_likelihood():
    H = np.array([[1.0, 2.0], [0.0, 1.0]])
    W = np.array([[0.5, 0.0], [1.0, 1.0]])
    b = np.array([0.1, 0.0])
    rate = np.array([[0.6, 3.0], [0.1, 1.0]])
    for kind, values in {
        "nb": rate,
        "gaussian": rate,
        "bernoulli": 1 - np.exp(-rate),
        "bernoulli_clipped": np.minimum(rate, 1),
    }.items():
        found = expected(kind, H, W, b)
        np.testing.assert_allclose(found, values, rtol=1e-6)
        assert found.dtype == np.float32
    np.testing.assert_allclose(
        expected("nb", H, W, b, np.array([2.0, 3.0])), rate * [[2], [3]], rtol=1e-6
    )


def test_shares_are_a_softmax_over_features():
    rng = np.random.default_rng(0)
    codes, embeddings, base = rng.normal(size=(4, 2)), rng.normal(size=(5, 2)), rng.normal(size=5)
    weight = np.exp([[base[j] + codes[i] @ embeddings[j] for j in range(5)] for i in range(4)])
    found = expected_shares(codes, embeddings, base)
    np.testing.assert_allclose(found, weight / weight.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(expected_shares(codes + 900, embeddings, base).sum(axis=1), 1)
