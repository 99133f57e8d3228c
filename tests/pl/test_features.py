from __future__ import annotations

import fitted
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

from gpnsf.pl.canvas import font_style
from gpnsf.pl.features import top_features
from gpnsf.tl.rank import rank_features


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=100, n_factors=3, n_spatial=2)


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_a_panel_lists_the_best_features_of_its_factor(toy):
    axes = top_features(toy, modality="rna", n_features=6, show=False)
    table = rank_features(toy, modality="rna", n_features=6)
    assert [ax.texts[0].get_text() for ax in axes] == ["spatial_1", "spatial_2", "nonspatial_1"]
    for ax, (_, part) in zip(axes, table.groupby("factor", sort=False), strict=True):
        assert names(ax) == part["feature"].tolist()
        length, line = ax.collections[1].get_offsets().T
        np.testing.assert_allclose(length, part["score"] / part["score"].max())
        assert ax.transData.transform((0, line[0]))[1] > ax.transData.transform((0, line[-1]))[1]
        assert all(label.get_style() == "italic" for label in ax.get_yticklabels())


def test_modalities_share_the_lines_in_colours_of_their_own(toy):
    figure = top_features(toy, n_features=7, return_fig=True)
    for ax in figure.axes:
        assert [name.startswith("Gene") for name in names(ax)] == [True] * 4 + [False] * 3
        assert [label.get_style() == "italic" for label in ax.get_yticklabels()] == [True] * 4 + [
            False
        ] * 3
        assert len(np.unique(ax.collections[1].get_facecolors(), axis=0)) == 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["rna", "atac"]


def test_one_modality_needs_no_legend(toy):
    figure = top_features(toy, modality="atac", return_fig=True)
    assert not figure.legends


def test_shares_are_drawn_as_they_are(toy):
    ax = top_features(toy, modality="rna", factors="spatial_1", method="share", show=False)
    table = rank_features(toy, modality="rna", factors="spatial_1", method="share", n_features=10)
    np.testing.assert_allclose(ax.collections[1].get_offsets()[:, 0], table["share"])


def test_factors_without_features_are_left_out():
    data = fitted.anndata(n_obs=64)
    data.varm["gpnsf_loadings"][:, 1] = 0
    axes = top_features(data, show=False)
    assert [ax.texts[0].get_text() for ax in axes] == ["spatial_1", "nonspatial_1", "nonspatial_2"]
    with pytest.raises(ValueError, match=r"none for \['spatial_2'\] in \['rna'\]"):
        top_features(data, factors="spatial_2")


@pytest.mark.broad(2)
@pytest.mark.parametrize("n_factors", [2, 7, 12, 20])
@pytest.mark.parametrize("modality", [None, "rna"])
def test_names_never_overlap_and_stay_on_the_page(n_factors, modality):
    data = fitted.mudata(
        n_obs=64, n_factors=n_factors, n_spatial=n_factors // 2, n_genes=100, n_peaks=100
    )
    figure = top_features(data, modality=modality, return_fig=True)
    assert len(figure.axes) == n_factors
    assert figure.get_size_inches()[0] <= 7.3
    figure.draw_without_rendering()
    texts = [
        text
        for text in figure.findobj(mpl.text.Text)
        if text.get_visible() and text.get_text().strip()
    ]
    boxes = [text.get_window_extent() for text in texts]
    # lines of text may touch: their boxes are as high as the tallest letters
    boxes = [box.shrunk(1, 0.9) for box in boxes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_one_panel_goes_into_the_axes_handed_in(toy):
    _, ax = plt.subplots()
    assert top_features(toy, factors="spatial_2", ax=ax, show=False) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["rna", "atac"]
    assert ax.get_xlabel() == "score relative to the best feature"


def test_bad_options_are_refused(subtests, toy):
    for options, error, message in (
        ({"n_features": 1}, ValueError, "at least 2, one for each modality"),
        ({"method": "z"}, ValueError, "`method`"),
        ({"modality": "protein"}, KeyError, "protein"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            top_features(toy, **options)


def test_genes_are_in_italics_under_any_name_of_the_field(subtests):
    for modality, style in (
        ("rna", "italic"),
        ("GEX", "italic"),
        ("atac", "normal"),
        ("Peaks", "normal"),
        ("mine", "normal"),
    ):
        with subtests.test(modality=modality):
            assert font_style(modality, "rna") == style
            assert font_style("mine", [modality, "mine"]) == "italic"
