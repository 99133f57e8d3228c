"""Ties of neighbouring spots."""

from __future__ import annotations

import numpy as np
import pytest

from gpnsf.core.scores.neighbours import ties

GRID = np.column_stack(np.divmod(np.arange(16), 4)).astype(float)


def test_the_graph_is_symmetric_sparse_and_scaled():
    graph = ties(GRID, np.zeros(16), n_neighbors=3).graph(1.0)
    dense = graph.toarray()
    np.testing.assert_array_equal(dense, dense.T)
    assert not dense.diagonal().any()
    assert dense.sum(axis=1).max() == pytest.approx(1.0)
    assert graph.nnz < 16 * 8


def test_strengths_follow_the_equation():
    regions = np.eye(2)[(GRID[:, 0] > 1).astype(int)]
    tied = ties(GRID, np.zeros(16), n_neighbors=4, regions=regions)
    expected = np.zeros((16, 16))
    for i, j in zip(tied.row, tied.column, strict=True):
        d, z = np.linalg.norm(GRID[i] - GRID[j]), np.abs(regions[i] - regions[j]).sum()
        expected[i, j] = np.exp(-((d / 1.3) ** 2) - (z / 1.7) ** 2)
    np.testing.assert_allclose(
        tied.graph(1.3, 1.7).toarray(), expected / expected.sum(axis=1).max(), rtol=1e-12
    )
    assert set(np.round(tied.contrast, 9)) == {0.0, 2.0}


def test_slices_are_never_joined_even_where_they_overlap():
    slices = np.array(["a", "b"] * 8)
    tied = ties(GRID, slices, n_neighbors=5)
    assert (slices[tied.row] == slices[tied.column]).all()
    assert set(tied.row) == set(range(16))


@pytest.mark.parametrize("coords", [np.zeros((5, 2)), np.zeros((1, 2)), np.arange(3.0)[:, None]])
def test_odd_places_are_borne(coords):
    graph = ties(coords, np.zeros(len(coords)), n_neighbors=6).graph(1.0)
    assert graph.shape == (len(coords), len(coords))
    assert np.isfinite(graph.toarray()).all()


def test_spots_too_far_apart_for_the_bandwidth_have_no_ties():
    assert ties(1e6 * GRID, np.zeros(16), n_neighbors=4).graph(1.0).sum() == 0
