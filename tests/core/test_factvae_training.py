from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from gpnsf.core.companions import factvae_training
from gpnsf.core.companions.factvae_training import Measured, Plan, responses, train
from gpnsf.core.scores.expected import expected_shares
from gpnsf.core.scores.projections import principal_components, semantic_index

CPU = torch.device("cpu")
PLAN = Plan(n_latent=6, max_epochs=4, batch_size=16)
NO_PAIRS = np.zeros((2, 0), dtype=np.int64)


def groups(seed=0, n_obs=90, shapes=((30, 40.0), (50, 25.0))):
    """Simulated counts of three kinds of cells in two modalities, and the kind of each cell."""
    rng = np.random.default_rng(seed)
    kind, sides = rng.integers(3, size=n_obs), []
    for n_features, depth in shapes:
        profiles = rng.gamma(0.3, 1.0, (3, n_features)) + 0.02
        rates = depth * profiles / profiles.sum(axis=1, keepdims=True)
        sides.append(sp.csr_matrix(rng.poisson(rates[kind]).astype(np.float32)))
    return (
        Measured(sides[0], principal_components(sides[0], 10, seed=0)),
        Measured(sides[1], semantic_index(sides[1], 10, seed=0)),
        kind,
    )


@pytest.fixture(scope="module")
def sides():
    return groups()[:2]


def test_the_outcome_has_codes_of_cells_and_embeddings_of_features(sides):
    outcome = train(*sides, NO_PAIRS, PLAN, device=CPU)
    assert [codes.shape for codes in outcome.codes] == [(90, 6), (90, 6)]
    assert [W.shape for W in outcome.embeddings] == [(30, 6), (50, 6)]
    assert {name: len(values) for name, values in outcome.history.items()} == dict.fromkeys(
        ("joint", "regulatory", "alignment", "held_out"), 4
    )
    assert outcome.history["joint"][-1] < outcome.history["joint"][0]
    assert not outcome.history["regulatory"].any()
    assert not outcome.converged
    np.testing.assert_allclose(np.exp(outcome.base[0]).sum(), 1, rtol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_leaves_torchs_random_state(sides):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second, third = (
        train(*sides, NO_PAIRS, replace(PLAN, seed=seed), device=CPU) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b, c in zip(first.codes, second.codes, third.codes, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


@pytest.mark.broad(2)
@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 40},
        {"learning_rate": 3e-3},
        {"as_published": True},
        {"n_latent": 4},
        {"alignment": False},
    ],
)
def test_every_option_of_the_plan_changes_the_outcome(sides, change):
    first, second = (
        train(*sides, NO_PAIRS, plan, device=CPU) for plan in (PLAN, replace(PLAN, **change))
    )
    assert not np.array_equal(first.codes[1], second.codes[1])


def test_training_stops_where_the_cells_held_out_gain_no_more(sides, monkeypatch):
    plan = replace(PLAN, max_epochs=40)
    monkeypatch.setattr(factvae_training, "GAIN", 10.0)  # no epoch after the first gains as much
    outcome = train(*sides, NO_PAIRS, plan, device=CPU)
    assert len(outcome.history["joint"]) == 1 + factvae_training.PATIENCE
    assert outcome.converged


def test_losses_that_become_infinite_are_an_error(sides):
    with pytest.raises(FloatingPointError, match="Lower `learning_rate`"):
        train(*sides, NO_PAIRS, replace(PLAN, learning_rate=1e30), device=CPU)


@pytest.mark.slow
def test_alignment_makes_the_codes_of_peaks_resemble_those_of_genes(sides):
    def distance(alignment):
        plan = replace(PLAN, alignment=alignment, max_epochs=15, learning_rate=5e-3)
        outcome = train(*sides, NO_PAIRS, plan, device=CPU)
        assert bool(outcome.history["alignment"].any()) is alignment
        units = [codes / np.linalg.norm(codes, axis=1, keepdims=True) for codes in outcome.codes]
        first, second = (unit @ unit.T for unit in units)
        cosine = (
            (first * second).sum(axis=1)
            / np.linalg.norm(first, axis=1)
            / np.linalg.norm(second, axis=1)
        )
        return 1 - cosine.mean()

    assert distance(True) < 0.9 * distance(False)


@pytest.mark.slow
def test_pairs_get_like_embeddings_the_more_the_heavier_they_weigh(sides):
    pairs = np.array([[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]])
    mean = []
    for weight in (0.0, 0.1, 5.0):
        plan = replace(PLAN, regulatory_weight=weight, max_epochs=12, learning_rate=5e-3)
        outcome = train(*sides, pairs, plan, device=CPU)
        genes, peaks = (W / np.linalg.norm(W, axis=1, keepdims=True) for W in outcome.embeddings)
        mean.append((genes[pairs[0]] * peaks[pairs[1]]).sum(axis=1).mean())
        assert bool(outcome.history["regulatory"].any()) is (weight > 0)
    assert mean[0] < mean[1] - 0.2
    assert mean[1] < mean[2] <= 1


def test_rows_are_read_from_the_nonzeros(sides):
    cells = factvae_training._Cells(sides[0], CPU)
    rows = torch.tensor([7, 0, 33])
    scores, counts = cells.batch(rows)
    dense = torch.zeros(3, 30)
    dense[counts.row, counts.column] = counts.value
    np.testing.assert_array_equal(dense, sides[0].counts[rows.numpy()].toarray())
    np.testing.assert_array_equal(counts.depth, dense.sum(dim=1))
    np.testing.assert_array_equal(scores, sides[0].scores[rows.numpy()])


def test_cosines_of_responses_are_correlations_of_log_shares():
    rng = np.random.default_rng(0)
    codes = [rng.normal(size=(40, 3)) + 2 for _ in range(2)]
    embeddings = [rng.normal(size=(p, 3)) for p in (5, 8)]
    embeddings = [W - W.mean(axis=0) for W in embeddings]
    logs = [
        np.log(expected_shares(z, W, np.zeros(len(W))))
        for z, W in zip(codes, embeddings, strict=True)
    ]
    logs = [values - values.mean(axis=1, keepdims=True) for values in logs]
    genes, peaks = responses(codes, embeddings)
    assert genes.shape == (5, 6)
    unit = [W / np.linalg.norm(W, axis=1, keepdims=True) for W in (genes, peaks)]
    np.testing.assert_allclose(
        unit[0] @ unit[1].T, np.corrcoef(*logs, rowvar=False)[:5, 5:], atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.norm(peaks, axis=1), logs[1].std(axis=0), rtol=1e-5)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = responses([codes[0] @ turn, codes[1]], [embeddings[0] @ turn, embeddings[1]])
    np.testing.assert_allclose(turned[0] @ turned[1].T, genes @ peaks.T, atol=1e-5)


def test_kinds_of_cells_are_found():
    rna, atac, kind = groups(seed=1)
    plan = replace(PLAN, max_epochs=20, learning_rate=5e-3)
    codes = np.hstack(train(rna, atac, NO_PAIRS, plan, device=CPU).codes)
    centres = np.array([codes[kind == k].mean(axis=0) for k in range(3)])
    nearest = ((codes[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == kind).mean() > 0.97
