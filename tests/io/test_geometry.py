"""Centre and scale come from the tissue: extremes of ordinary sections, and never a cell that is far off."""

from __future__ import annotations

from itertools import product

import fitted
import numpy as np
import pytest

import gpnsf
from gpnsf.core.fields.base import TISSUE
from gpnsf.io.geometry import geometry, normalise_coords, stray

SHAPES = ("grid", "hex", "cells", "strip", "line", "cube")


def one(coords: np.ndarray) -> np.ndarray:
    """Codes of a single slice."""
    return np.zeros(len(coords), dtype=np.int64)


def test_an_ordinary_section_is_scaled_by_its_extremes(subtests):
    for shape, n_obs in product(SHAPES, (2, 60, 1000)):
        with subtests.test(shape=shape, n_obs=n_obs):
            coords = fitted.coordinates(shape, n_obs)
            found = geometry(coords, one(coords), "spatial")
            low, high = coords.min(0), coords.max(0)
            assert not found.stray.any()
            np.testing.assert_array_equal(found.centre, [(low + high) / 2])
            assert found.scale == (high / 2 - low / 2).max()
            assert np.abs(found.coords).max() <= 1.000001


def test_cells_far_off_have_no_say(subtests):
    for shape, times in product(SHAPES, (3.0, 1e3, 1e12)):
        with subtests.test(shape=shape, times=times):
            tissue = fitted.coordinates(shape, 600)
            size = np.ptp(tissue, axis=0).max()
            debris = tissue.max(0) + size * times * np.array([[1.0], [1.01], [-1.5]])
            coords = np.concatenate([debris[:2], tissue, debris[2:]])
            found, alone = (geometry(part, one(part), "spatial") for part in (coords, tissue))
            assert np.flatnonzero(found.stray).tolist() == [0, 1, 602]
            assert (found.scale, found.centre.tolist()) == (alone.scale, alone.centre.tolist())
            np.testing.assert_array_equal(found.coords[2:-1], alone.coords)
            away = np.abs(found.coords[found.stray]).max(axis=1)
            assert (away > 1.9).all()
            assert (away <= 2).all()


def test_a_piece_of_tissue_and_a_thread_of_cells_are_tissue():
    tissue = fitted.coordinates("cells", 900)
    piece = tissue[:60] / 10 + [6000, 0]
    thread = np.column_stack([np.linspace(1200, 4000, 15), np.zeros(15)])
    for more in (piece, thread):
        coords = np.concatenate([tissue, more])
        assert not stray(coords, one(coords)).any()


def test_each_slice_has_its_own_tissue():
    first, second = fitted.coordinates("grid", 400), fitted.coordinates("grid", 100) + 1e4
    coords = np.concatenate([first, second, [[1e4, -1e4]]])
    library = np.repeat([0, 1], [400, 101])
    assert np.flatnonzero(stray(coords, library)).tolist() == [500]
    found = geometry(coords, library, "spatial")
    assert found.scale == np.ptp(first, axis=0).max() / 2
    again = normalise_coords(coords, library, found.centre, found.scale)
    np.testing.assert_array_equal(again[:500], found.coords[:500])


def test_a_field_is_no_larger_for_a_cell_that_is_far_off():
    data = gpnsf.datasets.tissue(n_obs=100, n_genes=30, n_peaks=30, seed=0)["rna"].copy()
    data.obsm["spatial"] = np.vstack([fitted.coordinates("grid", 99), [[1e6, 1e6]]])
    gpnsf.tl.fit(data, n_factors=4, n_spatial=2, max_steps=3, split="assumed", progress=False)
    field = data.uns["gpnsf"]["field"]
    assert max(field["process"]["extent"]) == np.float32(TISSUE)
    assert field["scale"] == pytest.approx(4.95, rel=0.1)
    far = gpnsf.tl.predict(data).X[-1]
    near = gpnsf.tl.predict(data, np.array([[1e7, 1e7]])).X[0]
    np.testing.assert_allclose(far, near, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["hilbert", "inducing"])
def test_a_fit_is_as_good_with_cells_that_are_far_off(field):
    data = gpnsf.datasets.tissue(n_obs=400, n_genes=100, n_peaks=30, seed=0)
    plain = data["rna"].copy()
    plain.obsm["spatial"] = np.asarray(data.obsm["spatial"], dtype=np.float64)
    messy = plain.copy()
    rows = np.array([5, 77, 200])
    messy.obsm["spatial"][rows] = 40 * plain.obsm["spatial"].max(0) + np.arange(6).reshape(3, 2)
    for section in (plain, messy):
        gpnsf.tl.fit(section, n_factors=5, field=field, n_inducing=100, progress=False)
    assert messy.uns["gpnsf"]["is_spatial"].tolist() == plain.uns["gpnsf"]["is_spatial"].tolist()
    kept = np.setdiff1d(np.arange(400), rows)
    for slot in ("X_gpnsf", "X_gpnsf_smooth"):
        pair = np.corrcoef(plain.obsm[slot][kept].T, messy.obsm[slot][kept].T)
        across = pair[: plain.obsm[slot].shape[1], plain.obsm[slot].shape[1] :]
        assert across.max(axis=1).min() > 0.95
