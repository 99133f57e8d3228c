"""The benchmark of cell types of spots: sums of cells are what they say, rivals are run once and judged as ours are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import gpnsf

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TOML = """
[environments.here]
[methods.even]
title = "even"
script = "even.py"
environment = "here"
[methods.broken]
title = "broken"
script = "broken.py"
environment = "here"
[methods.elsewhere]
title = "elsewhere"
script = "even.py"
environment = "here"
sections = ["another reference"]
"""
EVEN = """
import numpy as np
from mixtures import main
if __name__ == "__main__":
    main(lambda job: np.ones((len(job.counts), job.profiles.shape[1])))
"""


@pytest.fixture(scope="module")
def modules():
    """The three modules under ``benchmarks``."""
    names = [f"deconvolution_{part}" for part in ("sections", "rivals", "tissue")]
    others = ["report", "race", "race_data"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield SimpleNamespace(**{n.split("_")[1]: importlib.import_module(n) for n in names})
        for name in names + others:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def cells():
    """400 cells of two types on a square, 12 genes of which each type has its own half."""
    rng = np.random.default_rng(0)
    is_a = np.arange(400) < 150
    rates = np.where(is_a[:, None] == (np.arange(12) < 6), 4.0, 0.5)
    return anndata.AnnData(
        sp.csr_matrix(rng.poisson(rates).astype(np.float32)),
        obs=pd.DataFrame({"cell_type": np.where(is_a, "T_CD4", "B")}, index=map(str, range(400))),
        var=pd.DataFrame(index=[f"gene {i}" for i in range(12)]),
        obsm={"spatial": rng.random((400, 2)) * [2.0, 1.0]},
    )


@pytest.fixture(scope="module")
def mixture(modules, cells):
    return modules.sections.summed(cells, cells, "the same cells")


def test_squares_hold_their_cells_and_no_others(modules, cells, mixture):
    coords = cells.obsm["spatial"]
    place, square, side = modules.sections.squares(coords)
    assert len(coords) / len(place) == pytest.approx(modules.sections.PER_SQUARE, rel=0.15)
    number = np.bincount(square)
    kept = number >= modules.sections.FEWEST
    np.testing.assert_array_equal(mixture.truth.sum(axis=1), number[kept])
    first = square == np.flatnonzero(kept)[0]
    np.testing.assert_array_equal(mixture.spots.X[0].toarray()[0], cells.to_df()[first].sum())
    assert mixture.truth.iloc[0]["B"] == (cells.obs["cell_type"][first] == "B").sum()
    assert np.abs(coords[first] - mixture.spots.obsm["spatial"][0]).max() <= side / 2


def test_profiles_are_mean_counts_so_that_shares_are_those_of_cells(cells, mixture):
    is_a = (cells.obs["cell_type"] == "T_CD4").to_numpy()
    np.testing.assert_allclose(mixture.profiles["T_CD4"], cells.to_df()[is_a].mean())
    np.testing.assert_array_equal(mixture.numbers, [250, 150])


def test_thinning_leaves_the_truth_and_a_share_of_the_counts(mixture):
    thin = mixture.thinned(0.1)
    assert thin.spots.X.sum() == pytest.approx(0.1 * mixture.spots.X.sum(), rel=0.1)
    assert thin.truth is mixture.truth
    assert (thin.spots.X.toarray() <= mixture.spots.X.toarray()).all()


@pytest.fixture
def rivals(modules, monkeypatch, tmp_path):
    """Two methods of a few lines, one of which fails, and one that is for another section."""
    (tmp_path / "rivals.toml").write_text(TOML)
    (tmp_path / "even.py").write_text(EVEN)
    (tmp_path / "broken.py").write_text("raise ImportError('no such name')")
    (tmp_path / "mixtures.py").write_text((BENCHMARKS / "peers/mixtures.py").read_text())
    monkeypatch.setattr(modules.rivals, "PEERS", tmp_path)
    return modules.rivals.Rivals(tmp_path / "cache", limit=20.0)


def test_rivals_are_judged_as_ours_failures_are_results_and_nothing_runs_twice(
    modules, rivals, mixture, monkeypatch
):
    found = rivals.run(mixture)
    assert list(found) == ["even", "broken"]
    np.testing.assert_array_equal(found["even"]["V"], 0.5)
    assert found["broken"]["failed"] == "ImportError: no such name"
    even, broken = modules.rivals.judged(mixture, found)
    truth = mixture.truth.to_numpy()
    truth = truth / truth.sum(axis=1, keepdims=True)
    assert even["RMSE"] == pytest.approx(np.sqrt(np.square(truth - 0.5).mean()))
    assert np.isnan(even["coverage"])
    assert broken == {"method": "broken", "failed": "ImportError: no such name"}
    monkeypatch.setattr(modules.rivals, "ended", lambda *_, **__: pytest.fail("run again"))
    again = rivals.run(mixture)
    np.testing.assert_array_equal(again["even"]["V"], found["even"]["V"])


def test_places_are_those_of_the_errors(modules):
    errors = {"gpnsf, nnls": 0.4, "gpnsf, graph": 0.3, "other": 0.2, "broken": np.nan}
    frame = pd.DataFrame({"method": errors.keys(), "JSD": errors.values()}).assign(
        **{"section": "s", "reference": "r", "counts of a spot": "9"}
    )
    frame["relative error"] = 1 - frame["JSD"]
    row = modules.rivals.first(frame).iloc[0]
    assert row["first by JSD"] == "other, 0.200"
    assert row["best of ours, JSD"] == "gpnsf, graph, 0.300 (2 of 3)"
    assert row["best of ours, relative error"] == "gpnsf, nnls, 0.600 (1 of 3)"
    assert row["default, relative error"] == "0.700 (2 of 3)"


def test_markers_are_the_genes_of_their_side(modules, cells, monkeypatch):
    monkeypatch.setattr(modules.tissue, "N_MARKERS", 6)
    found = modules.tissue.lymph_markers(cells)
    assert set(found["T"]) == {f"gene {i}" for i in range(6)}
    assert set(found["B"]) == {f"gene {i}" for i in range(6, 12)}


def test_unseen_counts_are_predicted_better_by_proportions_than_by_one_composition(modules):
    spots, reference = gpnsf.datasets.mixture(n_obs=64, n_genes=60, depth=2000, seed=0)
    options = {"label_key": "cell_type", "method": "nnls"}
    assert modules.tissue._unseen(spots, reference, options) < 0.9
