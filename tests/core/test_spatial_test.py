"""The test of what is spatial: independent halves, scores without a field, permutation of spots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from flat import flat

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.inference import spatial_test as module
from gpnsf.core.inference.order import passed
from gpnsf.core.inference.spatial_test import halves, own_order, spatial_test
from gpnsf.core.model.build import build
from gpnsf.core.scores.metrics import match_factors
from gpnsf.core.types import Dataset
from gpnsf.io import read


@pytest.mark.parametrize(
    ("likelihood", "rate"),
    [("poisson", 3.0), ("bernoulli", 0.05), ("bernoulli", 0.7), ("gaussian", 0)],
)
def test_halves_are_independent_given_the_rates(likelihood, rate):
    rng = np.random.default_rng(1)
    counts = rng.poisson(rate, (4_000, 6)) if rate else rng.normal(2.0, 1.5, (4_000, 6))
    counts = counts > 0 if likelihood == "bernoulli" else counts
    one, other = (half.views[0].counts.toarray() for half in halves(flat(counts, likelihood), rng))
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
    data = flat(np.random.default_rng(0).normal(size=(30, 4)), "gaussian")
    data.views[0].observed[:10] = False
    data.views[0].counts[:10] = 0
    for half in halves(data, np.random.default_rng(1)):
        assert not half.views[0].counts[:10].count_nonzero()


def test_rows_that_were_not_observed_do_not_change_the_halves_of_the_others():
    is_open = np.random.default_rng(0).random((90, 40)) < 0.7
    is_open[:50] = False
    data = flat(is_open, "bernoulli")
    data.views[0].observed[:50] = False
    alone = halves(data.subset(np.arange(50, 90)), np.random.default_rng(1))
    for half, expected in zip(halves(data, np.random.default_rng(1)), alone, strict=True):
        assert (half.views[0].counts[50:] != expected.views[0].counts).nnz == 0


def test_no_more_spots_take_part_than_are_needed(monkeypatch):
    data = flat(np.ones((500, 3)), "poisson")
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
    found = result.order(other, np.ones(4))
    np.testing.assert_allclose(found.z, np.array([5 + 4, 9 - 1, 0 + 3, 9 - 1]) / np.sqrt(2))
    np.testing.assert_allclose(found.p, [9.8e-11, 7.7e-9, 0.0169, 7.7e-9], rtol=0.02)


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
    noise = lambda fitted: result.order(fitted, np.ones(fitted.shape[1])).noise.tolist()
    assert noise(np.eye(5)[:, :4]) == [False, False, True, False]
    assert noise(np.eye(5)[:, [2, 0]]) == [True, False]


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
    found = test.order(fitted, np.ones(3))
    assert found.z[0] == found.z[1] > found.z[2]
    assert found.rank.argsort().tolist() == [1, 2, 0]
    # a small rest that looks more like the factor than the factor itself
    swapped = test.order(fitted, np.array([0.001, 0.5, 0.5])).rank
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


def mixture(n: int, n_smooth: int, seed: int = 0) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """Poisson counts of smooth factors and a last one of single spots, with factors and loadings."""
    rng = np.random.default_rng(seed)
    coords = flat(np.ones((n, 1)), "poisson").coords.astype(float)
    waves = np.sin(coords @ rng.normal(scale=2.5, size=(2, n_smooth)) + rng.uniform(0, 6, n_smooth))
    logs = np.hstack([waves, rng.normal(size=(n, 1))])
    loadings = rng.gamma(0.3, 2.0, (60, n_smooth + 1))
    return flat(rng.poisson(np.exp(logs) @ loadings.T), "poisson"), logs, loadings


def known(data: Dataset, logs: np.ndarray, loadings: np.ndarray, n_spatial: int):
    """A model at these factors and loadings, and its log factors."""
    model = builder(len(loadings.T))(data, n_spatial)
    with torch.no_grad():
        for _, view in model.items():
            view.loadings.raw[:, :-1] = torch.log(torch.as_tensor(loadings) + 1e-4)
            view.loadings.raw[:, -1] = -6.0
    return model, torch.as_tensor(logs, dtype=torch.float32)


def builder(n_factors: int):
    return lambda part, n_spatial, n=n_factors: build(
        "gpnsf", part, n_factors=n, n_spatial=n_spatial
    )


def test_a_fit_tells_the_order_of_its_factors_by_its_own_loadings():
    data, logs, loadings = mixture(400, 2)
    model, m = known(data, logs, loadings, n_spatial=2)
    rows = np.arange(0, 400, 2)
    z, repeated, beyond = own_order(model, m, data, builder(3), rows)
    assert z[:2].min() > 6 > 3 > z[2]
    assert repeated[2] > 10
    assert beyond[:2].max() < 0.4 < 0.8 < beyond[2]


def test_halves_are_scored_at_half_of_the_rates():
    data, logs, loadings = mixture(400, 2)
    model, m = known(data, logs, loadings, n_spatial=2)
    half, _ = halves(data, np.random.default_rng(0))
    scores = module._project(model, 0 * m[0], builder(3)(half, 0), half, share=0.5)
    assert np.abs(scores - logs).mean() < 0.35
    assert abs((scores - logs).mean()) < 0.15


@pytest.mark.parametrize("present", [[1], [0, 2]])
def test_scores_of_some_batches_are_at_the_rates_of_these(present):
    data, logs, loadings = mixture(300, 2)
    batch = np.arange(300) % 3
    multipliers = np.random.default_rng(1).normal(scale=0.5, size=(3, 60))
    model, m = known(replace(data, batch=batch), logs, loadings, n_spatial=2)
    with torch.no_grad():
        model.views[0].log_multipliers.copy_(torch.as_tensor(multipliers))
    rows = np.flatnonzero(np.isin(batch, present))
    found = own_order(model, m, replace(data, batch=batch), builder(3), rows)
    if len(present) == 1:
        alone, _ = known(data, logs, loadings * np.exp(multipliers[present[0]])[:, None], 2)
        expected = own_order(alone, m, data, builder(3), rows)
        np.testing.assert_allclose(found, expected, atol=0.05)
    assert found[0][:2].min() > 2
