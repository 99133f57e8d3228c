from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from gpnsf.core.scores.links import NOISE, pair_p_values, pair_scores, profiles, strata


def loadings(rng, n_features, n_factors=8):
    return rng.gamma(0.4, 1, (n_features, n_factors)) * rng.lognormal(0, 1, (n_features, 1))


def test_profiles_are_centred_shares_of_unit_length():
    W = loadings(np.random.default_rng(0), 30)
    unit, length = profiles(W)
    expected = W / W.sum(axis=1, keepdims=True) - W.sum(axis=0) / W.sum()
    np.testing.assert_allclose(unit * length[:, None], expected, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1)
    np.testing.assert_allclose(profiles(W * np.arange(1, 31)[:, None])[0].shape, unit.shape)


def test_features_that_tell_nothing_have_no_profile():
    W = np.array([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]], dtype=np.float32)
    unit, length = profiles(W)
    assert not length.any()
    assert not unit.any()


def test_scores_are_cosines():
    rng = np.random.default_rng(1)
    first, second = profiles(loadings(rng, 20))[0], profiles(loadings(rng, 30))[0]
    i, j = rng.integers(20, size=50), rng.integers(30, size=50)
    np.testing.assert_allclose(
        pair_scores(first, second, i, j), (first @ second.T)[i, j], atol=1e-12
    )


def test_strata_lie_within_bins_and_order_the_property():
    rng = np.random.default_rng(2)
    bins, values = rng.integers(-1, 2, 400), rng.random(400)
    codes = strata(bins, values)
    for code in np.unique(codes):
        assert len(np.unique(bins[codes == code])) == 1
        assert np.sum(codes == code) >= 40
    for name in np.unique(bins):
        here = [values[codes == code] for code in np.unique(codes[bins == name])]
        here.sort(key=np.min)
        assert all(low.max() < high.min() for low, high in zip(here, here[1:], strict=False))
    assert len(np.unique(strata(np.zeros(60, dtype=int), values[:60]))) == 1


def test_p_values_are_uniform_where_nothing_is_linked_also_among_specific_features():
    rng = np.random.default_rng(3)
    (genes, broad), (peaks, specific) = profiles(loadings(rng, 400)), profiles(loadings(rng, 900))
    i, j = rng.integers(400, size=4000), rng.integers(900, size=4000)
    stratum = strata(rng.integers(6, size=4000), specific[j], broad[i])
    p = pair_p_values(genes, peaks, i, j, stratum, n_permutations=500, seed=0)
    assert kstest(p, "uniform").statistic < 0.03
    for length in (specific[j], broad[i]):
        quarter = np.searchsorted(np.quantile(length, [0.25, 0.5, 0.75]), length)
        rates = [(p[quarter == number] <= 0.05).mean() for number in range(4)]
        assert 0.025 < min(rates)
        assert max(rates) < 0.075


def test_p_values_of_pairs_that_agree_are_small():
    rng = np.random.default_rng(4)
    W = loadings(rng, 200)
    unit, _ = profiles(W)
    same = np.arange(200)
    p = pair_p_values(unit, unit, same, same, np.zeros(200, dtype=int), n_permutations=500, seed=0)
    assert p.max() < 0.05
    np.testing.assert_array_equal(
        p,
        pair_p_values(unit, unit, same, same, np.zeros(200, dtype=int), n_permutations=500, seed=9),
    )


def test_loadings_with_a_sign_are_profiles_themselves():
    W = np.random.default_rng(5).normal(size=(20, 6)).astype(np.float32)
    W[3] = 0
    unit, length = profiles(W, signed=True)
    np.testing.assert_allclose(length, np.linalg.norm(W, axis=1), rtol=1e-6)
    np.testing.assert_allclose(unit * length[:, None], W, atol=1e-6)
    assert not unit[3].any()


def test_conditional_scores_are_partial_correlations():
    rng = np.random.default_rng(7)
    first, second = profiles(loadings(rng, 20))[0], profiles(loadings(rng, 30))[0]
    i, j = np.divmod(rng.choice(600, 150, replace=False), 30)
    scores = pair_scores(first, second, i, j, conditional=True)
    for n in (0, 17, 149):
        S = np.vstack([first[i[n]], second[j[n]], second[j[(i == i[n]) & (j != j[n])]]])
        precision = np.linalg.inv(S @ S.T + NOISE * np.eye(len(S)))
        partial = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
        assert scores[n] == pytest.approx((1 + NOISE) * partial)


def test_a_gene_with_one_peak_has_its_cosine():
    rng = np.random.default_rng(8)
    first, second = profiles(loadings(rng, 20))[0], profiles(loadings(rng, 30))[0]
    i = j = np.arange(20)
    np.testing.assert_allclose(
        pair_scores(first, second, i, j, conditional=True), pair_scores(first, second, i, j)
    )


def test_a_passenger_falls_where_its_driver_is_held_fixed():
    gene = np.array([[1.0, 0, 0]])
    peaks = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1.0]])  # driver, passenger, neither
    i, j = np.zeros(3, dtype=int), np.arange(3)
    driver, passenger, neither = pair_scores(gene, peaks, i, j, conditional=True)
    assert driver > 0.85
    assert pair_scores(gene, peaks, i, j)[1] == pytest.approx(0.8)
    assert 0 < passenger < 0.4
    assert neither == pytest.approx(0)


def test_conditional_p_values_are_uniform_where_nothing_is_linked():
    rng = np.random.default_rng(9)
    (genes, broad), (peaks, specific) = profiles(loadings(rng, 200)), profiles(loadings(rng, 500))
    i, j = np.divmod(rng.choice(100_000, 1500, replace=False), 500)
    stratum = strata(rng.integers(3, size=1500), specific[j], broad[i])
    p = pair_p_values(genes, peaks, i, j, stratum, n_permutations=200, seed=0, conditional=True)
    assert kstest(p, "uniform").statistic < 0.04
