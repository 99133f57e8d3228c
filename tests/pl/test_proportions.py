"""Maps and pies of cell types."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import gpnsf
from gpnsf.palette import CATEGORIES


@pytest.fixture(scope="module")
def deconvolved():
    spots, cells = gpnsf.datasets.mixture(n_obs=64, n_genes=60, n_types=4, seed=0)
    spots.obs["slice"] = np.repeat(["left", "right"], 32)
    gpnsf.tl.deconvolve(spots, cells, label_key="cell_type", library_key="slice")
    return spots


@pytest.fixture
def spots(deconvolved):
    return deconvolved.copy()


def draw(spots, **options):
    return gpnsf.pl.proportions(spots, **{"show": False, **options})


def test_one_map_a_type_with_its_mean(spots):
    axes = draw(spots)
    means = 100 * spots.obsm["X_proportions"].mean(axis=0)
    assert [ax.get_title(loc="left") for ax in axes] == [f"type_{k}" for k in (1, 2, 3, 4)]
    assert [ax.texts[0].get_text() for ax in axes] == [f"{mean:.1f} %" for mean in means]
    for ax, column in zip(axes, spots.obsm["X_proportions"].T, strict=True):
        np.testing.assert_allclose(ax.collections[0].get_array(), column, rtol=1e-5)
        assert ax.collections[0].norm.vmin == 0


def test_types_slices_and_scales_are_chosen(spots):
    axes = draw(
        spots,
        types=["type_3", "type_1"],
        library="right",
        scale="sqrt",
        shared_scale=True,
        vmax=0.8,
        ncols=1,
    )
    assert [ax.get_title(loc="left") for ax in axes] == ["type_3", "type_1"]
    for ax in axes:
        assert len(ax.collections[0].get_array()) == 32
        assert ax.collections[0].norm.vmax == 0.8
        assert ax.collections[0].norm.gamma == 0.5
    assert axes[0].get_position().y0 > axes[1].get_position().y1


def test_colours_sizes_and_quantiles_are_used(spots):
    ax = draw(spots, types="type_1", cmap="viridis", size=0.4, vmin=None, quantiles=(0.25, 0.75))
    column = spots.obsm["X_proportions"][:, 0]
    assert ax.collections[0].get_cmap().name == "viridis"
    assert ax.collections[0].get_widths().max() == pytest.approx(
        0.4 * draw(spots, types="type_1").collections[0].get_widths().max()
    )
    np.testing.assert_allclose(
        [ax.collections[0].norm.vmin, ax.collections[0].norm.vmax],
        np.quantile(column, [0.25, 0.75]),
    )


def areas(ax) -> np.ndarray:
    """Area of all slices of each colour."""

    def area(polygon):
        x, y = polygon.vertices[:-1].T
        return 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))

    return np.array([sum(area(path) for path in slices.get_paths()) for slices in ax.collections])


def test_pies_have_slices_as_large_as_the_proportions(spots):
    ax = draw(spots, kind="pies")
    found = areas(ax)
    np.testing.assert_allclose(
        found / found.sum(), spots.obsm["X_proportions"].mean(axis=0), atol=0.01
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"type_{k}" for k in (1, 2, 3, 4)
    ]
    assert [line.get_color() for line in ax.get_legend().get_lines()] == list(CATEGORIES[:4])


def test_what_is_not_drawn_of_a_pie_is_grey(spots):
    ax = draw(spots, kind="pies", types=["type_2"], palette=["#ff0000"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["type_2", "other"]
    found = areas(ax)
    assert found[0] / found.sum() == pytest.approx(
        spots.obsm["X_proportions"][:, 1].mean(), abs=0.01
    )
    assert ax.collections[0].get_facecolor()[0].tolist() == [1, 0, 0, 1]


def test_the_first_slice_begins_at_the_top(spots):
    X = np.tile([0.25, 0.75, 0, 0], (64, 1)).astype(np.float32)
    spots.obsm["X_proportions"] = X
    ax = draw(spots, kind="pies")
    quarter = ax.collections[0].get_paths()[0].vertices
    centre, corner = quarter[0], quarter.mean(axis=0)
    assert corner[0] > centre[0]
    assert corner[1] < centre[1]
    assert ax.yaxis_inverted()


@pytest.mark.parametrize("letters", [1, 25])
def test_the_legend_of_pies_is_not_cut(spots, letters):
    names = np.array([f"{k}{'m' * letters}" for k in range(4)])
    spots.uns["proportions"]["types"] = names
    figure = draw(spots, kind="pies", return_fig=True)
    figure.draw_without_rendering()
    box = figure.axes[0].get_legend().get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
    assert figure.get_size_inches()[0] <= 8


def test_axes_and_figure(spots):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    assert draw(spots, types="type_1", ax=ax) is ax
    assert draw(spots, return_fig=True) is plt.gcf()


def test_a_line_of_spots_gives_profiles(spots):
    spots.obsm["spatial"] = np.arange(64.0)[:, None]
    assert draw(spots, types="type_1").get_xlabel() == "position"
    with pytest.raises(ValueError, match="in the plane"):
        draw(spots, kind="pies")


def test_mistakes_are_explained(subtests, spots):
    for options, error, says in (
        ({"key": "other"}, KeyError, "a deconvolution in uns"),
        ({"types": "type_9"}, KeyError, "types"),
        ({"types": ["type_1", "type_1"]}, ValueError, "each once"),
        ({"types": []}, ValueError, "each once"),
        ({"kind": "bars"}, ValueError, "`kind`"),
        ({"scale": "cubic"}, ValueError, "`scale`"),
        ({"library": "middle"}, KeyError, "sections"),
        ({"kind": "pies", "palette": ["red"]}, ValueError, "`palette`"),
        ({"ncols": 0}, ValueError, "`ncols`"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=says):
            draw(spots, **options)


def test_too_many_pies_and_too_many_panels_are_refused(spots, monkeypatch):
    import matplotlib.pyplot as plt

    with pytest.raises(ValueError, match="one panel for `ax`"):
        draw(spots, ax=plt.subplots()[1])
    monkeypatch.setattr(sys.modules["gpnsf.pl.proportions"], "MOST_PIES", 63)
    with pytest.raises(ValueError, match="at most 63 spots"):
        draw(spots, kind="pies")
