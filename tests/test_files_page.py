"""The page "Start from your files": every block runs on small files of the layout that it names, and finds what lies in them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

import gpnsf
from gpnsf.io.objects import open_data, read_coords

PAGE = (Path(__file__).parents[1] / "docs" / "files.md").read_text(encoding="utf-8")
BLOCKS = {
    name: "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for name, text in re.findall(r"\n## ([\w -]+)\n(.*?)(?=\n## |\Z)", PAGE, re.DOTALL)
}
IMPORTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
QUICK = {
    "n_factors": 3,
    "max_steps": 2,
    "split": "assumed",
    "refine": False,
    "init": "random",
    "progress": False,
}
N, GENES, PEAKS = 30, 24, 20
MEASURED = {  # counts [N, P] that lie in the files
    "rna": np.random.default_rng(0).poisson(2.0, (N, GENES)),
    "atac": np.random.default_rng(1).poisson(0.7, (N, PEAKS)),
}
LOST = [3, 17]  # nuclei of Slide-tags without a place

pytestmark = pytest.mark.filterwarnings(
    "ignore:Variable names are not unique:UserWarning",
    "ignore:var_names are not unique:UserWarning",
)


def barcodes(suffix="-1"):
    return np.array([f"ACGT{i:04d}{suffix}" for i in range(N)])


def places(names=None, columns=("x", "y")):
    """Where each observation lies, in another order than in the counts, and a place that nothing was measured at."""
    rng = np.random.default_rng(2)
    names = barcodes() if names is None else names
    table = pd.DataFrame(truth(), index=names, columns=list(columns))
    table.loc["elsewhere" if isinstance(names[0], str) else 999] = (5.0, 5.0)
    return table.iloc[rng.permutation(len(table))]


def truth():
    """Coordinates [N, 2] of the observations, in the order of their names; the axes differ."""
    return np.column_stack([np.arange(N) % 6 * 10.0, np.arange(N) // 6 * 7.0 + 100])


def beside(kind, controls):
    """Counts [N, P + controls] with those of controls on the right."""
    return np.column_stack([MEASURED[kind], np.full((N, controls), 7)])


def write_h5(path, *, peaks=False, controls=0, arc=False, names=None):
    """A feature-barcode matrix as Cell Ranger, Space Ranger and Xenium write it: features by barcodes, by columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    genes = [f"GENE{i // 2 if i < 2 else i}" for i in range(GENES)]  # the first two share a name
    found = [f"chr1:{1000 * i}-{1000 * i + 500}" for i in range(PEAKS)] if peaks else []
    probes = [f"NegControlProbe_{i}" for i in range(controls)]
    types = ["Gene Expression"] * GENES + ["Peaks"] * len(found)
    types += ["Negative Control Probe"] * controls
    starts = [f"chr1:{1000 * i + 200}-{1000 * i + 900}" for i in range(GENES - 1)] + ["NA"]
    table = {
        "id": [f"ENSG{i}" for i in range(GENES)] + found + probes,
        "name": genes + found + probes,
        "feature_type": types,
        "genome": ["GRCh38"] * len(types),
    }
    if arc:
        table["interval"] = starts + found + ["NA"] * controls
    parts = [MEASURED["rna"], MEASURED["atac"][:, : len(found)], np.full((N, controls), 7)]
    matrix = sp.csc_matrix(np.column_stack(parts).T.astype(np.int32))
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([b"section"])
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes() if names is None else names, dtype="S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        for name, values in table.items():
            group[f"features/{name}"] = np.array(values, dtype="S")
        group["features/_all_tag_keys"] = np.array([b"genome"])


def positions(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    table = places(columns=["pxl_col_in_fullres", "pxl_row_in_fullres"]).rename_axis("barcode")
    table = table.assign(in_tissue=1, array_row=0, array_col=0).reset_index()
    order = ["barcode", "in_tissue", "array_row", "array_col"]
    table = table[[*order, "pxl_row_in_fullres", "pxl_col_in_fullres"]]
    if name.endswith(".csv"):
        table.to_csv(folder / name, index=False)
    else:
        table.to_parquet(folder / name, index=False)


def visium(folder, _):
    from PIL import Image

    write_h5(folder / "outs/filtered_feature_bc_matrix.h5")
    spatial = folder / "outs/spatial"
    positions(spatial, "tissue_positions.csv")
    for size in ("hires", "lowres"):
        Image.new("RGB", (8, 8)).save(spatial / f"tissue_{size}_image.png")
    scales = (
        '{"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.05, "spot_diameter_fullres": 9.0}'
    )
    (spatial / "scalefactors_json.json").write_text(scales)


def visium_hd(folder, _):
    bins = folder / "outs/binned_outputs/square_008um"
    write_h5(bins / "filtered_feature_bc_matrix.h5")
    positions(bins / "spatial", "tissue_positions.parquet")


def xenium(folder, _):
    write_h5(folder / "cell_feature_matrix.h5", controls=3)
    cells = places(columns=["x_centroid", "y_centroid"]).rename_axis("cell_id")
    cells.assign(transcript_counts=50, cell_area=20.0).to_csv(folder / "cells.csv.gz")


def merscope(folder, _):
    names = 1104400120001234000 + np.arange(N)
    columns = [f"GENE{i}" for i in range(GENES)] + ["Blank-1", "Blank-2"]
    table = pd.DataFrame(beside("rna", 2), pd.Index(names, name="cell"), columns)
    table.to_csv(folder / "cell_by_gene.csv")
    cells = places(names, columns=["center_x", "center_y"]).rename_axis("EntityID")
    cells.assign(fov=0, volume=100.0).to_csv(folder / "cell_metadata.csv")


def cosmx(folder, _):
    """Two fields of view; the same numbers of cells, and the same places within the field, in both."""
    index = pd.MultiIndex.from_product([[1, 2], range(1, N // 2 + 1)], names=["fov", "cell_ID"])
    columns = [f"GENE{i}" for i in range(GENES)] + ["NegPrb1", "Negative2", "SystemControl3"]
    outside = pd.DataFrame(7, pd.MultiIndex.from_tuples([(1, 0), (2, 0)]), columns)
    table = pd.concat([pd.DataFrame(beside("rna", 3), index, columns), outside])
    table.rename_axis(["fov", "cell_ID"]).sort_index().to_csv(folder / "S1_exprMat_file.csv")
    cells = pd.DataFrame(truth(), index, ["CenterX_global_px", "CenterY_global_px"])
    local = {"CenterX_local_px": np.tile(np.arange(N // 2), 2), "CenterY_local_px": 1}
    cells.assign(**local).sample(frac=1, random_state=0).to_csv(folder / "S1_metadata_file.csv")


def multiome(folder, _):
    write_h5(folder / "filtered_feature_bc_matrix.h5", peaks=True, arc=True)


def slide_tags(folder, _):
    multiome(folder, _)
    table = places(barcodes(""), columns=["SPATIAL_1", "SPATIAL_2"])
    table = table.drop(index=list(barcodes("")[LOST]))
    table.to_csv(folder / "S1_Location_ConfPositionedNuclei.csv")


def muon(folder, monkeypatch):
    """As muon reads a file, which need not be installed."""
    multiome(folder, monkeypatch)
    places().to_csv(folder / "positions.csv")
    module = ModuleType("muon")
    module.read_10x_h5 = lambda path: MuData(sc.read_10x_h5(path, gex_only=False))
    monkeypatch.setitem(sys.modules, "muon", module)


def snapatac2(folder, _):
    names = [f"chr1:{1000 * i}-{1000 * i + 500}" for i in range(PEAKS)]
    matrix = sp.csr_matrix(MEASURED["atac"].astype(np.uint32))
    AnnData(matrix, pd.DataFrame(index=barcodes()), pd.DataFrame(index=names)).write_h5ad(
        folder / "peaks.h5ad"
    )
    places().to_csv(folder / "positions.csv")


def archr(folder, _):
    from scipy.io import mmwrite

    mmwrite(folder / "peaks.mtx", sp.csc_matrix(MEASURED["atac"].T))
    start = 1000 * np.arange(PEAKS)
    peaks = {"seqnames": "chr1", "start": start, "end": start + 500, "width": 501, "strand": "*"}
    pd.DataFrame(peaks, index=np.arange(1, PEAKS + 1)).to_csv(folder / "peaks.csv")
    cells = pd.DataFrame({"Sample": "S1", "TSSEnrichment": 9.0}, index="S1#" + pd.Index(barcodes()))
    cells.to_csv(folder / "cells.csv")
    places().to_csv(folder / "positions.csv")


def spatialdata_io(folder, monkeypatch):
    """As spatialdata-io reads Visium HD: a table and squares for each size of bins, no system of coordinates called global."""
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    def read(path, *, load_segmentations_only):
        tables, shapes = {}, {}
        for size in ("square_008um", "square_016um"):
            region = f"section_{size}"
            bins = AnnData(MEASURED["rna"].astype(np.float32), pd.DataFrame(index=barcodes()))
            bins.obs["region"] = pd.Categorical([region] * N)
            bins.obs["location_id"] = np.arange(N)
            bins.var["feature_types"] = "Gene Expression"
            bins.obsm["spatial"] = truth()
            shapes[region] = ShapesModel.parse(
                truth(), geometry=0, radius=1.0, transformations={"section": Identity()}
            )
            keys = {"region": region, "region_key": "region", "instance_key": "location_id"}
            tables[size] = TableModel.parse(bins, **keys)
        return SpatialData(tables=tables, shapes=shapes)

    module = ModuleType("spatialdata_io")
    module.visium_hd = read
    monkeypatch.setitem(sys.modules, "spatialdata_io", module)


def csv(folder, _):
    names = np.arange(100, 100 + N)
    columns = [f"GENE{i}" for i in range(GENES)]
    pd.DataFrame(MEASURED["rna"], names, columns).to_csv(folder / "counts.csv")
    places(names).to_csv(folder / "coordinates.csv")


RNA, ATAC = {"rna": "nb"}, {"atac": "bernoulli"}
LAYOUTS = {  # what writes the files, and which modalities are fitted by which likelihood
    "Visium": (visium, RNA),
    "Visium HD": (visium_hd, RNA),
    "Xenium": (xenium, RNA),
    "MERSCOPE": (merscope, RNA),
    "CosMx": (cosmx, RNA),
    "Multiome": (multiome, RNA | ATAC),
    "Slide-tags": (slide_tags, RNA | ATAC),
    "muon": (muon, RNA | ATAC),
    "SnapATAC2": (snapatac2, ATAC),
    "ArchR": (archr, ATAC),
    "spatialdata-io": (spatialdata_io, RNA),
    "CSV": (csv, RNA),
}
SLOW = {
    "Visium": "squidpy",
    "spatialdata-io": "spatialdata",
}  # packages that load for many seconds, and not in silence
AT_LENGTH = (pytest.mark.slow, pytest.mark.filterwarnings("default"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a block beside files of its layout, with short fits, and give its names."""
    fit = gpnsf.tl.fit

    def quick(*args, **options):
        return fit(*args, **{**QUICK, **options})

    def run(code, layout):
        layout(tmp_path, monkeypatch)
        names: dict[str, object] = {}
        exec(IMPORTS + code, names)
        return names

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpnsf.tl, "fit", quick)
    return run


def fitted(names):
    """The object that a block has fitted."""
    if "sdata" in names:
        return names["sdata"].tables["square_008um"]
    return next(names[name] for name in ("mdata", "adata", "atac") if name in names)


def test_every_layout_of_the_page_has_files_and_a_row():
    assert BLOCKS.keys() == LAYOUTS.keys()
    rows = re.findall(r"^\| \[([\w -]+)\]\(#([\w-]+)\)", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == list(LAYOUTS)
    assert all(link == name.lower().replace(" ", "-") for name, link in rows)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=AT_LENGTH if name in SLOW else ()) for name in LAYOUTS],
)
def test_a_block_fits_what_lies_in_the_files(name, run, caplog):
    if name in SLOW:
        pytest.importorskip(SLOW[name])
    layout, likelihoods = LAYOUTS[name]
    data = fitted(run(BLOCKS[name], layout))
    assert dict(data.uns["gpnsf"]["likelihoods"]) == likelihoods
    kept = np.delete(np.arange(N), LOST if name == "Slide-tags" else [])
    for kind in likelihoods:
        mod = data[kind] if isinstance(data, MuData) else data
        assert mod.varm["gpnsf_loadings"].shape == (MEASURED[kind].shape[1], 3)
        np.testing.assert_array_equal(sp.csr_matrix(mod.X).toarray(), MEASURED[kind][kept])
    if name != "Multiome":
        np.testing.assert_array_equal(read_coords(open_data(data)), truth()[kept])
    assert not re.search(
        "If they are peaks|features of several types|left out", warnings_of(caplog)
    )


def warnings_of(caplog):
    """What was told at the level of a warning."""
    return "\n".join(
        record.getMessage() for record in caplog.records if record.levelname == "WARNING"
    )


def test_genes_and_peaks_of_a_multiome_are_placed_by_the_file(run):
    names = run(BLOCKS["Multiome"], multiome)
    peaks, links = names["mdata"]["atac"].var, names["mdata"].uns["gpnsf_links"]
    # gene i and peak i begin within 200 bases of one another, and the last gene has no place
    assert peaks["nearest_gene"].tolist()[:4] == ["GENE0", "GENE0-1", "GENE2", "GENE3"]
    assert set(links["gene"]) == set(names["mdata"]["rna"].var_names[:-1])


def test_tables_of_the_single_cell_portal_are_read_as_the_page_says(run):
    def portal(folder, monkeypatch):
        slide_tags(folder, monkeypatch)
        path = folder / "S1_Location_ConfPositionedNuclei.csv"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(["NAME,X,Y", "TYPE,numeric,numeric", *lines[1:]]))

    assert "second line of header: add `skiprows=[1]`" in PAGE
    code = BLOCKS["Slide-tags"].replace("index_col=0)", "index_col=0, skiprows=[1])")
    kept = np.delete(np.arange(N), LOST)
    found = read_coords(open_data(fitted(run(code, portal))))
    np.testing.assert_array_equal(found, truth()[kept])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_squidpy_reads_cosmx_as_the_page_says(run):
    pytest.importorskip("squidpy")
    assert '`spatial_key="spatial_fov"`' in PAGE
    code = """
import squidpy as sq
adata = sq.read.nanostring(".", counts_file="S1_exprMat_file.csv", meta_file="S1_metadata_file.csv")
gpnsf.tl.fit(adata, spatial_key="spatial_fov")
"""
    adata = run(code, cosmx)["adata"]
    field, number = adata.obs["fov"].astype(int), adata.obs["cell_ID"].astype(int)
    own = truth()[(field - 1) * (N // 2) + number - 1]
    np.testing.assert_array_equal(adata.obsm["spatial_fov"], own)
    assert len(np.unique(adata.obsm["spatial"], axis=0)) == N // 2  # both fields at one place
