"""The test of what is spatial: independent halves, scores without a field, permutation of spots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.inference import spatial_test as module
from gpnsf.core.inference.spatial_test import (
    MIN_Z,
    clear_order,
    halves,
    passed,
    spatial_test,
)
from gpnsf.core.model.build import build
from gpnsf.core.scores.metrics import match_factors
from gpnsf.core.types import Dataset, View
from gpnsf.io import read


def dataset(counts: np.ndarray, likelihood: str, n_libraries: int = 1) -> Dataset:
    n = len(counts)
    rng = np.random.default_rng(0)
    view = View(
        "m",
        likelihood,
        sp.csr_matrix(counts.astype(np.float32)),
        np.ones(n, np.float32),
        np.ones(n, bool),
    )
    library = np.arange(n) % n_libraries
    return Dataset(rng.uniform(-1, 1, (n, 2)).astype(np.float32), library, (view,))


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
    return module._crossed_order(fitted, kept, data, n_spatial, signal)


@pytest.mark.parametrize(
    ("likelihood", "rate"),
    [("poisson", 3.0), ("bernoulli", 0.05), ("bernoulli", 0.7), ("gaussian", 0)],
)
def test_halves_are_independent_given_the_rates(likelihood, rate):
    rng = np.random.default_rng(1)
    counts = rng.poisson(rate, (4_000, 6)) if rate else rng.normal(2.0, 1.5, (4_000, 6))
    counts = counts > 0 if likelihood == "bernoulli" else counts
    one, other = (
        half.views[0].counts.toarray() for half in halves(dataset(counts, likelihood), rng)
    )
    if likelihood == "poisson":
        np.testing.assert_array_equal(one + other, counts)
    if likelihood == "bernoulli":
        assert set(np.unique(one)) == {0, 1}
        np.testing.assert_array_equal((one + other) > 0, counts)
        np.testing.assert_allclose([one.mean(), other.mean()], -np.expm1(-rate / 2), rtol=0.05)
    if likelihood == "gaussian":
        np.testing.assert_allclose((one + other) / 2, counts, atol=1e-5)
    together = [np.corrcoef(one[:, j], other[:, j])[0, 1] for j in range(6)]
    assert abs(np.mean(together)) < 4 / np.sqrt(6 * 4_000)


def test_halves_know_nothing_of_rows_that_were_not_observed():
    data = dataset(np.random.default_rng(0).normal(size=(30, 4)), "gaussian")
    data.views[0].observed[:10] = False
    data.views[0].counts[:10] = 0
    for half in halves(data, np.random.default_rng(1)):
        assert not half.views[0].counts[:10].count_nonzero()


def test_rows_that_were_not_observed_do_not_change_the_halves_of_the_others():
    is_open = np.random.default_rng(0).random((90, 40)) < 0.7
    is_open[:50] = False
    data = dataset(is_open, "bernoulli")
    data.views[0].observed[:50] = False
    alone = halves(data.subset(np.arange(50, 90)), np.random.default_rng(1))
    for half, expected in zip(halves(data, np.random.default_rng(1)), alone, strict=True):
        assert (half.views[0].counts[50:] != expected.views[0].counts).nnz == 0


@pytest.mark.parametrize("n_libraries", [1, 3])
def test_scores_without_order_have_standard_z(n_libraries):
    data = dataset(np.ones((300, 1)), "poisson", n_libraries)
    rng = np.random.default_rng(2)
    levels = (
        5.0 * data.library[:, None]
    )  # slices may differ in level: scores are compared within them
    one, other = rng.normal(size=(2, 300, 500)) + levels
    z = crossed(one, other, data)
    assert (
        abs(z.mean() + module.CHANCE / np.sqrt(2 * np.pi * 300)) < 0.15
    )  # what is taken off: twice the mean positive part
    assert 0.9 < z.std() < 1.1


def test_real_differences_without_order_do_not_pass_even_if_picked_for_their_smoothness():
    data = dataset(np.ones((600, 1)), "poisson")
    rng = np.random.default_rng(3)
    candidates = rng.normal(size=(600, 400))
    near = module.knn_weights(data.coords, n_neighbors=60)
    smoothest = np.argsort(-(candidates * (near @ candidates)).sum(0))[:20]  # one in twenty
    real = candidates[:, smoothest]
    noise = 0.3 * rng.normal(size=(2, *real.shape))
    z = crossed(real + noise[0], real + noise[1], data)
    assert z.max() < MIN_Z


def test_z_is_that_of_permuted_scores(monkeypatch):
    monkeypatch.setattr(module, "CHANCE", 0.0)
    data = dataset(np.ones((400, 1)), "poisson")
    rng = np.random.default_rng(4)
    one, other = data.coords[:, :1] + rng.normal(scale=3, size=(2, 400, 1))
    z = crossed(one, other, data)[0]
    coords = data.coords.astype(float)
    standard = (one - one.mean()) / one.std()
    expected = 0
    for number in module.N_NEIGHBORS:
        mean = module.knn_weights(coords, n_neighbors=min(number, 50)) @ standard
        expected = expected + (mean - mean.mean()) / mean.std()
    draws = np.array([rng.permutation(other[:, 0]) @ expected[:, 0] for _ in range(3_000)])
    assert z == pytest.approx((other[:, 0] @ expected[:, 0] - draws.mean()) / draws.std(), rel=0.05)


def test_wide_neighbourhoods_find_what_noise_hides_from_near_ones(monkeypatch):
    data = dataset(np.ones((900, 1)), "poisson")
    rng = np.random.default_rng(5)
    one, other = data.coords[:, :1] + rng.normal(scale=5, size=(2, 900, 60))
    both = crossed(one, other, data)
    monkeypatch.setattr(module, "N_NEIGHBORS", (6,))
    near = crossed(one, other, data)
    assert both.mean() > 1.3 * near.mean() > 0.4


def test_a_small_slice_takes_nothing_from_a_large_one():
    rng = np.random.default_rng(6)
    data = dataset(np.ones((912, 1)), "poisson")
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
    np.testing.assert_array_equal(
        crossed(constant, constant, dataset(np.ones((50, 1)), "poisson")), 0
    )
    for n in (1, 2, 4):
        scores = rng.normal(size=(2, n, 3))
        assert (crossed(*scores, data_of(n)) < MIN_Z).all()


def test_order_that_totals_give_to_what_is_left_is_no_order_of_its_own():
    """Where spatial factors take more of the total, all others have less: in the logarithm, with a slope of one."""
    rng = np.random.default_rng(7)
    data = dataset(np.ones((400, 1)), "poisson")
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
    data = dataset(np.ones((400, 1)), "poisson")
    ordered = np.exp(2 * np.sin(3 * data.coords[:, 0]))
    own = np.exp(1.0 * rng.normal(size=400))  # of single spots, and of both halves
    signal = np.column_stack([ordered, own, np.ones(400)])
    signal /= signal.sum(1, keepdims=True)
    one, other = np.log(signal[:, :2]) + 0.1 * rng.normal(size=(2, 400, 2))
    z = module._crossed_order(one, other, data, 0, signal)
    assert z[0] > 10
    assert abs(z[1]) < 3
    alone = np.column_stack([np.zeros_like(signal[:, 0]), signal[:, 1], 1 - signal[:, 1]])
    assert module._crossed_order(one, other, data, 0, alone)[1] > 6, "by itself it has order"


def data_of(n: int) -> Dataset:
    return dataset(np.ones((n, 1)), "poisson")


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


def test_no_more_spots_take_part_than_are_needed(monkeypatch):
    data = dataset(np.ones((500, 3)), "poisson")
    monkeypatch.setattr(module, "MAX_SPOTS", 100)
    rows = module._sample(data, np.random.default_rng(0))
    assert len(rows) == 100
    assert len(np.unique(rows)) == 100
    monkeypatch.setattr(module, "MAX_NONZEROS", 90)
    assert len(module._sample(data, np.random.default_rng(0))) == 30
    data.views[0].observed[100:] = False
    assert module._sample(data, np.random.default_rng(0)).max() < 100


@pytest.fixture(scope="module")
def section():
    return gpnsf.datasets.ggblocks(n_side=18, n_genes=80, n_peaks=200, seed=0)


def outcome(mdata, **options):
    data, _ = read.read(mdata, Reading(size_factors=None, **options))
    return spatial_test(
        data,
        lambda part, n_spatial: build("gpnsf", part, n_factors=6, n_spatial=n_spatial),
        n_factors=6,
        n_spatial=4,
        start="smooth_0.1",
    )


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["rna", "atac"])
def test_patterns_pass_and_the_rest_does_not(section, modality):
    result = outcome(section, modalities=[modality])
    for z in result.z:
        assert z[:4].min() > 5
        if modality == "rna":
            assert z[4:].max() < 3


@pytest.mark.slow
def test_permuted_coordinates_leave_nothing(section):
    shuffled = section.copy()
    order = np.random.default_rng(0).permutation(section.n_obs)
    for mod in shuffled.mod.values():
        mod.obsm["spatial"] = mod.obsm["spatial"][order]
    if "spatial" in shuffled.obsm:
        shuffled.obsm["spatial"] = section.obsm["spatial"][order]
    assert not any(passed(z[:4]).any() for z in outcome(shuffled).z)


def test_another_fit_takes_the_verdict_of_the_factors_that_are_most_like_its_own():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(50, 3))
    halves = np.array([9.0, 0.0, 5.0]), np.array([4.0, 3.0, -1.0])
    result = verdict(list(halves), rows=np.arange(0, 100, 2), factors=[factors, factors[:, ::-1]])
    other = np.zeros((100, 4))
    other[::2] = factors[:, [2, 0, 1, 0]] + 0.1 * rng.normal(size=(50, 4))
    z, p = result.matched(other)
    np.testing.assert_allclose(z, np.array([5 + 4, 9 - 1, 0 + 3, 9 - 1]) / np.sqrt(2))
    np.testing.assert_allclose(p, [9.8e-11, 7.7e-9, 0.0169, 7.7e-9], rtol=0.02)


def verdict(z, repeated=None, used=None, rows=None, factors=None):
    """A test of three factors or four, two or three of them spatial."""
    K = len(z[0])
    return module.SpatialTest(
        rows=np.arange(5) if rows is None else rows,
        factors=[np.zeros((5, K))] * 2 if factors is None else factors,
        z=[np.array(half, float) for half in z],
        repeated=[np.array(half, float) for half in (repeated or z)],
        used=[np.array(half, bool) for half in (used or np.ones((2, K)))],
        n_spatial=K - 1,
    )


@pytest.mark.parametrize(
    ("z", "repeated", "growth", "expected"),
    [
        # one factor of single spots, one that asks for a field
        ([40, 42, 1, 35], [40, 40, 30, 30], 2, 3),
        # of two without order one is what a half made of noise
        ([40, 42, 1, 2], [40, 40, 30, 2], 8, 3),
        # both are: they take places where all counts know little more than a half
        ([40, 42, 1, 2], [40, 40, 2, 2], 8, 4),
        ([40, 42, 1, 2], [40, 40, 2, 2], 2, 3),
        # no order at all: as many as the test had
        ([0, 1, 0, 1], [9, 9, 9, 9], 2, 3),
    ],
)
def test_fields_to_begin_with_are_all_but_confirmed_factors_of_single_spots(
    z, repeated, growth, expected
):
    test = replace(verdict([z, z], [repeated, repeated]), growth=growth)
    assert test.slots == expected


def test_noise_is_what_no_held_out_counts_show():
    """Order, or the same spots saying the same in both halves, is enough; the halves count together."""
    factors = [np.eye(5)[:, :4]] * 2
    result = verdict([[9, 0, 0, 2], [9, 0, 0, 3]], [[0, 9, 2, 0], [0, 9, 2, 0]], factors=factors)
    assert result.noise(np.eye(5)[:, :4]).tolist() == [False, False, True, False]
    assert result.noise(np.eye(5)[:, [2, 0]]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("z", "used", "expected"),
    [
        ([[9, 9, 9, 0], [9, 9, 9, 0]], [[1, 1, 1, 1]] * 2, 3),
        (
            [[9, 9, 0, 9], [9, 9, 0, 9]],
            [[1, 1, 1, 1]] * 2,
            3,
        ),  # a nonspatial factor with clear order needs a slot
        ([[30, 30, 30, 3], [30, 30, 30, 4]], [[1, 1, 1, 1]] * 2, 3),  # more than it can inherit
        ([[9, 9, 9, 3], [9, 9, 9, 4]], [[1, 1, 1, 1]] * 2, 4),
        ([[9, 9, 0, 0], [9, 9, 0, 0]], [[1, 1, 0, 1]] * 2, 3),  # one that is not in use leaves room
        ([[9, 9, 9, 0], [9, 0, 0, 0]], [[1, 1, 1, 1]] * 2, 2),  # the halves on average
        (
            [[0, 0, 0, 0], [0, 0, 0, 0]],
            [[1, 1, 1, 1]] * 2,
            3,
        ),  # no order at all: as many as the test had
    ],
)
def test_a_fit_begins_with_slots_for_all_but_plain_factors(z, used, expected):
    assert verdict(z, repeated=[[9] * 4] * 2, used=used).slots == expected


def test_of_two_factors_like_the_same_one_the_larger_or_more_alike_ranks_first():
    rng = np.random.default_rng(0)
    found, other = rng.normal(size=(2, 200))
    factors, z = np.column_stack([found, other]), np.array([38.0, 30.0])
    nothing = np.zeros(2)
    test = module.SpatialTest(
        np.arange(200), [factors] * 2, [z] * 2, [nothing] * 2, [nothing > -1] * 2, n_spatial=1
    )
    residual = found + 3 * rng.normal(size=200)
    fitted = np.column_stack([found, residual, other])
    matched, rank = test.matched(fitted)[0], test.rank(fitted, np.ones(3))
    assert matched[0] == matched[1] > matched[2]
    assert rank.argsort().tolist() == [1, 2, 0]
    # a small rest that looks more like the factor than the factor itself
    swapped = test.rank(fitted, np.array([0.001, 0.5, 0.5]))
    assert swapped[0] == 0 < swapped[1]


@pytest.mark.slow
def test_factors_without_order_are_not_taken_for_fields():
    """Simulated tissue with as many factors as are asked for, two of them of single spots."""
    section = gpnsf.datasets.tissue(n_obs=1_200, n_genes=500, n_peaks=10, rna_depth=800.0, seed=2)[
        "rna"
    ].copy()
    gpnsf.tl.fit(section, n_factors=10, progress=False)
    is_spatial = section.uns["gpnsf"]["is_spatial"]
    assert is_spatial.sum() == 8
    truth, factors = section.obsm["true_factors"], section.obsm["X_gpnsf"]
    assert match_factors(truth[:, 8:], factors[:, ~is_spatial])[1].min() > 0.7
    assert section.uns["gpnsf"]["spatial_test"]["z"][8:].max() < 3
