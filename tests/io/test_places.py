"""Coordinates in tables: by name where there are names, every row, and never turned silently."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import gpnsf
from gpnsf.io.places import in_order, read_table

XY = np.array([[1.0, 20.0], [2.0, 30.0], [3.5, 40.0]])
TEXTS = {
    "header": "x,y\n1,20\n2,30\n3.5,40\n",
    "turned": "y,x\n20,1\n30,2\n40,3.5\n",
    "capitals": "X,Y\n1,20\n2,30\n3.5,40\n",
    "semicolons": "x;y\n1;20\n2;30\n3.5;40\n",
    "tabs": "x\ty\n1\t20\n2\t30\n3.5\t40\n",
    "barcodes": "barcode,x,y\na,1,20\nb,2,30\nc,3.5,40\n",
    "index of pandas": ",x,y\n0,1,20\n1,2,30\n2,3.5,40\n",
    "more columns": "x,area,y\n1,7,20\n2,7,30\n3.5,7,40\n",
    "no header": "1,20\n2,30\n3.5,40\n",
    "quoted, no header": '"1","20"\n"2","30"\n"3.5","40"\n',
    "no header, barcodes": "a,1,20\nb,2,30\nc,3.5,40\n",
}


def test_every_row_is_read_and_every_axis_found(subtests, tmp_path):
    for name, text in TEXTS.items():
        with subtests.test(name):
            (tmp_path / "places.csv").write_text(text)
            table = in_order(read_table(tmp_path / "places.csv"), 2)
            np.testing.assert_array_equal(table.to_numpy(float), XY)
            if "barcodes" in name:
                assert table.index.tolist() == ["a", "b", "c"]


def test_what_cannot_be_told_is_refused(subtests, tmp_path):
    for text, message in (
        ("row,col\n1,2\n", "columns 'x', 'y' for the axes of the fit"),
        ("x,y\n1,\n2,3\n", "coordinates in every row; got .* 2 rows, 1 of them"),
        ("x,y\n", "coordinates in every row"),
        ("", "a table of coordinates"),
    ):
        with subtests.test(text=text):
            (tmp_path / "places.csv").write_text(text)
            with pytest.raises(ValueError, match=message):
                in_order(read_table(tmp_path / "places.csv"), 2)


@pytest.fixture(scope="module")
def fitted(simulated) -> ad.AnnData:
    rna = simulated["rna"].copy()
    rna.obsm["spatial"] = pd.DataFrame(
        simulated.obsm["spatial"], columns=["col", "row"], index=rna.obs_names
    )
    gpnsf.tl.fit(rna, n_factors=2, n_spatial=2, max_steps=5, split="assumed", progress=False)
    return rna


def test_predictions_go_by_the_names_that_the_coordinates_have(fitted):
    table = fitted.obsm["spatial"].iloc[:7]
    wanted = gpnsf.tl.predict(fitted, table.to_numpy())
    found = gpnsf.tl.predict(fitted, table[["row", "col"]])
    np.testing.assert_array_equal(found.X, wanted.X)
    assert found.obs_names.tolist() == table.index.tolist()
    with pytest.raises(ValueError, match="columns 'col', 'row' for the axes"):
        gpnsf.tl.predict(fitted, table.set_axis(["x", "y"], axis=1))


def test_places_outside_of_the_tissue_are_told(fitted, caplog):
    coords = fitted.obsm["spatial"].to_numpy()
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        gpnsf.tl.predict(fitted, coords)
        assert not caplog.records
        gpnsf.tl.predict(fitted, coords * 0.001 - 1e5)
    (record,) = caplog.records
    assert (
        f"{len(coords)} of {len(coords)} places lie outside of the fitted tissue"
        in record.getMessage()
    )


@pytest.mark.parametrize("field", ["hilbert", "inducing"])
def test_axes_in_another_order_or_direction_are_told(field, adata, caplog):
    strip = adata[:40].copy()
    strip.obsm["spatial"] = np.column_stack([np.arange(40) * 10.0, np.arange(40) % 4 * 10.0 + 60])
    gpnsf.tl.fit(
        strip, n_factors=2, n_spatial=1, max_steps=2, split="assumed", field=field, progress=False
    )
    coords = strip.obsm["spatial"]
    for changed in (coords[:, ::-1], coords * [1, -1], coords * [-1, 1], coords * 1000):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="gpnsf"):
            gpnsf.tl.predict(strip, coords)
            assert not caplog.records
            gpnsf.tl.predict(strip, changed)
        assert "lie outside of the fitted tissue" in caplog.text
