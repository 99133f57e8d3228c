from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from gpnsf.core.scores.link_rankings import bin_order, bin_rankings, contact, mean_ranking


def matched_ranking(score, truth, bins, weight):
    return mean_ranking(bin_rankings(bin_order(score, bins), truth, weight))


def test_ranking_in_one_bin_is_that_of_sklearn():
    rng = np.random.default_rng(5)
    truth, score = rng.random(200) < 0.3, np.round(rng.random(200), 1)
    weight = rng.integers(0, 4, 200).astype(float)
    auroc, precision, base = matched_ranking(score, truth, np.zeros(200, dtype=int), weight)
    assert auroc == pytest.approx(roc_auc_score(truth, score, sample_weight=weight))
    assert precision == pytest.approx(average_precision_score(truth, score, sample_weight=weight))
    assert base == pytest.approx(np.average(truth, weights=weight))


def test_a_score_that_only_knows_the_bin_is_worth_nothing():
    rng = np.random.default_rng(6)
    bins = rng.integers(0, 5, 2000)
    truth = rng.random(2000) < 0.5 - 0.1 * bins
    blind, ones = -bins.astype(float), np.ones(2000)
    assert matched_ranking(blind, truth, np.zeros_like(bins), ones)[0] > 0.65
    auroc, precision, base = matched_ranking(blind, truth, bins, ones)
    assert auroc == 0.5
    assert precision == pytest.approx(base)


def test_without_both_kinds_there_is_no_ranking():
    assert np.isnan(
        matched_ranking(np.arange(3.0), np.ones(3, bool), np.zeros(3, int), np.ones(3))
    ).all()


def test_contact_falls_by_the_power_law_beyond_five_kb():
    np.testing.assert_allclose(contact(np.array([0, -4_999, 5_000])), 1)
    assert contact(np.array([-50_000])) == pytest.approx(10**-1.024)
