"""From a fitted model to numpy: moments, scale, order, totals, and what prediction needs."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from reference import bernoulli_deviance, poisson_deviance, toy_dataset

from gpnsf.core.families import FAMILIES
from gpnsf.core.inference import posterior, scaled
from gpnsf.core.inference.local_stage import LogFactors, local, mean_field
from gpnsf.core.likelihoods import Bernoulli, Poisson
from gpnsf.core.model.build import FIELDS, build
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.presets import PRESETS
from gpnsf.core.types import Dataset, Posterior, View

TWO = {"rna": "nb", "atac": "bernoulli"}
SPATIAL = {name: round(3 * preset.spatial) for name, preset in PRESETS.items()}
COUNTED = [name for name, preset in PRESETS.items() if preset.nonnegative]


def problem(
    preset: str = "gpnsf", likelihoods: dict[str, str] | None = None, seed: int = 0, **options
):
    """A dataset and a model of three factors away from its start."""
    field = options.pop("field", "hilbert")
    likelihoods = likelihoods or (TWO if preset in COUNTED else {"rna": "gaussian"})
    dataset = toy_dataset(likelihoods, **options)
    model = build(
        preset, dataset, n_factors=3, n_spatial=SPATIAL[preset], field=field, n_inducing=20
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return dataset, model


def summarised(
    model: Factorization, dataset: Dataset, stage=mean_field, block_size: int | None = None
) -> Posterior:
    blocks = model.blocks(dataset, block_size)
    return posterior.summarise(model, dataset, blocks, stage(model, blocks))


def rates(result: Posterior, dataset: Dataset, name: str) -> np.ndarray:
    size = next(view.size for view in dataset.views if view.name == name)
    return size[:, None] * (result.mean @ result.loadings[name].T + result.background[name])


# ---- form -----------------------------------------------------------------------------------------------------------


def test_everything_is_finite_and_in_shape(subtests):
    for preset, stage in product(PRESETS, (local, mean_field)):
        with subtests.test(preset=preset, stage=stage.__name__):
            dataset, model = problem(preset)
            result, T = summarised(model, dataset, stage), SPATIAL[preset]
            for array in (result.mean, result.smooth, result.std):
                assert array.shape == (60, 3)
                assert array.dtype == np.float32
                assert np.isfinite(array).all()
            assert (result.std >= 0).all()
            for view in dataset.views:
                assert result.loadings[view.name].shape == (10, 3)
                assert result.background[view.name].shape == (10,)
                assert np.isfinite(result.loadings[view.name]).all()
                std = result.loadings_std[view.name]
                assert std.shape == (10, 3)
                assert std.dtype == np.float32
                assert (np.isfinite(std) & (std >= 0)).all()
                assert (std[result.loadings[view.name].any(axis=1)] > 0).all()
                assert result.variance_explained[view.name].shape == (3,)
                assert (
                    (result.importance_std[view.name] >= 0)
                    & (result.importance_std[view.name] <= 0.5)
                ).all()
            assert result.is_spatial.tolist() == [True] * T + [False] * (3 - T)
            assert np.isfinite(result.lengthscale[:T]).all()
            assert np.isnan(result.lengthscale[T:]).all()
            assert (result.amplitude > 0).all()
            assert result.dispersion.keys() == {
                view.name for view in dataset.views if view.likelihood in ("nb", "gaussian")
            }


def test_factors_have_mean_one_and_nothing_is_negative(subtests):
    for preset, stage in product(COUNTED, (local, mean_field)):
        with subtests.test(preset=preset, stage=stage.__name__):
            dataset, model = problem(preset)
            result = summarised(model, dataset, stage)
            np.testing.assert_allclose(result.mean.mean(0), 1, rtol=1e-5)
            np.testing.assert_allclose(result.smooth.mean(0), 1, rtol=1e-5)
            assert (result.mean > 0).all()
            for name in TWO:
                assert (result.loadings[name] >= 0).all()
                assert (result.background[name] > 0).any() == PRESETS[preset].background


def test_signed_factors_have_unit_size(subtests):
    for preset in ("fa", "rsf"):
        with subtests.test(preset=preset):
            dataset, model = problem(preset)
            result = summarised(model, dataset)
            np.testing.assert_allclose((result.mean**2).mean(0), 1, rtol=1e-5)
            assert (result.mean < 0).any()


def test_factors_are_in_order_of_their_signal(subtests):
    """Of their expected signal as it is reported, even where the totals of a modality were far off."""
    for preset, shift in product(PRESETS, (0.0, 4.0)):
        with subtests.test(preset=preset, shift=shift):
            dataset, model = problem(preset)
            model.views[0].loadings.raw.data[:, 0] += 1.0
            model.views[-1].loadings.raw.data[:, 1] += 1.0
            if preset in COUNTED:
                model.views[-1].loadings.raw.data += shift
            result = summarised(model, dataset)
            mass = np.sum([np.abs(W).sum(0) for W in result.loadings.values()], axis=0)
            for kind in (result.is_spatial, ~result.is_spatial):
                assert (np.diff(mass[kind]) <= 0).all()


def permuted(model: Factorization) -> None:
    """Exchange the first two factors of the model, whatever they are."""
    for name, value in model.state_dict().items():
        if name.endswith("raw"):
            value[:, :2] = value[:, [1, 0]]
        elif name.endswith(("u_loc", "u_log_scale")):
            value[:, :2] = value[:, [1, 0]] if value.ndim == 3 else value[:, :2]
            if value.ndim == 2:
                value[:2] = value[[1, 0]]
        elif name.endswith(("log_lengthscale", "log_amplitude", "u_tril")):
            value[:2] = value[[1, 0]]
        elif name.endswith("slope"):
            value[:, :2] = value[:, [1, 0]]
        elif name.startswith("nonspatial") and model.spatial is None:
            value[..., :2] = value[..., [1, 0]]


def test_the_order_inside_the_model_does_not_matter(subtests):
    rows = [(preset, "hilbert") for preset in PRESETS]
    for preset, field in (*rows, ("gpnsf", "inducing"), ("rsf", "inducing")):
        with subtests.test(preset=preset, field=field):
            dataset, model = problem(preset, field=field)
            expected = summarised(copy.deepcopy(model), dataset, local)
            permuted(model)
            found = summarised(model, dataset, local)
            for record in fields(Posterior):
                one, other = getattr(found, record.name), getattr(expected, record.name)
                if record.name in ("field", "order"):
                    continue
                for key in other if isinstance(other, dict) else [None]:
                    np.testing.assert_allclose(
                        one if key is None else one[key],
                        other if key is None else other[key],
                        rtol=2e-3,
                        atol=2e-4,
                        err_msg=record.name,
                    )


def test_blocks_change_nothing(subtests):
    for preset in PRESETS:
        with subtests.test(preset=preset):
            dataset, model = problem(preset)
            whole, parts = summarised(model, dataset), summarised(model, dataset, block_size=13)
            for name in ("mean", "smooth", "std"):
                np.testing.assert_allclose(
                    getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-5
                )
            for name in whole.loadings:
                np.testing.assert_allclose(
                    parts.loadings[name], whole.loadings[name], rtol=1e-4, atol=1e-6
                )
                np.testing.assert_allclose(
                    parts.importance_std[name], whole.importance_std[name], rtol=1e-2, atol=1e-5
                )
                np.testing.assert_allclose(
                    parts.variance_explained[name],
                    whole.variance_explained[name],
                    rtol=1e-2,
                    atol=1e-4,
                )


# ---- moments --------------------------------------------------------------------------------------------------------


def given(m: float, v: float, n: int, T: int) -> LogFactors:
    """Log factors with the same moments everywhere, but for one spot with mean 0."""
    mean, variance = torch.full((n, 3), m), torch.full((n, 3), v)
    mean[0] = 0.0
    return LogFactors(
        mean, variance, mean[:, :T], variance[:, :T], torch.zeros(3), torch.zeros(n, 1)
    )


def test_moments_are_lognormal(subtests):
    for v in (0.1, 0.8):
        with subtests.test(v=v):
            dataset, model = problem()
            result = posterior.summarise(
                model, dataset, model.blocks(dataset), given(0.7, v, 60, 2)
            )
            rng = np.random.default_rng(0)
            for factors, variance in (
                (result.is_spatial, scaled.MIXING * v),
                (~result.is_spatial, v),
            ):
                draws = np.exp(0.7 + np.sqrt(variance) * rng.standard_normal(400_000))
                ratio = (result.std[5] / result.mean[5])[factors]
                np.testing.assert_allclose(ratio, draws.std() / draws.mean(), rtol=0.04)
            np.testing.assert_allclose(result.mean[5] / result.mean[0], np.exp(0.7), rtol=1e-5)


def test_the_variance_is_capped_in_the_mean():
    """The mean of a spot without data would otherwise be exp(v / 2) times that of a spot with data."""
    dataset, model = problem()
    log_factors = given(0.0, 0.0, 60, 2)
    log_factors.v[7] = 6.0
    result = posterior.summarise(model, dataset, model.blocks(dataset), log_factors)
    np.testing.assert_allclose(
        result.mean[7] / result.mean[0], np.exp(scaled.VARIANCE_CAP / 2), rtol=1e-5
    )
    assert (result.std[7] / result.mean[7] > 10).all()


def test_extreme_log_factors_stay_finite(subtests):
    for m in (-500.0, 500.0):
        with subtests.test(m=m):
            dataset, model = problem()
            result = posterior.summarise(
                model, dataset, model.blocks(dataset), given(m, 100.0, 60, 2)
            )
            assert np.isfinite(result.mean).all()
            assert np.isfinite(result.std).all()


# ---- scale ----------------------------------------------------------------------------------------------------------


def counts_of(rate: np.ndarray, likelihood: str) -> np.ndarray:
    """Expected counts at these rates."""
    opened = {"bernoulli": -np.expm1(-rate), "bernoulli_clipped": rate.clip(max=0.999)}
    return opened.get(likelihood, rate)


def test_expected_totals_are_the_observed_ones(subtests):
    others = [("gpnsf", name) for name in ("poisson", "bernoulli", "bernoulli_clipped")]
    for preset, likelihood in (*((preset, "nb") for preset in COUNTED), *others):
        with subtests.test(preset=preset, likelihood=likelihood):
            dataset, model = problem(preset, {"rna": likelihood}, missing=5)
            result = summarised(model, dataset, local)
            rate = rates(result, dataset, "rna")
            assert counts_of(rate, likelihood).sum() == pytest.approx(
                dataset.views[0].counts.sum(), rel=0.01
            )


def test_totals_are_matched_from_far_away(subtests):
    """After few steps at a high rate; where most probabilities are near one, plain Newton steps overshoot."""
    for likelihood, shift in product(("poisson", "bernoulli", "bernoulli_clipped"), (-8.0, 5.0)):
        with subtests.test(likelihood=likelihood, shift=shift):
            dataset, model = problem("gpnsf", {"rna": likelihood})
            dict(model.items())["rna"].loadings.raw.data += shift
            rate = rates(summarised(model, dataset), dataset, "rna")
            assert counts_of(rate, likelihood).sum() == pytest.approx(
                dataset.views[0].counts.sum(), rel=0.01
            )


def test_loadings_do_not_run_away_where_everything_is_open(subtests):
    for likelihood in ("bernoulli", "bernoulli_clipped"):
        with subtests.test(likelihood=likelihood):
            dataset, model = problem("gpnsf", {"rna": likelihood})
            view = dataset.views[0]
            dataset = replace(
                dataset,
                views=(
                    replace(view, counts=sp.csr_matrix(np.ones(view.counts.shape, np.float32))),
                ),
            )
            assert rates(summarised(model, dataset), dataset, "rna").max() < 1e5


def test_values_around_zero_keep_their_loadings():
    """Their total says nothing about scale."""
    dataset, model = problem("gpnsf", {"rna": "gaussian"})
    result = summarised(model, dataset)
    view = dict(model.items())["rna"]
    m, v = model.marginals(model.blocks(dataset)[0])
    W = view.loadings.mean
    expected = torch.exp(m + 0.5 * v.clamp_max(scaled.VARIANCE_CAP)) @ W[:, :3].T + W[:, 3]
    np.testing.assert_allclose(
        result.mean @ result.loadings["rna"].T + result.background["rna"],
        expected.detach(),
        rtol=1e-3,
    )


def test_traces_of_loadings_are_zero():
    dataset, model = problem()
    raw = dict(model.items())["rna"].loadings.raw
    raw.data[3, 1] = -40.0
    raw.data[5] -= 25.0  # a feature with few counts beside abundant ones keeps its loadings
    result = summarised(model, dataset)
    assert (result.loadings["rna"][3] > 0).tolist() == [
        factor != np.argmin(result.loadings["rna"][3]) for factor in range(3)
    ]
    assert result.loadings["rna"][3].min() == 0
    assert (result.loadings["rna"][4:6] > 0).all()
    assert result.background["rna"][5] > 0


def test_features_without_counts_have_no_loadings():
    dataset, model = problem()
    counts = dataset.views[0].counts.tolil()
    counts[:, 2] = 0
    views = (replace(dataset.views[0], counts=counts.tocsr()), *dataset.views[1:])
    result = summarised(model, replace(dataset, views=views))
    assert (result.loadings["rna"][2] == 0).all()
    assert result.background["rna"][2] == 0


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_variance_explained_is_the_deviance_that_a_constant_factor_loses(subtests):
    for likelihood, deviance in (
        ("poisson", poisson_deviance),
        ("nb", poisson_deviance),
        ("bernoulli", bernoulli_deviance),
    ):
        with subtests.test(likelihood=likelihood):
            dataset, model = problem("gpnsf", {"rna": likelihood})
            result, view = summarised(model, dataset), dataset.views[0]
            W = np.column_stack([result.loadings["rna"], result.background["rna"]])
            null = FAMILIES["poisson" if likelihood == "nb" else likelihood].null_deviance(
                view.counts, view.size
            )[0]

            factors = [result.mean.copy() for _ in range(4)]
            for k in range(3):
                factors[k][:, k] = factors[k][:, k].mean()
            *flat, whole = (
                deviance(
                    view.counts.toarray(), np.column_stack([G, np.ones(60)]) * view.size[:, None], W
                )
                for G in factors
            )
            for k in range(3):
                lost = (flat[k] - whole) / null
                assert result.variance_explained["rna"][k] == pytest.approx(
                    lost, rel=1e-2, abs=1e-4
                )


def test_more_counts_make_importance_more_certain():
    few, many = (problem("nsfh", {"rna": "poisson"}, n_obs=n) for n in (40, 400))
    found = [summarised(model, dataset) for dataset, model in (few, many)]
    spread = [np.median(result.importance_std["rna"]) for result in found]
    relative = [np.median(result.loadings_std["rna"] / result.loadings["rna"]) for result in found]
    assert relative[1] < 0.6 * relative[0]
    assert spread[1] < 0.6 * spread[0]


# ---- prediction -----------------------------------------------------------------------------------------------------


def test_prediction_at_the_data_is_the_smooth_part(subtests):
    for preset, field, (stage, n_libraries) in product(
        ("gpnsf", "nsf", "rsf"), FIELDS, ((local, 2), (mean_field, 1))
    ):
        with subtests.test(
            preset=preset, field=field, stage=stage.__name__, n_libraries=n_libraries
        ):
            dataset, model = problem(preset, field=field, n_libraries=n_libraries)
            result, T = summarised(model, dataset, stage), SPATIAL[preset]
            mean, std, others = posterior.predict(result.field, dataset.coords, dataset.library)
            assert others is None
            assert mean.shape == std.shape == (60, T)
            np.testing.assert_allclose(mean, result.smooth[:, :T], rtol=2e-3, atol=1e-5)
            assert (std > 0).all()


def test_a_state_holds_plain_values():
    dataset, model = problem()
    state = summarised(model, dataset).field
    for value in [*state.values(), *state["process"].values()]:
        assert isinstance(value, np.ndarray | str | bool | int | float | dict)


def test_the_null_deviance_of_peaks_is_the_exact_one_even_if_some_are_always_open(subtests):
    for spread in (0.3, 1.0):
        with subtests.test(spread=spread):
            rng = np.random.default_rng(7)
            size = np.maximum(rng.lognormal(0, spread, 400), 0.05).astype(np.float32)
            opened = rng.random((400, 60)) < 1 - np.exp(-rng.gamma(0.5, 2.0, 60) * size[:, None])
            opened[:, 0], opened[:, 1] = True, False
            counts, observed = sp.csr_matrix(opened.astype(np.float32)), np.ones(400, dtype=bool)
            view = View("atac", "bernoulli", counts, size / size.mean(), observed)
            dataset = Dataset(np.zeros((400, 2), np.float32), np.zeros(400, np.int64), (view,))
            model = build("pnmf", dataset, n_factors=2, n_spatial=0)
            found = Bernoulli(60).flat_deviance(view, model.blocks(dataset, 150))
            exact, _ = FAMILIES["bernoulli"].null_deviance(
                counts, view.size, None, rows=observed, train=observed
            )
            assert found == pytest.approx(exact, rel=5e-3)


def test_the_null_deviance_of_counts_is_the_exact_one():
    rng = np.random.default_rng(8)
    size = rng.lognormal(0, 0.5, 300).astype(np.float32)
    size[:20] = 0  # not observed
    counts = sp.csr_matrix(rng.poisson(size[:, None] * rng.gamma(0.5, 2.0, 40)).astype(np.float32))
    view = View("rna", "poisson", counts, size, size > 0)
    dataset = Dataset(np.zeros((300, 2), np.float32), np.zeros(300, np.int64), (view,))
    model = build("pnmf", dataset, n_factors=2, n_spatial=0)
    found = Poisson(40).flat_deviance(view, model.blocks(dataset, 90))
    exact, _ = FAMILIES["poisson"].null_deviance(
        counts, view.size, None, rows=view.observed, train=view.observed
    )
    assert found == pytest.approx(exact, rel=1e-5)
