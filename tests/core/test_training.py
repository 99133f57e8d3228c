"""The optimisation: it climbs, ends when it should, repeats itself to the bit, and leaves no trace outside of the model."""

from __future__ import annotations

import logging
import math
import random
import re
from itertools import product
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from bounds import loss
from objective import at_each_call
from reference import toy_dataset

from gpnsf.core.fields.hilbert import HilbertField
from gpnsf.core.inference import bound, training
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.steps import Adam, Stepper
from gpnsf.core.likelihoods import LIKELIHOODS
from gpnsf.core.model.build import FIELDS, build
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.presets import PRESETS
from gpnsf.core.progress import Progress
from gpnsf.core.types import Dataset, History

TWO = {"rna": "nb", "atac": "bernoulli"}
SHORT = Schedule(max_steps=12)


def problem(
    likelihoods: dict[str, str] | None = None, preset: str = "gpnsf", **options: Any
) -> tuple[Factorization, Dataset]:
    dataset = toy_dataset(likelihoods or TWO)
    n_spatial = round(3 * PRESETS[preset].spatial)
    return build(
        preset, dataset, n_factors=3, n_spatial=n_spatial, n_inducing=20, **options
    ), dataset


def fitted(
    *args: Any, schedule: Schedule = SHORT, init: str = "spot", seed: int = 0, **options: Any
):
    """A model and its history after a short fit."""
    model, dataset = problem(*args, **options)
    return model, training.fit(model, dataset, schedule=schedule, init=init, seed=seed)


@pytest.fixture
def log(caplog):
    """What the package logs, whether or not its log is passed on to the root."""
    logger = logging.getLogger("gpnsf")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def global_state() -> dict[str, Any]:
    """Everything global that a fit might touch."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "parameters": dict(pyro.get_param_store().items()),
        "validation": (
            pyro.settings.get("validate_distributions_pyro"),
            pyro.settings.get("validate_infer"),
        ),
        "torch validation": torch.distributions.Distribution._validate_args,
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


# ---- climbing -------------------------------------------------------------------------------------------------------


@pytest.mark.broad(1)
@pytest.mark.parametrize("part", range(3))
def test_the_bound_rises_for_every_model(part, subtests):
    for preset, field in list(product(PRESETS, FIELDS))[part::3]:
        with subtests.test(preset=preset, field=field):
            likelihoods = TWO if PRESETS[preset].nonnegative else {"rna": "gaussian"}
            _, history = fitted(likelihoods, preset, field=field)
            assert np.isfinite(history.elbo).all()
            # the last steps of NB have another objective
            assert history.elbo[-3] > history.elbo[0]


def test_the_bound_rises_for_every_likelihood(subtests):
    for likelihood in LIKELIHOODS:
        with subtests.test(likelihood=likelihood):
            n_samples = 3 if likelihood == "bernoulli_clipped" else None
            model, history = fitted({"rna": likelihood}, n_samples=n_samples)
            assert history.elbo[-3:].mean() > history.elbo[0]
            assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_objective_of_all_blocks_is_their_sum():
    model, dataset = problem()
    blocks = model.blocks(dataset, 25)
    assert bound.elbo(model, blocks) == pytest.approx(-loss(model, blocks).item(), rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_start_with_the_best_bound_is_kept():
    _, history = fitted(schedule=Schedule(max_steps=60), init="auto")
    assert set(history.starts) == {"smooth_0", "smooth_0.1", "spot"}
    assert history.elbo[Schedule.pick_steps - 1] == max(history.starts.values())


def test_blocks_walk_the_same_way():
    model, dataset = problem()
    walks = []
    for block_size in (None, 17):
        model, _ = problem()
        walks.append(
            training.fit(model, dataset, schedule=SHORT, init="spot", block_size=block_size).elbo
        )
    np.testing.assert_allclose(*walks, rtol=1e-4)


# ---- ending ---------------------------------------------------------------------------------------------------------


@pytest.mark.broad(1)
@pytest.mark.parametrize("part", range(2))
def test_the_cap_holds_for_all_phases_together(part, subtests):
    rows = list(product((1, 2, 3, 4, 10, 25, 30, 45, 60), ("nb", "poisson")))
    for max_steps, likelihood in rows[part::2]:
        with subtests.test(max_steps=max_steps, likelihood=likelihood):
            schedule = Schedule(max_steps=max_steps, tol=1e-12)
            _, history = fitted({"rna": likelihood}, schedule=schedule)
            assert len(history.elbo) == max_steps
            assert not history.converged


def test_a_fit_that_stops_rising_has_converged(log):
    _, history = fitted({"rna": "poisson"}, schedule=Schedule(tol=0.01))
    assert history.converged
    assert 60 <= len(history.elbo) < 600
    assert "max_steps" not in log.text


def test_phases_follow_one_another():
    _, history = fitted(schedule=Schedule(max_steps=80, tol=1e-12))
    phases = list(dict.fromkeys(history.phase.tolist()))
    assert phases == ["pick", "main", "tail", "polish"]
    assert (np.diff([phases.index(phase) for phase in history.phase.tolist()]) >= 0).all()
    assert len(history.elbo) == len(history.seconds) == len(history.phase)
    assert (np.diff(history.seconds) >= 0).all()


def test_theta_is_estimated_at_the_end():
    model, history = fitted(schedule=Schedule(max_steps=60))
    likelihood = dict(model.items())["rna"].likelihood
    assert "polish" in history.phase
    assert not likelihood.in_surrogate
    assert likelihood.log_theta.std() > 0
    _, without = fitted({"rna": "poisson"}, schedule=Schedule(max_steps=60))
    assert "polish" not in without.phase


@pytest.mark.broad(1)
@pytest.mark.parametrize(("passes", "n_steps"), [(100, 20), (7, 7), (0, 5)])
def test_large_data_have_fewer_dense_steps(monkeypatch, passes, n_steps):
    monkeypatch.setattr("gpnsf.core.inference.schedule.POLISH_ENTRIES", passes * 60 * 10)
    _, history = fitted(schedule=Schedule(max_steps=90))
    assert history.phase.tolist().count("polish") == n_steps


# ---- the kernel -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lengthscales(monkeypatch):
    """Length scales after each step."""
    seen = []
    original = HilbertField.clamp_

    def clamp_(field: HilbertField) -> None:
        original(field)
        seen.append(torch.cat([field.log_lengthscale, field.log_amplitude]).tolist())

    monkeypatch.setattr(HilbertField, "clamp_", clamp_)
    return seen


def test_kernel_parameters_are_learnt_early_then_frozen(lengthscales):
    fitted(schedule=Schedule(max_steps=100, kernel_steps=30, tol=1e-12))
    moved = np.abs(np.diff(lengthscales, axis=0)).max(1)
    assert len(lengthscales) == 100
    assert (moved[:29] > 0).all()
    assert (moved[29:] == 0).all()


def test_kernel_parameters_are_frozen_even_if_the_fit_is_short(lengthscales):
    model, _ = fitted(schedule=Schedule(max_steps=20))
    moved = np.abs(np.diff(lengthscales, axis=0)).max(1)
    assert (moved[:9] > 0).all()
    assert (moved[9:] == 0).all()  # ten steps of the start, then five each of tail and polish
    assert not any(parameter.requires_grad for parameter in model.spatial.field.hyperparameters())


@pytest.mark.broad(2)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("lengthscale", [0.01, 0.37, 8.0])
def test_a_given_lengthscale_stays(field, lengthscale):
    model, _ = fitted(lengthscale=lengthscale, field=field)
    np.testing.assert_allclose(
        model.spatial.field.log_lengthscale.exp().tolist(), lengthscale, rtol=1e-5
    )


# ---- trouble --------------------------------------------------------------------------------------------------------

pyro_may_warn = pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")


def break_steps(monkeypatch: pytest.MonkeyPatch, broken: set[int]) -> None:
    """Make the objective NaN at the given calls."""
    at_each_call(monkeypatch, lambda call: math.nan if call in broken else None)


@pytest.mark.broad(2)
@pyro_may_warn
@pytest.mark.parametrize("step", [1, 5, 14, 28])
def test_a_step_that_is_not_finite_is_rolled_back(step, monkeypatch, log):
    break_steps(monkeypatch, {step})
    model, history = fitted({"rna": "poisson"}, schedule=Schedule(max_steps=40))
    assert len(history.repairs) == 1
    assert f"step {step}: objective not finite, rolled back" in history.repairs[0]
    assert history.repairs[0] in log.text
    assert np.isfinite(history.elbo).all()
    assert history.elbo[-1] > history.elbo[0]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_adam_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))] for _ in range(2)
    )
    own, reference = Adam(ours), torch.optim.Adam(theirs, betas=(0.9, 0.99))
    for step in range(30):
        reference.param_groups[0]["lr"] = rate = 0.1 / (1 + step)
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = None if index and step > 20 else torch.randn(one.shape, generator=generator)
            other.grad = None if one.grad is None else one.grad.clone()
        own.step(rate)
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert own.counts.tolist() == [30, 21]


@pyro_may_warn
def test_after_a_repair_the_walk_goes_on_from_the_last_good_place(monkeypatch):
    rates, remembered, step = [], [], Adam.step

    def recorded(optimizer: Adam, rate: float) -> None:
        rates.append(rate)
        remembered.append(bool(optimizer.counts.any()))
        step(optimizer, rate)

    monkeypatch.setattr(Adam, "step", recorded)
    break_steps(monkeypatch, {13})
    _, history = fitted({"rna": "poisson"}, schedule=Schedule(max_steps=40))
    # kept every ten steps, with rates of q(W) that are one pass fresher the second time
    assert history.elbo[13] == pytest.approx(history.elbo[10], rel=1e-5)
    assert rates[12:14] == [0.2, 0.1]
    assert remembered[12:15] == [True, False, True]  # the momentum that led astray is forgotten


@pytest.mark.broad(4)
@pyro_may_warn
@pytest.mark.parametrize("first", [3, 17, 30, 70, 98])
@pytest.mark.parametrize("likelihood", ["poisson", "nb"])
def test_a_fit_that_breaks_for_good_ends_at_its_best(first, likelihood, monkeypatch, log):
    """In the start, the main phase, the tail and the polish."""
    break_steps(monkeypatch, set(range(first, 10_000)))
    model, history = fitted({"rna": likelihood}, schedule=Schedule(max_steps=100, tol=1e-12))
    assert not history.converged
    step = first - (
        likelihood == "nb" and first > 80
    )  # the bound is looked at once more before the polish
    text = (
        f"step {step}: objective not finite after 8 repairs, stayed at the best parameters so far"
    )
    assert history.repairs[8] == text
    assert text in log.text
    assert np.isfinite(history.elbo).all()
    assert history.elbo[step] == pytest.approx(max(history.elbo[: step + 1 : 10]), rel=0.01)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(view.likelihood.in_surrogate is False for view in model.views if likelihood == "nb")


@pyro_may_warn
def test_a_model_that_cannot_begin_is_given_up(subtests, monkeypatch):
    break_steps(monkeypatch, set(range(1000)))
    message = r"got none from 1 start\(s\), the last of them at step 0: objective not finite after 8 repairs, given up. Check"
    for max_steps in (1, 12, 100):
        with (
            subtests.test(max_steps=max_steps),
            pytest.raises(FloatingPointError, match=message),
        ):
            fitted(schedule=Schedule(max_steps=max_steps))


@pyro_may_warn
def test_a_start_that_cannot_begin_leaves_the_others(monkeypatch):
    break_steps(monkeypatch, set(range(9)))
    _, history = fitted({"rna": "poisson"}, schedule=Schedule(max_steps=60), init="auto")
    assert set(history.starts) == {"smooth_0.1", "spot"}
    assert np.isfinite(list(history.starts.values())).all()
    assert len(history.repairs) == 9
    assert len(history.elbo) == 60


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_gradient_that_is_not_finite_is_rolled_back(value, monkeypatch, log):
    """1e30 is finite, but its square is not, and Adam would never move again."""
    calls = iter(range(10**6))

    def spoilt(optimizer: Adam, rate: float) -> None:
        if next(calls) == 14:
            next(p for p in optimizer.parameters if p.grad is not None).grad.fill_(value)
        step(optimizer, rate)

    step = Adam.step
    monkeypatch.setattr(Adam, "step", spoilt)
    model, history = fitted({"rna": "poisson"}, schedule=Schedule(max_steps=40))
    text = "step 14: gradient or parameters not finite, rolled back and halved the learning rate"
    assert history.repairs == [text]
    assert text in log.text
    assert len(history.elbo) == 40
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_covariance_that_cannot_be_factorised_is_rolled_back(monkeypatch):
    calls, marginals = iter(range(10**6)), Factorization.marginals

    def failing(model: Factorization, block: Any) -> Any:
        if next(calls) == 1 + 14:  # the start is looked at before its first step
            raise ArithmeticError("A covariance matrix could not be factorised.")
        return marginals(model, block)

    monkeypatch.setattr(Factorization, "marginals", failing)
    _, history = fitted({"rna": "poisson"}, schedule=Schedule(max_steps=40))
    text = "step 14: A covariance matrix could not be factorised, rolled back and halved the learning rate"
    assert history.repairs == [text]
    assert len(history.elbo) == 40


def test_numbers_of_a_start_that_are_not_finite_become_zero(monkeypatch):
    load = Factorization.load

    def spoilt(model: Factorization, *args: Any) -> None:
        load(model, *args)
        model.nonspatial.loc.data[3:5] = math.nan

    monkeypatch.setattr(Factorization, "load", spoilt)
    model, history = fitted({"rna": "poisson"})
    assert history.repairs == ["step 0: 2 parameters of start spot not finite, set to 0"]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("likelihood", ["poisson", "nb"])
def test_a_fit_never_ends_worse_than_it_began(likelihood, log):
    """At a rate at which Adam overshoots from the first step."""
    schedule = Schedule(max_steps=4, learning_rate=20.0, polish_rate=20.0)
    model, history = fitted({"rna": likelihood}, schedule=schedule)
    (text,) = [
        text
        for text in history.repairs
        if text.startswith("step 3" if likelihood == "nb" else "step 4")
    ]
    assert "below its start" in text
    assert text in log.text
    if likelihood == "poisson":
        blocks = model.blocks(problem({"rna": likelihood})[1])
        assert bound.elbo(model, blocks) == pytest.approx(history.elbo[0], rel=1e-6)


def test_bounds_that_hold_parameters_are_reported(monkeypatch):
    monkeypatch.setattr(
        HilbertField, "clamp_", lambda field: field.log_amplitude.data.fill_(math.log(0.05))
    )
    monkeypatch.setattr(bound, "MEAN_RANGE", (-0.5, 8.0))
    _, history = fitted({"rna": "poisson"}, lengthscale=0.04)
    clamp, amplitude = history.notices
    assert re.fullmatch(r"log factors at an end of their range for \d+ of 180 values", clamp)
    assert amplitude == "amplitude at its floor of 0.05 for 2 of 2 spatial factors"


@pytest.mark.slow
@pyro_may_warn
def test_a_repair_never_goes_back_to_another_start(monkeypatch):
    """The objective breaks once, in the first step of the second start: all starts still begin where they should."""
    schedule, first = Schedule(max_steps=60), []
    record = Stepper._record

    def recorded(stepper: Stepper, phase: str, value: float) -> None:
        record(stepper, phase, value)
        first.extend([value] if len(stepper.state.walk.elbo) == 1 else [])

    monkeypatch.setattr(Stepper, "_record", recorded)
    fitted({"rna": "poisson"}, schedule=schedule, init="auto")
    undisturbed, first[:] = list(first), []
    break_steps(monkeypatch, {25})
    _, history = fitted({"rna": "poisson"}, schedule=schedule, init="auto")
    assert len(history.repairs) == 1
    np.testing.assert_allclose(first, undisturbed, rtol=1e-6)
    assert len(history.elbo) == 60


# ---- repeating and leaving no trace ---------------------------------------------------------------------------------


@pytest.mark.broad(1)
@pytest.mark.parametrize("options", [{}, {"n_samples": 2}, {"field": "inducing"}], ids=str)
def test_the_same_seed_gives_the_same_bits(options):
    (first, history), (second, again) = (fitted(seed=3, init="smooth", **options) for _ in range(2))
    np.testing.assert_array_equal(history.elbo, again.elbo)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_other_seeds_differ():
    (first, _), (second, _) = (fitted(seed=seed) for seed in (0, 1))
    assert not torch.equal(first.views[0].loadings.raw, second.views[0].loadings.raw)


def test_global_state_is_as_before(subtests):
    for n_samples, validate in product((None, 2), (True, False)):
        with subtests.test(n_samples=n_samples, validate=validate):
            pyro.get_param_store().setdefault("mine", torch.tensor(1.5))
            with pyro.validation_enabled(validate):
                before = global_state()
                fitted(n_samples=n_samples)
                after = global_state()
            pyro.clear_param_store()
            assert before.pop("parameters").keys() == after.pop("parameters").keys() == {"mine"}
            assert before == after


@pyro_may_warn
def test_global_state_survives_an_error(monkeypatch):
    before = global_state()
    break_steps(monkeypatch, set(range(1000)))
    with pytest.raises(FloatingPointError):
        fitted()
    assert global_state() == before


def test_models_share_nothing():
    model, dataset = problem()
    other, _ = problem()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    training.fit(model, dataset, schedule=SHORT, init="spot")
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    theirs = {value.data_ptr() for value in model.state_dict().values()}
    assert not theirs & {value.data_ptr() for value in other.state_dict().values()}


def test_a_fit_begins_anew_wherever_the_parameters_are():
    first, dataset = problem()
    expected = training.fit(first, dataset, schedule=SHORT, init="spot")
    again = training.fit(problem()[0], dataset, schedule=SHORT, init="spot")
    np.testing.assert_array_equal(expected.elbo, again.elbo)


def test_progress_is_shown_on_request(capsys):
    model, dataset = problem()
    with Progress("fit", SHORT.max_steps, shown=True) as progress:
        training.fit(model, dataset, schedule=SHORT, init="spot", progress=progress)
    shown = capsys.readouterr()
    assert "fit, finding factors" in shown.err
    assert not shown.out
    training.fit(problem()[0], dataset, schedule=SHORT, init="spot")
    assert not capsys.readouterr().err.replace("\r", "").strip()


# ---- the Monte Carlo objective --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_monte_carlo_lands_near_the_closed_form():
    schedule, results = Schedule(max_steps=150, tol=1e-12), []
    for n_samples in (None, 5):
        model, dataset = problem({"rna": "poisson"}, n_samples=n_samples)
        training.fit(model, dataset, schedule=schedule, init="spot")
        model.n_samples = None
        blocks = model.blocks(dataset)
        results.append((bound.elbo(model, blocks), model.marginals(blocks[0])[0].detach().numpy()))
    (closed, m), (sampled, other) = results
    assert sampled == pytest.approx(closed, rel=0.03)
    for k in range(3):
        assert np.corrcoef(m[:, k], other[:, k])[0, 1] > 0.95


def test_histories_are_records():
    _, history = fitted()
    assert isinstance(history, History)
    assert history.repairs == []
