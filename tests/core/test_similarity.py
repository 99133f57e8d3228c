from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from gpnsf.core.scores.similarity import mean_rates, similar


def test_similar_rows_are_those_of_the_largest_cosine():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), 40)
    candidates = np.arange(5, 40, 2)
    weights = similar(shares, candidates, n_neighbors=3)
    unit = shares / np.linalg.norm(shares, axis=1, keepdims=True)
    cosine = unit @ unit[candidates].T
    for row, own in zip(cosine, weights.toarray(), strict=True):
        best = np.argsort(-row)[:3]
        np.testing.assert_allclose(own[best], row[best], rtol=1e-6)
        assert np.count_nonzero(own) == 3
    assert similar(shares, candidates[:2], n_neighbors=9).shape == (40, 2)


def test_rates_are_ratios_of_sums():
    rng = np.random.default_rng(0)
    weights, counts, size = rng.random((3, 6)), rng.poisson(0.7, (6, 4)), rng.random(6)
    rates = mean_rates(sp.csr_matrix(weights), sp.csr_matrix(counts.astype(np.float32)), size)
    np.testing.assert_allclose(
        rates.toarray(), weights @ counts / (weights @ size)[:, None], rtol=1e-5
    )
