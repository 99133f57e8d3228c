from __future__ import annotations

import fitted
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import EllipseCollection, PathCollection

from gpnsf.pl.feature_maps import feature_maps
from gpnsf.tl.rank import rank_features


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=100, n_factors=3, n_spatial=2)


def values(ax):
    (discs,) = (item for item in ax.collections if isinstance(item, EllipseCollection))
    return discs.get_array()


def titles(axes):
    return [ax.get_title(loc="left") for ax in axes]


def per_size(mod, feature):
    counts = mod.X.toarray()
    total = counts.sum(axis=1)
    return counts[:, mod.var_names.get_loc(feature)] / np.maximum(total / total.mean(), 0.05)


def test_a_row_holds_a_factor_and_its_best_features(toy):
    axes = feature_maps(toy, n_features=4, show=False)
    assert len(axes) == 3 * 5
    for k, name in enumerate(["spatial_1", "spatial_2", "nonspatial_1"]):
        row = axes[5 * k : 5 * (k + 1)]
        table = rank_features(toy, factors=name, n_features=2)
        assert titles(row) == [name, *table["feature"]]
        np.testing.assert_array_equal(values(row[0]), toy.obsm["X_gpnsf"][:, k])
        notes = [ax.texts[0].get_text() for ax in row[1:]]
        assert notes == [
            f"{modality} · {100 * share:.0f} % of its signal"
            for modality, share in zip(table["modality"], table["share"], strict=True)
        ]
        np.testing.assert_allclose(
            values(row[1]), per_size(toy["rna"], table["feature"].iloc[0]), rtol=1e-5
        )
        assert set(np.unique(values(row[3]))) <= {0.0, 1.0}
        assert [len(ax.child_axes) for ax in row] == [
            1,
            1,
            1,
            0,
            0,
        ]  # nothing to read from a bar of 0 and 1


def test_named_features_alone(toy):
    peak = toy["atac"].var_names[0]
    axes = feature_maps(toy, features=["Gene2", peak, "Gene1"], ncols=2, show=False)
    assert titles(axes) == ["Gene2", peak, "Gene1"]
    assert [ax.texts[0].get_text() for ax in axes] == [
        "rna · per size factor",
        "atac · open",
        "rna · per size factor",
    ]
    np.testing.assert_allclose(values(axes[0]), per_size(toy["rna"], "Gene2"), rtol=1e-5)
    assert axes[0].get_subplotspec().get_gridspec().ncols == 2


def test_rare_features_have_colours_up_to_their_largest_value(toy):
    data = toy.copy()
    counts = data["rna"].X.toarray()
    counts[:, 0] = 0
    counts[7, 0] = 3
    data["rna"].X = counts
    data["rna"].obs["gpnsf_total"] = counts.sum(axis=1)
    ax = feature_maps(data, features="Gene1", quantiles=(0.0, 0.9), show=False)
    low, high = ax.collections[0].get_clim()
    assert (low, high) == (0, values(ax).max())


def test_rows_of_factors_with_fewer_features_end_early():
    data = fitted.anndata(n_obs=64)
    weights = data.varm["gpnsf_loadings"]
    weights[1:, 0] = 0
    axes = feature_maps(data, factors=["spatial_1", "spatial_2"], n_features=2, show=False)
    assert [title.split("_")[0] for title in titles(axes)] == [
        "spatial",
        "Gene1",
        "spatial",
        *titles(axes)[3:],
    ]
    assert len(axes) == len(axes[0].figure.axes) == 5


def test_observations_without_the_modality_are_grey(simulated):
    import gpnsf

    data = simulated.copy()
    data.mod["atac"] = data["atac"][10:].copy()
    data.update()
    gpnsf.tl.fit(data, n_factors=2, max_steps=2, init="spot", split="assumed", progress=False)
    ax = feature_maps(data, features=data["atac"].var_names[0], show=False)
    ax.figure.draw_without_rendering()
    colors = ax.collections[0].get_facecolors()
    lacking = ~data.obs_names.isin(data["atac"].obs_names)
    np.testing.assert_allclose(colors[lacking, :3], 0.88)
    assert (np.abs(colors[~lacking, :3] - 0.88).max(axis=1) > 0.05).all()


@pytest.mark.parametrize("layer", ["logged", "X"])
def test_a_layer_is_drawn_as_it_is(toy, layer):
    data = toy.copy()
    logged = data["rna"].X.copy()
    logged.data = np.log1p(logged.data / 3)  # no counts any more
    if layer == "X":
        data["rna"].X = logged
    else:
        data["rna"].layers["logged"] = logged
    ax = feature_maps(data, features="Gene2", layer=layer, show=False)
    at = data["rna"].var_names.get_loc("Gene2")
    np.testing.assert_allclose(values(ax), logged.toarray()[:, at], rtol=1e-6)
    assert ax.texts[0].get_text() == {"X": "rna · X"}.get(layer, "rna · layer logged")
    assert len(feature_maps(data, factors=0, modality="rna", layer=layer, show=False)) == 5


def test_a_layer_that_is_not_there_is_told(toy):
    with pytest.raises(KeyError, match="the layer to exist in modality 'rna' .*there: 'X'"):
        feature_maps(toy, features="Gene2", layer="counts")


def test_slices_and_profiles():
    data = fitted.mudata(n_obs=60, n_slices=2)
    ax = feature_maps(data, features="Gene1", library="slice B", show=False)
    np.testing.assert_allclose(values(ax), per_size(data["rna"], "Gene1")[60:], rtol=1e-5)
    line = feature_maps(fitted.anndata(n_obs=60, shape="line"), n_features=1, show=False)
    assert all(isinstance(ax.collections[0], PathCollection) for ax in line)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["hex", "strip"])
def test_ten_factors_fit_a_page_and_notes_their_panels(shape):
    data = fitted.mudata(n_obs=144, n_factors=10, n_genes=30, n_peaks=30, shape=shape)
    if shape == "strip":  # the tallest tissue
        data.obsm["spatial"] = data.obsm["spatial"][:, ::-1].copy()
    figure = feature_maps(data, return_fig=True)
    width, height = figure.get_size_inches()
    assert width <= 8
    assert height <= 10
    figure.draw_without_rendering()
    notes = [ax.texts[0].get_window_extent() for ax in figure.axes[:5]]
    assert all(a.x1 < b.x0 for a, b in zip(notes, notes[1:], strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["hex", pytest.param("strip", marks=pytest.mark.slow)])
def test_twenty_factors_stay_on_the_page(shape):
    data = fitted.mudata(
        n_obs=144, n_factors=20, n_spatial=10, n_genes=100, n_peaks=100, shape=shape
    )
    figure = feature_maps(data, return_fig=True)
    assert figure.get_size_inches()[0] <= 8
    figure.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
    boxes += [ax._left_title.get_window_extent() for ax in figure.axes]
    boxes = [box for box in boxes if box.width]
    assert len(boxes) == 100
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_one_panel_goes_into_the_axes_handed_in(toy):
    _, ax = plt.subplots()
    assert feature_maps(toy, features="Gene1", ax=ax, show=False) is ax


def test_bad_options_are_refused(subtests, toy):
    for options, error, message in (
        ({"features": "Gene1", "factors": "spatial_1"}, ValueError, "`features` or `factors`"),
        ({"features": []}, ValueError, "at least one"),
        ({"features": "nothing"}, KeyError, "nothing"),
        ({"n_features": 1}, ValueError, "at least 2, one for each modality"),
        ({"ncols": 3}, ValueError, "`ncols` only with `features`"),
        ({"factors": "spatial_9"}, KeyError, "spatial_9"),
        ({"features": "Gene1", "scale": "cube"}, ValueError, "`scale`"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            feature_maps(toy, **options)


def test_default_features_may_share_a_name():
    data = fitted.mudata(n_obs=64)
    data["rna"].var_names = ["same"] * data["rna"].n_vars
    assert feature_maps(data, show=False)
