from __future__ import annotations

import numpy as np

from gpnsf.core.expected import expected


def test_expected_values_by_likelihood():
    H, W, b = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[0.5, 0.0], [1.0, 1.0]]), np.array([0.1, 0.0])
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
    np.testing.assert_allclose(expected("nb", H, W, b, np.array([2.0, 3.0])), rate * [[2], [3]], rtol=1e-6)
