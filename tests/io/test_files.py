"""Whole objects written to files."""

from __future__ import annotations

import shutil

import anndata as ad
import fitted
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import sections

import gpnsf
from gpnsf.io.files import read, save, write
from gpnsf.keys import Keys


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", ".h5mu"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
def test_names_of_the_kind_that_newer_pandas_writes_are_written(suffix, tmp_path):
    names = pd.Index(pd.array(["a", "b"], dtype="string"))
    data = ad.AnnData(np.eye(2, dtype=np.float32), obs=pd.DataFrame(index=names))
    path = tmp_path / f"named{suffix}"
    write(mudata.MuData({"rna": data}) if suffix == ".h5mu" else data, path)
    assert list(read(path).obs_names) == ["a", "b"]
    assert not ad.settings.allow_write_nullable_strings


def test_columns_that_were_pulled_from_an_earlier_fit_leave_the_file(tmp_path):
    data, path, pulled = fitted.mudata(n_obs=64), tmp_path / "fitted.h5mu", "rna:gpnsf_total"
    write(data, path)
    with h5py.File(path, "r+") as file:  # mudata itself leaves them out
        file["obs"][pulled] = np.ones(64)
        file["obs"].attrs["column-order"] = [*file["obs"].attrs["column-order"], pulled]
    save(path, data, Keys())
    with h5py.File(path) as file:
        assert pulled not in file["obs"]
        assert list(file["obs"].attrs["column-order"]) == ["section", Keys().importance]


def test_results_that_another_process_writes_meanwhile_stay(tmp_path, monkeypatch):
    path = tmp_path / "a.h5ad"
    fits = {key: sections.section() for key in ("one", "other")}
    for key, adata in fits.items():
        gpnsf.tl.fit(
            adata, n_factors=2, max_steps=2, key_added=key, split="assumed", progress=False
        )
    sections.section().write(path)
    copy, waiting = shutil.copyfile, ["other"]

    def interrupted(source, target):
        copy(source, target)
        if waiting:
            save(path, fits[waiting.pop()], Keys("other"))

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    save(path, fits["one"], Keys("one"))
    found = ad.read_h5ad(path)
    for key, adata in fits.items():
        np.testing.assert_array_equal(found.obsm[f"X_{key}"], adata.obsm[f"X_{key}"])


def test_a_file_that_does_not_fit_into_memory_is_not_called_damaged_only(tmp_path, monkeypatch):
    path = tmp_path / "a.h5ad"
    sections.section().write(path)

    def full(path):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr("gpnsf.io.files.read_h5ad", full)
    with pytest.raises(ValueError, match=r"Unable to allocate.*pass its path to gpnsf\.tl\.fit"):
        read(path)
