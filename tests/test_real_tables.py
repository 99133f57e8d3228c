"""Sections of the data folder as SpatialData, AnnData by modality, lazy AnnData and dask: the numbers of the plain object.

They run where ``GPNSF_DATA_DIR`` is set. The cortex is semi-synthetic; circles and images are made up.
"""

from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import gpnsf

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SHORT = {
    "n_factors": 4,
    "n_spatial": 2,
    "max_steps": 6,
    "init": "random",
    "split": "assumed",
    "progress": False,
}
SYSTEM = "scan"


@pytest.fixture(scope="module")
def cortex(data_file):
    """A part of the features of the semi-synthetic section with RNA and ATAC, and its fit."""
    mdata = mudata.read_h5mu(data_file("semi_cortex_spots.h5mu"))
    parts = {"rna": mdata["rna"][:, ::6].copy(), "atac": mdata["atac"][:, ::20].copy()}
    fitted = mudata.MuData({name: part.copy() for name, part in parts.items()})
    gpnsf.tl.fit(fitted, **SHORT)
    return parts, fitted


def circles(places):
    """A circle for each observation, in the opposite order and with a number for its name."""
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    spots = geopandas.GeoDataFrame(
        {"radius": np.full(len(places), 27.5)}, geometry=shapely.points(places.astype(float))[::-1]
    )
    spots.index = np.arange(len(places))[::-1]
    return ShapesModel.parse(spots, transformations={SYSTEM: Identity()})


def table(adata, regions):
    """A table without coordinates of its own that annotates circles, from the region [N] of each observation."""
    from spatialdata.models import TableModel

    own = adata.copy()
    del own.obsm["spatial"]
    own.obs["region"] = pd.Categorical(regions)
    own.obs["circle"] = own.obs.groupby("region", observed=True).cumcount().to_numpy()
    names = list(own.obs["region"].cat.categories)
    return TableModel.parse(own, region=names, region_key="region", instance_key="circle")


def section(parts, **more):
    """A SpatialData of one section: circles, an image, molecules, and a table for each AnnData."""
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, PointsModel
    from spatialdata.transformations import Scale

    places = next(iter(parts.values())).obsm["spatial"]
    pixels = np.random.default_rng(0).integers(0, 255, (3, 60, 80), dtype=np.uint8)
    stretch = {SYSTEM: Scale(places.max(axis=0) / [80, 60], axes=("x", "y"))}
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=stretch)
    tables = {name: table(part, ["spots"] * part.n_obs) for name, part in parts.items()}
    return spatialdata.SpatialData(
        images={"stain": image},
        points={"molecules": PointsModel.parse(places)},
        shapes={"spots": circles(places)},
        tables=tables | more,
    )


def contents(store, tables=("rna", "atac")):
    """Files of a store that belong to none of the tables, and are no summary of the whole."""
    summary = ("zarr.json", ".zmetadata", "tables/zarr.json", "tables/.zmetadata")
    files = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if name not in summary and not name.startswith(tuple(f"tables/{own}/" for own in tables))
    }


def same_fit(mods, expected, *, rtol=0.0):
    """The slots of a fit lie in every AnnData, as in the MuData or AnnData that was fitted by itself."""
    for name, mod in mods.items():
        for slot in ("X_gpnsf", "X_gpnsf_std"):
            np.testing.assert_allclose(mod.obsm[slot], expected.obsm[slot], rtol=rtol)
        own = expected[name] if isinstance(expected, mudata.MuData) else expected
        loadings = own.varm["gpnsf_loadings"]
        np.testing.assert_allclose(mod.varm["gpnsf_loadings"], loadings, rtol=rtol, atol=1e-9)


def results(data):
    """What tools make of a fit."""
    gpnsf.tl.domains(data, n_domains=4)
    frames = [gpnsf.tl.rank_features(data, n_features=3), gpnsf.tl.evaluate(data)]
    return frames, gpnsf.tl.predict(data).X


def test_a_section_with_two_tables_is_fitted_written_and_read(cortex, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    parts, fitted = cortex
    sdata = section(parts, cells=ad.AnnData(np.ones((3, 2), dtype=np.float32)))
    sdata.write(tmp_path / "before.zarr")
    gpnsf.tl.fit(sdata, table={"rna": "rna", "atac": "atac"}, **SHORT)
    same_fit({name: sdata.tables[name] for name in parts}, fitted)
    sdata.write(tmp_path / "after.zarr")
    assert contents(tmp_path / "after.zarr") == contents(tmp_path / "before.zarr")

    again, alone = spatialdata.read_zarr(tmp_path / "after.zarr"), fitted.copy()
    (frames, field), (expected, wanted) = results(again), results(alone)
    for found, own in zip(frames, expected, strict=True):
        pd.testing.assert_frame_equal(found, own, check_dtype=False)
    np.testing.assert_allclose(field, wanted, rtol=1e-5)
    domains = [holder.obs["gpnsf_domain"].astype(str) for holder in (again.tables["atac"], alone)]
    assert domains[0].tolist() == domains[1].tolist()
    for draw in (gpnsf.pl.spatial_factors, gpnsf.pl.domains):
        panel = np.atleast_1d(draw(again, show=False))[0]
        assert panel.get_images()
        assert panel.yaxis_inverted()


def test_a_store_is_fitted_by_its_path_and_nothing_else_in_it_changes(cortex, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    parts, fitted = cortex
    path = tmp_path / "section.zarr"
    section(parts, cells=ad.AnnData(np.ones((3, 2), dtype=np.float32))).write(path)
    before = contents(path)
    gpnsf.tl.fit(path, table={"rna": "rna", "atac": "atac"}, **SHORT)
    assert contents(path) == before
    same_fit({name: spatialdata.read_zarr(path).tables[name] for name in parts}, fitted)


def test_one_table_of_four_sections_is_the_anndata_with_its_library(data_file):
    spatialdata = pytest.importorskip("spatialdata")
    adata = ad.read_h5ad(data_file("bc_4sections.h5ad"))[:, ::20].copy()
    adata.obs["section"] = adata.obs["section"].astype(str).astype("category")
    names = adata.obs["section"].astype(str)
    shapes = {
        name: circles(adata.obsm["spatial"][(names == name).to_numpy()])
        for name in sorted(set(names))
    }
    sdata = spatialdata.SpatialData(shapes=shapes, tables={"table": table(adata, names)})
    for data in (sdata, adata):
        gpnsf.tl.fit(data, library_key="section", **SHORT)
        gpnsf.tl.domains(data, n_domains=3)
    same_fit({"rna": sdata.tables["table"]}, adata)
    assert sdata.tables["table"].obs["gpnsf_domain"].equals(adata.obs["gpnsf_domain"])
    panel = gpnsf.pl.spatial_factors(sdata, factors=0, show=False)
    labels = {text.get_text() for text in panel.texts} | {panel.get_xlabel(), panel.get_title()}
    assert set(shapes) <= {word for label in labels for word in label.split()}


def test_anndata_by_modality_are_the_mudata(cortex):
    parts, fitted = cortex
    mods = {name: part.copy() for name, part in parts.items()}
    gpnsf.tl.fit(mods, **SHORT)
    same_fit(mods, fitted)
    found, wanted = (gpnsf.tl.rank_features(data, n_features=4) for data in (mods, fitted))
    pd.testing.assert_frame_equal(found, wanted)


def test_lazy_anndata_and_dask_are_the_counts_in_memory(data_file, tmp_path):
    da = pytest.importorskip("dask.array")
    pytest.importorskip("xarray")
    adata = ad.read_h5ad(data_file("visium_crc.h5ad"))[::2, ::25].copy()
    adata.write_zarr(tmp_path / "crc.zarr")
    lazy = ad.experimental.read_lazy(tmp_path / "crc.zarr")
    blocks = adata.copy()
    blocks.X = da.from_array(adata.X.toarray(), chunks=(500, -1)).map_blocks(type(adata.X))
    for data in (adata, lazy, blocks):
        gpnsf.tl.fit(data, **SHORT)
    for data in (lazy, blocks):
        same_fit({"rna": data}, adata, rtol=2e-3)
        assert type(data.X).__module__.startswith("dask")
