from __future__ import annotations

import fitted
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

from gpnsf.pl.heatmaps import factor_correlation, loadings
from gpnsf.tl.rank import rank_features


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=100, n_factors=4, n_spatial=2)


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def lines(ax):
    """Places of the lines that divide factors: columns, rows."""
    xy = [line.get_xydata() for line in ax.lines]
    return [c[0, 0] for c in xy if c[0, 0] == c[1, 0]], [c[0, 1] for c in xy if c[0, 1] == c[1, 1]]


def clean(figure, *, page=7.9):
    """No two texts on one another, and all of them on the page."""
    figure.draw_without_rendering()
    texts = [
        text
        for text in figure.findobj(mpl.text.Text)
        if text.get_visible() and text.get_text().strip()
    ]
    boxes = [text.get_window_extent() for text in texts]
    inner = [box.shrunk(1, 0.8) if box.width > box.height else box.shrunk(0.8, 1) for box in boxes]
    apart = not any(a.overlaps(b) for i, a in enumerate(inner) for b in inner[i + 1 :])
    inside = (
        min(box.x0 for box in boxes) >= -1 and max(box.x1 for box in boxes) <= figure.bbox.x1 + 1
    )
    return apart and inside and figure.get_size_inches()[0] <= page


def test_loadings_are_shares_of_the_best_features(toy):
    axes = loadings(toy, n_features=3, show=False)
    table = rank_features(toy, n_features=3)
    for ax, name in zip(axes, ["rna", "atac"], strict=True):
        expected = list(dict.fromkeys(table.loc[table["modality"] == name, "feature"]))
        assert names(ax) == expected
        weights = toy[name].varm["gpnsf_loadings"][toy[name].var_names.get_indexer(expected)]
        np.testing.assert_allclose(
            ax.images[0].get_array(), weights / weights.sum(axis=1, keepdims=True), rtol=1e-5
        )
        assert {label.get_style() for label in ax.get_yticklabels()} == {
            "italic" if name == "rna" else "normal"
        }
        assert lines(ax) == ([1.5], [])


def test_shares_are_those_among_all_factors_also_where_some_are_drawn(toy):
    ax = loadings(toy, factors=["nonspatial_1", "spatial_2"], modality="rna", show=False)
    weights = toy["rna"].varm["gpnsf_loadings"][toy["rna"].var_names.get_indexer(names(ax))]
    shares = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ax.images[0].get_array(), shares[:, [2, 1]], rtol=1e-5)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["nonspatial_1", "spatial_2"]


@pytest.mark.slow
def test_rows_are_limited_and_the_figure_and_the_log_say_so(caplog):
    data = fitted.mudata(n_obs=64, n_factors=20, n_spatial=10, n_genes=400, n_peaks=400)
    with caplog.at_level("INFO", logger="gpnsf"):
        figure = loadings(data, n_features=9, return_fig=True)
    rna, atac, _ = figure.axes
    assert max(len(names(rna)), len(names(atac))) <= 100
    assert rna.texts[0].get_text() == "5 best features of each factor"
    assert "5 features of each of 20 factors are drawn, not 9" in caplog.text
    assert clean(figure)


def test_signed_loadings_have_colours_around_zero():
    data = fitted.anndata(n_obs=64, likelihood="gaussian")
    data.varm["gpnsf_loadings"][::2] *= -1
    ax = loadings(data, show=False)
    assert ax.images[0].get_clim() == (-1, 1)
    assert ax.images[0].get_array().min() < 0


def test_a_modality_without_signal_is_left_out(toy):
    data = toy.copy()
    data["atac"].varm["gpnsf_loadings"] = np.zeros_like(data["atac"].varm["gpnsf_loadings"])
    assert loadings(data, show=False).get_title(loc="left") == "rna"
    with pytest.raises(ValueError, match=r"features with signal; got none in \['atac'\]"):
        loadings(data, modality="atac")


def test_correlations_over_the_observations(toy):
    ax = factor_correlation(toy, show=False)
    expected = np.corrcoef(toy.obsm["X_gpnsf"], rowvar=False)
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), expected, atol=1e-5)
    assert ax.images[0].get_clim() == (-1, 1)
    assert lines(ax) == ([1.5], [1.5])
    assert len(ax.texts) == 12


def test_fields_alone_can_be_correlated(toy):
    data = toy.copy()
    data.obsm["X_gpnsf_smooth"] = data.obsm["X_gpnsf_smooth"][::-1].copy() ** 2
    ax = factor_correlation(
        data, moment="smooth", factors=["spatial_1", "nonspatial_2"], vmax=0.5, show=False
    )
    expected = np.corrcoef(data.obsm["X_gpnsf_smooth"][:, [0, 3]], rowvar=False)[0, 1]
    assert ax.images[0].get_array()[0, 1] == pytest.approx(expected, abs=1e-5)
    assert ax.images[0].get_clim() == (-0.5, 0.5)


def test_a_constant_factor_has_no_correlation(toy):
    data = toy.copy()
    data.obsm["X_gpnsf"][:, 1] = 1
    shown = factor_correlation(data, show=False).images[0].get_array()
    assert shown.mask[1].all()
    assert shown.mask.sum() == 4 + 2 * 3


@pytest.mark.parametrize("n_factors", [2, 12, 20, 30])
def test_correlations_of_many_factors_can_be_read(n_factors):
    data = fitted.anndata(n_obs=64, n_factors=n_factors, n_spatial=n_factors // 2)
    assert clean(factor_correlation(data, return_fig=True))


def test_one_panel_goes_into_the_axes_handed_in(toy):
    figure, (left, right) = plt.subplots(1, 2)
    assert loadings(toy, modality="rna", ax=left, show=False) is left
    assert factor_correlation(toy, ax=right, return_fig=True) is figure


def test_bad_options_are_refused(subtests, toy):
    for draw, options, error, message in (
        (loadings, {"n_features": 0}, ValueError, "`n_features` of at least 1"),
        (loadings, {"method": "z"}, ValueError, "`method`"),
        (loadings, {"ncols": 0}, ValueError, "`ncols` of at least 1"),
        (loadings, {"modality": "protein"}, KeyError, "protein"),
        (factor_correlation, {"moment": "std"}, ValueError, "`moment`"),
        (factor_correlation, {"vmax": 0}, ValueError, "`vmax` above 0"),
        (factor_correlation, {"factors": "spatial_1"}, ValueError, "at least two factors"),
    ):
        with (
            subtests.test(options=options, draw=draw.__name__),
            pytest.raises(error, match=message),
        ):
            draw(toy, **options)


def test_default_features_may_share_a_name():
    data = fitted.mudata(n_obs=64)
    data["rna"].var_names = ["same"] * data["rna"].n_vars
    assert loadings(data, show=False)
