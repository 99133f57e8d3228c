"""Measures of agreement, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpnsf.core.scores import agreement

RNG = np.random.default_rng(0)
ONE, OTHER = RNG.dirichlet(np.ones(4), 30), RNG.dirichlet(np.ones(4), 30)
MEASURES = {
    agreement.relative_error: (
        0.0,
        lambda a, b: math.sqrt(sum((a - b).ravel() ** 2) / sum(b.ravel() ** 2)),
    ),
    agreement.rmse: (0.0, lambda a, b: math.sqrt(sum((a - b).ravel() ** 2) / a.size)),
    agreement.correlation: (1.0, lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]),
}


def test_a_measure_is_its_definition(subtests):
    for measure, (perfect, definition) in MEASURES.items():
        with subtests.test(measure.__name__):
            assert measure(ONE, OTHER) == pytest.approx(definition(ONE, OTHER))
            assert measure(ONE, ONE) == pytest.approx(perfect)


def test_the_divergence_is_that_of_jensen_and_shannon():
    def entropy(p):
        return -sum(float(x) * math.log(x) for x in p if x > 0)

    rows = [
        entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
        for p, q in zip(ONE, OTHER, strict=True)
    ]
    assert agreement.divergence(ONE, OTHER) == pytest.approx(np.mean(np.sqrt(rows)))
    assert agreement.divergence(np.eye(2), np.eye(2)[::-1]) == pytest.approx(math.sqrt(math.log(2)))
    assert agreement.divergence(np.eye(2), np.eye(2)) == 0.0


def test_a_constant_has_no_correlation():
    assert math.isnan(agreement.correlation(np.full((5, 2), 0.5), ONE[:5, :2]))


def test_structural_similarity_by_loops():
    cells = np.column_stack(np.divmod(np.arange(60), 10))[
        RNG.permutation(60)[:50]
    ]  # a lattice with holes
    one, other = RNG.random(50), RNG.random(50)
    total = 0.0
    for here in cells:
        near = (np.abs(cells - here) <= 3).all(axis=1)
        x, y = one[near], other[near]
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        level = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
        total += level * (2 * covariance + 9e-4) / (x.var() + y.var() + 9e-4)
    assert agreement.ssim(one, other, cells) == pytest.approx(total / 50, rel=1e-6)
    assert agreement.ssim(one, one, cells) == pytest.approx(1.0)


def test_a_lattice_is_recognised(subtests):
    row, column = np.divmod(np.arange(20), 5)
    places = {
        "a lattice": (np.column_stack([row, column]), True),
        "elsewhere, in another unit": (100 + 7.5 * np.column_stack([row, column]), True),
        "every other row shifted": (np.column_stack([row, 2 * column + row % 2]), True),
        "anywhere": (RNG.random((20, 2)), False),
        "one dimension": (np.arange(20.0)[:, None], False),
        "one place": (np.zeros((20, 2)), False),
        "a diagonal": (np.column_stack([np.arange(20), np.arange(20)]), False),
    }
    for name, (coords, on_lattice) in places.items():
        with subtests.test(name):
            cells = agreement.lattice(coords.astype(float))
            assert (cells is not None) is on_lattice
            if on_lattice:
                assert len(np.unique(cells, axis=0)) == len(coords)
