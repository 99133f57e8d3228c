from __future__ import annotations

import random

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from gpnsf.core.scores.clustering import METHODS, cluster, smoothed, stability, stable_number


@pytest.fixture(scope="module")
def blobs():
    """Three clouds of 20, 40 and 60 points."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [20, 40, 60])
    centres = np.array([[0, 0], [3, 0], [0, 3.0]])
    return centres[truth] + 0.3 * rng.standard_normal((120, 2)), truth


@pytest.mark.parametrize("method", METHODS)
def test_clouds_are_found_and_named_by_size(blobs, method):
    points, truth = blobs
    labels = cluster(points, 3, method=method)
    np.testing.assert_array_equal(labels, 2 - truth)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(blobs, method):
    points = np.random.default_rng(1).standard_normal((80, 3))
    first, again = (cluster(points, 5, method=method, n_init=1, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_leiden_leaves_pythons_generator_to_others(blobs):
    random.seed(5)
    expected = random.random()
    random.seed(5)
    cluster(blobs[0], 3, method="leiden")
    assert random.random() == expected


def test_leiden_finds_the_number_asked_for():
    points = np.random.default_rng(2).uniform(size=(150, 2))
    assert [cluster(points, k, method="leiden").max() + 1 for k in (1, 2, 5, 9)] == [1, 2, 5, 9]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_the_true_number_is_the_most_stable(blobs, method):
    points, _ = blobs
    numbers = np.arange(2, 7)
    stable = stability(points, numbers, method=method)
    assert stable[1] > 0.99
    assert stable[3:].max() < 0.95
    assert stable_number(numbers, stable) == 3


def test_stability_of_noise_is_low():
    points = np.random.default_rng(3).standard_normal((120, 4))
    assert stability(points, [6])[0] < 0.6


def test_nearly_as_stable_and_larger_wins():
    assert stable_number(np.array([2, 3, 4, 5]), np.array([1.0, 0.7, 0.96, 0.9])) == 4


def test_more_starts_do_not_fit_worse():
    points = np.random.default_rng(4).standard_normal((100, 2))

    def within(labels):
        return sum(
            ((points[labels == k] - points[labels == k].mean(0)) ** 2).sum()
            for k in np.unique(labels)
        )

    assert within(cluster(points, 8, n_init=20)) <= within(cluster(points, 8, n_init=1)) + 1e-9
    assert adjusted_rand_score(cluster(points, 8), cluster(points, 8)) == 1


@pytest.fixture(scope="module")
def halves():
    """A grid of 20 x 20 spots, the half of each, and noisy points that tell most halves."""
    coords = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), axis=-1).reshape(-1, 2)
    truth = (coords[:, 0] >= 10).astype(np.int64)
    rng = np.random.default_rng(4)
    points = np.column_stack([truth, np.zeros(400)]) + 0.35 * rng.standard_normal((400, 2))
    return coords, truth, points


def test_neighbours_mend_the_labels_of_noisy_spots(halves):
    coords, truth, points = halves
    alone = cluster(points, 2)
    together = smoothed(alone, points, coords, 4.0)
    assert adjusted_rand_score(truth, alone) < 0.8
    assert adjusted_rand_score(truth, together) > 0.95
    np.testing.assert_array_equal(smoothed(alone, points, coords, 0.0), alone)


def test_a_spot_that_is_clearly_different_keeps_its_label(halves):
    coords, truth, _ = halves
    points = truth[:, None] * np.array([[1.0, 0]])
    lone = 20 * 10 + 4  # within the left half
    points[lone] = [1, 0]
    typical = (truth == 1).astype(np.int64)
    typical[lone] = 1
    assert smoothed(typical, points, coords, 0.9)[lone] != smoothed(typical, points, coords, 0.9)[0]
    assert smoothed(typical, points, coords, 1.1)[lone] == smoothed(typical, points, coords, 1.1)[0]


def test_smoothing_empties_no_cluster_and_moves_nothing_without_a_choice():
    rng = np.random.default_rng(5)
    points, coords = rng.standard_normal((60, 3)), rng.uniform(size=(60, 2))
    for number in (1, 2, 9):
        labels = cluster(points, number)
        assert smoothed(labels, points, coords, 1e6).max() + 1 == number
    same = np.zeros((60, 3))
    labels = np.arange(60) % 2
    assert set(smoothed(labels, same, coords, 4.0)) == {0, 1}
