from __future__ import annotations

import fitted
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure

from gpnsf.pl.factors import spatial_factors


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=100, n_factors=5, n_spatial=3)


def drawn(ax):
    """The spots of a panel."""
    (discs,) = (item for item in ax.collections if isinstance(item, EllipseCollection))
    return discs


def titles(axes):
    return [ax.get_title(loc="left") for ax in axes]


def overlaps(figure):
    """Pairs of texts of the figure that cover each other."""
    figure.draw_without_rendering()
    texts = [
        text
        for text in figure.findobj(mpl.text.Text)
        if text.get_visible() and text.get_text().strip()
    ]
    boxes = [text.get_window_extent() for text in texts]
    inside = [box for box in boxes if box.width > 0]
    return sum(a.overlaps(b) for i, a in enumerate(inside) for b in inside[i + 1 :])


def test_one_panel_a_factor_with_its_values(toy):
    axes = spatial_factors(toy, show=False)
    assert titles(axes) == ["spatial_1", "spatial_2", "spatial_3", "nonspatial_1", "nonspatial_2"]
    for k, ax in enumerate(axes):
        np.testing.assert_array_equal(drawn(ax).get_array(), toy.obsm["X_gpnsf"][:, k])
        np.testing.assert_array_equal(drawn(ax).get_offsets(), toy.obsm["spatial"])
        assert ax.get_aspect() == 1
    assert len(axes[0].figure.axes) == 5
    assert all(len(ax.child_axes) == 1 for ax in axes)


def test_notes_give_length_scale_and_share(toy):
    notes = [ax.texts[0].get_text() for ax in spatial_factors(toy, show=False)]
    assert all(note.startswith("ℓ ") for note in notes[:3])
    assert not any("ℓ" in note for note in notes[3:])
    shares = [float(note.split()[-2]) for note in notes]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_what_is_returned(toy):
    assert isinstance(spatial_factors(toy, factors="spatial_2", show=False), Axes)
    assert isinstance(spatial_factors(toy, return_fig=True), Figure)
    assert isinstance(spatial_factors(toy), list)  # nothing to show it on here


def test_show_shows_and_returns_nothing(toy, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert spatial_factors(toy, factors="spatial_1", show=True) is None
    assert shown == [True]


@pytest.mark.parametrize("shared_scale", [False, True])
def test_axes_may_lie_in_a_subfigure(toy, shared_scale):
    figure = plt.figure()
    ax = figure.subfigures(1, 2)[1].subplots()
    options = {"factors": "spatial_1", "shared_scale": shared_scale}
    assert spatial_factors(toy, **options, ax=ax, show=False) is ax
    assert spatial_factors(toy, **options, ax=ax, return_fig=True) is figure


def test_one_panel_goes_into_the_axes_handed_in(toy):
    figure, axes = plt.subplots(1, 2)
    assert spatial_factors(toy, factors="nonspatial_1", ax=axes[1], show=False) is axes[1]
    assert titles([axes[1]]) == ["nonspatial_1"]
    assert not axes[0].collections
    with pytest.raises(ValueError, match="one panel for `ax`; got 5 panels"):
        spatial_factors(toy, ax=axes[0])
    assert figure.axes == list(axes)


@pytest.mark.parametrize(
    ("moment", "slot"), [("mean", "X_gpnsf"), ("smooth", "X_gpnsf_smooth"), ("std", "X_gpnsf_std")]
)
def test_moments(toy, moment, slot):
    ax = spatial_factors(toy, factors="spatial_1", moment=moment, show=False)
    np.testing.assert_array_equal(drawn(ax).get_array(), toy.obsm[slot][:, 0])


def test_colour_limits_are_quantiles_unless_given(toy):
    values = toy.obsm["X_gpnsf"]
    for k, ax in enumerate(spatial_factors(toy, show=False)):
        np.testing.assert_allclose(
            drawn(ax).get_clim(), np.quantile(values[:, k], (0.005, 0.995)), rtol=1e-5
        )
    for ax in spatial_factors(toy, show=False, vmin=0, vmax=3):
        assert drawn(ax).get_clim() == (0, 3)


def test_a_shared_scale_has_one_bar(toy):
    axes = spatial_factors(toy, shared_scale=True, show=False)
    limits = {drawn(ax).get_clim() for ax in axes}
    assert limits == {tuple(np.quantile(toy.obsm["X_gpnsf"], (0.005, 0.995)))}
    assert len(axes[0].figure.axes) == 6
    assert not any(ax.child_axes for ax in axes)


@pytest.mark.parametrize(("scale", "norm"), [("sqrt", PowerNorm), ("log", LogNorm)])
def test_scales_change_colours_and_not_the_labels(toy, scale, norm):
    ax = spatial_factors(toy, factors="spatial_1", scale=scale, show=False)
    assert type(drawn(ax).norm) is norm
    (bar,) = ax.child_axes
    assert bar.get_title(loc="left") == ("√ scale" if scale == "sqrt" else "")
    assert drawn(ax).norm.vmax == pytest.approx(np.quantile(toy.obsm["X_gpnsf"][:, 0], 0.995))


def test_constant_values_have_a_scale_all_the_same():
    data = fitted.anndata(n_obs=36)
    data.obsm["X_gpnsf_std"][:] = 0
    ax = spatial_factors(data, factors="spatial_1", moment="std", show=False)
    low, high = drawn(ax).get_clim()
    assert low < high


def test_signed_factors_are_centred_at_zero():
    data = fitted.anndata(n_obs=64)
    data.obsm["X_gpnsf"] -= 1
    ax = spatial_factors(data, factors="spatial_1", show=False)
    low, high = drawn(ax).get_clim()
    assert low == -high
    assert drawn(ax).get_cmap().name == "RdBu_r"
    with pytest.raises(ValueError, match="nonnegative values for scale='sqrt'"):
        spatial_factors(data, scale="sqrt")


@pytest.mark.broad(1)
@pytest.mark.parametrize("n_factors", [2, 7, 12, 20])
def test_many_panels_fit_a_page_without_empty_ones_or_texts_that_overlap(n_factors):
    data = fitted.mudata(n_obs=64, n_factors=n_factors, n_spatial=n_factors // 2, n_genes=80)
    figure = spatial_factors(data, return_fig=True)
    assert len(figure.axes) == n_factors
    assert figure.get_size_inches().max() < 8
    assert overlaps(figure) == 0


@pytest.mark.parametrize("turned", [False, True])
def test_elongated_sections_keep_their_shape(turned):
    data = fitted.anndata(n_obs=160, shape="strip")
    if turned:
        data.obsm["spatial"] = data.obsm["spatial"][:, ::-1].copy()
    figure = spatial_factors(data, return_fig=True)
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    low, high = np.sort([box.width, box.height])
    assert high / low == pytest.approx(20 / 8, rel=0.05)
    assert overlaps(figure) == 0


def test_spots_touch_at_any_size_of_the_panel():
    data = fitted.anndata(n_obs=144)
    discs = drawn(spatial_factors(data, factors="spatial_1", show=False))
    assert discs.get_widths()[0] == pytest.approx(100)
    assert discs.get_heights()[0] == pytest.approx(100)
    discs = drawn(spatial_factors(data, factors="spatial_1", size=0.3, show=False))
    assert discs.get_widths()[0] == pytest.approx(30)


def test_many_spots_are_rasterized():
    few, many = (fitted.anndata(n_obs=n, n_genes=8, n_factors=2, n_spatial=1) for n in (100, 2025))
    assert not drawn(spatial_factors(few, factors="spatial_1", show=False)).get_rasterized()
    assert drawn(spatial_factors(many, factors="spatial_1", show=False)).get_rasterized()


def test_y_grows_downwards():
    data = fitted.anndata(n_obs=36)
    assert spatial_factors(data, factors="spatial_1", show=False).yaxis_inverted()


@pytest.mark.slow
def test_slices_that_overlap_stand_side_by_side():
    data = fitted.mudata(n_obs=49, n_slices=4)
    data.obsm["spatial"] = np.tile(data.obsm["spatial"][:49], (4, 1))
    axes = spatial_factors(data, show=False)
    places = drawn(axes[0]).get_offsets()
    assert len(np.unique(places, axis=0)) == 4 * 49
    for start in range(0, 196, 49):
        np.testing.assert_allclose(
            places[start : start + 49] - places[start],
            data.obsm["spatial"][:49] - data.obsm["spatial"][0],
            atol=1e-6,
        )
    for ax in axes:
        names = [text.get_text() for text in ax.texts[1:]]
        assert names == ["slice A", "slice B", "slice C", "slice D"]


def test_one_slice_stays_where_it_is():
    data = fitted.mudata(n_obs=49, n_slices=3)
    ax = spatial_factors(data, factors="spatial_1", library="slice B", show=False)
    np.testing.assert_array_equal(drawn(ax).get_offsets(), data.obsm["spatial"][49:98])
    np.testing.assert_array_equal(drawn(ax).get_array(), data.obsm["X_gpnsf"][49:98, 0])
    with pytest.raises(KeyError, match="slice Z"):
        spatial_factors(data, library="slice Z")


def test_slices_that_lie_apart_keep_their_places():
    data = fitted.mudata(n_obs=49, n_slices=2)
    data.obsm["spatial"][49:] += [5000, 0]
    ax = spatial_factors(data, factors="spatial_1", show=False)
    np.testing.assert_array_equal(drawn(ax).get_offsets(), data.obsm["spatial"])


@pytest.mark.parametrize("scale", ["linear", "sqrt", "log"])
def test_one_coordinate_gives_profiles(scale):
    data = fitted.anndata(n_obs=80, shape="line")
    figure = spatial_factors(data, scale=scale, return_fig=True)
    assert len(figure.axes) == 4
    assert not any(ax.child_axes for ax in figure.axes)
    x, y = figure.axes[0].collections[0].get_offsets().T
    np.testing.assert_array_equal(x, data.obsm["spatial"][:, 0])
    low, high = np.quantile(data.obsm["X_gpnsf"][:, 0], (0.005, 0.995))
    np.testing.assert_allclose(y.max(), high, rtol=1e-5)
    assert figure.axes[0].get_ylabel() == ("square-root scale" if scale == "sqrt" else "")


def test_three_coordinates_are_seen_from_above():
    data = fitted.anndata(n_obs=60, shape="cube")
    discs = drawn(spatial_factors(data, factors="spatial_1", show=False))
    order = np.argsort(data.obsm["spatial"][:, 2])
    np.testing.assert_array_equal(discs.get_offsets(), data.obsm["spatial"][order, :2])
    np.testing.assert_array_equal(discs.get_array(), data.obsm["X_gpnsf"][order, 0])


def test_few_and_coinciding_observations_can_be_drawn():
    data = fitted.anndata(n_obs=9, n_factors=2, n_spatial=1)
    assert (
        drawn(spatial_factors(data[:1].copy(), factors="spatial_1", show=False)).get_widths()[0] > 0
    )
    data.obsm["spatial"][:] = 7
    assert drawn(spatial_factors(data, factors="spatial_1", show=False)).get_widths()[0] > 0


def test_global_settings_stay_as_they_are(toy):
    before = dict(mpl.rcParams)
    spatial_factors(toy, show=False)
    assert dict(mpl.rcParams) == before


def test_bad_options_are_refused(subtests, toy):
    for options, error, message in (
        ({"moment": "median"}, ValueError, "`moment`.*'median'"),
        ({"scale": "cube"}, ValueError, "`scale`.*'cube'"),
        ({"factors": ["spatial_1", "x"]}, KeyError, "'x'"),
        ({"ncols": 0}, ValueError, "`ncols` of at least 1"),
        ({"library": "a"}, ValueError, "without `library_key`"),
        ({"key": "none"}, KeyError, "a fit in uns"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            spatial_factors(toy, **options)


def test_mean_and_sd_stand_side_by_side(toy):
    axes = spatial_factors(toy, moment=("mean", "std"), show=False)
    assert titles(axes)[:4] == ["spatial_1", "spatial_1", "spatial_2", "spatial_2"]
    assert [ax.texts[0].get_text() for ax in axes[1:4:2]] == ["standard deviation"] * 2
    for k in range(5):
        np.testing.assert_array_equal(drawn(axes[2 * k]).get_array(), toy.obsm["X_gpnsf"][:, k])
        np.testing.assert_array_equal(
            drawn(axes[2 * k + 1]).get_array(), toy.obsm["X_gpnsf_std"][:, k]
        )
    assert axes[0].get_subplotspec().get_gridspec().ncols % 2 == 0
    with pytest.raises(ValueError, match="`moment`"):
        spatial_factors(toy, moment=())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vmin": 2, "vmax": 1}, "`vmin` and `vmax` to be finite and rising"),
        ({"vmin": np.nan}, "`vmin` and `vmax` to be finite"),
        ({"quantiles": (1, 0)}, "`quantiles` to be finite and rising, from 0 to 1"),
        ({"quantiles": (-1, 1)}, "`quantiles`"),
        ({"quantiles": 3}, "`quantiles`"),
    ],
)
def test_ends_of_the_colours_are_a_lower_and_an_upper_one(toy, options, says):
    with pytest.raises(ValueError, match=says):
        spatial_factors(toy, show=False, **options)


def test_a_colour_map_is_one_of_matplotlib(toy):
    with pytest.raises(KeyError, match=r"`cmap` to exist in matplotlib .*viridis"):
        spatial_factors(toy, cmap="nope", show=False)
