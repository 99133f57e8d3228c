"""Nothing is read for what it is not, and nothing is replaced that is not a result of the same kind."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr
from anndata.io import write_elem

import gpnsf
from gpnsf import cli
from gpnsf.io.kinds import check_input, check_output, replacing

pytestmark = pytest.mark.filterwarnings(
    "ignore:Writing zarr v2", "ignore:zarr v3 autosharding", "ignore:Consolidated metadata"
)

OPTIONS = ["--n-factors", "2", "--max-steps", "2", "--no-progress"]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def spatialdata(path: Path, table: ad.AnnData) -> Path:
    """A store in the layout of SpatialData, without that package."""
    root = zarr.open_group(path, mode="w")
    root.attrs["spatialdata_attrs"] = {"version": "0.2"}
    write_elem(root.create_group("tables"), "table", table)
    root.create_group("images").create_array("he", data=np.ones((3, 4, 4)))
    zarr.consolidate_metadata(path)
    return path


def foreign(kind: str, path: Path, adata: ad.AnnData) -> None:
    """Something that a result must not take the place of."""
    match kind:
        case "folder":
            path.mkdir()
            (path / "thesis.txt").write_text("years of work")
        case "zarr":
            zarr.open_group(path, mode="w").create_array("years", data=np.arange(3))
        case "spatialdata":
            spatialdata(path, adata)
        case "more than an AnnData":
            adata.write_zarr(path)
            zarr.open_group(path, mode="r+").create_array("years", data=np.arange(3))


@pytest.mark.broad(3)
@pytest.mark.parametrize("kind", ["folder", "zarr", "spatialdata", "more than an AnnData"])
@pytest.mark.parametrize("large", [False, True])
def test_a_fit_replaces_no_folder_but_a_store_of_its_kind(
    kind, large, adata, tmp_path, monkeypatch, capsys
):
    if large:
        monkeypatch.setattr(cli, "LARGE", 1)
    adata.write_zarr(tmp_path / "in.zarr")
    foreign(kind, tmp_path / "out.zarr", adata)
    before = contents(tmp_path)
    assert (
        cli.main(["fit", str(tmp_path / "in.zarr"), str(tmp_path / "out.zarr"), *OPTIONS])
        == cli.BAD_INPUT
    )
    assert "Expected a free path, or an earlier result *.zarr" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.broad(1)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_an_earlier_result_is_replaced_and_nothing_is_left_beside_it(
    large, suffix, adata, tmp_path, monkeypatch
):
    if large:
        monkeypatch.setattr(cli, "LARGE", 1)
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    for path in (source, target):
        adata.write_zarr(path) if suffix == ".zarr" else adata.write(path)
    assert cli.main(["fit", str(source), str(target), *OPTIONS]) == 0
    read = ad.read_zarr if suffix == ".zarr" else ad.read_h5ad
    assert "gpnsf" in read(target).uns
    assert "gpnsf" not in read(source).uns
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in{suffix}", f"out{suffix}"]


def test_a_result_that_breaks_off_leaves_the_earlier_one(adata, tmp_path):
    adata.write_zarr(tmp_path / "out.zarr")
    before = contents(tmp_path)

    def broken() -> None:
        with replacing(tmp_path / "out.zarr") as partial:
            adata.write_zarr(partial)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_predictions_and_reports_do_not_take_the_place_of_their_source(adata, tmp_path, capsys):
    gpnsf.tl.fit(adata, n_factors=2, max_steps=2, split="assumed", progress=False)
    adata.write(tmp_path / "fit.h5ad")
    (tmp_path / "places.csv").write_text("x,y\n0,0\n")
    arguments = [
        "predict",
        str(tmp_path / "fit.h5ad"),
        str(tmp_path / "places.csv"),
        str(tmp_path / "fit.h5ad"),
    ]
    assert cli.main(arguments) == cli.BAD_INPUT
    assert "as both" in capsys.readouterr().err
    assert "gpnsf" in ad.read_h5ad(tmp_path / "fit.h5ad").uns
    page = tmp_path / "fit.html"
    for _ in range(2):  # our own page is replaced
        gpnsf.pl.report(adata, page)
    page.write_text("<p>mine</p>")
    with pytest.raises(FileExistsError, match="file of another kind"):
        gpnsf.pl.report(adata, page)
    assert page.read_text() == "<p>mine</p>"


def test_a_file_under_another_name_is_called_what_it_is(adata, mdata, tmp_path):
    adata.write(tmp_path / "a.h5ad")
    mdata.write(tmp_path / "m.h5mu")
    adata.write_zarr(tmp_path / "a.zarr")
    shutil.copy(tmp_path / "a.h5ad", tmp_path / "b.h5mu")
    shutil.copy(tmp_path / "m.h5mu", tmp_path / "n.h5ad")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "store")
    (tmp_path / "outs").mkdir()
    with h5py.File(tmp_path / "filtered.h5", "w") as file:
        file.create_group("matrix")["data"] = np.arange(3)
    spatialdata(tmp_path / "section.zarr", adata)
    for name in ("a.h5ad", "m.h5mu", "a.zarr", "section.zarr/tables/table"):
        check_input(tmp_path / name)
    for name, says in {
        "b.h5mu": "an AnnData in HDF5. Rename it to b.h5ad",
        "n.h5ad": "a MuData in HDF5. Rename it to n.h5mu",
        "outs": "a folder. Pass the path of a file in it",
        "filtered.h5": "a count matrix of 10x Genomics. Read it with scanpy.read_10x_h5",
    }.items():
        with pytest.raises(ValueError, match=r"Expected a .*; got .*, which is ") as found:
            gpnsf.tl.fit(tmp_path / name, n_factors=2)
        assert says in str(found.value)
    table = tmp_path / "section.zarr/tables/table"
    with pytest.raises(ValueError, match=f"a SpatialData store. Pass one of its tables: {table}"):
        check_input(tmp_path / "section.zarr")


@pytest.mark.slow
def test_a_table_of_a_spatialdata_store_is_fitted_and_nothing_else_in_it_changes(adata, tmp_path):
    store = spatialdata(tmp_path / "section.zarr", adata)
    before = contents(store / "images")
    gpnsf.tl.fit(
        store / "tables" / "table", n_factors=2, max_steps=2, split="assumed", progress=False
    )
    gpnsf.tl.fit(adata, n_factors=2, max_steps=2, split="assumed", progress=False)
    consolidated = zarr.open_consolidated(store)["tables/table/obsm/X_gpnsf"]
    np.testing.assert_array_equal(consolidated[:], adata.obsm["X_gpnsf"])
    assert contents(store / "images") == before


def test_a_result_needs_a_folder_that_exists_and_its_own_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="mkdir -p"):
        check_output(tmp_path / "new" / "out.h5ad", ".h5ad")
    with pytest.raises(ValueError, match=r"a result named \*.h5ad"):
        check_output(tmp_path / "out.h5mu", ".h5ad")


def test_an_anndata_with_more_in_its_root_is_read_but_not_replaced(adata, tmp_path):
    adata.write(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["raw.X"] = np.ones(3)  # as anndata before 0.7
    check_input(tmp_path / "a.h5ad")
    with pytest.raises(FileExistsError):
        check_output(tmp_path / "a.h5ad", ".h5ad")


def test_a_report_replaces_no_data_whatever_its_name(adata, tmp_path):
    gpnsf.tl.fit(adata, n_factors=2, max_steps=2, split="assumed", progress=False)
    adata.write(tmp_path / "fit.h5ad")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="an AnnData in HDF5"):
        gpnsf.pl.report(adata, tmp_path / "fit.h5ad")
    assert contents(tmp_path) == before


def test_a_folder_that_was_set_aside_comes_back(adata, tmp_path, monkeypatch):
    adata.write_zarr(tmp_path / "out.zarr")
    before = contents(tmp_path)

    def broken(self: Path, target: Path) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Path, "replace", broken)
    with (
        pytest.raises(OSError, match="the disk is gone"),
        replacing(tmp_path / "out.zarr") as partial,
    ):
        partial.mkdir()
    assert contents(tmp_path) == before


def test_a_link_goes_on_leading_to_the_result(adata, tmp_path):
    (tmp_path / "disk").mkdir()
    adata.write_zarr(tmp_path / "disk" / "out.zarr")
    (tmp_path / "out.zarr").symlink_to(tmp_path / "disk" / "out.zarr", target_is_directory=True)
    with replacing(tmp_path / "out.zarr") as partial:
        partial.mkdir()
        (partial / "new").write_text("1")
    assert (tmp_path / "out.zarr").is_symlink()
    assert [path.name for path in (tmp_path / "disk" / "out.zarr").iterdir()] == ["new"]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["out.zarr"]


def test_two_writers_of_one_path_do_not_touch_what_the_other_writes(tmp_path):
    path = tmp_path / "out.txt"
    with replacing(path) as one:
        one.write_text("one")
        with replacing(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"
    assert [left.name for left in tmp_path.iterdir()] == ["out.txt"]


def test_what_a_killed_writer_has_left_goes_after_a_day(tmp_path):
    path = tmp_path / "out.txt"
    old, new = (tmp_path / f".out.{name}.partial.txt" for name in ("0", "1"))
    for left in (old, new):
        left.write_text("half")
    os.utime(old, (0, 0))
    with replacing(path) as partial:
        partial.write_text("whole")
    assert sorted(left.name for left in tmp_path.iterdir()) == [new.name, "out.txt"]
