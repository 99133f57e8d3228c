"""A whole fit, between its climbs: what is lost is found again, what is misplaced finds its place."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.fields.kernels import KERNELS
from gpnsf.core.inference import moves, standing
from gpnsf.core.inference.bound import elbo
from gpnsf.core.inference.left_over import LeftOver
from gpnsf.core.inference.order import Order
from gpnsf.core.inference.run import Run
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.steps import Stepper
from gpnsf.core.model.build import build
from gpnsf.core.progress import Progress
from gpnsf.core.scores.metrics import match_factors
from gpnsf.io.read import read

OPTIONS = {
    "schedule": Schedule(max_steps=80),
    "block_size": None,
    "seed": 0,
    "progress": Progress("fit", 1),
}


@pytest.fixture
def bereft():
    """A fit of four true patterns with four fields and three nonspatial factors, and the truth."""
    section = gpnsf.datasets.ggblocks(n_peaks=36, seed=3)["rna"].copy()
    truth = section.obsm["true_factors"][:, :4]
    dataset, _ = read(section, Reading(size_factors=None, likelihoods={"rna": "poisson"}))

    def with_fields(dataset, n_spatial, n_factors=7, n_basis=None):
        return build("gpnsf", dataset, n_factors=n_factors, n_spatial=n_spatial, n_basis=n_basis)

    run = Run(dataset, with_fields, OPTIONS)
    run.begin(4, "auto", None)
    assert worst(run, truth) > 0.9
    return run, truth


def lose(run, *factors: int) -> None:
    """Switch factors of a fit off."""
    with torch.no_grad():
        for k in factors:
            moves._switch_off(run.model, k)
    run.model.look(run.blocks)


def worst(run, truth: np.ndarray) -> float:
    """The smallest correlation of a true pattern with the spatial factor matched to it."""
    T = run.model.n_spatial
    return match_factors(truth, np.exp(run.log_factors()[:, :T]))[1].min()


@pytest.mark.parametrize("tested", [True, False])
def test_a_fit_finds_again_what_it_has_lost(bereft, tested):
    run, truth = bereft
    lose(run, 1)
    assert worst(run, truth) < 0.5
    run.restore_lost(tested=tested)
    assert run.model.n_spatial == 4
    assert worst(run, truth) > 0.9


def test_a_nonspatial_factor_makes_room_for_a_field_where_a_test_follows(bereft):
    run, truth = bereft
    m = run.log_factors()
    run._regroup([0, 1, 2, 4, 5, 6, 3], 3, m)  # one of four fields is an independent factor now
    lose(run, 6)
    model = run.model
    run.restore_lost(tested=False)
    assert run.model is model, "no place among the fields"
    run.restore_lost(tested=True)
    assert run.model.n_spatial == 4
    assert worst(run, truth) > 0.9


def test_two_parts_of_a_factor_are_merged_where_a_pattern_has_no_place(bereft):
    run, truth = bereft
    lose(run, 1)
    with torch.no_grad():
        run.model.spatial.field.take(1, run.model.spatial.field, 0)
        for view in run.model.views:
            view.loadings.raw[:, 0] -= np.log(2)
            view.loadings.put(1, view.loadings.mean[:, 0].clone(), 0)
    run.model.look(run.blocks)
    m = run.log_factors()
    assert run._largest_shares(m).min() > standing.SPARE
    assert worst(run, truth) < 0.5
    run.restore_lost(tested=True)
    assert worst(run, truth) > 0.9


def test_what_does_not_raise_the_objective_is_undone(bereft, monkeypatch):
    run, _ = bereft
    lose(run, 1)
    objectives = iter([0.0, -1.0])
    monkeypatch.setattr("gpnsf.core.inference.run.elbo", lambda model, blocks: next(objectives))
    place, model = run.log_factors(), run.model
    optimisation = run.optimisation
    run.restore_lost(tested=True)
    assert (run.model, run.optimisation) == (model, optimisation)
    np.testing.assert_array_equal(run.log_factors(), place)


def test_a_fit_that_has_lost_nothing_or_has_no_place_stays(bereft):
    run, _ = bereft
    model = run.model
    run.restore_lost(tested=True)
    assert run.model is model


def test_loadings_of_a_pattern_are_what_it_has_more(bereft):
    run, truth = bereft
    k = int(match_factors(truth[:, :1], np.exp(run.log_factors()))[0][0])
    own = next(iter(run.model.views)).loadings.mean[:, k].detach().clone()
    lose(run, k)
    left = LeftOver(run.model, run.blocks, 0)
    pattern = left.pattern("rna")
    assert np.corrcoef(pattern, truth[:, 0])[0, 1] > 0.8
    assert np.corrcoef(left.loadings("rna", pattern), own)[0, 1] > 0.9


def test_a_fit_settles_once_at_the_end(bereft, monkeypatch):
    """However often the model climbs again, within the steps that were asked for."""
    run, _ = bereft
    lose(run, 1)
    phases: list[str] = []
    step = Stepper.step

    def recorded(self, phase, rate):
        phases.append(phase)
        step(self, phase, rate)

    monkeypatch.setattr(Stepper, "step", recorded)
    run.restore_lost(tested=False)
    assert set(phases) <= {"main", "move"}
    n_climb = len(phases)
    run.settle()
    assert set(phases[n_climb:]) == {"tail"}
    history = run.history()
    assert len(history.elbo) == len(history.phase) <= 80
    assert history.phase.tolist()[-1] == "tail"
    assert len(history.starts) > 1, "those of the first climb"
    assert (np.diff(history.seconds) > 0).all()


TEST = SimpleNamespace(rows=np.arange(900))


@pytest.fixture
def misplaced(bereft):
    """The same fit with a field for one of the nonspatial factors, and what the field left of it."""
    run, truth = bereft
    m = run.log_factors()
    run._regroup([0, 1, 2, 3, 5, 4, 6], 5, m)
    run._go_on()
    return run, truth


def test_a_factor_of_single_spots_loses_the_field_that_it_began_with(misplaced):
    run, truth = misplaced
    objective = elbo(run.model, run.blocks)
    run.release(TEST)
    assert run.model.n_spatial == 4
    assert worst(run, truth) > 0.9
    assert elbo(run.model, run.blocks) > objective


def test_it_keeps_it_where_the_objective_is_not_higher(misplaced, monkeypatch):
    run, _ = misplaced
    objectives = iter([0.0, -1.0])
    monkeypatch.setattr("gpnsf.core.inference.run.elbo", lambda model, blocks: next(objectives))
    model = run.model
    run.release(TEST)
    assert run.model is model
    assert next(objectives, None) is None, "it was tried"


def test_fields_that_follow_neighbours_are_left_alone(bereft):
    run, _ = bereft
    model = run.model
    run.release(TEST)
    assert run.model is model


def test_a_change_whose_objective_cannot_be_computed_is_undone(misplaced, monkeypatch):
    run, _ = misplaced
    objectives = iter([0.0, np.nan])
    monkeypatch.setattr("gpnsf.core.inference.run.elbo", lambda model, blocks: next(objectives))
    model = run.model
    assert not run.release(TEST)
    assert run.model is model


def test_no_more_factors_have_a_field_at_the_end_than_may_be_spatial(bereft):
    run, _ = bereft
    order = Order(*np.full((3, 7), 9.0) * np.arange(7, 0, -1))
    run.end(order, 3, local=False)
    assert run.model.n_spatial == 3
    assert run.model.n_factors == 7


def test_a_factor_that_is_smooth_without_a_field_keeps_it(bereft, monkeypatch):
    """Whatever the objective says: it also rises where edges are sharper than a field can be."""
    run, truth = bereft
    monkeypatch.setattr(
        "gpnsf.core.inference.run.misplaced", lambda beyond, size: np.arange(len(beyond)) == 1
    )
    objectives = iter([0.0, 1.0])
    monkeypatch.setattr("gpnsf.core.inference.run.elbo", lambda model, blocks: next(objectives))
    model = run.model
    assert not run.release(TEST)
    assert next(objectives, None) is None, "it was tried"
    assert run.model is model
    assert worst(run, truth) > 0.9


@pytest.fixture
def rough():
    """Counts [1225, 40] of a factor that changes from spot to spot, the factor, and a climb with one field."""

    def make(likelihood: str, theta: float):
        rng = np.random.default_rng(0)
        side = np.linspace(-1, 1, 35)
        coords = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
        distance = np.linalg.norm(coords[:, None] - coords, axis=-1)
        covariance = KERNELS["matern32"].covariance(torch.as_tensor(distance), torch.tensor(0.08))
        f = np.linalg.cholesky(covariance.numpy() + 1e-6 * np.eye(len(coords))) @ rng.normal(size=len(coords))  # fmt: skip
        rate = np.exp(0.8 * f)[:, None] * rng.gamma(2.0, 1.0, 40)
        counts = rng.poisson(rate * rng.gamma(theta, 1 / theta, rate.shape))
        section = AnnData(sp.csr_matrix(counts.astype(np.float32)), obsm={"spatial": coords})
        asked = Reading(size_factors=None, likelihoods={"counts": likelihood})
        dataset, _ = read(section, asked)

        def with_fields(dataset, n_spatial, n_factors=1, n_basis=None):
            return build("nsf", dataset, n_factors=n_factors, n_spatial=n_spatial, n_basis=n_basis)

        run = Run(dataset, with_fields, OPTIONS)
        run.begin(1, "auto", None)
        return run, f

    return make


def test_a_rough_field_gets_more_basis_functions(rough):
    run, f = rough("poisson", 1e4)
    before, objective = fitted_field(run), elbo(run.model, run.blocks)
    run.refine_field()
    field = run.model.spatial.field
    assert field.n_basis > 28
    assert elbo(run.model, run.blocks) > objective
    assert np.corrcoef(f, fitted_field(run))[0, 1] > np.corrcoef(f, before)[0, 1] + 0.02
    run.end(Order.unknown(1), 1, local=True)
    assert run.model.spatial.field.n_basis == field.n_basis


def test_noise_beyond_that_of_poisson_counts_is_no_reason_for_more_basis_functions(
    rough, monkeypatch
):
    run, _ = rough("nb", 0.1)
    monkeypatch.setattr("gpnsf.core.inference.run.finer_basis", lambda field, dataset: 60)
    model, objective = run.model, elbo(run.model, run.blocks)
    run.refine_field()
    assert run.model is model
    assert elbo(run.model, run.blocks) == objective, "surrogates are back"
    monkeypatch.setattr(run, "_go_on", lambda **course: pytest.fail("once is enough"))
    run.refine_field()


def fitted_field(run) -> np.ndarray:
    """The log factor [N] of a fit with one field."""
    return run.log_factors()[:, 0]


def test_a_smooth_factor_with_some_order_is_spatial(bereft):
    """Even where neighbours tell a small part of what the same spots do."""
    run, _ = bereft
    run._regroup([0, 1, 2, 4, 5, 6, 3], 3, run.log_factors())  # the last one is a true pattern
    z, repeated = np.full(7, 40.0), np.full(7, 45.0)
    for some, expected in ((7.0, [6]), (5.0, [])):
        z[3:] = some
        order = Order(z, repeated, z)
        assert not order.clear(3).any()
        assert run._ordered(order, run.log_factors()) == expected


def test_a_spatial_factor_without_order_at_the_last_judgement_is_nonspatial(bereft):
    run, _ = bereft
    z = np.full(7, 40.0)
    z[2] = 1.0
    z[4:] = 0.0
    run.end(Order(z, np.full(7, 45.0), z), 4, local=False)
    assert run.model.n_spatial == 3
    assert run.model.n_factors == 7
    assert run.numbers.tolist() == [0, 1, 3, 2, 4, 5, 6]
