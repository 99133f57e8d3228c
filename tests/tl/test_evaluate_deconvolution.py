from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

import gpnsf
from gpnsf.core.scores import agreement


@pytest.fixture(scope="module")
def drawn():
    spots, cells = gpnsf.datasets.mixture(n_obs=64, n_genes=60, n_types=3, depth=200.0, seed=0)
    for method in ("nnls", "graph"):
        gpnsf.tl.deconvolve(spots, cells, label_key="cell_type", method=method, key_added=method)
    return spots


@pytest.fixture
def spots(drawn):
    return drawn.copy()


def evaluate(spots, truth="true_proportions", key=("nnls", "graph")):
    return gpnsf.tl.evaluate_deconvolution(spots, truth, key=key)


def test_the_table_has_a_line_for_each_deconvolution(spots):
    table = evaluate(spots)
    assert table["key"].tolist() == table["method"].tolist() == ["nnls", "graph"]
    found, truth = spots.obsm["X_graph"].astype(float), spots.obsm["true_proportions"].astype(float)
    line = table.iloc[1]
    assert line["relative_error"] == pytest.approx(
        np.linalg.norm(found - truth) / np.linalg.norm(truth), rel=1e-5
    )
    assert line["rmse"] == pytest.approx(np.sqrt(((found - truth) ** 2).mean()), rel=1e-5)
    assert line["pcc"] == pytest.approx(np.corrcoef(found.ravel(), truth.ravel())[0, 1], rel=1e-5)
    assert line["jsd"] == pytest.approx(agreement.divergence(found, truth), rel=1e-5)
    cells = agreement.lattice(spots.obsm["spatial"])
    assert line["ssim"] == pytest.approx(
        np.mean([agreement.ssim(found[:, k], truth[:, k], cells) for k in range(3)]), rel=1e-5
    )
    assert line["n_obs"] == 64


def test_the_truth_is_perfect(spots):
    spots.obsm["X_graph"] = spots.obsm["true_proportions"]
    line = evaluate(spots, key="graph").iloc[0]
    assert line[["relative_error", "rmse", "jsd"]].max() < 1e-4
    assert line[["pcc", "ssim"]].min() > 0.999


def test_a_truth_may_be_a_table_of_cells_in_any_order_with_more_types(spots):
    counts = pd.DataFrame(
        spots.obsm["true_proportions"] * 9, columns=["type_1", "type_2", "type_3"]
    )
    expected = evaluate(spots)
    shuffled = counts[["type_3", "type_1", "type_2"]].set_axis(spots.obs_names)
    pd.testing.assert_frame_equal(evaluate(spots, shuffled), expected, rtol=1e-5)
    spots.obsm["cells"] = shuffled
    pd.testing.assert_frame_equal(evaluate(spots, "cells"), expected, rtol=1e-5)
    more = evaluate(spots, shuffled.assign(unknown=9.0))
    assert (more["relative_error"] > expected["relative_error"]).all()


def test_spots_without_cells_do_not_count(spots):
    truth = spots.obsm["true_proportions"].copy()
    truth[:10] = 0
    assert evaluate(spots, truth)["n_obs"].tolist() == [54, 54]


def test_only_lattices_have_a_structural_similarity(spots):
    spots.obsm["spatial"] = np.random.default_rng(0).random((64, 2))
    assert evaluate(spots)["ssim"].isna().all()
    del spots.obsm["spatial"]
    assert evaluate(spots, key="nnls")["ssim"].isna().all()


def test_mistakes_are_explained(subtests, spots):
    for truth, key, error, says in (
        ("true", "nnls", KeyError, "`truth`"),
        ("true_proportions", "other", KeyError, "a deconvolution in uns"),
        ("true_proportions", [], ValueError, "at least one"),
        (np.ones((64, 2)), "nnls", ValueError, "of shape"),
        (np.ones((63, 3)), "nnls", ValueError, "of shape"),
        (np.full((64, 3), -1.0), "nnls", ValueError, "nonnegative values"),
        (np.full((64, 3), np.nan), "nnls", ValueError, "finite"),
        (np.zeros((64, 3)), "nnls", ValueError, "above 0"),
        (np.full((64, 3), "a"), "nnls", TypeError, "numbers in"),
        (
            pd.DataFrame(np.ones((64, 2)), columns=["type_1", "type_2"]),
            "nnls",
            KeyError,
            "a column for each type",
        ),
    ):
        with subtests.test(truth=truth, key=key), pytest.raises(error, match=says):
            evaluate(spots, truth, key)


def test_damaged_slots_are_named(spots):
    spots.obsm["X_nnls"] = spots.obsm["X_nnls"][:, :2]
    with pytest.raises(ValueError, match="shape"):
        evaluate(spots)
    with pytest.raises(TypeError, match="an empty dict"):
        gpnsf.tl.evaluate_deconvolution({}, "true_proportions")


def test_a_file_says_the_same(spots, tmp_path):
    spots.write(tmp_path / "spots.h5ad")
    pd.testing.assert_frame_equal(
        evaluate(anndata.read_h5ad(tmp_path / "spots.h5ad")), evaluate(spots)
    )
