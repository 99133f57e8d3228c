"""Layers that are learned from sections whose proportions are known."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

import gpnsf

OPTIONS = {"label_key": "cell_type", "n_layers": 6, "n_passes": 6, "progress": False}


@pytest.fixture(scope="module")
def drawn():
    """Three sections, in whose regions types differ; the same cells describe them."""
    made = [
        gpnsf.datasets.mixture(
            n_obs=100, n_genes=80, n_types=4, depth=60.0, n_regions=3, difference=0.5, seed=seed
        )
        for seed in range(3)
    ]
    cells = made[0][1]
    profiles = made[0][0].varm["true_profiles"]
    for seed, (spots, _) in enumerate(made):  # the same profiles for all
        rate = spots.obsm["true_proportions"] @ (profiles / profiles.sum(axis=0)).T * 60
        spots.X = np.random.default_rng(seed).poisson(rate).astype(np.float32)
    return [spots for spots, _ in made], cells


def error(spots, cells, **options) -> float:
    options = {"label_key": "cell_type", "progress": False, **options}
    gpnsf.tl.deconvolve(spots, cells, **options)
    return float(gpnsf.tl.evaluate_deconvolution(spots, "true_proportions")["relative_error"][0])


def test_what_known_sections_teach_helps_with_another(drawn):
    sections, cells = drawn
    new = sections[2].copy()
    network = gpnsf.tl.train_unrolled(sections[:2], cells, "true_proportions", **OPTIONS)
    plain = error(new, cells, method="nnls")
    assert error(new, cells, method="unrolled", train=False, network=network) < 0.8 * plain
    assert len(network["loss"]) == 12
    assert not {"costs", "regions"} & network.keys()


def test_costs_of_regions_are_learned_and_used(drawn):
    sections, cells = drawn
    one = sections[0].copy()
    amounts = pd.DataFrame(one.obsm["true_proportions"], columns=[f"type_{k}" for k in range(1, 5)])
    network = gpnsf.tl.train_unrolled(one, cells, amounts, region_key="region", **OPTIONS)
    regions = sorted(one.obs["region"].astype(str).unique())
    assert network["regions"] == regions
    assert network["costs"].shape == (3, 4)
    cost = network["costs"] - network["costs"].mean(axis=1, keepdims=True)
    share = np.array([amounts[(one.obs["region"] == name).to_numpy()].mean() for name in regions])
    assert np.corrcoef(cost.ravel(), share.ravel())[0, 1] < -0.3
    again = anndata.AnnData(one.X, obs=one.obs, var=one.var, obsm=one.obsm)
    known = {"method": "unrolled", "train": False, "network": network}
    with pytest.raises(ValueError, match="region_key"):
        error(again, cells, **known)
    costs = pd.DataFrame(np.ones((3, 4)), index=regions, columns=amounts.columns)
    with pytest.raises(ValueError, match="one source"):
        error(again, cells, region_key="region", group_costs=costs, group_weight=1.0, **known)
    with_costs = error(again, cells, region_key="region", **known)
    # what the object keeps is the network with its costs
    kept = error(again, cells, region_key="region", method="unrolled", train=False)
    assert kept == pytest.approx(with_costs)
    assert with_costs < error(again, cells, method="nnls")


def test_a_truth_that_teaches_nothing_is_refused(subtests, drawn):
    for sections, truth, kind, match in (
        (2, ["true_proportions"], ValueError, "as many truths as sections"),
        (0, "true_proportions", ValueError, "at least one"),
        (1, "absent", KeyError, "absent"),
        (1, [np.zeros((100, 4))], ValueError, "none in a section"),
    ):
        with subtests.test(sections=sections, truth=truth):
            several, cells = drawn
            with pytest.raises(kind, match=match):
                gpnsf.tl.train_unrolled(several[:sections], cells, truth, **OPTIONS)
