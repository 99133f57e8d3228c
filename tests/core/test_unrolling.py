"""The network of updates: it learns, and is what it was after a detour through arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from gpnsf.core.companions import unrolling
from gpnsf.core.companions.deconvolution import normalised, summarised
from gpnsf.core.companions.pseudospots import Places
from gpnsf.core.companions.resemblance import Makeup, Products, Resembling
from gpnsf.core.companions.unrolling import Network, Section
from gpnsf.core.scores.neighbours import ties

SIDE = 8
COORDS = np.column_stack(np.divmod(np.arange(SIDE**2), SIDE)).astype(float)


def shapes(depth: float = 60.0, n_types: int = 4):
    """Places on a lattice, and profiles of types that resemble one another."""
    rng = np.random.default_rng(0)
    profiles = rng.lognormal(0, 1, (50, 1)) * rng.lognormal(0, 0.6, (50, n_types))
    totals = depth * rng.lognormal(0, 0.4, SIDE**2)
    return Places(COORDS, np.zeros(SIDE**2), totals, 1.0, 4), profiles


def examples(number: int, seed: int = 0, depth: float = 60.0):
    places, profiles = shapes(depth)
    makeup = np.array([Makeup(2.0, 2.0, 0.2, 0.5, 100.0, 0.0)])
    like = Resembling(places, Products.of(profiles), makeup, np.ones(1), 1.0)
    for one in like.sections(number, np.random.default_rng(seed)):
        yield Section.of(one.mixture, one.ties, unit=1.0), torch.as_tensor(one.truth)


def error(network: Network, seed: int = 99) -> float:
    pairs = [
        (normalised(unrolling.solve(network, one))[0], truth.numpy())
        for one, truth in examples(6, seed)
    ]
    return float(
        np.mean([np.linalg.norm(share - truth) / np.linalg.norm(truth) for share, truth in pairs])
    )


@pytest.mark.parametrize("shared", [pytest.param(True, marks=pytest.mark.slow), False])
def test_learning_lowers_the_error_on_new_sections(shared):
    network = Network(8, shared=shared)
    before = error(network)
    losses = unrolling.train(network, examples(40))
    assert losses.shape == (40,)
    assert error(network) < 0.97 * before


def with_regions(number: int):
    """Sections in whose halves other types are rare, and which know of the halves."""
    half = (COORDS[:, 0] >= SIDE / 2).astype(np.int64)
    for seed in range(number):
        section, truth = next(examples(1, seed))
        truth = truth * torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])[half] + 1e-3
        contrast = (half[section.row] != half[section.column]) * 4.0
        changed = {"contrast": torch.as_tensor(contrast), "region": torch.as_tensor(half)}
        yield replace(section, **changed), truth / truth.sum(dim=1, keepdim=True)


def test_every_parameter_is_learned():
    network = Network(5, group=0.1, costs=(2, 4))
    before = network.arrays()
    names = [*unrolling.PARAMETERS, *unrolling.OF_GROUPS]
    unrolling.train(network, with_regions(3), names=names)
    after = network.arrays()
    assert list(after) == names
    assert not [name for name in before if np.array_equal(before[name], after[name])]


def test_costs_are_learned_of_the_types_that_a_region_lacks():
    network = Network(8, group=0.1, costs=(2, 4))
    unrolling.train(network, with_regions(40), names=[*unrolling.PARAMETERS, *unrolling.OF_GROUPS])
    costs = network.costs.softmax(1).detach().numpy()
    assert costs[0, 2:].sum() > 0.7
    assert costs[1, :2].sum() > 0.7
    assert network.log_group.exp().mean() > 0.1


def test_layers_have_parameters_of_their_own_unless_shared():
    assert {name: value.shape for name, value in Network(7).arrays().items()} == {
        "log_spatial": (7,), "log_total": (7,), "log_bandwidth": (1,), "log_region_bandwidth": (1,), "even": (1,),
    }  # fmt: skip
    assert all(value.shape == (1,) for value in Network(7, shared=True).arrays().values())


def test_arrays_bring_a_network_back():
    network = Network(6)
    unrolling.train(network, examples(4))
    again = Network(6)
    again.restore(network.arrays())
    section = next(examples(1, seed=5))[0]
    np.testing.assert_array_equal(
        unrolling.solve(again, section), unrolling.solve(network, section)
    )


def test_the_same_sections_teach_the_same_to_the_bit():
    networks = [Network(6), Network(6)]
    losses = [unrolling.train(network, examples(5)) for network in networks]
    np.testing.assert_array_equal(*losses)
    for name, value in networks[0].arrays().items():
        np.testing.assert_array_equal(value, networks[1].arrays()[name])


@pytest.mark.parametrize("value", [-60.0, 60.0])
def test_extreme_parameters_give_finite_abundances_and_gradients(value):
    network = Network(20)
    network.restore({name: np.full_like(array, value) for name, array in network.arrays().items()})
    section, truth = next(examples(1))
    V = network(section)
    assert torch.isfinite(V).all()
    assert unrolling.SMALLEST <= float(V.detach().min())
    assert float(V.detach().max()) <= unrolling.LARGEST
    unrolling.train(network, [(section, truth)])
    assert all(np.isfinite(array).all() for array in network.arrays().values())


def test_spots_without_counts_pass_through_the_layers():
    places, profiles = shapes()
    rng = np.random.default_rng(1)
    counts = rng.poisson(
        np.outer(places.totals, profiles.mean(axis=1) / profiles.sum()) + 0.1
    ).astype(float)
    counts[20] = 0
    mixture = summarised(sp.csr_matrix(counts), profiles)
    V = unrolling.solve(
        Network(10), Section.of(mixture, ties(COORDS, np.zeros(64), n_neighbors=4), unit=1.0)
    )
    assert np.isfinite(V).all()
