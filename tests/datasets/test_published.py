"""Published sections, from tiny files in the formats of their origins."""

from __future__ import annotations

import gzip

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from gpnsf.datasets import slideseq_hippocampus, visium_sagittal, xyzeq_liver

# observation: good, good, too shallow, too many mitochondrial; gene: two good, mitochondrial, only in the shallow one
COUNTS = np.array([[90, 60, 10, 0], [0, 200, 49, 0], [50, 40, 0, 9], [70, 10, 20, 0]])
GENES = ["Pcp4", "Hpca", "mt-Nd1", "Rare"]
PLACES = np.array([[10.5, 1.0], [20.0, 2.0], [30.0, 3.0], [40.0, 4.0]])
PUCK = "Puck_200115_08"


@pytest.fixture
def puck(tmp_path):
    """The two text files of a puck; beads in another order in the second one."""
    barcodes = ["AAAC", "CCCA", "GGGT", "TTTG"]
    table = pd.DataFrame(COUNTS.T, index=pd.Index(GENES, name="GENE"), columns=barcodes)
    with gzip.open(tmp_path / f"{PUCK}.digital_expression.txt.gz", "wt") as file:
        table.to_csv(file, sep="\t")
    rows = [f"{b},{x},{y}" for b, (x, y) in zip(barcodes, PLACES, strict=True)][::-1]
    header = "barcodes\txcoord\tycoord"  # as in the file that was distributed
    (tmp_path / f"{PUCK}_bead_locations.csv").write_text("\n".join([header, *rows]))
    return tmp_path


@pytest.fixture
def visium(tmp_path):
    """The files of Space Ranger 1 that are read."""
    barcodes = [f"{name}-1" for name in ("AAAC", "CCCA", "GGGT", "TTTG")]
    stored = sp.csc_matrix(COUNTS.T)  # genes in rows
    with h5py.File(tmp_path / "V1_Mouse_filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(stored, name)
        matrix["shape"] = stored.shape
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        features = matrix.create_group("features")
        columns = {"id": [f"E{i}" for i in range(4)], "name": ["Pcp4", "Pcp4", *GENES[2:]]}
        for name, values in {**columns, "feature_type": ["Gene Expression"] * 4}.items():
            features[name] = np.array(values, dtype="S")
    (tmp_path / "spatial").mkdir()
    rows = [
        f"{b},1,{i},{2 * i},{y},{x}"
        for i, (b, (x, y)) in enumerate(zip(["OUT-1", *barcodes], [(0, 0), *PLACES], strict=True))
    ]
    (tmp_path / "spatial/tissue_positions_list.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.fixture
def liver(tmp_path):
    """The file of GEO, with a human cell and one without a label, and the tables of the authors."""
    names = [f"L20C1.{b}" for b in ("AA", "CC", "GG", "AA2", "TT", "NN")]
    counts = np.vstack([COUNTS, COUNTS[:2]])
    table = pd.DataFrame(index=[*(f"mm10_{gene}" for gene in GENES), "hg19_ACTB"])
    X = sp.csr_matrix(np.column_stack([counts, np.full(6, 7)]), dtype=np.float32)
    ad.AnnData(X, pd.DataFrame(index=names), table).write(tmp_path / "GSM5009531_L20C1.h5ad")
    calls = {"index": names[:5], "cell_call": [*"MMMM", "H"], "cell_type": [*"abcde"]}
    pd.DataFrame(calls).to_csv(tmp_path / "L20C1.csv", index=False)
    wells = pd.DataFrame({"X": PLACES[:, 0], "Y": PLACES[:, 1]}, index=["AA", "CC", "GG", "AA2"])
    wells.to_csv(tmp_path / "plate23_map.csv")
    return tmp_path


def check(data, genes=tuple(GENES[:3])):
    """Two observations and three genes pass; counts and places are those of the file."""
    assert isinstance(data.X, sp.csr_matrix)
    np.testing.assert_array_equal(data.X.toarray(), COUNTS[:2, :3])
    np.testing.assert_array_equal(data.obsm["spatial"], PLACES[:2])
    assert list(data.var_names) == list(genes)
    np.testing.assert_allclose(data.obs["total_counts"], [160, 249])
    np.testing.assert_allclose(data.obs["pct_counts_mt"], [100 * 10 / 160, 100 * 49 / 249])


def test_a_puck_is_read_from_its_text_files(puck):
    check(slideseq_hippocampus(puck))
    beads = puck / f"{PUCK}_bead_locations.csv"
    beads.write_text(beads.read_text().replace("\t", ","))
    check(slideseq_hippocampus(puck))


def test_a_puck_of_many_genes_is_read_in_parts(puck, monkeypatch):
    monkeypatch.setattr("gpnsf.datasets.published.GENES_AT_ONCE", 3)
    check(slideseq_hippocampus(str(puck)))


def test_a_puck_is_read_from_what_seuratdisk_makes_of_it(tmp_path):
    names = ["A", "B", "C", "D"]
    obs = pd.DataFrame({"x": PLACES[:, 0], "y": PLACES[:, 1]}, index=names)
    capitals = pd.DataFrame(index=[gene.upper() for gene in GENES])
    data = ad.AnnData(COUNTS.astype(np.float32), obs, capitals)
    data.raw = data.copy()
    data.X = np.log1p(data.X)
    data.write(tmp_path / "sshippo.h5ad")
    check(slideseq_hippocampus(tmp_path / "sshippo.h5ad"), [gene.upper() for gene in GENES[:3]])
    data.raw = None
    data.write(tmp_path / "logs.h5ad")
    with pytest.raises(ValueError, match="raw counts; got values such as"):
        slideseq_hippocampus(tmp_path / "logs.h5ad")


def test_a_section_of_space_ranger_is_read(visium):
    data = visium_sagittal(visium)
    check(data, ["Pcp4", "Pcp4-1", "mt-Nd1"])
    assert list(data.var["gene_ids"]) == ["E0", "E1", "E2"]
    old = visium / "spatial/tissue_positions_list.csv"
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    (visium / "spatial/tissue_positions.csv").write_text(header + old.read_text())
    old.unlink()
    check(visium_sagittal(visium), ["Pcp4", "Pcp4-1", "mt-Nd1"])


def test_mouse_cells_of_the_liver_are_read(liver):
    data = xyzeq_liver(liver)
    check(data)
    assert list(data.obs["barcode"]) == ["AA", "CC"]
    assert list(data.obs["cell_type"]) == ["a", "b"]


READERS = {"puck": slideseq_hippocampus, "visium": visium_sagittal, "liver": xyzeq_liver}


@pytest.mark.parametrize("kind", READERS)
def test_each_file_that_is_missing_is_named_with_what_is_there_and_its_origin(kind, request):
    folder = request.getfixturevalue(kind)
    with pytest.raises(FileNotFoundError, match=r"folder with a file.*Download it from"):
        READERS[kind](folder / "no such folder")
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"got .* with .*\. Download it from"):
            READERS[kind](folder)
        path.write_bytes(b"\x93\xff neither a table nor HDF5")
        with pytest.raises(ValueError, match=r"Expected .*; got .*\. "):
            READERS[kind](folder)
        path.write_bytes(content)
    assert READERS[kind](folder).n_obs == 2


def test_files_that_do_not_belong_together_are_refused(puck, liver):
    beads = puck / f"{PUCK}_bead_locations.csv"
    beads.write_text(beads.read_text().replace("AAAC", "AAAA"))
    with pytest.raises(ValueError, match="none for 1 of 4, such as 'AAAC'.*same section"):
        slideseq_hippocampus(puck)
    cells = pd.read_csv(liver / "L20C1.csv")
    cells.rename(columns={"cell_call": "call"}).to_csv(liver / "L20C1.csv", index=False)
    with pytest.raises(ValueError, match="columns 'index', 'cell_call'"):
        xyzeq_liver(liver)


def test_a_section_of_which_nothing_passes_is_refused(puck):
    text = f"GENE\tAAAC\tCCCA\n{GENES[0]}\t3\t4\n"
    (puck / f"{PUCK}.digital_expression.txt.gz").unlink()
    (puck / f"{PUCK}.digital_expression.txt").write_text(text)
    with pytest.raises(ValueError, match="none of 2; the largest total is 4"):
        slideseq_hippocampus(puck)
