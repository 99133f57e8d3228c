from __future__ import annotations

import fitted
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gpnsf.palette import CATEGORIES
from gpnsf.pl.domains import MISSING, domains

NAME = "gpnsf_domain"


def with_labels(data, labels):
    """The object with a column of domains."""
    data.obs[NAME] = pd.Categorical(labels)
    return data


@pytest.fixture
def toy():
    return with_labels(fitted.mudata(n_obs=100), np.repeat(["1", "2", "3"], [50, 30, 20]))


def colors(ax):
    """Colour of each spot as drawn."""
    (discs,) = (item for item in ax.collections if isinstance(item, EllipseCollection))
    return [to_hex(color).upper() for color in discs.cmap(discs.norm(discs.get_array()))]


def legend(ax):
    """Text and colour of the lines of the legend."""
    found = ax.get_legend()
    handles = [to_hex(handle.get_color()).upper() for handle in found.legend_handles]
    return dict(zip([text.get_text() for text in found.get_texts()], handles, strict=True))


def test_each_category_has_its_colour_and_number(toy):
    ax = domains(toy, show=False)
    assert colors(ax) == [CATEGORIES[0]] * 50 + [CATEGORIES[1]] * 30 + [CATEGORIES[2]] * 20
    assert legend(ax) == {"1 (50)": CATEGORIES[0], "2 (30)": CATEGORIES[1], "3 (20)": CATEGORIES[2]}


def test_stored_and_given_colours_come_first(toy):
    toy.uns[f"{NAME}_colors"] = np.array(["#111111", "#222222", "#333333"])
    assert set(colors(domains(toy, show=False))) == {"#111111", "#222222", "#333333"}
    assert set(colors(domains(toy, palette=["#444444"] * 3, show=False))) == {"#444444"}
    with pytest.raises(ValueError, match="`palette`"):
        domains(toy, palette=["#444444"])


def test_missing_ones_are_grey(toy):
    toy.obs.loc[toy.obs_names[:7], NAME] = np.nan
    ax = domains(toy, show=False)
    assert colors(ax)[:7] == [MISSING] * 7
    assert legend(ax)["missing (7)"] == MISSING


def test_any_column_of_categories_will_do(toy):
    toy["rna"].obs["region"] = np.where(np.arange(100) < 40, "a", "b")
    toy.obs["number"] = np.arange(100) % 4
    assert list(legend(domains(toy, key_added="region", show=False))) == ["a (40)", "b (60)"]
    assert list(legend(domains(toy, key_added="number", show=False))) == [
        "0 (25)",
        "1 (25)",
        "2 (25)",
        "3 (25)",
    ]
    with pytest.raises(ValueError, match="categories"):
        domains(toy, key_added="gpnsf_spatial_importance")
    with pytest.raises(KeyError, match="nowhere"):
        domains(toy, key_added="nowhere")


def test_slices_are_named_and_can_be_chosen():
    data = with_labels(fitted.mudata(n_obs=64, n_slices=3), ["1"] * 64 + ["2"] * 128)
    ax = domains(data, show=False)
    assert [text.get_text() for text in ax.texts] == ["slice A", "slice B", "slice C"]
    one = domains(data, library="slice B", show=False)
    assert legend(one) == {"2 (64)": CATEGORIES[1]}


def test_a_single_coordinate_gets_a_line_for_each_category():
    data = with_labels(fitted.anndata(n_obs=60, shape="line"), np.repeat(["1", "2"], 30))
    ax = domains(data, show=False)
    (marks,) = ax.collections
    np.testing.assert_array_equal(marks.get_offsets()[:, 1], np.repeat([0, 1], 30))
    ax.figure.draw_without_rendering()
    assert {to_hex(color).upper() for color in marks.get_facecolors()} == set(CATEGORIES[:2])


@pytest.mark.parametrize("n_domains", [5, 20])
def test_the_legend_lies_beside_the_spots_and_inside_the_figure(n_domains):
    data = with_labels(fitted.anndata(n_obs=200), [str(i) for i in np.arange(200) % n_domains])
    figure = domains(data, return_fig=True)
    (ax,) = figure.axes
    box, panel = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert box.x0 > panel.x1
    assert box.x1 <= figure.bbox.x1 + 1
    assert box.y0 >= -1


def test_what_is_returned(toy, monkeypatch):
    assert isinstance(domains(toy, return_fig=True), Figure)
    figure, ax = plt.subplots()
    assert domains(toy, ax=ax, show=False) is ax
    monkeypatch.setattr(plt, "show", lambda: None)
    assert domains(toy, show=True) is None


def test_a_column_of_modalities_keeps_its_categories_and_their_colours(toy):
    del toy.obs[NAME]
    for mod in toy.mod.values():
        values = pd.Series(np.repeat(["late", "early", None], [60, 30, 10]), mod.obs_names)
        mod.obs["stage"] = pd.Categorical(values, categories=["unused", "late", "early"])
    toy["rna"].uns["stage_colors"] = ["#000000", "#111111", "#222222"]
    expected = {"late (60)": "#111111", "early (30)": "#222222", "missing (10)": MISSING}
    assert legend(domains(toy, key_added="stage", show=False)) == expected


def test_categories_that_are_the_same_as_text_are_refused(toy):
    toy.obs[NAME] = pd.Categorical(np.repeat(np.array([1, "1"], dtype=object), 50))
    with pytest.raises(ValueError, match="differ as text"):
        domains(toy)
