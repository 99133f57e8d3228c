"""Order in held-out counts: what neighbours and the same spots tell, against permuted spots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flat import flat

from gpnsf.core.inference import order
from gpnsf.core.inference.order import (
    MIN_Z,
    Order,
    Surroundings,
    beyond_neighbours,
    clear_order,
    crossed_order,
    misplaced,
    passed,
)
from gpnsf.core.types import Dataset


def crossed(
    fitted: np.ndarray,
    kept: np.ndarray,
    data: Dataset,
    n_spatial: int | None = None,
    rest: float | np.ndarray = 0.0,
):
    """Z of scores, all of them of spatial factors unless said otherwise."""
    n_spatial = fitted.shape[1] if n_spatial is None else n_spatial
    signal = np.zeros((len(fitted), fitted.shape[1] + 1))
    signal[:, -1] = np.exp(rest)
    return crossed_order(fitted, kept, Surroundings.of(data), n_spatial, signal)


def data_of(n: int) -> Dataset:
    return flat(np.ones((n, 1)), "poisson")


@pytest.mark.parametrize("n_libraries", [1, 3])
def test_scores_without_order_have_standard_z(n_libraries):
    data = flat(np.ones((300, 1)), "poisson", n_libraries)
    rng = np.random.default_rng(2)
    levels = (
        5.0 * data.library[:, None]
    )  # slices may differ in level: scores are compared within them
    one, other = rng.normal(size=(2, 300, 500)) + levels
    z = crossed(one, other, data)
    assert (
        abs(z.mean() + order.CHANCE / np.sqrt(2 * np.pi * 300)) < 0.15
    )  # what is taken off: twice the mean positive part
    assert 0.9 < z.std() < 1.1


def test_real_differences_without_order_do_not_pass_even_if_picked_for_their_smoothness():
    data = flat(np.ones((600, 1)), "poisson")
    rng = np.random.default_rng(3)
    candidates = rng.normal(size=(600, 400))
    near = order.knn_weights(data.coords, n_neighbors=60)
    smoothest = np.argsort(-(candidates * (near @ candidates)).sum(0))[:20]  # one in twenty
    real = candidates[:, smoothest]
    noise = 0.3 * rng.normal(size=(2, *real.shape))
    z = crossed(real + noise[0], real + noise[1], data)
    assert z.max() < MIN_Z


def test_z_is_that_of_permuted_scores(monkeypatch):
    monkeypatch.setattr(order, "CHANCE", 0.0)
    data = flat(np.ones((400, 1)), "poisson")
    rng = np.random.default_rng(4)
    one, other = data.coords[:, :1] + rng.normal(scale=3, size=(2, 400, 1))
    z = crossed(one, other, data)[0]
    coords = data.coords.astype(float)
    standard = (one - one.mean()) / one.std()
    expected = 0
    for number in order.N_NEIGHBORS:
        mean = order.knn_weights(coords, n_neighbors=min(number, 50)) @ standard
        expected = expected + (mean - mean.mean()) / mean.std()
    draws = np.array([rng.permutation(other[:, 0]) @ expected[:, 0] for _ in range(3_000)])
    assert z == pytest.approx((other[:, 0] @ expected[:, 0] - draws.mean()) / draws.std(), rel=0.05)


def test_wide_neighbourhoods_find_what_noise_hides_from_near_ones(monkeypatch):
    data = flat(np.ones((900, 1)), "poisson")
    rng = np.random.default_rng(5)
    one, other = data.coords[:, :1] + rng.normal(scale=5, size=(2, 900, 60))
    both = crossed(one, other, data)
    monkeypatch.setattr(order, "N_NEIGHBORS", (6,))
    near = crossed(one, other, data)
    assert both.mean() > 1.3 * near.mean() > 0.4


def test_a_small_slice_takes_nothing_from_a_large_one():
    rng = np.random.default_rng(6)
    data = flat(np.ones((912, 1)), "poisson")
    one, other = data.coords[:, :1] + rng.normal(scale=4, size=(2, 912, 40))
    alone = crossed(
        one[:900], other[:900], replace(data, coords=data.coords[:900], library=data.library[:900])
    )
    library = np.repeat([0, 1, 2], [900, 11, 1])
    together = crossed(one, other, replace(data, library=library))
    np.testing.assert_allclose(together, alone, atol=0.5)
    assert alone.mean() > 2


def test_constant_scores_and_a_handful_of_spots_are_not_spatial():
    rng = np.random.default_rng(0)
    constant = np.ones((50, 2))
    np.testing.assert_array_equal(crossed(constant, constant, flat(np.ones((50, 1)), "poisson")), 0)
    for n in (1, 2, 4):
        scores = rng.normal(size=(2, n, 3))
        assert (crossed(*scores, data_of(n)) < MIN_Z).all()


def test_order_that_totals_give_to_what_is_left_is_no_order_of_its_own():
    """Where spatial factors take more of the total, all others have less: in the logarithm, with a slope of one."""
    rng = np.random.default_rng(7)
    data = flat(np.ones((400, 1)), "poisson")
    rest = 0.5 * data.coords[:, 0]
    one, other = rest[:, None] + 0.3 * rng.normal(size=(2, 400, 30))
    assert crossed(one, other, data).min() > 3  # of spatial factors nothing is taken
    assert (
        crossed(one, other, data, 0).min() > 3
    )  # nor where nothing is left over that could explain it
    assert np.abs(crossed(one, other, data, 0, rest)).mean() < 1.5
    np.testing.assert_array_equal(
        crossed(one, other, data, 10, rest)[:10], crossed(one, other, data)[:10]
    )
    assert (
        crossed(4 * rest[:, None] + one, 4 * rest[:, None] + other, data, 0, rest).min() > 3
    )  # a slope of 1 at most


def test_what_has_order_without_a_field_leaves_less_to_the_others_too():
    rng = np.random.default_rng(4)
    data = flat(np.ones((400, 1)), "poisson")
    ordered = np.exp(2 * np.sin(3 * data.coords[:, 0]))
    own = np.exp(1.0 * rng.normal(size=400))  # of single spots, and of both halves
    signal = np.column_stack([ordered, own, np.ones(400)])
    signal /= signal.sum(1, keepdims=True)
    one, other = np.log(signal[:, :2]) + 0.1 * rng.normal(size=(2, 400, 2))
    z = crossed_order(one, other, Surroundings.of(data), 0, signal)
    assert z[0] > 10
    assert abs(z[1]) < 3
    alone = np.column_stack([np.zeros_like(signal[:, 0]), signal[:, 1], 1 - signal[:, 1]])
    assert crossed_order(one, other, Surroundings.of(data), 0, alone)[1] > 6, (
        "by itself it has order"
    )


@pytest.mark.parametrize(
    ("z", "expected"),
    [
        ([30, 28, 2.9, -2], [1, 1, 0, 0]),  # deep data: each by itself
        ([2.5, 1.6, 1.9, 1.4], [1, 1, 1, 1]),  # shallow data: together
        ([3.7, 4.7, 0.5, 2.4], [1, 1, 1, 1]),
        ([3.7, 4.7, -0.5, 2.4], [1, 1, 0, 1]),  # far below the others
        ([1.1, 0.3, 1.8, 1.3], [0, 0, 0, 0]),  # not even together
        ([3.1, -1, -1, 0.5], [1, 0, 0, 0]),
        ([8, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),  # a strong one does not pay for the others
        ([5, 0, 0], [1, 0, 0]),
        ([7, 5, 2.5, 2.5], [1, 1, 0, 0]),  # not shallow
        ([], []),
        ([2.9], [0]),
        ([3.1], [1]),
    ],
)
def test_factors_pass_alone_or_together(z, expected):
    np.testing.assert_array_equal(passed(np.array(z)), np.array(expected, bool))


@pytest.mark.parametrize(
    ("spatial", "least"),
    [([], 6), ([1, 2], 6), ([6, 6, 6], 3), ([12, 15, 18], 5), ([20, 30], 6), ([40, 60], 6)],
)
def test_clear_order_is_relative_to_that_of_fields(spatial, least):
    z = np.array([*spatial, least - 0.1, least + 0.1], float)
    clear = clear_order(z, z, len(spatial))
    assert clear.tolist() == [False] * len(spatial) + [False, True]


@pytest.mark.parametrize("noise", [1.0, 1.6])
def test_order_that_a_factor_holds_of_others_is_little_of_what_its_spots_repeat(noise):
    z = np.array([40.0, 44.0, 13.0, 13.0])
    repeated = np.array([40.0, 44.0, 40.0, 38.0]) / noise
    assert clear_order(z, repeated, 2).tolist() == [False, False, False, True]


def test_an_order_is_lowered_where_neighbours_tell_less_by_the_other_one():
    found = Order(np.array([9.0, 9.0, 20.0, 7.0]), np.array([10.0, 10.0, 20.0, 7.0]), np.zeros(4))
    z, repeated = np.array([12.0, 4.0, 40.0, 7.5]), np.array([48.0, 40.0, 40.0, 50.0])
    lower = found.at_most(z, repeated, np.array([True, True, True, False]))
    assert lower.z.tolist() == [12.0, 4.0, 20.0, 7.0]
    assert lower.repeated.tolist() == [48.0, 40.0, 20.0, 7.0]
    assert lower.rank is found.rank


def test_what_neighbours_do_not_tell_is_the_part_of_single_spots():
    rng = np.random.default_rng(8)
    data = replace(data_of(900), library=np.repeat([0, 1], 450))
    smooth = np.sin(2 * data.coords[:, :1]) + 5.0 * data.library[:, None]
    single, noise = rng.normal(size=(900, 1)), 0.3 * rng.normal(size=(2, 900, 3))
    real = np.hstack([smooth, single, smooth + 0.5 * single])
    field, plain, mixed = beyond_neighbours(real + noise[0], real + noise[1], Surroundings.of(data))
    within = smooth - 5.0 * data.library[:, None]
    assert abs(field) < 0.05
    assert plain == pytest.approx(1, abs=0.05)
    assert mixed == pytest.approx(0.25 / (0.25 + within.var()), abs=0.06)


@pytest.mark.parametrize(
    ("beyond", "expected"),
    [
        ([0.1, 0.1, 0.15, 0.3], [0, 0, 0, 1]),
        ([0.01, 0.01, 0.02, 0.24], [0, 0, 0, 0]),  # mostly told by neighbours
        ([0.3, 0.3, 0.4, 0.6], [0, 0, 0, 0]),  # tissue in which single spots differ
        ([0.3, 0.3, 0.4, 0.7], [0, 0, 0, 1]),  # and a factor that hardly follows neighbours
        ([0.3, 0.3, 0.25, 0.95], [0, 0, 0, 1]),
        ([0.9], [0]),  # nothing to compare it with
        ([0.9, 0.8, 0.95], [1, 0, 1]),  # one stays
    ],
)
def test_a_field_is_misplaced_beside_the_others(beyond, expected):
    found = misplaced(np.array(beyond), np.ones(len(beyond)))
    assert found.tolist() == [bool(value) for value in expected]


def test_the_others_count_by_their_size():
    beyond = np.array([0.1, 0.1, 0.8, 0.7, 0.9])
    assert (
        misplaced(beyond, np.array([1.0, 1.0, 0.1, 0.1, 0.1])).tolist() == [False] * 2 + [True] * 3
    )
    assert not misplaced(0.6 * beyond, np.array([0.1, 0.1, 1.0, 1.0, 1.0])).any()
