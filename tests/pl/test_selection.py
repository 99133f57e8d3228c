from __future__ import annotations

import fitted
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from gpnsf.pl.selection import MARK, selection


@pytest.fixture
def table():
    found = pd.DataFrame(
        {
            "n_factors": [3, 5, 7, 9],
            "n_spatial": [2, 3, 4, 4],
            "excess": [20.0, 6.0, 0.0, 1.0],
            "excess_se": [2.0, 1.0, 0.0, 0.2],
            "stability": [0.9, 0.95, 0.99, 0.7],
            "recommended": [False, False, True, False],
        }
    )
    found.attrs = {"n_factors": 7, "n_spatial": 5, "reason": "because"}
    return found


def curve(ax):
    return ax.lines[0].get_xydata().tolist()


def ring(ax):
    """Place of the mark."""
    (found,) = (item for item in ax.collections if isinstance(item, PathCollection))
    assert to_hex(found.get_edgecolor()).upper() == MARK
    return found.get_offsets()[0].tolist()


def test_curves_and_the_recommended_point(table):
    axes = selection(table, show=False)
    assert [ax.get_title(loc="left") for ax in axes] == [
        "deviance above the lowest",
        "stability of spatial factors",
        "spatial factors",
    ]
    assert [ax.get_ylabel() for ax in axes] == ["square-root scale", "", ""]
    assert curve(axes[0]) == [[3, 20], [5, 6], [7, 0], [9, 1]]
    assert curve(axes[1])[2] == [7, 0.99]
    assert [ring(ax) for ax in axes] == [[7, 0], [7, 0.99], [7, 5]]  # 5: of all counts
    assert axes[0].texts[0].get_text() == "recommended: 7, of which 5 spatial"


def test_an_object_that_holds_the_selection(table):
    data = fitted.anndata(n_obs=36)
    data.uns["gpnsf_selection"] = {"table": table, "n_factors": 7, "n_spatial": 5}
    assert ring(selection(data, panel="n_spatial", show=False)) == [7, 5]
    with pytest.raises(KeyError, match="select_n_factors"):
        selection(data, key="other")


def test_no_recommendation_no_mark(table):
    table["recommended"] = False
    axes = selection(table, show=False)
    assert axes[0].texts[0].get_text() == "too few counts to tell"
    assert not any(isinstance(item, PathCollection) for item in axes[0].collections)


def test_one_seed_has_no_stability(table):
    table["stability"] = np.nan
    assert len(selection(table, show=False)) == 2


def test_a_line_for_each_number_of_spatial_factors(table):
    grid = pd.concat([table, table.assign(n_spatial=1, excess=table.excess + 3, recommended=False)])
    grid.loc[grid.n_spatial > 1, "n_spatial"] = 2
    axes = selection(grid, show=False)
    assert len(axes) == 2
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == [
        "1 spatial",
        "2 spatial",
    ]


def test_what_is_returned_and_refused(table):
    _, ax = plt.subplots()
    assert selection(table, panel="excess", ax=ax, show=False) is ax
    assert isinstance(selection(table, panel="stability", show=False), Axes)
    with pytest.raises(ValueError, match="`panel`"):
        selection(table, panel="elbow")
    with pytest.raises(ValueError, match="`ax`"):
        selection(table, ax=ax)
    with pytest.raises(KeyError, match="excess"):
        selection(table.drop(columns="excess"))
