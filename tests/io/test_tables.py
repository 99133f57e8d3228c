"""Tables of a SpatialData, AnnData by modality and lazy AnnData, which tools take as one object."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sections import digest, pair, partial

import gpnsf
from gpnsf.io.tables import lent

SHORT = {
    "n_factors": 3,
    "n_spatial": 2,
    "max_steps": 6,
    "init": "random",
    "split": "assumed",
    "progress": False,
}
NAMED = {"rna": "genes", "atac": "chromatin"}


def fitted(mdata):
    """The fit of a MuData itself, which all others are held against."""
    expected = mdata.copy()
    gpnsf.tl.fit(expected, **SHORT)
    return expected


def apart(mdata):
    return {name: mod.copy() for name, mod in mdata.mod.items()}


def agree(expected, mods):
    """The slots of a fit lie in every table."""
    for name, mod in mods.items():
        rows = expected.obs_names.get_indexer(mod.obs_names)
        for slot in ("X_gpnsf", "X_gpnsf_std"):
            np.testing.assert_array_equal(mod.obsm[slot], expected.obsm[slot][rows])
        loadings = expected[name].varm["gpnsf_loadings"]
        np.testing.assert_array_equal(mod.varm["gpnsf_loadings"], loadings)
        np.testing.assert_array_equal(
            mod.obs["gpnsf_spatial_importance"],
            expected.obs["gpnsf_spatial_importance"].to_numpy()[rows],
        )


# ---- AnnData by modality --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mdata", [pair(), partial()], ids=["same cells", "other cells"])
def test_anndata_by_modality_are_fitted_and_read_as_their_mudata(mdata):
    expected, mods = fitted(mdata), apart(mdata)
    gpnsf.tl.fit(mods, **SHORT)
    agree(expected, mods)
    found, wanted = (gpnsf.tl.rank_features(data, n_features=4) for data in (mods, expected))
    pd.testing.assert_frame_equal(found, wanted)
    found, wanted = (gpnsf.tl.predict(data) for data in (mods, expected))
    np.testing.assert_array_equal(found.X, wanted.X)


def test_what_a_tool_adds_to_observations_goes_into_every_table():
    mods = apart(pair())
    gpnsf.tl.fit(mods, **SHORT)
    gpnsf.tl.domains(mods, n_domains=2)
    columns = [mod.obs["gpnsf_domain"] for mod in mods.values()]
    assert columns[0].equals(columns[1])
    gpnsf.tl.fit(mods, **SHORT)
    assert all("X_gpnsf" in mod.obsm for mod in mods.values())


def test_a_copy_is_the_mudata_and_the_tables_stay_as_they_are():
    mods = apart(pair())
    before = digest(mods)
    found = gpnsf.tl.fit(mods, copy=True, **SHORT)
    assert digest(mods) == before
    np.testing.assert_array_equal(found.obsm["X_gpnsf"], fitted(pair()).obsm["X_gpnsf"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "an empty dict"),
        ({"rna": pair()["rna"], "atac": 3}, "int under 'atac'"),
        ({0: pair()["rna"]}, "AnnData under 0"),
    ],
)
def test_other_dicts_are_refused(data, message):
    with pytest.raises(TypeError, match=f"AnnData by name of modality; got {message}"):
        gpnsf.tl.fit(data, **SHORT)


def begin_and_stop(mods):
    """Write to all parts of what is lent, and stop before the end."""
    with lent(mods) as one:
        for holder in (one, *one.mod.values()):
            holder.obs["new"] = holder.var["new"] = 1
            holder.obsm["new"], holder.uns["new"] = np.ones((holder.n_obs, 1)), {}
        1 / 0  # noqa: B018


def test_an_error_leaves_the_tables_as_they_were():
    mods = apart(pair())
    mods["atac"].X.data[3] = -1
    before = digest(mods)
    with pytest.raises(ValueError, match="counts"):
        gpnsf.tl.fit(mods, **SHORT)
    with pytest.raises(ZeroDivisionError):
        begin_and_stop(mods)
    assert digest(mods) == before


def test_table_belongs_to_spatialdata():
    with pytest.raises(TypeError, match=r"a SpatialData with `table`; got MuData"):
        gpnsf.tl.fit(pair(), table="rna", **SHORT)


@pytest.mark.parametrize("function", [gpnsf.tl.rank_features, gpnsf.pl.spatial_factors])
def test_a_function_stays_what_it_is(function):
    assert pickle.loads(pickle.dumps(function)) is function
    assert next(iter(inspect.signature(function).parameters)) == "data"


def test_an_argument_that_is_nearly_right_is_answered():
    with pytest.raises(TypeError, match="'n_feature' .did you mean 'n_features'"):
        gpnsf.tl.rank_features(pair(), n_feature=3)
    with pytest.raises(
        TypeError, match=r"arguments of gpnsf.tl.fit .*'layer' .did you mean 'layers'"
    ):
        gpnsf.tl.fit(pair(), layer="counts")


# ---- dask and lazy AnnData ------------------------------------------------------------------------------------------


@pytest.mark.broad(2)
@pytest.mark.parametrize("form", ["dense", "CSR", "CSC", "unknown chunks"])
def test_counts_of_dask_are_fitted_as_those_in_memory(form):
    da = pytest.importorskip("dask.array")
    expected, mdata = fitted(pair()), pair()
    for mod in mdata.mod.values():
        dense = da.from_array(mod.X.toarray(), chunks=(7, -1))
        if form == "unknown chunks":
            dense = dense[da.from_array(np.ones(24, dtype=bool), chunks=7)]
            mod.layers["lazy"] = dense.compute_chunk_sizes()
            mod.layers["lazy"]._chunks = dense.chunks
            continue
        to_sparse = {"dense": np.asarray, "CSR": sp.csr_matrix, "CSC": sp.csc_matrix}[form]
        mod.layers["lazy"] = dense.map_blocks(to_sparse)
    gpnsf.tl.fit(mdata, layers="lazy", **SHORT)
    np.testing.assert_allclose(mdata.obsm["X_gpnsf"], expected.obsm["X_gpnsf"], rtol=1e-4)


@pytest.mark.broad(1)
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.filterwarnings("ignore")
def test_lazy_anndata_are_fitted_and_get_the_slots(tmp_path, suffix):
    for package in ("dask", "xarray"):
        pytest.importorskip(package)
    from anndata.experimental import read_lazy

    mdata = pair()
    expected, lazy = fitted(mdata), {}
    for name, mod in mdata.mod.items():
        path = tmp_path / f"{name}{suffix}"
        (mod.write_zarr if suffix == ".zarr" else mod.write_h5ad)(path)
        lazy[name] = read_lazy(path)
    gpnsf.tl.fit(lazy, **SHORT)
    for name, mod in lazy.items():
        np.testing.assert_allclose(mod.obsm["X_gpnsf"], expected.obsm["X_gpnsf"], rtol=1e-4)
        assert mod.X.__class__.__module__.startswith("dask")
        assert name in mod.uns["gpnsf"]["modalities"]
    alone = lazy["rna"]
    gpnsf.tl.fit(alone, key_added="own", **SHORT)
    assert gpnsf.tl.rank_features(alone, n_features=2, key="own").shape[0] > 1
    assert isinstance(alone.to_memory(), ad.AnnData)


# ---- SpatialData ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sdata():
    """A simulated section of spots, whose two tables have no coordinates of their own, with an image and points."""
    pytest.importorskip("spatialdata")
    import geopandas
    from shapely import Point
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale

    mdata = pair()
    places = mdata["rna"].obsm["spatial"]
    spots = geopandas.GeoDataFrame(
        {"radius": np.full(24, 0.4)}, geometry=[Point(*place) for place in places[::-1]]
    )
    spots.index = np.arange(24)[::-1]
    tables = {}
    for name, mod in mdata.mod.items():
        table = mod.copy()
        del table.obsm["spatial"]
        table.obs["region"], table.obs["number"] = pd.Categorical(["spots"] * 24), np.arange(24)
        attributes = {"region": "spots", "region_key": "region", "instance_key": "number"}
        tables[NAMED[name]] = TableModel.parse(table, **attributes)
    pixels = np.zeros((3, 30, 40), dtype=np.uint8)
    pixels[0, :10, :20] = 200  # red, at the upper left
    fourfold = {"global": Scale([4.0, 4.0], axes=("x", "y"))}
    return SpatialData(
        images={
            "tissue": Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=fourfold)
        },
        points={"molecules": PointsModel.parse(places)},
        shapes={"spots": ShapesModel.parse(spots)},
        tables=tables,
    )


def contents(store: Path) -> dict[str, bytes]:
    """Files of a store that belong to no table, and are no summary of the whole."""
    files = [path for path in sorted(store.rglob("*")) if path.is_file()]
    inside = {str(path.relative_to(store)): path.read_bytes() for path in files}
    return {
        name: text
        for name, text in inside.items()
        if not name.startswith("tables/") and name not in ("zarr.json", ".zmetadata")
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_tables_of_a_spatialdata_are_fitted_written_and_read(sdata, tmp_path):
    import spatialdata

    expected = fitted(pair())
    sdata.write(tmp_path / "before.zarr")
    gpnsf.tl.fit(sdata, table=NAMED, **SHORT)
    agree(expected, {name: sdata.tables[own] for name, own in NAMED.items()})
    sdata.write(tmp_path / "after.zarr")
    assert contents(tmp_path / "after.zarr") == contents(tmp_path / "before.zarr")
    again = spatialdata.read_zarr(tmp_path / "after.zarr")
    found, wanted = (gpnsf.tl.rank_features(data, n_features=3) for data in (again, expected))
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
    found, wanted = (gpnsf.tl.predict(data) for data in (again, expected))
    np.testing.assert_allclose(found.X, wanted.X, rtol=1e-5)
    assert gpnsf.pl.spatial_factors(again, show=False) is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tables_of_a_store_are_fitted_by_its_path_and_nothing_else_in_it_changes(sdata, tmp_path):
    import spatialdata

    expected, path = fitted(pair()), tmp_path / "section.zarr"
    sdata.write(path)
    before = contents(path)
    gpnsf.tl.fit(path, table=NAMED, **SHORT)
    assert contents(path) == before
    again = spatialdata.read_zarr(path)
    agree(expected, {name: again.tables[own] for name, own in NAMED.items()})
    assert gpnsf.tl.rank_features(again, n_features=3).shape[0] > 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_table_is_an_anndata(sdata):
    gpnsf.tl.fit(sdata, table="genes", **SHORT)
    alone = pair()["rna"].copy()
    gpnsf.tl.fit(alone, **SHORT)
    table = sdata.tables["genes"]
    np.testing.assert_array_equal(table.obsm["X_gpnsf"], alone.obsm["X_gpnsf"])
    assert "X_gpnsf" not in sdata.tables["chromatin"].obsm
    ahead = gpnsf.tl.forecast(sdata, table="genes", **SHORT)
    assert ahead.memory == gpnsf.tl.forecast(pair()["rna"].copy(), **SHORT).memory
    found, wanted = (gpnsf.tl.rank_features(data, n_features=2) for data in (sdata, alone))
    pd.testing.assert_frame_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_told_is_asked_for(sdata):
    sdata.tables["more"] = sdata.tables["genes"].copy()
    with pytest.raises(ValueError, match=r"one table, or `table`; got tables \['genes'"):
        gpnsf.tl.fit(sdata, **SHORT)
    with pytest.raises(KeyError, match="nothing"):
        gpnsf.tl.fit(sdata, table="nothing", **SHORT)
    sdata.tables["genes"].obs["number"] += 3
    with pytest.raises(ValueError, match="none for 3 of 24, the first 'spot21'"):
        gpnsf.tl.fit(sdata, table="genes", **SHORT)
    assert "spatial" not in sdata.tables["genes"].obsm


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_line_fits_a_store(sdata, tmp_path, capsys):
    import spatialdata

    from gpnsf.cli import main

    source, target = tmp_path / "section.zarr", tmp_path / "fitted.zarr"
    sdata.write(source)
    tables = "--table=" + ",".join(f"{name}={own}" for name, own in NAMED.items())
    short = ["--n-factors=3", "--n-spatial=2", "--max-steps=6", "--init=random", "--split=assumed"]
    assert main(["fit", str(source), str(target), tables, *short]) == 0
    assert "X_gpnsf" not in spatialdata.read_zarr(source).tables["genes"].obsm
    again = spatialdata.read_zarr(target)
    agree(fitted(pair()), {name: again.tables[own] for name, own in NAMED.items()})
    assert contents(target) == contents(source)
    assert main(["forecast", str(source), tables, *short]) == 0
    assert "optimisation" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_maps_draw_the_image_of_a_spatialdata(sdata):
    gpnsf.tl.fit(sdata, table="genes", **SHORT)
    panel = gpnsf.pl.spatial_factors(sdata, show=False)[0]
    (image,) = panel.get_images()
    left, right, bottom, top = image.get_extent()
    assert (left, right, top, bottom) == pytest.approx((0, 160, 0, 120), abs=0.2)
    pixels = np.asarray(image.get_array())
    height, width = pixels.shape[:2]
    red = pixels[..., 0] > pixels[..., 0].max() / 2
    assert red[: int(0.3 * height), : int(0.45 * width)].all()
    assert not red[int(0.36 * height) :].any()
    assert "spatial" not in sdata.tables["genes"].uns
    assert "spatial" not in sdata.tables["genes"].obsm
