"""Whole objects written to files."""

from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

from gpnsf.io.files import read, write


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
