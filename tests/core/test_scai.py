from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import reference
import scipy.sparse as sp

from gpnsf.core.companions import scai
from gpnsf.core.companions.scai import Averages, Weights

SETTINGS = {
    "default": Weights(),
    "RNA counts more": Weights(alpha=5.0),
    "no direct term": Weights(beta=0.0),
    "alike": Weights(lam=10.0),
    "apart": Weights(gamma=1.0),
    "no penalties": Weights(lam=0.0, gamma=0.0),
    "no mask": Weights(mask=1.0),
    "small mask": Weights(mask=0.05),
}


def noise(seed: int, n_obs: int = 40) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Random sparse values of both modalities without any structure."""
    rng = np.random.default_rng(seed)
    return tuple(
        sp.csr_matrix(rng.gamma(1, 1, (n_obs, n)) * (rng.random((n_obs, n)) < density))
        for n, density in ((30, 0.5), (60, 0.2))
    )


def clustered(seed: int = 0, n_obs: int = 90) -> tuple[sp.csr_matrix, sp.csr_matrix, np.ndarray]:
    """Simulated values of three clusters, each with features of its own."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n_obs) % 3
    X1, X2 = (
        rng.poisson(np.where(truth[:, None] == np.arange(n) % 3, high, low))
        for n, high, low in ((30, 4, 1), (90, 0.6, 0.1))
    )
    return sp.csr_matrix(X1, dtype=float), sp.csr_matrix(X2 > 0, dtype=float), truth


def begun(seed: int, weights: Weights, n_factors: int = 3) -> tuple[Averages, scai.Solution]:
    """Noise, and a random start."""
    data = Averages.make(*noise(seed), weights, seed)
    labels = np.random.default_rng(seed).integers(n_factors, size=len(data.gram))
    return data, scai.start(data, labels, n_factors)


def dense(data: Averages, found: scai.Solution) -> tuple:
    """What the reference takes."""
    arrays = (
        data.rna.toarray(),
        data.atac.toarray(),
        data.mask,
        found.H,
        found.W1,
        found.W2,
        found.T.astype(float),
    )
    return *(np.array(array) for array in arrays), data.weights


def test_a_step_is_that_of_the_definition(subtests):
    for name, weights in SETTINGS.items():
        with subtests.test(name=name):
            data, found = begun(0, weights)
            for _ in range(3):
                wanted = reference.scai_step(*dense(data, found))
                scai.step(data, found)
                assert found.exponents[-1] == 1
                for got, want in zip((found.H, found.W1, found.W2, found.T), wanted, strict=True):
                    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-7)


def test_the_objective_is_that_of_the_definition(subtests):
    for name, weights in SETTINGS.items():
        with subtests.test(name=name):
            data, found = begun(1, weights)
            for _ in range(2):
                assert scai.objective(data, found) == pytest.approx(
                    reference.scai_objective(*dense(data, found)), rel=1e-5
                )
                scai.step(data, found)


def test_no_step_raises_the_objective(subtests):
    for name, seed in product(SETTINGS, range(3)):
        with subtests.test(name=name, seed=seed):
            data, found = begun(seed, SETTINGS[name])
            ends = [scai.objective(data, found)]
            for _ in range(40):
                scai.step(data, found)
                ends.append(scai.objective(data, found))
            assert np.diff(ends).max() < 1e-6 * ends[0]
            assert np.diff(found.trace).max() < 1e-6 * ends[0]
            np.testing.assert_allclose(np.linalg.norm(found.H, axis=0), 1)


def test_factors_far_from_their_similarities_get_smaller_exponents():
    exponents = []
    for seed in range(3):
        data, found = begun(seed, Weights(lam=1e4, mask=1.0))
        found.T = 10 * np.random.default_rng(seed).random(found.T.shape, dtype=np.float32)
        ends = [scai.objective(data, found)]
        for _ in range(8):
            scai._update_factors(data, found)
            ends.append(scai.objective(data, found))
        assert np.diff(ends).max() <= 1e-6 * ends[0]
        exponents += found.exponents
    assert 0 < np.mean(np.array(exponents) < 1) < 1


def test_where_the_ratio_goes_too_far_the_exponent_is_halved(monkeypatch):
    data, found = begun(0, Weights())
    calls = iter([1.0, 2.0, 1.5, 0.5])  # of the penalty: before, then at exponents 1, 1/2 and 1/4
    monkeypatch.setattr(scai, "_penalty", lambda *_: 1e3 * next(calls))
    scai.step(data, found)
    assert found.exponents == [0.25]


def test_where_no_exponent_helps_the_factors_stay(monkeypatch):
    data, found = begun(0, Weights())
    before, calls = found.H.copy(), iter(range(100))
    monkeypatch.setattr(scai, "_penalty", lambda *_: 1e3 * next(calls))
    scai.step(data, found)
    assert found.exponents == [0.0]
    np.testing.assert_array_equal(found.H, before)


def test_averages_stay_within_the_mask():
    data, found = begun(0, Weights())
    for _ in range(5):
        scai.step(data, found)
    assert not found.T[~data.mask].any()
    assert found.T[data.mask].any()
    assert data.mask.mean() == pytest.approx(0.25, abs=0.03)
    assert Averages.make(*noise(0), Weights(mask=1.0), 0).mask.all()


def test_blocks_of_rows_change_nothing(monkeypatch):
    ends = []
    for size in (512, 7):
        monkeypatch.setattr(scai, "BLOCK", size)
        found = scai.fit(*noise(0), 3, n_restarts=1, max_steps=5)
        ends.append(found)
    np.testing.assert_allclose(ends[0].factors, ends[1].factors, rtol=1e-3, atol=1e-6)


def test_clusters_are_found_and_the_fit_ends():
    X1, X2, truth = clustered()
    found = scai.fit(X1, X2, 3)
    assert found.converged
    assert len(found.trace) < 300
    assert found.redundancy.shape == (5,)
    labels = found.factors.argmax(axis=1)
    assert len(set(zip(labels, truth, strict=True))) == 3


def test_max_steps_and_tol_end_the_fit():
    X1, X2, _ = clustered()
    assert len(scai.fit(X1, X2, 3, max_steps=4, n_restarts=1).trace) == 4
    steps = [len(scai.fit(X1, X2, 3, tol=tol, n_restarts=1).trace) for tol in (1e-3, 1e-6)]
    assert steps[0] < steps[1]


def test_the_start_with_the_least_redundant_loadings_goes_on(monkeypatch):
    X1, X2, truth = clustered()
    wrong = np.where(truth == 2, 1, truth)
    wrong[truth == 0] = np.where(np.arange(30) % 2, 0, 2)  # one cluster split, two merged
    monkeypatch.setattr(scai, "_clusters", lambda *_: [wrong, truth, wrong])
    chosen = scai.fit(X1, X2, 3, n_restarts=3, max_steps=5)
    assert chosen.redundancy.argmin() == 1
    monkeypatch.setattr(scai, "_clusters", lambda *_: [truth])
    alone = scai.fit(X1, X2, 3, n_restarts=1, max_steps=5)
    np.testing.assert_array_equal(chosen.factors, alone.factors)
    monkeypatch.setattr(scai, "_clusters", lambda *_: [wrong])
    assert not np.array_equal(scai.fit(X1, X2, 3, n_restarts=1, max_steps=5).factors, alone.factors)


def test_redundancy_sums_the_correlations_of_pairs():
    rng = np.random.default_rng(0)
    W1, W2 = rng.random((20, 3)), rng.random((30, 3))
    wanted = sum((np.corrcoef(W.T).sum() - 3) / 2 for W in (W1, W2))
    assert scai.redundancy(W1, W2) == pytest.approx(wanted)
    assert scai.redundancy(np.ones((4, 2))) == 0


def test_the_same_seed_gives_the_same_bits_and_another_one_another_mask():
    X1, X2, _ = clustered()
    first, again, other = (scai.fit(X1, X2, 3, seed=seed, max_steps=8) for seed in (0, 0, 1))
    for name in ("factors", "similarity", "trace", "redundancy"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    for W, again_W in zip(first.loadings, again.loadings, strict=True):
        np.testing.assert_array_equal(W, again_W)
    assert not np.array_equal(first.trace, other.trace)


def test_the_number_of_factors_may_be_small_or_that_of_the_cells(subtests):
    for n_factors in (1, 2, 8):
        with subtests.test(n_factors=n_factors):
            X1, X2 = noise(0, n_obs=8)
            found = scai.fit(X1, X2, n_factors, max_steps=5)
            assert found.factors.shape == (8, n_factors)
            assert np.isfinite(found.factors).all()
            assert np.isfinite(found.trace).all()


def test_empty_cells_and_silent_features_give_numbers():
    X1, X2, _ = clustered()
    X1, X2 = (
        sp.csr_matrix(X.multiply(np.arange(90)[:, None] > 4).multiply(np.arange(X.shape[1]) > 2))
        for X in (X1, X2)
    )
    found = scai.fit(X1, X2, 3, max_steps=30)
    for values in (found.factors, *found.loadings, found.similarity, found.trace):
        assert np.isfinite(values).all()
    assert not found.loadings[0][:3].any()


def test_the_scale_of_the_data_is_that_of_the_loadings():
    X1, X2, _ = clustered()
    first, second = (scai.fit(X1 * a, X2 * b, 3, max_steps=8) for a, b in ((1, 1), (64, 0.25)))
    np.testing.assert_allclose(first.factors, second.factors, rtol=1e-4, atol=1e-7)
    for W, other, scale in zip(first.loadings, second.loadings, (64, 0.25), strict=True):
        np.testing.assert_allclose(other, W * scale, rtol=1e-4, atol=1e-6)


def test_factors_have_mean_one_and_come_in_order_and_expect_the_data():
    X1, X2, _ = clustered()
    found = scai.fit(X1, X2, 3)
    np.testing.assert_allclose(found.factors.mean(axis=0), 1, rtol=1e-5)
    assert (np.diff(sum(W.sum(axis=0) for W in found.loadings)) <= 0).all()
    for X, W in zip((X1, X2), found.loadings, strict=True):
        assert (found.factors @ W.T).sum() == pytest.approx(
            X.sum(), rel=0.1
        )  # squares, not sums, are fitted


def test_similarities_outside_of_the_mask_are_those_of_the_factors():
    X1, X2, _ = clustered()
    found = scai.fit(X1, X2, 3, max_steps=30)
    unit = found.factors / np.linalg.norm(found.factors, axis=0)
    asked, mask = unit @ unit.T, Averages.make(X1, X2, Weights(), 0).mask
    np.testing.assert_allclose(found.similarity[~mask], asked[~mask], rtol=1e-3, atol=1e-6)
    assert np.abs(found.similarity[mask] - asked[mask]).max() > 1e-3


def test_normalised_cells_have_one_total_before_the_logarithm():
    counts = sp.csr_matrix([[1, 3, 0], [0, 0, 0], [20, 0, 20]], dtype=np.float32)
    values = scai.normalised(counts)
    np.testing.assert_allclose(np.expm1(values.toarray()).sum(axis=1), [1e4, 0, 1e4], rtol=1e-5)
    assert values.nnz == counts.nnz


def test_averaged_counts_are_weighted_sums_normalised():
    rng = np.random.default_rng(0)
    T, counts = rng.random((6, 6), dtype=np.float32), sp.random(6, 9, 0.5, "csr", random_state=0)
    T[2] = 0  # of a cell to which none is similar
    summed = T @ counts.toarray()
    wanted = np.log1p(1e4 * summed / np.maximum(summed.sum(axis=1, keepdims=True), 1e-30))
    np.testing.assert_allclose(scai.averaged(T, counts), wanted, rtol=1e-4)


@pytest.mark.slow
def test_the_forecast_of_memory_holds():
    import tracemalloc

    X1, X2 = noise(0, n_obs=2000)
    tracemalloc.start()
    scai.fit(X1, X2, 3, n_restarts=1, max_steps=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.8 * scai.memory(2000) < peak < 1.3 * scai.memory(2000)
