"""Coordinates that mislead a fit are told once, with a remedy that works; ordinary ones are not."""

from __future__ import annotations

import logging
from itertools import product

import anndata as ad
import fitted
import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.io.read import read


def section(coords: np.ndarray, **obs: object) -> ad.AnnData:
    """Counts without a meaning at some places."""
    names = [f"AAAC{i}" for i in range(len(coords))]
    counts = np.ones((len(coords), 3), dtype=np.float32)
    adata = ad.AnnData(counts, obs=pd.DataFrame(obs, index=names))
    adata.obsm["spatial"] = np.asarray(coords, dtype=np.float64)
    return adata


def told(adata: ad.AnnData, caplog, **reading: object) -> list[str]:
    """What a fit would say about its coordinates."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        read(adata, Reading(**reading))
    return [record.getMessage() for record in caplog.records]


def piled(shape: str, shift: float, n_obs: int = 300) -> np.ndarray:
    """Two sections of one shape on top of each other."""
    coords = fitted.coordinates(shape, n_obs)
    return np.concatenate([coords, coords + shift])


HALVES = np.repeat(["one", "two"], 300)
NO_EVIDENCE = {
    "grid": section(fitted.coordinates("grid", 600), kind=np.arange(600) % 3),
    "hex": section(fitted.coordinates("hex", 600), sample=HALVES),
    "cells": section(fitted.coordinates("cells", 600), cell_type=np.arange(600) % 5),
    "checkerboard": section(fitted.coordinates("grid", 576), test=np.arange(576) // 24 % 2),
    "side by side": section(
        np.concatenate([fitted.coordinates("cells", 300), fitted.coordinates("cells", 300) + 2500]),
        sample=HALVES,
    ),
    "a few shared places": section(
        np.concatenate([fitted.coordinates("cells", 560), fitted.coordinates("cells", 40)])
    ),
    "cells at the centres of their spots": section(
        fitted.coordinates("grid", 100)[np.random.default_rng(0).integers(0, 100, 600)],
        cell_type=np.random.default_rng(1).integers(0, 4, 600),
    ),
    "one place": section(np.vstack([np.zeros((599, 2)), [[1.0, 1.0]]])),
}


def test_ordinary_sections_are_silent(subtests, caplog):
    for name, adata in NO_EVIDENCE.items():
        with subtests.test(name):
            assert told(adata, caplog) == []


def test_stacked_sections_are_told_with_their_column(subtests, caplog):
    for shape, shift, column in (
        ("grid", 0.0, "which"),
        ("hex", 0.0, "which"),
        ("cells", 0.0, "which"),
        ("hex", 20.0, "which"),
        ("grid", 0.3, "which"),
        ("cells", 3.0, "sample_id"),
    ):
        with subtests.test(shape=shape, shift=shift, column=column):
            adata = section(piled(shape, shift), **{column: HALVES}, quality=np.arange(600) % 7)
            (message,) = told(adata, caplog)
            assert f"Pass library_key={column!r}" in message
            assert ("300 more" in message or "597 more" in message) is (shift == 0)
            assert told(adata, caplog, library_key=column) == []


@pytest.mark.parametrize("name", ["AAAC{0}-{1}", "s{1}_AAAC{0}"])
def test_stacked_sections_are_told_by_the_names_of_their_spots(name, caplog):
    adata = section(piled("hex", 20.0))
    adata.obs_names = [name.format(i % 300, i // 300) for i in range(600)]
    (message,) = told(adata, caplog)
    statement = message.split("Set ")[1].split(" and pass")[0]
    exec(statement, {"data": adata})
    assert adata.obs["section"].nunique() == 2
    assert told(adata, caplog, library_key="section") == []


def test_stacked_sections_are_told_by_their_order(caplog):
    (message,) = told(section(piled("cells", 0.0)), caplog)
    assert "come in blocks" in message
    assert "pass it as library_key" in message


def test_cells_far_off_are_counted_and_named(caplog):
    coords = fitted.coordinates("cells", 600)
    coords[[3, 50, 51, 52]] += 1e6
    (message,) = told(section(coords), caplog)
    assert "4 of 600" in message
    assert "'AAAC3', 'AAAC50', 'AAAC51' and 1 more" in message


def array_indices(shift: int = 0) -> np.ndarray:
    """Rows and columns of the spots of a hexagonal array."""
    row, column = np.divmod(np.arange(600), 20)
    return np.column_stack([row, 2 * column + (row + shift) % 2])


def test_rows_and_columns_of_a_hexagonal_array_are_told_and_the_remedy_works(subtests, caplog):
    for shift, turned in product((0, 1), (False, True)):
        with subtests.test(shift=shift, turned=turned):
            coords = array_indices(shift)
            adata = section(coords[:, ::-1] if turned else coords)
            (message,) = told(adata, caplog)
            assert (
                "the tissue is squeezed. Multiply the coordinate of the rows by 3 ** 0.5" in message
            )
            adata.obsm["spatial"][:, int(turned)] *= 3**0.5
            distances = cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=7)[0]
            np.testing.assert_allclose(np.median(distances, axis=0)[1:], 2)
            assert told(adata, caplog) == []


def test_whole_numbers_that_are_no_array_are_not_told(caplog):
    coords = array_indices()
    for other in (2 * coords, np.vstack([coords, [[5, 2]]]), np.rint(coords * [86.6, 50])):
        assert told(section(other), caplog) == []


@pytest.mark.parametrize(
    ("shape", "ratio", "says"),
    [("hex", 1.6, True), ("hex", 1.2, False), ("cells", 2.0, False), ("cells", 4.0, True)],
)
def test_slices_in_other_units_are_told(shape, ratio, says, caplog):
    coords = fitted.coordinates(shape, 300)
    adata = section(np.concatenate([coords, ratio * coords]), which=HALVES)
    messages = told(adata, caplog, library_key="which")
    assert bool(messages) is says
    if says:
        assert "section 'one'" in messages[0]
        assert "Multiply the coordinates of one section" in messages[0]


def test_a_fit_tells_once_and_keeps_it_and_tools_after_it_do_not(caplog):
    adata = section(piled("grid", 0.0, 60), which=np.repeat(["one", "two"], 60))
    adata.X = np.random.default_rng(0).poisson(9.0, (120, 3)).astype(np.float32)
    caplog.set_level(logging.WARNING, logger="gpnsf")
    gpnsf.tl.fit(adata, n_factors=2, max_steps=2, split="assumed", n_spatial=1, progress=False)
    assert sum("library_key='which'" in record.getMessage() for record in caplog.records) == 1
    assert sum("library_key='which'" in text for text in adata.uns["gpnsf"]["warnings"]) == 1
    caplog.clear()
    gpnsf.tl.denoise(adata)
    gpnsf.tl.evaluate(adata)
    assert not [record for record in caplog.records if "library_key" in record.getMessage()]


REAL = {  # what is wrong with each file, if its sections are not named
    "mob_rep11.h5ad": "",
    "pdac_a.h5ad": "",
    "osmfish_cortex.h5ad": "",  # a fifth of the cells lie at the place of another one
    "visium_lymphnode_1k.h5ad": "",
    "seqfish_gridded_deconv.h5ad": "",
    "bc_4sections.h5ad": "Pass library_key='section'",
    "hln_protein_2sections.h5ad": "Pass library_key='library'",
}


@pytest.mark.parametrize("name", REAL)
def test_real_sections_are_told_where_something_is_wrong(name, data_file, caplog):
    adata = ad.read_h5ad(data_file(name))
    if name == "hln_protein_2sections.h5ad":
        assert any("squeezed" in text for text in told(adata, caplog, likelihoods="gaussian"))
        adata.obsm["spatial"] = adata.obsm["spatial"] * [3**0.5, 1]
    messages = told(adata, caplog, likelihoods="gaussian")
    assert len(messages) == bool(REAL[name])
    assert all(REAL[name] in message for message in messages)
    if REAL[name]:
        column = REAL[name].split("'")[1]
        assert told(adata, caplog, likelihoods="gaussian", library_key=column) == []
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(np.float64)
    adata.obsm["spatial"][7] += 1e6
    assert any("far outside" in text for text in told(adata, caplog, likelihoods="gaussian"))
