"""Weights of modalities: what held-out counts confirm of their loadings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.inference.confirmed import LEAST, confirmed, weighed, weights
from gpnsf.core.inference.spatial_test import halves
from gpnsf.core.model.build import build
from gpnsf.core.scores.metrics import match_factors
from gpnsf.io.read import read

NOTHING = "confirm next to nothing of what modality 'atac'"


@pytest.fixture(scope="module")
def section():
    return gpnsf.datasets.ggblocks(n_side=18, n_genes=80, n_peaks=200, seed=0)


def with_other_rows(mdata):
    """The same with open peaks of other spots."""
    mdata = mdata.copy()
    order = np.random.default_rng(0).permutation(mdata.n_obs)
    mdata["atac"].X = mdata["atac"].X[order]
    return mdata


def divided(mdata):
    """Two halves of the counts, and a model of seven factors for them."""
    likelihoods = {"rna": "poisson", "atac": "bernoulli"}
    data, _ = read(mdata, Reading(size_factors=None, likelihoods=likelihoods))
    parts = halves(data, np.random.default_rng(0))
    return build("gpnsf", parts[0], n_factors=7, n_spatial=0), *parts


def at_truth(mdata):
    """What is confirmed of the true factors and loadings."""
    model, fitted, kept = divided(mdata)
    for name, view in model.items():
        table = mdata[name]
        W = np.column_stack([table.varm["true_loadings"], table.var["true_background"]]) / 2
        view.loadings.load(torch.as_tensor(W).float())
    H = torch.as_tensor(mdata.obsm["true_factors"]).float()
    return confirmed(model, torch.log(H + 1e-6), fitted, kept)


def at_chance(mdata):
    """What is confirmed of the means of groups that spots were put into by chance."""
    model, fitted, kept = divided(mdata)
    group = np.random.default_rng(1).integers(7, size=mdata.n_obs)
    H = np.eye(7)[group]
    for view, (_, part) in zip(fitted.views, model.items(), strict=True):
        W = (view.counts.T @ H) / H.sum(0)
        part.loadings.load(torch.as_tensor(np.column_stack([W, 0 * W[:, 0]])).float())
    return confirmed(model, torch.as_tensor(np.log(H + 1e-6)).float(), fitted, kept)


def test_truth_is_confirmed_and_chance_is_not(section):
    assert min(at_truth(section).values()) > 0.8
    shallow = gpnsf.datasets.ggblocks(n_side=18, n_genes=80, n_peaks=200, depth=0.01, seed=0)
    assert max(at_chance(shallow).values()) < 0.1
    assert at_truth(with_other_rows(section))["atac"] == 0


def test_weights_grow_with_the_counts():
    shares = [{"rna": 0.6, "atac": 0.1}, {"rna": 0.4, "atac": 0.1}]
    same, double = weights(shares, 1.0), weights(shares, 2.0)
    assert same == pytest.approx({"rna": 1, "atac": 0.2})
    assert double == pytest.approx({"rna": 1, "atac": (0.2 / 1.1) / (1 / 1.5)})
    assert weights(shares, 1e6)["atac"] == pytest.approx(1, abs=1e-4)
    assert weights([{"rna": 0.5, "atac": 0.0}], 2.0)["atac"] == LEAST
    assert weights([{"rna": 0.0, "atac": 0.0}], 2.0) == {}


def test_modalities_that_are_not_named_keep_their_weight(section):
    data, _ = read(section, Reading(modality_weights={"rna": 3}))
    found = weighed(data, {"atac": 0.2})
    assert [view.weight for view in found.views] == [3.0, 0.2]
    assert data.views[1].weight == 1.0


@pytest.mark.slow
def test_peaks_of_other_spots_take_nothing_from_the_genes(section):
    """A pairing that is wrong leaves the factors of RNA alone, gets the least weight and is told."""
    mixed, T = with_other_rows(section), 4
    options = {"n_factors": 8, "size_factors": None, "progress": False}
    alone = gpnsf.tl.fit(section["rna"], copy=True, likelihoods={"rna": "nb"}, **options)
    gpnsf.tl.fit(mixed, **options)
    info = mixed.uns["gpnsf"]
    assert info["modality_weights"] == {"rna": 1.0, "atac": LEAST}
    assert any(NOTHING in text for text in info["warnings"])

    def recovered(data):
        spatial = data.obsm["X_gpnsf"][:, data.uns["gpnsf"]["is_spatial"]]
        return match_factors(section.obsm["true_factors"][:, :T], spatial)[1]

    assert recovered(mixed).min() > recovered(alone).min() - 0.01


@pytest.mark.slow
def test_weights_that_are_given_are_kept(section):
    mixed, given = with_other_rows(section), {"rna": 1.0, "atac": 0.5}
    gpnsf.tl.fit(mixed, n_factors=4, max_steps=20, modality_weights=given, progress=False)
    assert mixed.uns["gpnsf"]["modality_weights"] == given
    assert not any(NOTHING in text for text in mixed.uns["gpnsf"]["warnings"])
