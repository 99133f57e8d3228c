from __future__ import annotations

import fitted
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import EllipseCollection, PathCollection

from gpnsf.io import fits
from gpnsf.io.measured import compare
from gpnsf.pl.expected import observed_expected
from gpnsf.tl.rank import rank_features


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=100, n_factors=3, n_spatial=2)


def discs(ax):
    (found,) = (item for item in ax.collections if isinstance(item, EllipseCollection))
    return found


def titles(axes):
    return [ax.get_title(loc="left") for ax in axes]


def test_maps_of_counts_share_their_colours_and_one_bar(toy):
    observed, expected, calibration = observed_expected(toy, features="Gene5", show=False)
    compared = compare(fits.find(toy), "rna", [4])
    np.testing.assert_array_equal(discs(observed).get_array(), compared.observed[:, 0])
    np.testing.assert_array_equal(discs(expected).get_array(), compared.expected[:, 0])
    assert discs(observed).get_clim() == discs(expected).get_clim()
    assert [len(ax.child_axes) for ax in (observed, expected)] == [0, 1]
    assert titles([observed, expected, calibration]) == ["Gene5"] * 3


def test_open_chromatin_stands_beside_its_probability(toy):
    peak = toy["atac"].var_names[3]
    observed, expected, _ = observed_expected(toy, features=peak, show=False)
    assert discs(observed).get_clim() == (0, 1)
    assert discs(expected).get_clim()[1] < 1
    assert [ax.texts[0].get_text() for ax in (observed, expected)] == [
        "atac · open or not",
        "expected probability",
    ]


def test_calibration_compares_means_of_groups_of_equal_expected_value(toy):
    ax = observed_expected(toy, features="Gene5", panels="calibration", show=False)
    compared = compare(fits.find(toy), "rna", [4])
    order = np.argsort(compared.expected[:, 0], kind="stable")
    groups = np.array_split(order, 8)
    x, y = ax.lines[1].get_data()
    for g, a, b in zip(groups, x, y, strict=True):
        w = compared.weight[g]
        assert a == pytest.approx((w * compared.expected[g, 0]).sum() / w.sum())
        assert b == pytest.approx((w * compared.observed[g, 0]).sum() / w.sum())


def test_without_names_each_factor_shows_its_best_feature(toy):
    axes = observed_expected(toy, panels="observed", show=False)
    best = rank_features(toy, modality="rna", n_features=1)["feature"]
    assert titles(axes) == list(dict.fromkeys(best))


def test_features_of_several_modalities_keep_their_order(toy):
    peak = toy["atac"].var_names[3]
    axes = observed_expected(toy, features=["Gene5", peak, "Gene2"], show=False)
    assert titles(axes)[::3] == ["Gene5", peak, "Gene2"]


def test_real_values_have_colours_around_zero():
    data = fitted.anndata(n_obs=64, likelihood="gaussian")
    data.X = data.X.toarray() - 2
    data.obs["gpnsf_total"] = data.X[:, data.varm["gpnsf_loadings"].any(axis=1)].sum(axis=1)
    observed, expected, _ = observed_expected(data, features="Gene1", show=False)
    low, high = discs(observed).get_clim()
    assert low == -high
    assert discs(expected).get_clim() == (low, high)


def test_slices_and_profiles():
    data = fitted.mudata(n_obs=60, n_slices=2)
    axes = observed_expected(data, features="Gene1", library="slice B", show=False)
    assert discs(axes[0]).get_array().size == 60
    both = observed_expected(data, features="Gene1", show=False)
    assert {"slice A", "slice B"} <= {text.get_text() for text in both[0].texts}
    line = observed_expected(fitted.anndata(n_obs=60, shape="line"), features="Gene1", show=False)
    assert isinstance(line[0].collections[0], PathCollection)
    assert line[0].get_ylim() == line[1].get_ylim()


def test_a_feature_of_zeros_is_drawn(toy):
    data = toy.copy()
    data["rna"].varm["gpnsf_loadings"][0] = 0
    data["rna"].var.iloc[0, data["rna"].var.columns.get_loc("gpnsf_background")] = 0
    assert len(observed_expected(data, features="Gene1", show=False)) == 3


def test_one_panel_goes_into_the_axes_handed_in(toy):
    _, ax = plt.subplots()
    assert observed_expected(toy, features="Gene1", panels="expected", ax=ax, show=False) is ax
    assert len(ax.child_axes) == 1


def test_bad_options_are_refused(subtests, toy):
    for options, error, message in (
        ({"features": []}, ValueError, "at least one feature"),
        ({"features": "nothing"}, KeyError, "nothing"),
        ({"panels": "residuals"}, KeyError, "residuals"),
        ({"panels": []}, ValueError, "`panels`"),
        ({"features": "Gene1", "scale": "cube"}, ValueError, "`scale`"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            observed_expected(toy, **options)


def test_default_features_may_share_a_name():
    data = fitted.mudata(n_obs=64)
    data["rna"].var_names = ["same"] * data["rna"].n_vars
    assert observed_expected(data, show=False)
