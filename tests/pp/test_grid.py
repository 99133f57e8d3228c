from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from gpnsf.pp import grid


def section(coords, **obs):
    """An object that has coordinates and little else."""
    data = ad.AnnData(
        np.ones((len(coords), 1), np.float32),
        obs=pd.DataFrame(obs, index=map(str, range(len(coords)))),
    )
    data.obsm["spatial"] = np.asarray(coords, float)
    return data


def square(n_side=14, step=10.0):
    """Spots of a square grid with its middle left out."""
    coords = step * np.array([(i, j) for i in range(n_side) for j in range(n_side)], float)
    return coords[np.abs(coords - coords.mean(axis=0)).max(axis=1) > 1.6 * step]


def test_points_are_regular_and_near_the_spots():
    coords = square()
    lattice = grid(section(coords), spacing=2.5)
    assert list(lattice) == ["x", "y"]
    steps = (lattice - lattice.min()).to_numpy() / 2.5
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert not lattice.duplicated().any()
    distance = cKDTree(coords).query(lattice)[0]
    assert 13 < distance.max() <= 15
    np.testing.assert_allclose(lattice.mean(), coords.mean(axis=0))


def test_every_spot_is_covered_and_holes_stay_open():
    coords = square()
    lattice = grid(section(coords), margin=1.0)
    assert (
        cKDTree(lattice).query(coords)[0].max() <= 10 / 5
    )  # the default spacing is a fifth of the distance of spots
    assert np.linalg.norm(lattice - coords.mean(axis=0), axis=1).min() > 3


def test_slices_get_lattices_of_their_own():
    coords = np.concatenate([square(), square() + 1000])
    data = section(coords, sample=np.repeat(["b", "a"], len(square())))
    lattice = grid(data, spacing=5.0, library_key="sample")
    assert list(lattice) == ["x", "y", "sample"]
    one, other = (lattice.loc[lattice["sample"] == name, ["x", "y"]].to_numpy() for name in "ba")
    np.testing.assert_allclose(one + 1000, other)


@pytest.mark.parametrize("n_dims", [1, 3])
def test_other_numbers_of_coordinates(n_dims):
    coords = np.random.default_rng(0).uniform(0, 9, (60, n_dims))
    lattice = grid(section(coords), spacing=0.5)
    assert list(lattice) == ["x", "y", "z"][:n_dims]
    assert len(lattice) > 15


def test_a_single_place_is_a_point():
    assert len(grid(section([[3.0, 4.0]] * 2))) >= 1


def test_large_sections_get_a_coarser_lattice():
    coords = np.column_stack([np.arange(2000.0), np.zeros(2000)])
    assert len(grid(section(coords), margin=0.2)) < 400


def test_mistakes_are_explained(subtests):
    for options, error, message in (
        ({"spacing": 0.0}, ValueError, "`spacing`"),
        ({"spacing": "fine"}, TypeError, "`spacing`"),
        (
            {"spacing": 1e-5},
            ValueError,
            "spacing=1e-05, which makes .* Pass for example spacing=0.0",
        ),
        ({"margin": -1.0}, ValueError, "`margin`"),
        ({"library_key": "absent"}, KeyError, "absent"),
        ({"spatial_key": "absent"}, KeyError, "absent"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            grid(section(square()), **options)


def test_the_proposed_spacing_is_accepted():
    with pytest.raises(ValueError, match="Pass for example") as raised:
        grid(section(square()), spacing=1e-3)
    assert len(
        grid(
            section(square()),
            spacing=20 * float(str(raised.value).split("spacing=")[-1].strip(".")),
        )
    )


def test_slices_are_not_named_as_an_axis():
    with pytest.raises(ValueError, match="`library_key` .*; got 'x'"):
        grid(section(square(), x="a"), library_key="x")
