"""Benchmarks: the page has every table, and sections made for them are what they say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from gpnsf.datasets import ggblocks
from gpnsf.datasets.files import data_dir
from gpnsf.tl.plan import read_plan

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def layers():
    """The module ``benchmarks/layers.py``, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("layers", ROOT / "benchmarks/layers.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "layers", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def paper():
    """The module ``benchmarks/paper.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("paper")
        for name in ("paper", "report"):
            sys.modules.pop(name, None)


@pytest.fixture
def perfect():
    """RNA of a simulated draw, with the truth, turned around and in another order, as a fit of a hybrid model."""
    mdata = ggblocks(n_side=12, n_genes=60, n_peaks=36, seed=0)
    rna, order = mdata["rna"], [2, 0, 3, 1, 5, 4, 6]
    rna.obs["held_out"] = np.arange(rna.n_obs) % 20 == 0
    rna.obsm["X_gpnsf"] = rna.obsm["true_factors"][:, order]
    rna.varm["gpnsf_loadings"] = rna.varm["true_loadings"][:, order]
    rna.var["gpnsf_spatial_importance"] = rna.var["true_spatial_importance"]
    rna.uns["gpnsf"] = {"params": {"model": "nsfh"}, "is_spatial": np.arange(7) < 4}
    return rna


def test_a_fit_that_is_the_truth_has_the_best_scores_of_the_paper(paper, perfect):
    best = {"r": 1, "r, nonspatial": 1, "distances": 1, "ARI": 1, "L1": 0}
    assert paper.judged(perfect) == pytest.approx(best, abs=1e-6)
    perfect.obsm["X_gpnsf"] = -perfect.obsm["X_gpnsf"]
    assert paper.judged(perfect) == pytest.approx(best, abs=1e-6)
    truth = perfect.obsm["true_factors"]
    for k, (values, r) in enumerate(paper.matched(perfect)):
        np.testing.assert_array_equal(np.abs(values), truth[:, k])
        assert r == pytest.approx(1.0, abs=1e-6)
    spatial = perfect.copy()  # as a draw without nonspatial patterns
    spatial.obsm["true_factors"] = truth[:, :4]
    assert paper.judged(spatial)["r"] == pytest.approx(1.0, abs=1e-6)
    assert np.isnan(paper.judged(spatial)["r, nonspatial"])
    perfect.obsm["X_gpnsf"] = perfect.obsm["X_gpnsf"][:, [0, 1, 4, 5, 6]]  # two are missing
    perfect.uns["gpnsf"]["is_spatial"] = np.arange(5) < 2
    noise = np.random.default_rng(0).random((perfect.n_vars, 5)) / 10  # distinct for k-means
    perfect.varm["gpnsf_loadings"] = perfect.varm["gpnsf_loadings"][:, [0, 1, 4, 5, 6]] + noise
    assert 0.5 < paper.judged(perfect)["r"] < 0.7
    assert sum(np.isnan(values).any() for values, _ in paper.matched(perfect)) == 2


def test_the_grids_of_the_paper_are_legal_and_every_model_is_in_both(paper):
    for kind in paper.VARIANTS:
        runs = read_plan(paper.spec(kind, 3))
        assert {run.model for run in runs} == paper.NAMES.keys()
        assert {run.data for run in runs} == {
            f"{n} {d}" for n in paper.SIMULATIONS for d in range(3)
        }
        assert {run.source["nonspatial"] for run in runs} == {kind == "mixed"}


def test_every_table_is_shown_and_every_table_shown_is_there():
    shown = re.findall(r"\{include\} benchmark_tables/(\w+)\.md", PAGE)
    there = (ROOT / "docs/benchmark_tables").glob("*.md")
    assert sorted(shown) == sorted(path.stem for path in there)


def test_every_benchmark_named_on_the_page_is_there():
    names = set(re.findall(r"gpnsf benchmark (\w+)", PAGE))
    assert names <= {path.stem for path in (ROOT / "benchmarks").glob("*.py")}


def test_waves_have_the_depth_asked_for_and_follow_the_seed(layers):
    arguments = {"n_obs": 300, "n_genes": 60, "n_peaks": 200}
    one, same, other = (layers.waves(seed, **arguments) for seed in (1, 1, 2))
    assert (one["rna"].X != same["rna"].X).nnz == 0
    assert one.obsm["true_factors"].shape == (300, 10)
    assert not np.allclose(one.obsm["true_factors"], other.obsm["true_factors"])
    assert 200 < one["rna"].X.sum(1).mean() < 450
    assert one["atac"].X.max() == 1


@pytest.mark.broad(1)
@pytest.mark.skipif(data_dir() is None, reason="GPNSF_DATA_DIR does not name the data folder")
@pytest.mark.parametrize("name", ["deep", "shallow", "faint"])
def test_layered_sections_have_the_layers_and_the_depth_that_they_say(layers, name):
    layout, data = layers.LAYOUTS[name], layers.layers(name, seed=3)
    shares = data.obs["layer"].value_counts(normalize=True, sort=False)
    np.testing.assert_allclose(shares, layout.sizes, atol=1e-3)
    for modality, depth in {"rna": layout.rna_depth, "atac": layout.atac_depth}.items():
        assert 0.9 * depth < data[modality].X.sum(1).mean() < 1.05 * depth
    logs = [np.log1p(np.asarray(data[modality].X.sum(1)).ravel()) for modality in ("rna", "atac")]
    assert np.corrcoef(logs)[0, 1] > 0.7  # .84 in the measured section
    assert (layers.layers(name, seed=3)["atac"].X != data["atac"].X).nnz == 0
