"""Benchmarks: the page has every table, and sections made for them are what they say."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gpnsf.datasets import ggblocks
from gpnsf.datasets.files import data_dir
from gpnsf.io.files import read, write
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


@pytest.fixture(scope="module")
def sections():
    """The module ``benchmarks/sections.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.delitem(sys.modules, "sections", raising=False)  # that of the tests, which comes back
        yield importlib.import_module("sections")
        for name in ("sections", "report"):
            sys.modules.pop(name, None)


@pytest.fixture
def stored(sections, tmp_path, monkeypatch):
    """A data folder with a small simulated object under the name of each section."""
    rna = ggblocks(n_side=6, n_genes=30, n_peaks=36, seed=0)["rna"]
    for column in ("section", "library"):
        rna.obs[column] = np.where(np.arange(rna.n_obs) < 18, "a", "b")
    rna.obs_names = rna.obs_names.astype("string")
    for name in sections.SECTIONS:
        write(rna, tmp_path / f"{name}.h5ad")
    monkeypatch.setenv("GPNSF_DATA_DIR", str(tmp_path))
    return rna


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


def test_every_real_section_is_fitted_with_all_models_and_both_kinds_of_noise(
    sections, stored, tmp_path
):
    for name, section in sections.SECTIONS.items():
        path = sections.prepared(name, tmp_path / "made")
        runs = read_plan(sections.spec(name, path, 2))
        known = sections.NAMES.keys() - ({"mefisto"} if not section.mefisto else set())
        assert {run.model for run in runs} == known
        for model in ("gpnsf", "nsfh", "nsf"):
            asked = [run.arguments for run in runs if run.model == model]
            both = [(K, noise) for K in section.n_factors for noise in ("nb", "poisson")]
            assert sorted({(a["n_factors"], a["likelihoods"]) for a in asked}) == both
            assert len(asked) == 2 * len(both) + max(section.again - 2, 0)  # two seeds, or more
        halves = [run.arguments for run in runs if run.model == "nsfh"]
        assert all(2 * a["n_spatial"] == a["n_factors"] for a in halves)
        assert {a["split"] for a in halves} == {"assumed"}


def test_a_section_is_prepared_with_its_most_deviant_genes_and_axes_of_one_unit(
    sections, stored, tmp_path, monkeypatch
):
    few = dataclasses.replace(sections.SECTIONS["mob_rep11"], n_genes=7)
    monkeypatch.setitem(sections.SECTIONS, "mob_rep11", few)
    path = sections.prepared("mob_rep11", tmp_path / "made")
    content, data = path.read_bytes(), read(path)
    assert data.shape == (36, 7)
    assert sections.prepared("mob_rep11", tmp_path / "made").read_bytes() == content
    proteins = read(sections.prepared("hln_protein_2sections", tmp_path / "made"))
    assert proteins.shape == stored.shape
    expected = stored.obsm["spatial"] * [3**0.5, 1]
    np.testing.assert_allclose(proteins.obsm["spatial"], expected)


def test_the_table_of_real_sections_has_means_over_draws_in_the_order_of_the_models(sections):
    shared = {"data": "mob_rep11", "shape": "260 x 500", "explained": 0.5, "deviance_holdout": 2.5}
    shared |= {"n_kept": 8, "n_kept_spatial": 6, "sparsity": 0.25, "cpu_seconds": 3.0}
    runs = [
        {**shared, "model": model, "likelihood": noise, "n_factors": K, "explained_holdout": value}
        for model, noise in {"gpnsf": "poisson", "fa": "gaussian"}.items()
        for K in (4, 8)
        for value in (K / 40, K / 40 + 0.1)  # two draws
    ]
    table = sections.summary(pd.DataFrame(runs))
    assert table["model"].tolist() == ["FA", "gpnsf"]
    assert table["noise"].tolist() == ["Gaussian, logs", "Poisson"]
    assert table.loc[1, "unseen, 4":"unseen, 16"].tolist() == ["0.150", "0.250", ""]
    assert table.loc[1, "spatial + not"] == "6 + 2"


def test_draws_of_a_section_stand_side_by_side_in_their_order(sections):
    shared = {"data": "mob_rep11", "likelihood": "nb", "n_factors": sections.K}
    values = {("nsf", 1): 0.3, ("nsf", 0): 0.2, ("gpnsf", 0): 0.1}
    runs = [
        {**shared, "model": model, "seed": seed, "explained_holdout": value}
        for (model, seed), value in values.items()
    ]
    table = sections.repeated(pd.DataFrame(runs))
    assert table.iloc[:, 1:].to_numpy().tolist() == [["NSF", "0.200", "0.300", "0.250"]]
    assert sections.repeated(pd.DataFrame(runs[:1])).empty


@pytest.mark.parametrize("theta", [None, np.array([2.0])])
@pytest.mark.parametrize("rate", [0.1, 3.0, 200.0])
def test_counts_of_the_right_noise_are_inside_as_often_as_they_should(sections, rate, theta):
    counts = np.arange(8_000.0)[:, None]
    noise = stats.poisson(rate) if theta is None else stats.nbinom(2.0, 2.0 / (2.0 + rate))
    shares = sections.central(counts, np.full_like(counts, rate), theta)
    assert shares.min() >= 0
    assert shares.max() <= 1 + 1e-9
    assert (shares * noise.pmf(counts)).sum() == pytest.approx(sections.LEVEL, abs=1e-6)


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


@pytest.mark.slow
def test_stages_of_a_fit_are_where_the_benchmark_looks_for_them():
    code = (
        "import json, stages\n"
        "stages.CASES['small, K = 3'] = {'n_obs': 200, 'n_spatial': 2, 'n_nonspatial': 1}\n"
        "print(json.dumps(stages.seconds_of('small, K = 3')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seconds = {(part, stage): taken for part, stage, taken in json.loads(done.stdout)}
    stages = {"starts", "choice among starts", "finding factors", "settling", "local stage"}
    for part in ("fit", "test"):
        assert all(seconds[part, stage] > 0 for stage in stages)
    assert seconds["fit", "dispersions"] > 0
    assert seconds["fit", "summary"] > 0
