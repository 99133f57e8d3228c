from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from gpnsf.core.scores.enrichment import over_representation, signed_gain


def test_over_representation_is_the_exact_test_of_the_table():
    rng = np.random.default_rng(0)
    member, chosen = rng.random((60, 4)) < 0.3, rng.random((60, 3)) < 0.2
    score, p_values = over_representation(member, chosen)
    assert score.shape == p_values.shape == (4, 3)
    for s in range(4):
        for k in range(3):
            inside, best = member[:, s], chosen[:, k]
            cells = [
                [np.sum(inside & best), np.sum(inside & ~best)],
                [np.sum(~inside & best), np.sum(~inside & ~best)],
            ]
            assert p_values[s, k] == pytest.approx(
                fisher_exact(cells, alternative="greater").pvalue
            )
            (a, b), (c, d) = np.array(cells) + 0.5
            assert score[s, k] == pytest.approx(np.log(a * d / (b * c)))


def test_gain_is_zero_for_features_like_all_others_and_has_the_sign_of_the_difference():
    np.testing.assert_allclose(signed_gain(np.outer([1.0, 5.0, 0.0], [2.0, 3.0])), 0, atol=1e-7)
    W = np.array([[8.0, 2.0], [2.0, 8.0], [0.008, 0.002]])
    gain = signed_gain(W)
    expected = W.sum(axis=1, keepdims=True) * W.sum(axis=0) / W.sum()
    np.testing.assert_array_equal(np.sign(gain), np.sign(W - expected))
    np.testing.assert_allclose(gain**2 / 2, W * np.log(W / expected) - W + expected, atol=1e-12)
    assert gain[0, 0] > 10 * gain[2, 0]
