from __future__ import annotations

import random

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from gpnsf.core.scores.clustering import METHODS, cluster, stability, stable_number


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
