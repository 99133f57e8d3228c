"""Distances in the embedding are those of Hellinger between what observations are expected to express."""

from __future__ import annotations

import numpy as np

from gpnsf.core.scores import embedding
from gpnsf.core.scores.embedding import composition, coordinates, factors_used, signal


def simulated(n_obs: int = 90, n_factors: int = 4, n_features: int = 60, seed: int = 0):
    """Factors [N, K] with mean 1 and loadings of two modalities."""
    rng = np.random.default_rng(seed)
    H = rng.lognormal(0, 1, (n_obs, n_factors))
    loadings = {
        name: rng.gamma(0.5, 1, (n, n_factors)) * rng.lognormal(0, 1, (n, 1))
        for name, n in (("rna", n_features), ("atac", 40))
    }
    return H / H.mean(axis=0), loadings


def distances(points: np.ndarray) -> np.ndarray:
    """Euclidean distances [N, N]."""
    points = points.astype(np.float64)
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))


def hellinger(H: np.ndarray, loadings: dict[str, np.ndarray]) -> np.ndarray:
    """The definition, on dense arrays."""
    squares = 0.0
    for W in loadings.values():
        p = H @ W.T
        p /= p.sum(axis=1, keepdims=True)
        squares = squares + distances(np.sqrt(p)) ** 2 / 2
    return np.sqrt(squares)


def test_distances_are_those_of_the_definition(subtests, monkeypatch):
    """Of all axes; the first K of them, which are kept, hold nearly everything."""
    for n_features in (6, 60, 250):
        with subtests.test(n_features=n_features):
            H, loadings = simulated(n_features=n_features)
            expected = hellinger(H, loadings)
            near = distances(composition(H, loadings))
            assert (near <= expected + 1e-6).all()
            apart = ~np.eye(len(H), dtype=bool)
            assert np.median((near / np.where(apart, expected, 1))[apart]) > 0.95
            assert np.corrcoef(near[apart], expected[apart])[0, 1] > 0.99
            with monkeypatch.context() as patch:
                patch.setattr(embedding, "N_DIMS", 300)
                patch.setattr(embedding, "_principal", lambda points, n_dims: points)
                patch.setattr(embedding, "SPARE", 300)
                exact = distances(composition(H, loadings))
            np.testing.assert_allclose(exact, expected, atol=1e-6)


def test_modalities_count_at_their_weights():
    """Over the largest weight: scaling all weights changes nothing, and a vanishing one leaves the others."""
    H, loadings = simulated(n_features=60)
    whole = distances(composition(H, loadings))
    both = [distances(composition(H, {name: W})) for name, W in loadings.items()]
    first, second = loadings
    for weights in ({first: 1.0, second: 0.25}, {first: 4.0, second: 1.0}):
        expected = np.sqrt(both[0] ** 2 + 0.25 * both[1] ** 2)
        found = distances(composition(H, loadings, weights))
        assert np.abs(found - expected).max() < 0.05 * whole.max()
    alone = distances(composition(H, loadings, {second: 1e-9}))
    np.testing.assert_allclose(alone, both[0], atol=2e-3)


def test_many_features_are_merged_and_distances_hold():
    H, loadings = simulated(n_features=3_000)
    expected, found = hellinger(H, loadings), distances(composition(H, loadings))
    apart = ~np.eye(len(H), dtype=bool)
    assert np.median(found[apart] / expected[apart]) > 0.93
    assert np.corrcoef(found[apart], expected[apart])[0, 1] > 0.99


def test_proportional_features_can_be_merged_without_loss(monkeypatch):
    H, loadings = simulated()
    times = np.random.default_rng(1).lognormal(0, 1, (20, 1))
    copies = {"rna": np.vstack([t * loadings["rna"] for t in times])}
    monkeypatch.setattr(embedding, "GROUPS", 60)
    np.testing.assert_allclose(
        distances(composition(H, copies)),
        distances(composition(H, {"rna": loadings["rna"]})),
        atol=2e-6,
    )


def test_more_observations_than_the_sample(monkeypatch):
    H, loadings = simulated(n_obs=300)
    whole = distances(composition(H, loadings))
    monkeypatch.setattr(embedding, "SAMPLE", 80)
    np.testing.assert_allclose(distances(composition(H, loadings)), whole, atol=5e-3)


def test_factors_with_equal_loadings_are_at_distance_zero():
    _, loadings = simulated()
    twins = {name: np.column_stack([W[:, :2], 3 * W[:, 1]]) for name, W in loadings.items()}
    H = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 2, 5]])
    found = distances(composition(H, twins))
    assert found[1:, 1:].max() < 1e-6
    assert found[0, 1:].min() > 0.1


def test_a_factor_that_is_split_in_two_changes_nothing(subtests):
    for n_features in (60, 2_000):
        with subtests.test(n_features=n_features):
            H, loadings = simulated(n_features=n_features)
            part = np.random.default_rng(2).uniform(0, 1, len(H))
            halves = np.column_stack([H[:, 0] * part, H[:, 0] * (1 - part), H[:, 1:]])
            scale = halves.mean(axis=0)
            split = {name: W[:, [0, 0, 1, 2, 3]] * scale for name, W in loadings.items()}
            before, after = composition(H, loadings), composition(halves / scale, split)
            assert after.shape == (90, 5)
            np.testing.assert_allclose(distances(after[:, :4]), distances(before), atol=1e-5)


def test_the_scale_of_rows_and_of_modalities_does_not_matter():
    H, loadings = simulated()
    depth = np.random.default_rng(3).lognormal(0, 1, (90, 1))
    other = {"rna": 100 * loadings["rna"], "atac": loadings["atac"]}
    np.testing.assert_allclose(composition(depth * H, other), composition(H, loadings), atol=1e-5)


def test_the_size_of_blocks_does_not_matter_and_results_repeat():
    H, loadings = simulated()
    whole = composition(H, loadings)
    np.testing.assert_array_equal(composition(H, loadings), whole)
    np.testing.assert_allclose(composition(H, loadings, block_bytes=7 * 8 * 100), whole, atol=1e-6)


def test_blocks_are_bounded(monkeypatch):
    """No array of rows and groups is larger than was allowed, sample and result aside."""
    H, loadings = simulated(n_obs=500)
    rows, whole = [], embedding._roots
    monkeypatch.setattr(embedding, "SAMPLE", 20)
    monkeypatch.setattr(
        embedding, "_roots", lambda factors, W: rows.append(len(factors)) or whole(factors, W)
    )
    composition(H, loadings, block_bytes=50 * 8 * 100)
    assert max(rows) == 50
    assert len(rows) == 11


def test_there_are_at_most_fifteen_dimensions_centred_and_in_order():
    H, loadings = simulated(n_factors=20)
    found = composition(H, loadings)
    assert found.shape == (90, 15)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
    assert (np.diff(found.var(axis=0)) <= 0).all()


def test_nothing_to_tell_apart_is_zero(subtests):
    for W in (np.zeros((5, 2)), np.ones((5, 2)), np.array([[1.0, 2.0]])):
        with subtests.test(W=W):
            found = composition(np.random.default_rng(0).uniform(0.1, 1, (30, 2)), {"rna": W})
            assert found.shape == (30, 2)
            np.testing.assert_allclose(found, 0, atol=1e-6)


def test_an_observation_that_expects_nothing_is_finite():
    H, loadings = simulated()
    H[3] = 0
    assert np.isfinite(composition(H, loadings)).all()


def test_signed_factors_count_by_their_signal():
    H, loadings = simulated()
    H = H - 1
    power = np.sqrt(sum((W**2).sum(axis=0) for W in loadings.values()))
    for found in (signal(H, loadings), coordinates(H, loadings)):
        np.testing.assert_allclose(distances(found), distances(H * power), rtol=1e-4, atol=1e-4)


def test_the_factors_used_are_the_spatial_ones_if_they_are_two():
    assert factors_used(np.array([True, True, False])).tolist() == [0, 1]
    assert factors_used(np.array([True, False, False])).tolist() == [0, 1, 2]
    assert factors_used(np.array([False, False])).tolist() == [0, 1]
