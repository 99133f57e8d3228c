from __future__ import annotations

import io
import tracemalloc
from contextlib import redirect_stdout

import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.core.companions import mefisto
from gpnsf.core.scores.metrics import match_factors
from gpnsf.core.types import View

pytest.importorskip("mofapy2", reason="mofapy2 is not installed: pip install 'gpnsf[mefisto]'")


def waves(n_side: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Places [N, 2] on a grid of half-width 1, and two simulated patterns [N, 2]."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, n_side)] * 2)
    coords = np.column_stack([x.ravel(), y.ravel()])
    return coords, np.column_stack([np.sin(2 * coords[:, 0]), np.cos(3 * coords[:, 1])])


def table(
    patterns: np.ndarray, n_features: int = 24, noise: float = 0.5, seed: int = 0
) -> np.ndarray:
    """Simulated centred values [N, P]; each feature follows one pattern."""
    rng = np.random.default_rng(seed)
    W = np.zeros((n_features, patterns.shape[1]))
    W[np.arange(n_features), np.arange(n_features) % patterns.shape[1]] = rng.normal(
        1.5, 0.3, n_features
    )
    values = patterns @ W.T + noise * rng.standard_normal((len(patterns), n_features))
    return values - values.mean(axis=0)


def fit(tables, coords, **options) -> mefisto.Mefisto:
    return mefisto.fit(
        tables, coords, **{"n_factors": 2, "n_inducing": 100, "max_steps": 31, "seed": 0, **options}
    )


def test_log_normalised_values_are_centred_and_scaled_over_what_is_observed():
    rng = np.random.default_rng(0)
    counts = rng.poisson(4, (20, 5)).astype(np.float32)
    observed = np.arange(20) != 7
    counts[~observed] = 0
    size = np.where(observed, rng.uniform(0.5, 2, 20), 0).astype(np.float32)
    made = mefisto.log_normalised(View("rna", "nb", sp.csr_matrix(counts), size, observed))
    expected = np.log1p(counts[observed] / (size[observed] / np.median(size[observed]))[:, None])
    np.testing.assert_allclose(made.centre, expected.mean(axis=0), rtol=1e-5)
    expected -= expected.mean(axis=0)
    np.testing.assert_allclose(made.values[observed], expected / expected.std(), atol=1e-5)
    assert made.unit == pytest.approx(expected.std())
    assert np.isnan(made.values[~observed]).all()


def test_features_that_do_not_vary_are_told():
    values = np.column_stack([np.zeros(6), np.arange(6), [np.nan, 2, 2, 2, 2, 2]])
    assert mefisto.varying(values).tolist() == [False, True, False]


def test_slices_are_placed_where_fields_of_one_do_not_reach_the_other():
    coords, _ = waves()
    places = mefisto.apart(np.vstack([coords, coords]), np.repeat([0, 1], len(coords)))
    np.testing.assert_array_equal(places[: len(coords)], coords)
    assert places[len(coords) :, 0].min() - coords[:, 0].max() == pytest.approx(3)
    np.testing.assert_array_equal(places[len(coords) :, 1], coords[:, 1])


@pytest.mark.slow
@pytest.mark.parametrize(("n_side", "kind"), [(9, "exact"), (11, "inducing")])
def test_patterns_are_found_with_their_fields_signs_and_shares(n_side, kind):
    coords, patterns = waves(n_side)
    found = fit({"rna": table(patterns), "atac": table(patterns, 16, noise=1.5, seed=1)}, coords)
    _, r = match_factors(patterns, found.mean)
    assert r.min() > 0.95, kind
    assert (match_factors(patterns, found.smooth)[1] >= r - 0.02).all()
    assert found.is_spatial.all()
    assert ((found.lengthscale > 0.2) & (found.lengthscale < 3)).all()
    total = sum(found.variance_explained.values())
    assert total[0] >= total[1] > 0.1
    assert found.variance_explained["rna"].sum() > found.variance_explained["atac"].sum()
    for W in found.loadings.values():
        assert (np.where(np.abs(W) > 0.5, W, 1) > 0).all()
    assert found.mean.shape == found.smooth.shape == found.std.shape
    assert (found.std > 0).all()
    assert np.isfinite(found.elbo).all()
    assert (np.diff(found.step) > 0).all()


def test_a_factor_without_order_in_space_has_no_field():
    coords, patterns = waves()
    shuffled = np.random.default_rng(0).permutation(len(coords))
    truth = np.column_stack([patterns[:, 0], patterns[shuffled, 1]])
    values, lost = table(truth), np.arange(len(coords)) % 20 == 0
    values[lost] = np.nan
    found = fit({"rna": values}, coords)
    order, r = match_factors(truth[~lost], found.mean[~lost])
    assert r.min() > 0.9
    assert found.is_spatial[order].tolist() == [True, False]
    assert np.isnan(found.lengthscale[order]).tolist() == [False, True]
    np.testing.assert_array_equal(found.smooth[:, order[1]], found.mean[:, order[1]])
    np.testing.assert_array_equal(found.mean[lost, order[1]], 0)
    np.testing.assert_array_equal(found.std[lost, order[1]], 1)


def test_observations_and_features_without_information_are_left_out():
    coords, patterns = waves()
    values, other = table(patterns), table(patterns, 16, seed=1)
    values[:, 3] = 0
    other[::4] = np.nan
    found = fit({"rna": values, "atac": other}, coords)
    assert not found.loadings["rna"][3].any()
    assert found.loadings["rna"].any(axis=1).sum() == 23
    assert match_factors(patterns, found.mean)[1].min() > 0.95


@pytest.mark.parametrize(
    ("n_side", "n_inducing"), [(8, 200), pytest.param(12, 100, marks=pytest.mark.slow)]
)
def test_rows_of_which_nothing_was_observed_get_what_mofapy2_predicts(
    n_side, n_inducing, monkeypatch
):
    coords, patterns = waves(n_side)
    values, entries, make = table(patterns), [], mefisto._entry
    monkeypatch.setattr(mefisto, "_entry", lambda *a: entries.append(make(*a)) or entries[0])
    lost = np.arange(len(coords)) % 7 == 3
    values[lost] = np.nan
    found = fit({"rna": values}, coords, n_inducing=n_inducing, max_steps=25)
    assert found.is_spatial.all()
    model = entries[0]
    assert model.model.dim["N"] == (~lost).sum()
    with redirect_stdout(io.StringIO()):
        model.predict_factor(new_covariates=coords[lost])
    at = {tuple(place): i for i, place in enumerate(model.Zpredictions["values"])}
    order = [at[tuple(place)] for place in coords[lost]]
    seen = model.model.nodes["Z"].getExpectation()
    products = found.mean[~lost].T @ seen  # [K, K]
    column = np.abs(products).argmax(axis=1)
    sign = np.sign(products[np.arange(2), column])
    mean, variance = (model.Zpredictions[key][order][:, column] for key in ("mean", "variance"))
    np.testing.assert_allclose(found.mean[lost], sign * mean, atol=1e-5)
    np.testing.assert_allclose(found.smooth[lost], found.mean[lost], atol=1e-6)
    np.testing.assert_allclose(found.std[lost], np.sqrt(variance), atol=1e-5)
    rotation = np.linalg.lstsq(found.mean[~lost], patterns[~lost], rcond=None)[0]
    error = np.square(patterns - found.mean @ rotation)[lost].mean(axis=0)
    assert (error < 0.1 * patterns.var(axis=0)).all()


def test_what_was_not_observed_has_no_part_in_the_fit():
    coords, patterns = waves(7)
    values = table(patterns)
    values[:9] = np.nan
    whole = fit({"rna": values}, coords, max_steps=21)
    alone = fit({"rna": values[9:]}, coords[9:], max_steps=21)
    np.testing.assert_array_equal(whole.mean[9:], alone.mean)
    np.testing.assert_array_equal(whole.noise["rna"], alone.noise["rna"])


def test_noise_is_that_of_the_values():
    coords, patterns = waves()
    found = fit({"rna": table(patterns, noise=0.5), "atac": table(patterns, noise=1.5)}, coords)
    np.testing.assert_allclose(found.noise["rna"], 0.5, rtol=0.3)
    np.testing.assert_allclose(found.noise["atac"], 1.5, rtol=0.3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_other_inducing_points():
    coords, patterns = waves(11)
    values = table(patterns)
    first, again, other = (
        fit({"rna": values}, coords, seed=seed, max_steps=21) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.mean, again.mean)
    np.testing.assert_array_equal(first.elbo, again.elbo)
    assert not np.array_equal(first.mean, other.mean)


@pytest.mark.slow
def test_more_inducing_points_change_the_fit_until_it_is_exact():
    coords, patterns = waves(11)
    fewer, exact, more = (
        fit({"rna": table(patterns[:, :1])}, coords, n_factors=1, max_steps=21, n_inducing=n)
        for n in (100, 121, 150)
    )
    assert not np.array_equal(fewer.mean, exact.mean)
    np.testing.assert_array_equal(exact.mean, more.mean)


@pytest.mark.slow
def test_steps_are_capped_and_convergence_is_told():
    coords, patterns = waves(5)
    short = fit({"rna": table(patterns)}, coords, max_steps=6)
    assert short.step[-1] == 6
    assert not short.converged
    long = fit({"rna": table(patterns[:, :1])}, coords, n_factors=1, max_steps=400)
    assert long.converged
    assert long.step[-1] < 400


@pytest.mark.slow
def test_memory_is_about_what_is_taken():
    rng = np.random.default_rng(0)
    for n_obs, n_features, n_inducing in ((400, 20, 100), (110, 1500, 120), (150, 20, 200)):
        tables = {"rna": rng.standard_normal((n_obs, n_features))}
        coords = rng.uniform(-1, 1, (n_obs, 2))
        tracemalloc.start()
        fit(tables, coords, n_inducing=n_inducing, max_steps=20)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 0.6 < mefisto.memory(n_obs, n_features, 2, n_inducing) / taken < 1.6


def test_an_interruption_is_passed_on_and_nothing_global_is_changed(monkeypatch):
    from mofapy2.core.nodes.Tau_nodes import TauD_Node

    def interrupted(_self, *_):
        raise KeyboardInterrupt

    coords, patterns = waves(7)
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    fit({"rna": table(patterns)}, coords, max_steps=2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    monkeypatch.setattr(TauD_Node, "updateParameters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit({"rna": table(patterns)}, coords, max_steps=2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
