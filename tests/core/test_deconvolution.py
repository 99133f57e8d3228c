"""Least squares with a graph: the updates go down, and everything agrees on where they end."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from gpnsf.core.companions import deconvolution
from gpnsf.core.companions.deconvolution import Mixture, Penalties
from gpnsf.core.companions.pseudospots import drawn, smooth
from gpnsf.core.scores.neighbours import ties


def problem(
    seed: int = 0,
    *,
    n_side: int = 6,
    n_genes: int = 40,
    n_types: int = 4,
    depth: float = 300.0,
    **weights,
):
    """Simulated spots on a lattice: their mixture, penalties, true proportions, counts and profiles."""
    rng = np.random.default_rng(seed)
    coords = np.column_stack(np.divmod(np.arange(n_side**2), n_side)).astype(float)
    profiles = rng.lognormal(0, 1, (n_genes, 1)) * rng.lognormal(0, 0.8, (n_genes, n_types))
    profiles /= profiles.sum(axis=0)
    truth = smooth(
        coords, n_types, lengthscale=2.0, amplitude=1.5, abundance=0.3, noise=0.1, rng=rng
    )
    counts = drawn(truth, profiles, depth * rng.lognormal(0, 0.4, len(coords)), rng)
    graph = ties(coords, np.zeros(len(coords)), n_neighbors=4).graph(1.0)
    penalties = Penalties(graph, rng.dirichlet(np.ones(n_types), len(coords)), **weights)
    return deconvolution.summarised(counts, profiles), penalties, truth, counts, profiles


WEIGHTS = [
    (0, 0, 0),
    (0.05, 0, 0),
    (0, 1, 0),
    (0.1, 0.1, 0),
    (0, 0, 1),
    (0.05, 1, 0.05),
    (1, 10, 1),
    (30, 0.01, 0),
]


def named(weights) -> dict[str, float]:
    return dict(zip(("spatial", "total", "group"), weights, strict=True))


def written_out(counts, profiles, penalties, V) -> float:
    """Equation D3 by loops, in the units of the mean squared length of a profile."""
    X, weight = counts.toarray(), deconvolution.gene_weights(profiles)
    B, n_obs = weight[:, None] * profiles, len(V)
    unit = np.trace(B.T @ B) / B.shape[1]
    A = penalties.graph.toarray()
    value = 0.0
    for i in range(n_obs):
        x = weight * X[i] * profiles.sum(axis=0).mean() / X[i].sum()
        value += 0.5 * ((x - B @ V[i]) ** 2).sum() / unit
        value += 0.5 * penalties.total * (V[i].sum() - 1) ** 2
        value += 0.5 * penalties.group * (penalties.groups[i] @ V[i]) ** 2
        for j in range(n_obs):
            value += 0.25 * penalties.spatial * A[i, j] * ((V[i] - V[j]) ** 2).sum()
    return value


def test_the_objective_is_the_equation(subtests):
    for weights in WEIGHTS:
        with subtests.test(weights=weights):
            mixture, penalties, _, counts, profiles = problem(n_side=3, **named(weights))
            V = np.random.default_rng(1).gamma(1.0, 0.3, mixture.cross.shape)
            assert deconvolution.objective(mixture, penalties, V) == pytest.approx(
                written_out(counts, profiles, penalties, V), rel=1e-10
            )


def test_the_ratio_holds_the_two_parts_of_the_gradient(subtests):
    for weights in WEIGHTS:
        with subtests.test(weights=weights):
            mixture, penalties, *_ = problem(n_side=3, **named(weights))
            V = np.random.default_rng(1).gamma(1.0, 0.3, mixture.cross.shape)
            pull, push = deconvolution.ratio(mixture, penalties, V)
            assert (pull >= 0).all()
            assert (push >= 0).all()
            for index in [(0, 0), (3, 2), (8, 3)]:
                step = np.zeros_like(V)
                step[index] = 1e-4
                ends = [
                    deconvolution.objective(mixture, penalties, V + sign * step) for sign in (1, -1)
                ]
                assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(
                    (push - pull)[index], rel=1e-5, abs=1e-8
                )


positive = st.one_of(st.just(0.0), st.floats(1e-4, 1e3))


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_obs=st.integers(1, 9),
    n_types=st.integers(2, 5),
    spatial=positive,
    total=positive,
    group=positive,
    scale=st.sampled_from([1e-6, 1e-2, 1.0]),
    unseen=st.booleans(),
)
def test_no_step_goes_uphill(seed, n_obs, n_types, spatial, total, group, scale, unseen):
    """For any profiles, counts, graph, costs and weights, also where the data say next to nothing beside the penalties."""
    rng = np.random.default_rng(seed)
    B = rng.gamma(0.3, 1.0, (6, n_types)) + 1e-3
    X = rng.gamma(0.3, 1.0, (n_obs, 6))
    seen = np.ones(n_obs)
    seen[0] = 0.0 if unseen else 1.0
    A = np.triu(rng.gamma(0.3, 1.0, (n_obs, n_obs)) * (rng.random((n_obs, n_obs)) < 0.5), 1)
    mixture = Mixture(
        scale * seen[:, None] * (X @ B), scale * B.T @ B, scale * (X**2).sum(axis=1), seen
    )
    costs = rng.dirichlet(np.ones(n_types), n_obs)
    penalties = Penalties(sp.csr_matrix(A + A.T), costs, spatial, total, group)
    start = rng.gamma(0.5, 1.0, (n_obs, n_types))
    trace = deconvolution.multiplicative(mixture, penalties, max_steps=60, tol=1e-30, V=start).trace
    assert (np.diff(trace) <= 1e-11 * (1 + np.abs(trace[:-1]))).all()


def test_both_solvers_reach_the_same_minimum(subtests):
    for seed, weights in enumerate(WEIGHTS):
        with subtests.test(weights=weights):
            mixture, penalties, *_ = problem(seed, **named(weights))
            one = deconvolution.multiplicative(mixture, penalties, max_steps=5000, tol=1e-7)
            other = deconvolution.accelerated(mixture, penalties, max_steps=20_000, tol=1e-13)
            assert one.converged
            assert other.converged
            assert one.trace[-1] == pytest.approx(other.trace[-1], rel=1e-5)
            assert one.trace[-1] >= other.trace[-1] * (1 - 1e-10)


def test_the_reference_solver_meets_the_conditions_of_a_minimum():
    mixture, penalties, *_ = problem(**named((0.1, 0.1, 0.5)))
    V = deconvolution.accelerated(mixture, penalties, max_steps=20_000, tol=1e-14).V
    pull, push = deconvolution.ratio(mixture, penalties, V)
    gradient = push - pull
    assert (gradient > -1e-5).all()
    assert np.abs(gradient[V > 1e-6]).max() < 1e-4


def test_without_penalties_all_is_nonnegative_least_squares():
    mixture, penalties, _, counts, profiles = problem(depth=100.0)
    found = deconvolution.exact(mixture)
    weight = deconvolution.gene_weights(profiles)
    for i in range(0, 36, 5):
        x = weight * counts[i].toarray().ravel() * profiles.sum(axis=0).mean() / counts[i].sum()
        np.testing.assert_allclose(found[i], nnls(weight[:, None] * profiles, x)[0], atol=1e-8)
    solved = deconvolution.accelerated(mixture, penalties, max_steps=20_000, tol=1e-14)
    np.testing.assert_allclose(solved.V, found, atol=1e-4)


def test_weak_penalties_approach_least_squares():
    mixture, _, *_ = problem(depth=100.0)
    gaps = []
    for weight in (1e-1, 1e-3, 1e-5):
        penalties = problem(depth=100.0, **named((weight, weight, weight)))[1]
        V = deconvolution.accelerated(mixture, penalties, max_steps=20_000, tol=1e-14).V
        gaps.append(np.abs(V - deconvolution.exact(mixture)).max())
    assert gaps[0] > 10 * gaps[1]
    assert gaps[2] < 1e-3


def test_least_squares_bear_types_that_cannot_be_told_apart():
    mixture, *_ = problem()
    which = np.array([0, 1, 2, 3, 0])
    twice = Mixture(
        mixture.cross[:, which], mixture.gram[np.ix_(which, which)], mixture.squares, mixture.seen
    )
    V = deconvolution.exact(twice)
    np.testing.assert_allclose(V[:, 0] + V[:, -1], deconvolution.exact(mixture)[:, 0], atol=1e-8)


def test_neither_depth_nor_the_unit_of_the_profiles_matters():
    mixture, _, _, counts, profiles = problem()
    rescaled = sp.diags(np.linspace(1, 9, 36)) @ counts
    other = deconvolution.summarised(sp.csr_matrix(rescaled), 1e4 * profiles)
    np.testing.assert_allclose(other.cross, mixture.cross, rtol=1e-10)
    np.testing.assert_allclose(other.gram, mixture.gram, rtol=1e-10)
    np.testing.assert_allclose(other.squares, mixture.squares, rtol=1e-10)
    assert np.trace(mixture.gram) == pytest.approx(len(mixture.gram))


def test_pure_spots_are_recognised_and_a_graph_helps_where_counts_are_few():
    _, _, _, _, profiles = problem()
    pure = deconvolution.summarised(sp.csr_matrix(1000 * profiles.T), profiles)
    np.testing.assert_allclose(deconvolution.exact(pure), np.eye(4), atol=1e-8)
    mixture, penalties, truth, *_ = problem(n_side=12, depth=40.0, **named((0.5, 0.1, 0)))
    share = deconvolution.normalised(deconvolution.multiplicative(mixture, penalties).V)[0]
    alone = deconvolution.normalised(deconvolution.exact(mixture))[0]
    assert np.linalg.norm(share - truth) < 0.8 * np.linalg.norm(alone - truth)


def test_a_spot_without_counts_takes_after_its_neighbours():
    _, penalties, _, counts, profiles = problem(**named((0.5, 0.1, 0)))
    counts = counts.tolil()
    counts[14] = 0
    mixture = deconvolution.summarised(counts.tocsr(), profiles)
    share = deconvolution.normalised(
        deconvolution.accelerated(mixture, penalties, tol=1e-12, max_steps=9999).V
    )[0]
    around = penalties.graph[14].toarray().ravel()
    np.testing.assert_allclose(share[14], around @ share / around.sum(), atol=0.02)
    assert deconvolution.exact(mixture)[14].sum() == 0


def test_rows_sum_to_one_also_where_nothing_is_known():
    share, sums = deconvolution.normalised(np.array([[1.0, 3.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(share, [[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_array_equal(sums, [4.0, 0.0])


def test_costs_of_a_region_keep_a_type_away():
    mixture, free, *_ = problem(depth=50.0, **named((0, 0.1, 0)))
    costs = np.tile([1.0, 0, 0, 0], (36, 1))
    priced = Penalties(free.graph, costs, 0.0, 0.1, 5.0)
    with_costs, without = (
        deconvolution.accelerated(mixture, p, tol=1e-10).V for p in (priced, free)
    )
    assert with_costs[:, 0].sum() < 0.5 * without[:, 0].sum()


def test_a_cap_on_steps_is_told():
    mixture, penalties, *_ = problem(**named((0.1, 0.1, 0)))
    for solve in (deconvolution.multiplicative, deconvolution.accelerated):
        solution = solve(mixture, penalties, max_steps=12, tol=1e-12)
        assert len(solution.trace) == 13
        assert not solution.converged
