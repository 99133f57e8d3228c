from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from scipy import stats
from sklearn.metrics import mean_poisson_deviance

from gpnsf.core.families import FAMILIES, rates
from gpnsf.core.scores import metrics

N, P, K = 23, 17, 4
CASES = ("poisson", "nb", "bernoulli", "gaussian")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def problem(rng):
    """Counts, both sides of the rates, and a dispersion per feature."""
    A, W = rng.gamma(2, 1, (N, K)), rng.gamma(0.5, 0.4, (P, K)) + 0.01
    return rng.poisson(A @ W.T), A, W, rng.gamma(3, 1, P)


def naive(likelihood, counts, A, W, dispersion):
    function = getattr(reference, f"{likelihood}_deviance")
    return (
        function(counts, A, W, dispersion)
        if likelihood in ("nb", "gaussian")
        else function(counts, A, W)
    )


def log_density(likelihood, counts, mean, dispersion):
    """Log density [N, P] of the counts at a mean rate [N, P], from scipy."""
    if likelihood == "poisson":
        return stats.poisson.logpmf(counts, mean)
    if likelihood == "nb":
        return stats.nbinom.logpmf(counts, dispersion, dispersion / (dispersion + mean))
    if likelihood == "bernoulli":
        return stats.bernoulli.logpmf(counts > 0, -np.expm1(-mean))
    return stats.norm.logpdf(counts, mean, dispersion)


def test_deviances_equal_a_loop_over_all_entries_whatever_the_block(subtests, problem, monkeypatch):
    counts, A, W, dispersion = problem
    for likelihood, block in product(CASES, (rates.BLOCK, 7)):
        with subtests.test(likelihood=likelihood, block=block):
            monkeypatch.setattr(rates, "BLOCK", block)
            total, n_entries = metrics.deviance(likelihood, sp.csr_matrix(counts), A, W, dispersion)
            assert total == pytest.approx(naive(likelihood, counts, A, W, dispersion), rel=1e-10)
            assert n_entries == N * P


def test_a_deviance_is_twice_the_distance_to_the_saturated_model(subtests, problem):
    counts, A, W, dispersion = problem
    for likelihood in CASES:
        with subtests.test(likelihood=likelihood):
            fitted = log_density(likelihood, counts, A @ W.T, dispersion).sum()
            if likelihood == "bernoulli":
                saturated = 0.0
            else:
                floor = counts if likelihood == "gaussian" else np.maximum(counts, 1e-12)
                saturated = log_density(likelihood, counts, floor, dispersion).sum()
            total, _ = metrics.deviance(likelihood, sp.csr_matrix(counts), A, W, dispersion)
            assert total == pytest.approx(2 * (saturated - fitted), rel=1e-6)


def test_the_poisson_deviance_is_that_of_sklearn(problem):
    counts, A, W, _ = problem
    total, n_entries = metrics.deviance("poisson", sp.csr_matrix(counts), A, W)
    assert total / n_entries == pytest.approx(
        mean_poisson_deviance(counts.ravel(), (A @ W.T).ravel())
    )


def test_rows_select_observations_and_deviances_add_up(subtests, problem, rng):
    counts, A, W, dispersion = problem
    for likelihood in CASES:
        with subtests.test(likelihood=likelihood):
            counts, rows = sp.csr_matrix(counts), rng.random(N) < 0.4
            parts = [
                metrics.deviance(likelihood, counts, A, W, dispersion, rows=part)
                for part in (rows, ~rows)
            ]
            whole = metrics.deviance(likelihood, counts, A, W, dispersion)
            np.testing.assert_allclose(np.sum(parts, axis=0), whole)
            assert parts[0][1] == rows.sum() * P


def test_the_format_of_the_counts_does_not_matter_and_stays(subtests, problem):
    counts, A, W, dispersion = problem
    for likelihood in CASES:
        with subtests.test(likelihood=likelihood):
            plain = sp.csr_matrix(counts.astype(np.float32))
            row, column = np.nonzero(np.ones_like(counts))
            stored_zeros = sp.csr_matrix(
                (counts[row, column].astype(np.float32), (row, column)), shape=counts.shape
            )
            twice = sp.csr_matrix(
                (np.repeat(plain.data / 2, 2), np.repeat(plain.indices, 2), 2 * plain.indptr),
                shape=counts.shape,
            )
            expected = metrics.deviance(likelihood, plain, A, W, dispersion)
            for other in (stored_zeros, twice):
                n_stored = other.nnz
                assert metrics.deviance(likelihood, other, A, W, dispersion) == pytest.approx(
                    expected, rel=1e-6
                )
                assert other.nnz == n_stored


def test_a_large_theta_is_the_poisson_limit(problem):
    counts, A, W, _ = problem
    expected, _ = metrics.deviance("poisson", sp.csr_matrix(counts), A, W)
    for theta in (1e9, np.inf):
        assert metrics.deviance("nb", sp.csr_matrix(counts), A, W, np.full(P, theta))[
            0
        ] == pytest.approx(expected)


def test_a_count_where_the_rate_is_zero_costs_an_infinite_deviance(subtests, problem):
    counts, A, W, dispersion = problem
    W[0] = 0
    silent = counts * (np.arange(P) > 0)
    for likelihood in ("poisson", "nb", "bernoulli"):
        with subtests.test(likelihood=likelihood):
            with_count = metrics.deviance(likelihood, sp.csr_matrix(counts), A, W, dispersion)
            without = metrics.deviance(likelihood, sp.csr_matrix(silent), A, W, dispersion)
            assert with_count[0] == np.inf
            assert np.isfinite(without[0])


def test_the_true_rates_beat_the_constant_ones_in_proportion_to_the_noise(subtests, rng):
    for likelihood in ("poisson", "nb", "bernoulli"):
        with subtests.test(likelihood=likelihood):
            A, W, theta = rng.gamma(1, 1, (300, 2)), rng.gamma(1, 1, (40, 2)), np.full(40, 5.0)
            rate = A @ W.T
            noise = rng.gamma(theta, 1 / theta, rate.shape) if likelihood == "nb" else 1.0
            counts = sp.csr_matrix(rng.poisson(rate * noise))
            truth, _ = metrics.deviance(likelihood, counts, A, W, theta)
            null, _ = FAMILIES[likelihood].null_deviance(counts, np.ones(300), theta)
            assert truth < 0.9 * null


def test_null_rates_maximise_the_likelihood(subtests, problem, rng):
    """The ratio of totals is the maximum for the negative binomial only where all sizes are equal."""
    counts, _, _, dispersion = problem
    counts = sp.csr_matrix(counts)
    for likelihood in CASES:
        with subtests.test(likelihood=likelihood):
            size = np.ones(N) if likelihood == "nb" else rng.gamma(4, 0.25, N)
            rate = FAMILIES[likelihood].null_rates(counts, size)

            changes = 0.01 * np.vstack([np.zeros(P), np.eye(P), -np.eye(P)])
            null, *others = (
                metrics.deviance(
                    likelihood, counts, size[:, None], (rate * (1 + change))[:, None], dispersion
                )[0]
                for change in changes
            )
            found, _ = FAMILIES[likelihood].null_deviance(counts, size, dispersion)
            assert found == pytest.approx(null)
            assert null <= min(others) + 1e-9


def test_null_rates_of_features_that_are_always_or_never_open():
    counts = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1]])
    always, never, often = FAMILIES["bernoulli"].null_rates(sp.csr_matrix(counts), np.ones(3))
    assert always > 20
    assert never == 0
    assert often == pytest.approx(np.log(3))  # probability 2/3 to be open
    assert FAMILIES["bernoulli"].null_deviance(sp.csr_matrix(counts[:, :2]), np.ones(3))[
        0
    ] == pytest.approx(0, abs=1e-6)


def test_null_rates_come_from_the_training_rows(subtests):
    for likelihood in ("poisson", "bernoulli"):
        with subtests.test(likelihood=likelihood):
            counts = sp.csr_matrix([[1, 0], [0, 0], [1, 1], [0, 1]])
            train = np.array([True, True, False, False])
            size = np.ones(4)
            assert (
                FAMILIES[likelihood].null_deviance(counts, size, rows=~train, train=train)[0]
                == np.inf
            )
            total, n_entries = FAMILIES[likelihood].null_deviance(
                counts, size, rows=~train, train=train, pseudocount=0.5
            )
            assert np.isfinite(total)
            assert n_entries == 4


def test_a_deviance_names_what_is_wrong_with_it(problem):
    counts, A, W, _ = problem
    with pytest.raises(ValueError, match="known likelihood; got 'gamma'"):
        metrics.deviance("gamma", sp.csr_matrix(counts), A, W)
    with pytest.raises(
        ValueError, match="'nb' deviance needs one dispersion per feature; got none for 17 features"
    ):
        metrics.deviance("nb", sp.csr_matrix(counts), A, W)


def test_morans_i_equals_a_loop_over_pairs(rng):
    coords, values = rng.random((30, 2)), rng.random((30, 3))
    weights = metrics.knn_weights(coords, 5)
    expected = [reference.morans_i(column, weights.toarray()) for column in values.T]
    np.testing.assert_allclose(metrics.morans_i(values, weights), expected)


def test_morans_i_has_no_unit_of_the_weights(rng):
    values, weights = rng.random((30, 3)), metrics.knn_weights(rng.random((30, 2)), 5)
    np.testing.assert_allclose(
        metrics.morans_i(values, 3 * weights), metrics.morans_i(values, weights)
    )


def test_the_variance_over_permutations_is_that_of_all_of_them_within_slices(rng):
    slices = [np.array([0, 2, 4, 6]), np.array([1, 3, 5])]
    one, other = (metrics.centred_within(rng.random((7, n)), slices) for n in (2, 3))
    products = []
    for first, second in product(*(permutations(rows) for rows in slices)):
        order = np.empty(7, dtype=int)
        for rows, permuted in zip(slices, (first, second), strict=True):
            order[rows] = permuted
        products.append(one.T @ other[order])
    np.testing.assert_allclose(
        metrics.permutation_variance(one, other, slices), np.var(products, axis=0)
    )


def test_morans_i_of_smooth_mixed_and_constant_columns(rng):
    x, y = np.divmod(np.arange(400), 20)
    values = np.column_stack([x + y, rng.random(400), np.full(400, 0.1)])
    smooth, mixed, constant = metrics.morans_i(values, metrics.knn_weights(np.column_stack([x, y])))
    assert smooth > 0.9
    assert abs(mixed) < 0.15
    assert constant == 0


def test_knn_weights_equal_a_search_over_all_pairs(subtests, rng):
    for n_neighbors in (1, 6):
        with subtests.test(n_neighbors=n_neighbors):
            coords = rng.random((25, 2))
            weights = metrics.knn_weights(coords, n_neighbors)
            np.testing.assert_allclose(weights.toarray(), reference.neighbours(coords, n_neighbors))


def test_knn_weights_leave_out_the_spot_itself_among_coinciding_spots():
    weights = metrics.knn_weights(np.zeros((9, 2)), 3)
    assert not weights.diagonal().any()
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (np.diff(weights.indptr) == 3).all()


def test_knn_weights_of_fewer_spots_than_neighbours():
    expected = (np.ones((3, 3)) - np.eye(3)) / 2
    np.testing.assert_allclose(
        metrics.knn_weights(np.arange(6.0).reshape(3, 2), 6).toarray(), expected
    )


def test_match_factors_undoes_a_permutation(rng):
    truth = rng.random((50, 4))
    order = np.array([2, 0, 3, 1])
    columns, correlations = metrics.match_factors(truth, 3 * truth[:, order] + 1)
    np.testing.assert_array_equal(order[columns], np.arange(4))
    np.testing.assert_allclose(correlations, 1)


def test_match_factors_maximises_the_sum_and_not_the_first_pair(rng):
    a, b = np.linalg.qr(rng.random((50, 3)) - 0.5)[0].T[:2]
    estimate = np.column_stack(
        [a + 0.2 * b, a]
    )  # the first truth prefers column 1, and only column 0 knows the second
    columns, correlations = metrics.match_factors(np.column_stack([a, b]), estimate)
    np.testing.assert_array_equal(columns, [1, 0])
    expected = [np.corrcoef(a, estimate[:, 1])[0, 1], np.corrcoef(b, estimate[:, 0])[0, 1]]
    np.testing.assert_allclose(correlations, expected)


def test_match_factors_with_fewer_or_constant_estimates(rng):
    truth = rng.random((50, 3))
    columns, correlations = metrics.match_factors(truth, truth[:, [1]])
    np.testing.assert_array_equal(columns, [-1, 0, -1])
    np.testing.assert_allclose(correlations, [0, 1, 0])
    columns, correlations = metrics.match_factors(
        truth[:, :2], np.column_stack([np.full(50, 0.1), truth[:, 0]])
    )
    np.testing.assert_array_equal(columns, [1, 0])
    np.testing.assert_allclose(correlations, [1, 0])


def test_coverage_of_exact_intervals_is_their_level(subtests, rng):
    for level in (0.5, 0.9):
        with subtests.test(level=level):
            mean, sd = rng.random(20_000), rng.gamma(3, 1, 20_000)
            assert metrics.coverage(rng.normal(mean, sd), mean, sd, level) == pytest.approx(
                level, abs=0.015
            )
            assert metrics.coverage(mean, mean, 0 * sd, level) == 1


def test_importance_error_is_the_mean_distance():
    assert metrics.importance_error(
        np.array([0.0, 1.0, 0.5]), np.array([0.2, 1.0, 0.1])
    ) == pytest.approx(0.2)
