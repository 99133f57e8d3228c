from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.utils.extmath import svd_flip

from gpnsf.core.scores.projections import principal_components, semantic_index


@pytest.fixture(scope="module")
def counts():
    """Simulated counts, with an empty cell and a feature that is never seen."""
    rng = np.random.default_rng(0)
    X = rng.poisson(rng.gamma(1.0, 1.0, (1, 30)) * rng.gamma(3.0, 0.5, (60, 1)))
    X[4], X[:, 7] = 0, 0
    return sp.csr_matrix(X.astype(np.float32))


def test_principal_components_are_those_of_scaled_logs(counts):
    X = counts.toarray().astype(float)
    total = X.sum(axis=1, keepdims=True)
    logs = np.log1p(X / np.maximum(total, 1e-12) * np.median(total[total > 0]))
    sd = logs.std(axis=0)
    scaled = np.divide(logs - logs.mean(axis=0), sd, out=np.zeros_like(logs), where=sd > 0)
    scaled -= scaled.mean(axis=0)
    u, s, _ = np.linalg.svd(scaled, full_matrices=False)
    found = principal_components(counts, 5, seed=0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(u * s)[:, :5], atol=1e-3)


def test_a_count_far_above_the_others_is_cut(counts):
    X = counts.toarray()
    X[:, 9] = 0
    X[5, 9] = 1
    few = np.zeros((300, 30), np.float32)
    few[:60] = X
    few[60:] = X[6]
    assert (
        np.abs(principal_components(sp.csr_matrix(few), 20, seed=0)).max() < 17.3
    )  # sqrt(300): one cell alone, not cut


def test_semantic_index_is_that_of_weights_cell_by_cell(counts):
    X = counts.toarray().astype(float)
    share = X / np.maximum(X.sum(axis=1, keepdims=True), 1e-12)
    weight = share * len(X) / np.maximum(X.sum(axis=0), 1)
    weight = np.log1p(1e4 * weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12))
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    expected = svd_flip(u, vt)[0][:, :6] * s[:6]
    expected -= expected.mean(axis=1, keepdims=True)
    kept = np.arange(len(X)) != 4
    expected[kept] /= expected[kept].std(axis=1, keepdims=True)
    found = semantic_index(counts, 6, seed=0)
    np.testing.assert_allclose(found[kept], expected[kept], atol=1e-2)
    np.testing.assert_allclose(found[4], 0, atol=1e-6)


def test_scores_are_as_many_as_there_can_be_and_repeat(counts):
    assert principal_components(counts, 100, seed=0).shape == (60, 29)
    assert semantic_index(counts, 100, seed=0).shape == (60, 29)
    for scores in (principal_components, semantic_index):
        np.testing.assert_array_equal(scores(counts, 5, seed=3), scores(counts, 5, seed=3))
