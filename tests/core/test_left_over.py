"""Patterns that a start leaves over, and the factor whose place they take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mudata import MuData

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.inference import fitting, initial, moves
from gpnsf.core.inference.left_over import LeftOver, fill, leading_pattern
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.steps import Stepper
from gpnsf.core.model.build import build
from gpnsf.core.progress import Progress
from gpnsf.core.scores.metrics import match_factors
from gpnsf.core.types import View
from gpnsf.io.read import read

B, P = 120, 200
half = torch.arange(B) < B // 3


def binned(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts [B, P] of flat rates with a pattern in some features, and the flat rates."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.outer(1 + torch.rand(B, generator=generator), torch.rand(P, generator=generator))
    pattern = torch.outer(strength * half, (torch.arange(P) < 60).float())
    return torch.poisson(flat * (1 + pattern), generator=generator), flat


def test_a_pattern_that_is_left_over_is_found():
    pattern = leading_pattern(*binned(1.5), seed=0)
    assert pattern.shape == (B, 1)
    assert float(pattern.mean()) == pytest.approx(1, abs=1e-5)
    assert np.corrcoef(pattern[:, 0], half)[0, 1] > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_noise_leaves_no_pattern(seed):
    assert leading_pattern(*binned(0.0), seed=seed) is None


def spots(*columns: torch.Tensor) -> torch.Tensor:
    """Factors [N, K] with mean one."""
    H = torch.stack([column.float() + 0.1 for column in columns], 1)
    return H / H.mean(0)


def filled(loadings: torch.Tensor, n_spatial: int = 3) -> torch.Tensor | None:
    """What becomes of two halves of one programme, of another, and of a newcomer in the rest."""
    place = torch.arange(80) // 20
    factors = spots(place == 0, place == 1, place == 2, place == 3)
    flat = torch.full((len(loadings), 1), 0.1)
    view = View("rna", "poisson", None, np.ones(80, np.float32), np.ones(80, bool))
    return fill(factors, {"rna": torch.cat([loadings, flat], 1)}, [view], n_spatial)


programme = torch.zeros(40, 4)
programme[:20, 0] = programme[:20, 1] = programme[20:30, 2] = programme[30:, 3] = 1.0


def at(place: int, factor: torch.Tensor) -> bool:
    """Whether a factor is higher in one of the four places than in any other."""
    own = torch.arange(80) // 20 == place
    return bool(factor[own].min() > factor[~own].max())


def test_two_factors_with_the_same_loadings_are_joined():
    joined = filled(programme)
    assert joined.shape == (80, 3)
    assert joined[:40, 0].min() > joined[40:, 0].max()
    assert at(3, joined[:, 1]), "the newcomer"
    assert at(2, joined[:, 2])


def test_a_small_factor_makes_room():
    loadings = programme.clone()
    loadings[:, 1] = 1e-3
    made = filled(loadings)
    assert [at(place, made[:, k]) for k, place in enumerate([0, 3, 2])] == [True] * 3


def test_a_newcomer_that_is_worth_less_than_all_gets_no_place():
    loadings = programme.clone()
    loadings[:, 3] = 1e-4
    loadings[:20, 1], loadings[10:20, 1] = 0.0, 1.0
    assert filled(loadings) is None


@pytest.fixture(scope="module")
def without_genes():
    """Simulated blocks, the genes of one of which were not measured; which one, and its pattern."""
    mdata = gpnsf.datasets.ggblocks(seed=1)
    own = mdata["rna"].var["pattern"].to_numpy()
    kept = own != own[0]
    lost = int((mdata["rna"].varm["true_loadings"][kept, :4].sum(0) < 1e-6).argmax())
    section = MuData({"rna": mdata["rna"][:, kept].copy(), "atac": mdata["atac"].copy()})
    section.obsm["spatial"] = mdata.obsm["spatial"]
    return section, mdata.obsm["true_factors"][:, lost]


def test_every_start_sees_what_peaks_alone_know(without_genes):
    section, pattern = without_genes
    dataset, _ = read(section, Reading(size_factors=None))
    for start in initial.starts(dataset, 10, 5):
        found = [np.corrcoef(pattern, factor)[0, 1] for factor in start.factors[:, :5].T]
        assert max(found) > 0.75, start.name


def test_a_pattern_that_peaks_alone_know_becomes_a_factor_of_theirs(without_genes):
    section, pattern = without_genes
    section = section.copy()
    gpnsf.tl.fit(section, n_factors=10, size_factors=None, progress=False)
    factors = section.obsm["X_gpnsf"][:, section.uns["gpnsf"]["is_spatial"]]
    r = [np.corrcoef(pattern, factor)[0, 1] for factor in factors.T]
    k = int(np.argmax(r))
    assert r[k] > 0.9
    share = {
        name: table.varm["gpnsf_loadings"][:, k].sum() / table.varm["gpnsf_loadings"].sum()
        for name, table in section.mod.items()
    }
    assert share["rna"] < 0.01 < 0.1 < share["atac"]


@pytest.fixture
def bereft():
    """A fit of four true patterns with four fields and three nonspatial factors, and the truth."""
    section = gpnsf.datasets.ggblocks(n_peaks=36, seed=3)["rna"].copy()
    truth = section.obsm["true_factors"][:, :4]
    dataset, _ = read(section, Reading(size_factors=None, likelihoods={"rna": "poisson"}))
    options = {"schedule": Schedule(max_steps=80), "block_size": None, "seed": 0, "progress": Progress("fit", 1)}  # fmt: skip

    def with_fields(dataset, n_spatial, n_factors=7):
        return build("gpnsf", dataset, n_factors=n_factors, n_spatial=n_spatial)

    run = fitting._Fit(dataset, with_fields, options)
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


def test_what_does_not_raise_the_objective_is_undone(bereft, monkeypatch):
    run, _ = bereft
    lose(run, 1)
    objectives = iter([0.0, -1.0])
    monkeypatch.setattr(fitting, "elbo", lambda model, blocks: next(objectives))
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
