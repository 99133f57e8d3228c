"""Moves: they are found, they change what they should, they are kept where they help and leave no trace where not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from reference import toy_dataset

import gpnsf
from gpnsf.core.inference import bound, moves, standing, training
from gpnsf.core.inference.moves import Move
from gpnsf.core.inference.regroup import regrouped
from gpnsf.core.inference.schedule import Phase, Schedule
from gpnsf.core.model.build import build
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.scores.metrics import match_factors
from gpnsf.core.types import Dataset

N, P, T, K = 90, 16, 3, 5
QUIET = Schedule(max_steps=60, moves=0, pick_steps=5, min_steps=20)


def problem(likelihood: str = "poisson", block_size: int | None = None, *, fitted: bool = False):
    """A dataset, a model of three spatial and two nonspatial factors, its blocks and their graph."""
    dataset = toy_dataset({"rna": likelihood, "atac": "bernoulli"}, n_obs=N, n_features=P)
    model = build("gpnsf", dataset, n_factors=K, n_spatial=T)
    blocks = model.blocks(dataset, block_size)
    if fitted:
        training.fit(model, dataset, init="spot", schedule=QUIET)
    else:
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        for view in model.views:  # each factor has features of its own
            for k in range(K):
                view.loadings.raw.data[3 * k : 3 * k + 3, k] += 3.0
        model.prepare(blocks)
    model.look(blocks)
    return dataset, model, blocks, standing.neighbours(blocks)


@torch.no_grad()
def divide(model: Factorization, k: int, l: int, share: float = 0.5) -> None:
    """Two spatial factors in the place of one, each with a share of its loadings."""
    field = model.spatial.field
    for name, parameter in field.named_parameters():
        axis = field.factor_axis(name)
        parameter.select(axis, l).copy_(parameter.select(axis, k))
    for view in model.views:
        view.loadings.raw[:, l] = view.loadings.raw[:, k] + np.log(share)
        view.loadings.raw[:, k] += np.log(1 - share)
        view.loadings.log_shape[l] = view.loadings.log_shape[k]


def run(model: Factorization, dataset: Dataset, blocks: list[Block]) -> training.Optimisation:
    """An optimisation that has arrived at its moves, with something for Adam to remember."""
    found = training.Optimisation(model, dataset, blocks=blocks, schedule=Schedule(max_steps=300))
    for _ in range(3):
        found.stepper.step("main", 0.05)
    return found


def phase_of(found: training.Optimisation) -> Phase:
    return next(phase for phase in found.phases if phase.name == training.MOVE)


# ---- what is proposed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [Move(((0, 2),)), Move(divided=2)], ids=["merged", "divided"])
def test_two_halves_of_a_factor_are_proposed_and_become_one(move):
    _, model, blocks, graph = problem()
    divide(model, 0, 2)
    model.look(blocks)
    with torch.no_grad():
        before = [
            model.moments(name, blocks[0]).mean @ view.loadings.mean.T
            for name, view in model.items()
        ]
    proposed = [found for found in moves.proposals(model, blocks, graph) if not found.promotion]
    assert {proposed[0].divided, proposed[1].divided} == {0, 2}  # each is all there is of the other
    assert any(set(found.merges) & {(0, 2), (2, 0)} for found in proposed)
    elbo = bound.elbo(model, blocks)
    moves.make(move, model, blocks)
    assert bound.elbo(model, blocks) > elbo
    m = standing.log_factors(model, blocks)
    share = standing.shares(model, m)
    assert (share[:, 2] < standing.ALIVE).all()
    assert (share[:, [0, 1]] > standing.ALIVE).all()
    with torch.no_grad():
        after = [
            model.moments(name, blocks[0]).mean @ view.loadings.mean.T
            for name, view in model.items()
        ]
    for one, other in zip(before, after, strict=True):
        assert (one - other).norm() < 0.1 * one.norm()  # a ridge smooths a little


def test_a_nonspatial_factor_with_order_goes_into_a_free_slot():
    dataset, model, blocks, graph = problem()
    with torch.no_grad():
        model.nonspatial.loc[:, 1] = torch.as_tensor(np.sin(3 * dataset.coords[:, 0]))
    moves._switch_off(model, 1)
    first = next(moves.proposals(model, blocks, graph))
    assert first == Move(promotion=(T + 1, 1))
    assert first.name == "nonspatial 4 to spatial 1"
    wanted = model.nonspatial.loc[:, 1].clone()
    loadings = [view.loadings.mean[:, T + 1].clone() for view in model.views]
    moves.make(first, model, blocks)
    m = standing.log_factors(model, blocks)
    assert np.corrcoef(m[:, 1], wanted.detach())[0, 1] > 0.95
    assert (model.nonspatial.loc[:, 1] == 0).all()
    for view, W in zip(model.views, loadings, strict=True):
        torch.testing.assert_close(view.loadings.mean[:, 1], W * wanted.mean().exp())
    assert (standing.shares(model, m)[:, T + 1] < standing.ALIVE).all()


def test_without_a_free_slot_the_most_alike_pair_makes_room():
    dataset, model, blocks, graph = problem()
    divide(model, 0, 2, share=0.3)
    with torch.no_grad():
        model.nonspatial.loc[:, 0] = torch.as_tensor(2 * np.sin(3 * dataset.coords[:, 0]))
    first = next(moves.proposals(model, blocks, graph))
    slot = first.divided
    assert slot in (0, 2)
    assert first == Move(divided=slot, promotion=(T, slot))
    assert first.name == f"divide {slot}, nonspatial 3 to spatial {slot}"
    moves.make(first, model, blocks)
    wanted = np.sin(3 * dataset.coords[:, 0])
    assert np.corrcoef(standing.log_factors(model, blocks)[:, slot], wanted)[0, 1] > 0.95


def test_factors_that_differ_are_left_alone():
    _, model, blocks, graph = problem()
    with torch.no_grad():
        model.nonspatial.loc.normal_(generator=torch.Generator().manual_seed(0))
    assert not [move for move in moves.proposals(model, blocks, graph) if not move.promotion]
    assert not moves.join(model, blocks, graph)


@pytest.mark.parametrize("block_size", [None, 31])
def test_likeness_does_not_depend_on_blocks_or_on_scale(block_size):
    _, model, blocks, _ = problem(block_size=block_size)
    m = standing.log_factors(model, blocks)
    assert m.shape == (N, K)
    products = standing.overlap(model, m)
    np.testing.assert_allclose(products, products.T)
    assert (np.linalg.eigvalsh(products) > -1e-6).all()
    scale = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0])
    for view in model.views:
        view.loadings.raw.data[:, :-1] -= scale
    np.testing.assert_allclose(standing.overlap(model, m + scale), products, rtol=1e-3, atol=1e-4)


def test_a_mixture_is_found_with_its_weights():
    W = np.random.default_rng(0).gamma(0.3, 1, (50, 3))
    W = np.column_stack([W, W[:, 0] + 2 * W[:, 2]])
    left, weights = standing.mixture(W.T @ W, 3, [0, 1, 2])
    np.testing.assert_allclose(weights, [1, 0, 2], atol=1e-3)
    assert left < 1e-3
    left, weights = standing.mixture(W.T @ W, 1, [0, 2, 3])
    assert left > 0.5
    assert (weights >= 0).all()


def test_a_factor_that_is_a_mixture_is_divided_among_those_it_is_made_of():
    """Each expects as many counts of every feature as before, in the sum over spots."""
    _, model, blocks, _ = problem()
    with torch.no_grad():
        for view in model.views:
            W = view.loadings.mean
            view.loadings.raw[:, 2] = (0.5 * W[:, 0] + 0.5 * W[:, 1]).log()
        before = [
            model.moments(name, blocks[0]).mean.sum(0) @ view.loadings.mean.T
            for name, view in model.items()
        ]
        moves.make(Move(divided=2), model, blocks)
        after = [
            model.moments(name, blocks[0]).mean.sum(0) @ view.loadings.mean.T
            for name, view in model.items()
        ]
    assert (
        standing.shares(model, standing.log_factors(model, blocks))[:, 2] < standing.ALIVE
    ).all()
    for one, other in zip(before, after, strict=True):
        assert (one - other).norm() < 0.15 * one.norm()  # what the fields leave of it


# ---- kept or undone -------------------------------------------------------------------------------------------------


def test_a_merge_that_helps_is_kept_at_once():
    dataset, model, blocks, _ = problem(fitted=True)
    divide(model, 0, 2)
    found = run(model, dataset, blocks)
    before, n_steps = bound.elbo(model, blocks), len(found.stepper.state.walk.elbo)
    move = Move(((0, 2),))
    assert found._try(move, phase_of(found))
    assert bound.elbo(model, blocks) > before + found.schedule.tol * dataset.nnz
    assert found.stepper.state.tried == [move.name]
    assert len(found.stepper.state.walk.elbo) - n_steps in (0, 10, 20, 30)
    assert not found.stepper.on_trial


def test_a_move_that_is_undone_leaves_no_trace():
    """Parameters, Adam, the random state and the record are as they were, to the bit."""
    dataset, model, blocks, _ = problem(fitted=True)
    found = run(model, dataset, blocks)
    before = found.stepper.captured()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        before.random = torch.get_rng_state()
        assert not found._try(Move(((0, 1),)), phase_of(found))
        after = found.stepper.captured()
        assert torch.equal(torch.get_rng_state(), before.random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert torch.equal(before.moments, after.moments)
    assert before.moments.abs().sum() > 0
    assert torch.equal(before.counts, after.counts)
    assert replace(before.walk, here=0, best=0) == replace(after.walk, here=0, best=0)
    assert torch.equal(before.walk.here, after.walk.here)
    assert torch.equal(before.walk.best, after.walk.best)
    assert (before.tried, after.tried) == ([], ["merge 1 into 0"])
    assert not after.moved


def test_no_more_moves_are_tried_than_the_schedule_allows(monkeypatch):
    dataset, model, blocks, _ = problem(fitted=True)
    names = iter(range(100))
    monkeypatch.setattr(
        moves, "proposals", lambda *_: iter([Move(((next(names) % 2, 2),), (3, 4 + next(names)))])
    )
    monkeypatch.setattr(
        training.Optimisation,
        "_try",
        lambda run, move, phase: run.stepper.state.tried.append(move.name) or False,
    )
    found = run(model, dataset, blocks)
    for _ in range(2):
        found._move(phase_of(found))
    assert len(found.stepper.state.tried) == found.schedule.moves == 6


@pytest.mark.parametrize("options", [{"n_samples": 2}, {"loadings": "point"}], ids=str)
def test_objectives_that_moves_cannot_compare_make_none(options, monkeypatch):
    monkeypatch.setattr(moves, "proposals", lambda *_: pytest.fail("looked for moves"))
    dataset = toy_dataset({"rna": "poisson"}, n_obs=40)
    model = build("gpnsf", dataset, n_factors=4, n_spatial=2, **options)
    history = training.fit(
        model, dataset, init="spot", schedule=Schedule(max_steps=50, min_steps=20, tol=1.0)
    )
    assert "move" not in history.phase


# ---- before the local stage -----------------------------------------------------------------------------------------


def test_factors_with_equal_loadings_become_one_with_deviations():
    """Two spatial and one nonspatial: with what the field leaves to single spots, no rate changes."""
    _, model, blocks, graph = problem()
    with torch.no_grad():
        for view in model.views:
            for l, share in ((2, 0.5), (T, 0.2)):
                view.loadings.raw[:, l] = view.loadings.raw[:, 0] + np.log(share)
        m = standing.log_factors(model, blocks)
        joint = [0, 2, T]
        before = [m[:, joint].exp() @ view.loadings.mean[:, joint].T for view in model.views]
        joined = moves.join(model, blocks, graph)
        assert list(joined) == [0]
        own = joined[0]
        after = [own.log_factor.exp()[:, None] * view.loadings.mean[:, 0] for view in model.views]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert own.log_factor.mean().abs() < 1e-5
    assert 0 < own.nugget < own.log_factor.var()
    amplitude = model.spatial.field.log_amplitude[0].exp().item()
    assert amplitude**2 + own.nugget == pytest.approx(own.log_factor.var().item(), rel=1e-3)
    share = standing.shares(model, standing.log_factors(model, blocks))
    assert (share[:, [2, T]] < standing.ALIVE).all()
    assert (share[:, 0] > standing.ALIVE).all()


@pytest.mark.parametrize(("z", "kept"), [([9.0, 9.0, 9.0, 2.0, 7.0], T + 1), (None, T)])
def test_nonspatial_factors_with_equal_loadings_become_that_of_most_order(z, kept):
    """Or where nobody knows of order the larger one."""
    _, model, blocks, graph = problem()
    both = [T, T + 1]
    with torch.no_grad():
        for view in model.views:
            view.loadings.raw[:, T + 1] = view.loadings.raw[:, T] + np.log(0.2)

        def rates() -> list[torch.Tensor]:
            H = standing.log_factors(model, blocks)[:, both].exp()
            return [H @ view.loadings.mean[:, both].T for view in model.views]

        before = rates()
        joined = moves.join(model, blocks, graph, z=None if z is None else np.array(z))
        assert list(joined) == [kept]
        share = standing.shares(model, standing.log_factors(model, blocks)).amax(0)
        assert share[[k for k in both if k != kept]] < standing.ALIVE
        for one, other in zip(before, rates(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_mixture_with_an_ordered_nonspatial_factor_becomes_part_of_both():
    """One that will have a field may be a part, and nobody's counts are lost."""
    _, model, blocks, graph = problem()
    with torch.no_grad():
        for view in model.views:
            W = view.loadings.mean
            view.loadings.raw[:, 2] = (0.5 * W[:, 0] + 0.5 * W[:, T]).log()
        m = standing.log_factors(model, blocks)
        expected = [m.exp().sum(0) @ view.loadings.mean[:, :-1].T for view in model.views]
        assert moves.join(model, blocks, graph) == {}, "as long as it is nonspatial"
        assert set(moves.join(model, blocks, graph, [T])) == {0, T}
        m_after = standing.log_factors(model, blocks)
        after = [m_after.exp().sum(0) @ view.loadings.mean[:, :-1].T for view in model.views]
    assert (standing.shares(model, m_after)[:, 2] < standing.ALIVE).all()
    likeness = [torch.corrcoef(torch.stack([m[:, 2].exp(), own[:, T].exp()]))[0, 1] for own in (m, m_after)]  # fmt: skip
    assert likeness[1] > likeness[0] + 0.1
    for one, other in zip(expected, after, strict=True):
        assert (one - other).norm() < 0.15 * one.norm()  # what the field leaves of it


def test_adopted_factors_are_a_field_and_deviations():
    dataset, model, blocks, graph = problem()
    rng = np.random.default_rng(0)
    smooth = np.sin(3 * dataset.coords[:, 0])
    wanted = torch.as_tensor(
        np.column_stack([smooth, smooth + rng.normal(size=N)]), dtype=torch.float32
    )
    first = standing.log_factors(model, blocks)[:, 0]
    adopted = moves.adopt(model, blocks, graph, wanted)
    assert list(adopted) == [1, 2]  # the last spatial ones
    m = standing.log_factors(model, blocks)
    torch.testing.assert_close(m[:, 0], first)
    for i, slot in enumerate(adopted):
        own = adopted[slot]
        torch.testing.assert_close(own.log_factor, wanted[:, i] - wanted[:, i].mean())
        assert np.corrcoef(m[:, slot], smooth)[0, 1] > 0.8
    assert adopted[2].nugget > 3 * adopted[1].nugget
    pure = build("pnmf", dataset, n_factors=2, n_spatial=0)
    assert moves.adopt(pure, pure.blocks(dataset), graph, wanted[:, :0]) == {}


# ---- other numbers of each kind -------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["hilbert", "inducing"])
def test_factors_are_carried_over_as_they_are(field):
    """In another order, and one of them dropped: fields, loadings, likelihoods and multipliers to the bit."""
    dataset = toy_dataset({"rna": "nb", "atac": "bernoulli"}, n_obs=N, n_features=P)
    dataset = replace(dataset, batch=np.repeat([0, 1], N // 2))
    options = {"field": field, "n_inducing": 20}
    old = build("gpnsf", dataset, n_factors=K, n_spatial=T, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in old.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).abs()
    blocks = old.blocks(dataset)
    old.prepare(blocks)
    new = build("gpnsf", dataset, n_factors=4, n_spatial=2, **options)
    m, order = standing.log_factors(old, blocks), [2, 0, 4, 3]
    expected = [old.marginals(block) for block in blocks]
    regrouped(old, new, new.blocks(dataset), m, order)
    for block, moments in zip(new.blocks(dataset), expected, strict=True):
        for found, wanted in zip(new.marginals(block), moments, strict=True):
            torch.testing.assert_close(found, wanted[:, order], rtol=1e-5, atol=1e-6)
    columns = [*order, K]
    for one, other in zip(old.views, new.views, strict=True):
        assert torch.equal(other.loadings.raw, one.loadings.raw[:, columns])
        assert torch.equal(other.loadings.log_shape, one.loadings.log_shape[columns])
        assert torch.equal(other.log_multipliers, one.log_multipliers)
        assert torch.equal(other.loadings.level, one.loadings.level)
        assert other.loadings.charge == one.loadings.charge
        for name, value in one.likelihood.state_dict().items():
            assert torch.equal(value, other.likelihood.state_dict()[name])
    for name in ("log_lengthscale", "log_amplitude"):
        assert torch.equal(
            getattr(new.spatial.field, name), getattr(old.spatial.field, name)[[2, 0]]
        )


def test_factors_that_change_sides_keep_their_pattern_and_rates():
    _, old, blocks, _ = problem()
    m = standing.log_factors(old, blocks)
    dataset = toy_dataset({"rna": "poisson", "atac": "bernoulli"}, n_obs=N, n_features=P)
    new = build("gpnsf", dataset, n_factors=K, n_spatial=2)
    order = [0, T, 1, 2, T + 1]  # one spatial factor for a nonspatial one
    regrouped(old, new, new.blocks(dataset), m, order)
    found = standing.log_factors(new, blocks)
    for k, source in enumerate(order):
        if k == 1:  # independent values into a field: what is smooth of them
            continue
        torch.testing.assert_close(
            found[:, k] - found[:, k].mean(),
            m[:, source] - m[:, source].mean(),
            rtol=1e-4,
            atol=1e-4,
        )
        for one, other in zip(old.views, new.views, strict=True):
            rates = [torch.outer(h.exp(), W) for h, W in
                     ((m[:, source], one.loadings.mean[:, source]), (found[:, k], other.loadings.mean[:, k]))]  # fmt: skip
            torch.testing.assert_close(*rates, rtol=1e-3, atol=1e-4)


# ---- the bound on the number of factors -----------------------------------------------------------------------------


@pytest.mark.slow
def test_factors_that_the_counts_do_not_ask_for_are_dropped():
    rng = np.random.default_rng(0)
    xy = rng.uniform(-1, 1, (250, 2))
    truth = np.exp(1.5 * np.column_stack([np.sin(4 * xy[:, 0]), np.cos(4 * xy[:, 1])]))
    W = rng.gamma(0.4, 2.0, (40, 2))
    counts = sp.csr_matrix(rng.poisson(truth @ W.T).astype(np.float32))
    adata = gpnsf_object(counts, xy)
    options = {
        "likelihoods": "poisson",
        "size_factors": None,
        "split": "assumed",
        "init": "spot",
        "progress": False,
    }
    gpnsf.tl.fit(adata, n_factors=10, n_spatial=5, max_steps=150, **options)
    info, found = adata.uns["gpnsf"], adata.obsm["X_gpnsf"]
    assert info["n_factors_asked"] == 10
    assert 2 <= found.shape[1] < 10
    assert info["is_spatial"].sum() <= 5
    assert match_factors(truth, found)[1].min() > 0.9


def gpnsf_object(counts: sp.csr_matrix, xy: np.ndarray):
    from anndata import AnnData

    return AnnData(counts, obsm={"spatial": xy})
