from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

import gpnsf
from gpnsf.pl.spatial_map import spatial_map


@pytest.fixture(scope="module")
def fits(simulated):
    """Short fits of the simulated section, as a whole and cut into two slices that overlap."""
    whole, sliced = simulated.copy(), simulated.copy()
    sliced.obs["slice"] = np.where(np.arange(sliced.n_obs) % 2, "b", "a")
    short = {
        "n_factors": 3,
        "n_spatial": 2,
        "max_steps": 10,
        "init": "spot",
        "split": "assumed",
        "progress": False,
    }
    gpnsf.tl.fit(whole, **short)
    gpnsf.tl.fit(sliced, library_key="slice", **short)
    return {"whole": whole, "sliced": sliced}


@pytest.fixture
def fitted(fits):
    return fits["whole"]


def pictures(ax):
    return [item for item in ax.collections if isinstance(item, QuadMesh)]


def titles(axes):
    return [ax.get_title(loc="left") for ax in axes]


def test_pictures_hold_the_prediction_on_the_lattice(fitted):
    axes = spatial_map(fitted, spacing=40.0, show=False)
    assert titles(axes) == ["spatial_1", "spatial_2"]
    lattice = gpnsf.pp.grid(fitted, spacing=40.0)
    predicted = gpnsf.tl.predict(fitted, lattice)
    for k, ax in enumerate(axes):
        (picture,) = pictures(ax)
        drawn = picture.get_array()
        corners = picture.get_coordinates()
        middle = (corners[:-1, :-1] + corners[1:, 1:]) / 2
        for i in (0, len(lattice) // 2, len(lattice) - 1):
            row, column = np.argwhere(np.isclose(middle, lattice.iloc[i]).all(axis=2))[0]
            assert drawn[row, column] == pytest.approx(predicted.X[i, k])
        assert drawn.count() == len(lattice)
        assert len(ax.child_axes) == 1


def test_features_and_spread_are_drawn(fitted):
    axes = spatial_map(fitted, factors="spatial_2", features={"atac": "peak_3"}, show=False)
    assert titles(axes) == ["spatial_2", "atac:peak_3"]
    assert spatial_map(fitted, features="gene_1", show=False).get_title(loc="left") == "gene_1"
    spread = pictures(
        spatial_map(fitted, factors="spatial_1", moment="std", spacing=60.0, show=False)
    )[0].get_array()
    predicted = gpnsf.tl.predict(fitted, gpnsf.pp.grid(fitted, spacing=60.0)).layers["std"][:, 0]
    assert spread.max() == pytest.approx(predicted.max())


def test_slices_lie_side_by_side(fits):
    ax = spatial_map(fits["sliced"], factors="spatial_1", spacing=60.0, show=False)
    first, second = (picture.get_coordinates()[..., 0] for picture in pictures(ax))
    assert first.max() < second.min() or second.max() < first.min()
    assert {text.get_text() for text in ax.texts} >= {"a", "b"}
    single = spatial_map(fits["sliced"], factors="spatial_1", library="b", spacing=60.0, show=False)
    assert len(pictures(single)) == 1
    lattice = gpnsf.pp.grid(fits["sliced"], spacing=60.0, library_key="slice")
    chosen = lattice[lattice["slice"] == "b"]
    predicted = gpnsf.tl.predict(
        fits["sliced"], chosen[["x", "y"]], library=chosen["slice"].tolist()
    )
    assert pictures(single)[0].get_array().sum() == pytest.approx(predicted.X[:, 0].sum(), rel=1e-4)


def test_y_grows_downwards(fitted):
    low, high = spatial_map(fitted, factors="spatial_1", spacing=60.0, show=False).get_ylim()
    assert low > high


def test_what_is_returned(fitted):
    assert isinstance(spatial_map(fitted, factors="spatial_1", spacing=60.0, show=False), Axes)
    assert isinstance(spatial_map(fitted, spacing=60.0, shared_scale=True, return_fig=True), Figure)


def test_mistakes_are_explained(subtests, fitted):
    for options, error, message in (
        (
            {"factors": "nonspatial_1"},
            ValueError,
            "'nonspatial_1'. Draw it with pl.spatial_factors",
        ),
        ({"moment": "smooth"}, ValueError, "`moment`"),
        ({"moment": "std", "features": "gene_1"}, ValueError, "`moment` to be 'mean' for"),
        ({"features": "nothing"}, KeyError, "nothing"),
        ({"key": "absent"}, KeyError, "absent"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            spatial_map(fitted, show=False, **options)


def test_fits_without_a_field_are_refused(simulated):
    data = simulated.copy()
    gpnsf.tl.fit(data, "pnmf", n_factors=2, max_steps=3, progress=False)
    with pytest.raises(ValueError, match=r"0 spatial factor\(s\) and 2 coordinate"):
        spatial_map(data)
