from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from gpnsf.pl import grid
from gpnsf.pl.grid import COLORS


@pytest.fixture
def table():
    """Two data sets, two models, two likelihoods, three numbers of factors, two seeds."""
    index = pd.MultiIndex.from_product(
        [["a", "b"], ["nsf", "pnmf"], ["poisson", "nb"], [2, 4, 6], [0, 1]],
        names=["data", "model", "likelihood", "n_factors", "seed"],
    )
    found = index.to_frame(index=False)
    found.insert(3, "modality", "rna")
    found = found[["data", "model", "n_factors", "seed", "modality", "likelihood"]]
    found["deviance_holdout"] = 10.0 - found["n_factors"] + found["seed"]
    return found.assign(deviance=1.0, sparsity=0.5, cpu_seconds=np.arange(len(found)) + 1.0)


def curves(ax):
    """Middle of each line, by its name."""
    handles, names = ax.get_legend_handles_labels()
    return {
        n: handle.lines[0].get_xydata().tolist() for handle, n in zip(handles, names, strict=True)
    }


def test_points_are_means_over_seeds_and_bars_go_from_the_lowest_to_the_highest(table):
    ax = grid(table[table["data"] == "a"], y="deviance_holdout", show=False)
    assert isinstance(ax, Axes)
    assert curves(ax) == dict.fromkeys(
        ["nsf, poisson", "nsf, nb", "pnmf, poisson", "pnmf, nb"],
        [[2.0, 8.5], [4.0, 6.5], [6.0, 4.5]],
    )
    bar = ax.containers[0].lines[2][0].get_segments()[0]
    assert bar[:, 1].tolist() == [8.0, 9.0]


def test_colour_is_the_model_and_style_the_likelihood(table):
    ax = grid(table[table["data"] == "a"], y="cpu_seconds", show=False)
    lines = {box.get_label(): box.lines[0] for box in ax.containers}
    assert lines["nsf, nb"].get_color() == lines["nsf, poisson"].get_color() == COLORS["nsf"]
    assert lines["nsf, nb"].get_linestyle() == lines["pnmf, nb"].get_linestyle() == "--"
    assert ax.get_yscale() == "log"


def test_each_data_set_has_a_row_and_one_legend_serves_all(table):
    axes = grid(table, show=False)
    assert [ax.get_title(loc="left") for ax in axes[:3]] == [
        "Poisson deviance, held out",
        "share of zero loadings",
        "CPU seconds",
    ]
    assert [ax.texts[0].get_text() for ax in axes[::3]] == ["a", "b"]
    assert len(axes[0].figure.legends) == 1
    axes = grid(table.drop(columns="deviance_holdout"), show=False)
    assert axes[0].get_title(loc="left") == "Poisson deviance, seen"


def test_other_arguments_that_differ_have_lines_of_their_own(table):
    one = table[(table["data"] == "a") & (table["model"] == "nsf")]
    table = pd.concat([one.assign(n_spatial=T, tol=0.1) for T in (1, 2)])
    columns = ["data", "model", "n_factors", "n_spatial", "tol", "seed", *one.columns[4:]]
    ax = grid(table[columns], y="sparsity", show=False)
    assert list(curves(ax)) == [
        f"nsf, {kind}, tol=0.1, n_spatial={T}" for T in (1, 2) for kind in ("poisson", "nb")
    ]
    halves = one.assign(n_spatial=one["n_factors"] // 2)
    halves = halves[["data", "model", "n_factors", "n_spatial", *one.columns[3:]]]
    assert list(curves(grid(halves, y="sparsity", show=False))) == ["nsf, poisson", "nsf, nb"]


def test_runs_that_failed_are_left_out(table):
    failed = table[:1].assign(modality=None, likelihood=None, n_factors=9)
    ax = grid(pd.concat([table[table["data"] == "a"], failed]), y="sparsity", show=False)
    assert max(x for line in curves(ax).values() for x, _ in line) == 6
    with pytest.raises(ValueError, match="none that ended well"):
        grid(failed, show=False)


def test_what_is_missing_or_too_much_is_named(table):
    with pytest.raises(KeyError, match="'sparsty' .did you mean 'sparsity'"):
        grid(table, y="sparsty", show=False)
    with pytest.raises(ValueError, match="one panel for `ax`"):
        grid(table, ax=plt.subplots()[1])
    ax = plt.subplots()[1]
    assert grid(table[table["data"] == "a"], y="sparsity", ax=ax, show=False) is ax
    assert ax.get_legend() is not None
