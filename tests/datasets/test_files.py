from __future__ import annotations

import pytest
from anndata import AnnData
from mudata import MuData

from gpnsf.datasets import ggblocks
from gpnsf.datasets.files import data_dir, load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with one file of either kind."""
    mdata = ggblocks(n_side=6, n_genes=5, n_peaks=5)
    mdata.write(tmp_path / "both.h5mu")
    mdata["rna"].write(tmp_path / "genes.h5ad")
    (tmp_path / "README.md").write_text("none of the data")
    monkeypatch.setenv("GPNSF_DATA_DIR", str(tmp_path))
    return tmp_path


def test_the_folder_comes_from_the_environment(folder, monkeypatch):
    assert data_dir() == folder
    for unset in (
        lambda: monkeypatch.setenv("GPNSF_DATA_DIR", ""),
        lambda: monkeypatch.delenv("GPNSF_DATA_DIR"),
    ):
        unset()
        assert data_dir() is None


@pytest.mark.parametrize(
    ("name", "kind"), [("both", MuData), ("both.h5mu", MuData), ("genes", AnnData)]
)
def test_files_are_read_by_name_with_or_without_ending(folder, name, kind):
    data = load(name)
    assert isinstance(data, kind)
    assert data.n_obs == 36


@pytest.mark.parametrize("name", ["README.md", "absent", ""])
def test_an_absent_file_is_an_error_that_lists_what_is_there(folder, name):
    with pytest.raises(KeyError, match=r"there: both\.h5mu, genes\.h5ad.*Use one of these names"):
        load(name)


@pytest.mark.parametrize("value", [None, "", "/nowhere/at/all"])
def test_an_absent_folder_is_an_error_that_names_the_variable(monkeypatch, value):
    monkeypatch.delenv("GPNSF_DATA_DIR", raising=False)
    if value is not None:
        monkeypatch.setenv("GPNSF_DATA_DIR", value)
    with pytest.raises(
        ValueError, match=r"Expected GPNSF_DATA_DIR to name a folder.*holds 'genes'"
    ):
        load("genes")


def test_real_data_can_be_read(data_file):
    spots = load(data_file("semi_cortex_spots.h5mu").stem)
    assert spots["rna"].shape == (602, 1591)
    assert spots["atac"].shape == (602, 10910)
