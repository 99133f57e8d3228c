"""Projections to the simplex and importance scores."""

from __future__ import annotations

import numpy as np
import pytest

from gpnsf.core.scores import simplex

N, K = 12, 4
IS_SPATIAL = np.array([True, True, False, False])
RNG = np.random.default_rng(0)
FACTORS = RNG.gamma(2.0, 1.0, (N, K))
LOADINGS = {"rna": RNG.gamma(0.5, 1.0, (7, K)), "atac": RNG.gamma(0.5, 0.1, (5, K))}
FACTORS /= FACTORS.mean(0)
EMPTY = np.vstack([LOADINGS["rna"], np.zeros((1, K))])


def test_features_without_signal_stay_zero():
    assert simplex.feature_importance(EMPTY, IS_SPATIAL)[-1] == 0
    assert simplex.top_factor(EMPTY)[-1] == -1
    assert simplex.importance_std(EMPTY, np.zeros((8, K, K)), IS_SPATIAL)[-1] == 0


def test_shares_are_the_definition():
    expected = np.zeros((N, K))
    for i in range(N):
        for k in range(K):
            expected[i, k] = FACTORS[i, k] * sum(
                float(W[j, k]) for W in LOADINGS.values() for j in range(len(W))
            )
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(simplex.observation_shares(FACTORS, LOADINGS), expected)


def test_observation_importance_is_the_spatial_share():
    shares = simplex.observation_shares(FACTORS, LOADINGS)
    np.testing.assert_allclose(
        simplex.observation_importance(FACTORS, LOADINGS, IS_SPATIAL), shares[:, :2].sum(1)
    )


def test_feature_importance_is_the_spatial_share():
    W = LOADINGS["rna"]
    np.testing.assert_allclose(
        simplex.feature_importance(W, IS_SPATIAL), W[:, :2].sum(1) / W.sum(1)
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_lie_between_zero_and_one_for_signed_models_too(sign):
    W, H = sign * (LOADINGS["rna"] - 0.5), FACTORS - 1.0
    for score in (
        simplex.feature_importance(W, IS_SPATIAL),
        simplex.observation_importance(H, {"rna": W}, IS_SPATIAL),
    ):
        assert ((score >= 0) & (score <= 1)).all()
        assert score.std() > 0


@pytest.mark.parametrize(("kinds", "value"), [([False] * K, 0.0), ([True] * K, 1.0)])
def test_scores_are_exact_when_all_factors_are_of_one_kind(kinds, value):
    kinds = np.array(kinds)
    W = LOADINGS["rna"].astype(np.float32)
    importance = simplex.observation_importance(FACTORS.astype(np.float32), {"rna": W}, kinds)
    if value == 0:
        assert (importance == 0).all()
        assert (simplex.feature_importance(W, kinds) == 0).all()
    else:
        np.testing.assert_allclose(importance, 1, rtol=1e-6)
        np.testing.assert_allclose(simplex.feature_importance(W, kinds), 1, rtol=1e-6)
    np.testing.assert_allclose(
        simplex.importance_std(W, np.tile(0.1 * np.eye(K), (7, 1, 1)), kinds), 0, atol=1e-6
    )


def test_the_order_of_factors_does_not_matter():
    order = np.array([2, 0, 3, 1])
    shuffled = {name: W[:, order] for name, W in LOADINGS.items()}
    np.testing.assert_allclose(
        simplex.observation_importance(FACTORS[:, order], shuffled, IS_SPATIAL[order]),
        simplex.observation_importance(FACTORS, LOADINGS, IS_SPATIAL),
    )
    np.testing.assert_allclose(
        simplex.feature_importance(shuffled["rna"], IS_SPATIAL[order]),
        simplex.feature_importance(LOADINGS["rna"], IS_SPATIAL),
    )


def test_importance_std_is_that_of_sampled_loadings():
    rng = np.random.default_rng(1)
    W = rng.uniform(2, 5, (6, K))
    root = 0.05 * rng.standard_normal((6, K, K))
    covariance = root @ root.transpose(0, 2, 1)
    draws = W + np.einsum("pkl,spl->spk", root, rng.standard_normal((4000, 6, K)))
    spread = np.std([simplex.feature_importance(draw, IS_SPATIAL) for draw in draws], axis=0)
    np.testing.assert_allclose(simplex.importance_std(W, covariance, IS_SPATIAL), spread, rtol=0.1)


def test_importance_std_is_never_above_one_half():
    W = np.full((3, K), 1e-3)
    assert (simplex.importance_std(W, np.tile(1e6 * np.eye(K), (3, 1, 1)), IS_SPATIAL) <= 0.5).all()


def test_top_factor_has_the_largest_share():
    np.testing.assert_array_equal(simplex.top_factor(LOADINGS["rna"]), LOADINGS["rna"].argmax(1))
    np.testing.assert_array_equal(simplex.top_factor(-LOADINGS["rna"]), LOADINGS["rna"].argmax(1))
