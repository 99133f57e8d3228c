"""The test of what is spatial: independent halves, scores without a field, permutation of spots."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import norm

import gpnsf
from gpnsf import bridge
from gpnsf.core import spatial_test as module
from gpnsf.core.model import build
from gpnsf.core.spatial_test import MIN_Z, halves, spatial_test
from gpnsf.core.types import Dataset, View


def dataset(counts: np.ndarray, likelihood: str, n_libraries: int = 1) -> Dataset:
    n = len(counts)
    rng = np.random.default_rng(0)
    view = View("m", likelihood, sp.csr_matrix(counts.astype(np.float32)), np.ones(n, np.float32), np.ones(n, bool))
    library = np.arange(n) % n_libraries
    return Dataset(rng.uniform(-1, 1, (n, 2)).astype(np.float32), library, (view,))


@pytest.mark.parametrize(
    ("likelihood", "rate"), [("poisson", 3.0), ("bernoulli", 0.05), ("bernoulli", 0.7), ("gaussian", 0)]
)
def test_halves_are_independent_given_the_rates(likelihood, rate):
    rng = np.random.default_rng(1)
    counts = rng.poisson(rate, (4_000, 6)) if rate else rng.normal(2.0, 1.5, (4_000, 6))
    counts = counts > 0 if likelihood == "bernoulli" else counts
    one, other = (half.views[0].counts.toarray() for half in halves(dataset(counts, likelihood), rng))
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


@pytest.mark.parametrize("n_libraries", [1, 3])
def test_scores_without_order_have_standard_z_and_uniform_p(n_libraries):
    data = dataset(np.ones((300, 1)), "poisson", n_libraries)
    rng = np.random.default_rng(2)
    levels = 5.0 * data.library[:, None]  # slices may differ in level: spots are permuted within them
    z, p = module._permutation_test(rng.normal(size=(300, 500)) + levels, data, 200, rng)
    assert abs(z.mean()) < 0.25
    assert 0.85 < z.std() < 1.15
    assert 0.025 < np.mean(p < 0.05) < 0.08


def test_z_of_smooth_scores_is_that_of_the_randomisation_formula(monkeypatch):
    monkeypatch.setattr(module, "N_NEIGHBORS", (6,))
    data = dataset(np.ones((400, 1)), "poisson")
    rng = np.random.default_rng(3)
    scores = data.coords[:, :1] + rng.normal(scale=3, size=(400, 1))
    z, p = module._permutation_test(scores, data, 2_000, rng)
    graph = module.knn_weights(data.coords, n_neighbors=6).toarray()
    centred = scores[:, 0] - scores.mean()
    moran = (centred @ graph @ centred) / (centred @ centred) * len(centred) / graph.sum()
    n, both = len(graph), graph + graph.T
    variance = (n**2 * (both**2).sum() / 2 - n * ((graph.sum(0) + graph.sum(1)) ** 2).sum() + 3 * graph.sum() ** 2) / (
        (n**2 - 1) * graph.sum() ** 2
    ) - 1 / (n - 1) ** 2
    assert z[0] == pytest.approx((moran + 1 / (n - 1)) / np.sqrt(variance), abs=0.2)
    assert p[0] == pytest.approx(norm.sf(z[0]), abs=0.01)


def test_wide_neighbourhoods_find_what_noise_hides_from_near_ones(monkeypatch):
    data = dataset(np.ones((900, 1)), "poisson")
    rng = np.random.default_rng(4)
    scores = data.coords[:, :1] + rng.normal(scale=5, size=(900, 60))
    both = module._permutation_test(scores, data, 200, rng)[0]
    monkeypatch.setattr(module, "N_NEIGHBORS", (6,))
    near = module._permutation_test(scores, data, 200, rng)[0]
    assert both.mean() > 1.3 * near.mean() > 0.4


def test_constant_scores_and_a_handful_of_spots_are_not_spatial():
    rng = np.random.default_rng(0)
    z, p = module._permutation_test(np.ones((50, 2)), dataset(np.ones((50, 1)), "poisson"), 20, rng)
    np.testing.assert_array_equal(z, 0)
    np.testing.assert_array_equal(p, 1)
    assert module._permutation_test(rng.normal(size=(4, 1)), dataset(np.ones((4, 1)), "poisson"), 20, rng)[1] == 1


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
    data, _ = bridge.read(mdata, size_factors=None, **options)
    return spatial_test(
        data,
        lambda part, n_spatial: build("gpnsf", part, n_factors=6, n_spatial=n_spatial),
        n_factors=6,
        n_spatial=4,
        start="smooth_0.1",
    )


@pytest.mark.parametrize("modality", ["rna", "atac"])
def test_patterns_pass_and_the_rest_does_not(section, modality):
    result = outcome(section, modalities=[modality])
    assert result.z[:4].min() > 5
    if modality == "rna":
        assert abs(result.z[4:]).max() < 5


def test_permuted_coordinates_leave_nothing(section):
    shuffled = section.copy()
    order = np.random.default_rng(0).permutation(section.n_obs)
    for mod in shuffled.mod.values():
        mod.obsm["spatial"] = mod.obsm["spatial"][order]
    if "spatial" in shuffled.obsm:
        shuffled.obsm["spatial"] = section.obsm["spatial"][order]
    assert outcome(shuffled).z.max() < MIN_Z


def test_another_fit_takes_the_verdict_of_the_factor_that_is_most_like_its_own():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(50, 3))
    result = module.SpatialTest(np.arange(0, 100, 2), factors, np.array([9.0, 0.0, 5.0]), np.array([0.0, 0.5, 0.1]))
    other = np.zeros((100, 4))
    other[::2] = factors[:, [2, 0, 1, 0]] + 0.1 * rng.normal(size=(50, 4))
    z, p = result.matched(other)
    np.testing.assert_array_equal(z, [5, 9, 0, 9])
    np.testing.assert_array_equal(p, [0.1, 0, 0.5, 0])
