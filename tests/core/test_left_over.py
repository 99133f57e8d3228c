"""Patterns that a start leaves over, and the factor whose place they take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mudata import MuData

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.inference import initial
from gpnsf.core.inference.left_over import fill, leading_pattern
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
