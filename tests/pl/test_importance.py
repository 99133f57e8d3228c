from __future__ import annotations

import fitted
import numpy as np
import pytest
from matplotlib import pyplot as plt

from gpnsf.pl.importance import importance


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=100)


def titles(axes):
    return [ax.get_title(loc="left") for ax in axes]


def heights(ax):
    return [patch.get_height() for patch in ax.patches]


def test_histograms_count_features_with_signal_and_observations(toy):
    axes = importance(toy, show=False)
    assert titles(axes) == ["rna", "atac", "observations", "observations in space"]
    for ax, values in zip(
        axes,
        [
            toy["rna"].var["gpnsf_spatial_importance"][:-1],
            toy["atac"].var["gpnsf_spatial_importance"][:-1],
            toy.obs["gpnsf_spatial_importance"],
        ],
        strict=False,
    ):
        np.testing.assert_array_equal(heights(ax), np.histogram(values, np.linspace(0, 1, 26))[0])
        assert ax.get_xlim() == (0, 1)
        assert ax.texts[0].get_text() == f"{len(values)} · median {np.median(values):.2f}"
    assert axes[0].patches[0].get_facecolor() != axes[1].patches[0].get_facecolor()


def test_the_map_shows_observations_at_their_places(toy):
    ax = importance(toy, panels="map", show=False)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), toy.obsm["spatial"])
    np.testing.assert_allclose(ax.collections[0].get_array(), toy.obs["gpnsf_spatial_importance"])
    assert ax.get_aspect() == 1
    assert len(ax.child_axes) == 1


def test_anndata_has_three_panels():
    assert titles(importance(fitted.anndata(n_obs=36), show=False)) == [
        "rna",
        "observations",
        "observations in space",
    ]


def test_importance_of_zero_throughout_is_drawn():
    data = fitted.anndata(n_obs=36, n_spatial=0)
    axes = importance(data, show=False)
    assert heights(axes[1])[0] == 36
    low, high = axes[2].collections[0].get_clim()
    assert low < high


def test_a_model_without_coordinates_has_no_map():
    data = fitted.anndata(n_obs=36)
    del data.obsm["spatial"]
    assert titles(importance(data, show=False)) == ["rna", "observations"]
    with pytest.raises(KeyError, match="'map'"):
        importance(data, panels="map")


@pytest.mark.parametrize("options", [{"shape": "line"}, {"shape": "strip"}, {"n_slices": 3}])
def test_other_sections_can_be_drawn(options):
    axes = importance(fitted.mudata(n_obs=64, **options), show=False)
    assert len(axes[3].collections[0].get_offsets()) == 64 * options.get("n_slices", 1)


def test_one_panel_goes_into_the_axes_handed_in(toy):
    _, ax = plt.subplots()
    assert importance(toy, panels="atac", ax=ax, show=False) is ax
    assert sum(heights(ax)) == 79
    with pytest.raises(ValueError, match="one panel for `ax`; got 4"):
        importance(toy, ax=ax)


def test_unknown_panels_are_refused(toy):
    with pytest.raises(KeyError, match="'protein'"):
        importance(toy, panels=["rna", "protein"])


def test_slices_of_the_map_have_their_names():
    ax = importance(fitted.mudata(n_obs=60, n_slices=2), panels="map", show=False)
    assert {"slice A", "slice B"} <= {text.get_text() for text in ax.texts}
