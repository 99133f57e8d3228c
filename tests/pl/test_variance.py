from __future__ import annotations

import fitted
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpnsf.pl.variance import variance_explained


@pytest.fixture
def toy():
    data = fitted.mudata(n_obs=64)
    data.uns["gpnsf"]["variance_explained"] = {
        "rna": np.array([0.2, 0.1, 0, -0.01]),
        "atac": np.array([0.02, 0, 0.01, 0]),
    }
    return data


def test_cells_hold_per_cents_and_names(toy):
    ax = variance_explained(toy, show=False)
    assert isinstance(ax, Axes)
    written = [text.get_text() for text in ax.texts]
    assert [text for text in written if text.lstrip("-").replace(".", "").isdigit()] == [
        "20",
        "10",
        "0.0",
        "-1.0",
        "2.0",
        "0.0",
        "1.0",
        "0.0",
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "spatial_1",
        "spatial_2 (rna)",
        "nonspatial_1 (atac)",
        "nonspatial_2",
    ]
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, 0.5, 0, 0], [1, 0, 0.5, 0]])


def test_axes_and_figures(toy):
    ax = plt.figure().add_subplot()
    assert variance_explained(toy, ax=ax, show=False) is ax
    assert isinstance(variance_explained(toy, return_fig=True), Figure)


def test_twenty_factors_are_readable():
    data = fitted.mudata(n_obs=64, n_factors=20, n_spatial=12)
    figure = variance_explained(data, return_fig=True)
    figure.draw_without_rendering()
    boxes = [
        text.get_window_extent()
        for text in figure.axes[0].texts
        if text.get_text().replace(".", "").isdigit()
    ]
    assert len(boxes) == 40
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
