"""`tl.fit` of what stays in a file: the same numbers as from memory, slots in the file, and a file that survives errors."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import limited
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

import gpnsf
from gpnsf.core import types
from gpnsf.io import files, streaming

ANNOUNCED = (
    "ignore:Writing zarr v2",
    "ignore:zarr v3 autosharding",
    "ignore:Consolidated metadata",
    "ignore:From 0.4",
)
pytestmark = pytest.mark.filterwarnings(*ANNOUNCED)
SHORT = {
    "n_factors": 3,
    "n_spatial": 2,
    "max_steps": 6,
    "init": "spot",
    "split": "assumed",
    "progress": False,
}


def fit(data: Any, **options: Any) -> Any:
    return gpnsf.tl.fit(data, **{**SHORT, **options})


@pytest.fixture(scope="module")
def fitted(simulated) -> dict[str, AnnData | MuData]:
    """The same fits of what is in memory."""
    rna = simulated["rna"].copy()
    rna.obsm["spatial"] = simulated.obsm["spatial"].copy()
    return {"adata": fit(rna, copy=True), "mdata": fit(simulated, copy=True)}


def written(data: AnnData | MuData, folder: Path, suffix: str) -> Path:
    path = folder / f"data{suffix}"
    data.write_zarr(path) if suffix == ".zarr" else data.write(path)
    return path


def reread(path: Path) -> AnnData | MuData:
    if path.suffix == ".h5mu":
        return md.read_h5mu(path)
    if path.suffix == ".zarr":
        return md.read_zarr(path)
    return ad.read_h5ad(path)


def digest(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    parts = [
        part.relative_to(path).as_posix().encode() + part.read_bytes()
        for part in files
        if part.is_file()
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def slots(data: AnnData | MuData) -> dict[str, np.ndarray]:
    """Every array that a fit leaves behind."""
    found, holders = {}, {"": data, **(dict(data.mod) if isinstance(data, MuData) else {})}
    for prefix, holder in holders.items():
        for attribute in (
            ("obsm", "varm", "obs", "var")
            if prefix or isinstance(data, AnnData)
            else ("obsm", "obs")
        ):
            mapping = getattr(holder, attribute)
            names = [
                name
                for name in mapping
                if name.startswith(("gpnsf", "X_gpnsf")) and "top" not in name
            ]
            found |= {f"{prefix} {attribute} {name}": np.asarray(mapping[name]) for name in names}
    info = data.uns["gpnsf"]
    found |= {
        "elbo": np.asarray(info["history"]["elbo"]),
        "lengthscale": info["kernel"]["lengthscale"],
    }
    return found | {
        f"explained {name}": np.asarray(share) for name, share in info["variance_explained"].items()
    }


def same(found: AnnData | MuData, expected: AnnData | MuData, atol: float = 0.0) -> None:
    """Both hold the same slots; exactly, unless a tolerance relative to the largest entry is given."""
    first, second = slots(found), slots(expected)
    assert first.keys() == second.keys()
    for name, value in second.items():
        np.testing.assert_allclose(
            first[name],
            value,
            rtol=0,
            atol=atol * np.nanmax(np.abs(value), initial=0),
            err_msg=str(name),
        )


# ---- the same fit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5ad", pytest.param(".zarr", marks=pytest.mark.slow)])
def test_the_path_of_anndata_gets_the_slots_of_a_fit_in_memory(adata, fitted, tmp_path, suffix):
    path = written(adata, tmp_path, suffix)
    assert fit(str(path)) is None
    found, adata = reread(path), fitted["adata"]
    same(found, adata)
    assert (found.X != adata.X).nnz == 0
    top = found.var["gpnsf_top_factor"]
    assert top.dtype == "category"  # as anndata writes strings that repeat
    assert top.astype(str).tolist() == adata.var["gpnsf_top_factor"].tolist()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".h5mu", pytest.param(".zarr", marks=pytest.mark.slow)])
def test_the_path_of_mudata_gets_the_slots_of_a_fit_in_memory(mdata, fitted, tmp_path, suffix):
    path = written(mdata, tmp_path, suffix)
    fit(path)
    found, mdata = reread(path), fitted["mdata"]
    same(found, mdata)
    assert {name: (mod.X != mdata[name].X).nnz for name, mod in found.mod.items()} == {
        "rna": 0,
        "atac": 0,
    }
    predicted, expected = gpnsf.tl.predict(found), gpnsf.tl.predict(mdata)
    np.testing.assert_array_equal(predicted.X, expected.X)


@pytest.mark.parametrize("layout", [sp.csr_matrix, np.asarray, sp.csc_matrix])
def test_a_backed_object_gets_the_slots_in_memory_and_its_file_nothing(
    adata, fitted, tmp_path, layout
):
    adata.X = layout(adata.X.toarray())
    path = written(adata, tmp_path, ".h5ad")
    before = digest(path)
    backed = ad.read_h5ad(path, backed="r")
    fit(backed)
    same(backed, fitted["adata"])
    backed.file.close()
    assert digest(path) == before


@pytest.mark.broad(4)
@pytest.mark.parametrize("options", [
    {"use_var": "chosen"}, {"library_key": "slice"}, {"batch_key": "slice"}, {"holdout_key": "held"}, {"layers": "counts"},
    {"size_factors": "depth"}, {"likelihoods": "poisson"}, {"likelihoods": {"rna": "gaussian"}}, {"split": "tested"},
    {"block_size": 60}, {"objective": "monte_carlo"}, {"key_added": "mine", "init": "auto"}, {"modalities": ["atac"]},
], ids=str)  # fmt: skip
def test_every_way_of_reading_says_the_same(mdata, tmp_path, options):
    rows = np.arange(mdata.n_obs)
    mdata = partial(mdata)
    mdata.obs["slice"] = np.where(np.arange(mdata.n_obs) % 3, "a", "b")
    mdata.obs["held"] = np.arange(mdata.n_obs) % 9 == 1
    mdata.obs["depth"] = 1.0 + rows[: mdata.n_obs] % 4
    for mod in mdata.mod.values():
        mod.var["chosen"] = np.arange(mod.n_vars) % 4 > 0
        mod.layers["counts"] = mod.X.copy()
    mdata.update()
    path = written(mdata, tmp_path, ".h5mu")
    fit(path, **options)
    fit(mdata, **options)
    key = options.get("key_added", "gpnsf")
    found = reread(path)
    np.testing.assert_array_equal(found.obsm[f"X_{key}"], mdata.obsm[f"X_{key}"])
    for name, mod in found.mod.items():
        if f"{key}_loadings" in mdata[name].varm:
            np.testing.assert_array_equal(
                mod.varm[f"{key}_loadings"], mdata[name].varm[f"{key}_loadings"]
            )


def partial(mdata: MuData) -> MuData:
    """Some cells lack a modality, and those of the other are in another order."""
    rna, atac = mdata["rna"][10:].copy(), mdata["atac"][::-1][5:].copy()
    for mod in (rna, atac):
        mod.obsm["spatial"] = mdata[mod.obs_names].obsm["spatial"].copy()
    return MuData({"rna": rna, "atac": atac})


# ---- blocks and memory ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_kept_says_nothing(adata, tmp_path, monkeypatch):
    monkeypatch.setattr(types, "BLOCK_ROWS", 20)
    path = written(adata, tmp_path, ".h5ad")
    found, reads = {}, {}
    read = streaming.StoredCounts.__getitem__
    for budget in (0, 20_000, None):
        calls: list[Any] = []
        monkeypatch.setattr(
            streaming.StoredCounts,
            "__getitem__",
            lambda self, rows, calls=calls: calls.append(rows) or read(self, rows),
        )
        backed = ad.read_h5ad(path, backed="r")
        with gpnsf.settings.override(memory_budget=budget):
            fit(backed)
        backed.file.close()
        found[budget], reads[budget] = backed, len(calls)
    assert reads[0] > reads[20_000] > reads[None]
    for backed in found.values():
        same(backed, found[None])


@pytest.mark.broad(1)
@pytest.mark.parametrize("n_blocks", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_blocks_do_not_change_the_fit(adata, n_blocks):
    other = adata.copy()
    fit(adata, likelihoods="poisson", max_steps=12)
    fit(other, likelihoods="poisson", max_steps=12, block_size=-(-adata.n_obs // n_blocks))
    for key in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std"):
        np.testing.assert_allclose(
            other.obsm[key], adata.obsm[key], rtol=0, atol=1e-4 * adata.obsm[key].max()
        )
    W, again = (data.varm["gpnsf_loadings"] for data in (adata, other))
    np.testing.assert_allclose(again, W, rtol=0, atol=1e-4 * W.max())


# ---- what is in the file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5mu", pytest.param(".zarr", marks=pytest.mark.slow)])
def test_a_second_fit_replaces_the_first_and_nothing_else(mdata, tmp_path, suffix):
    mdata.obsm["other"], mdata.uns["more"] = np.ones((150, 2)), {"a": 1}
    mdata["rna"].layers["counts"], mdata["rna"].obs["type"] = (
        mdata["rna"].X.copy(),
        pd.Categorical(["x", "y"] * 75),
    )
    path = written(mdata, tmp_path, suffix)
    before = reread(path)
    fit(path, batch_key="type")
    fit(path, n_factors=4, n_spatial=0, model="pnmf")
    found = reread(path)
    fit(mdata, n_factors=4, n_spatial=0, model="pnmf")
    same(found, mdata)
    assert "gpnsf_batch" not in found["rna"].varm
    assert found.uns["more"] == {"a": 1}
    np.testing.assert_array_equal(found.obsm["other"], before.obsm["other"])
    for name, mod in before.mod.items():
        assert mod.layers.keys() == found[name].layers.keys()
        pd.testing.assert_frame_equal(mod.obs, found[name].obs[mod.obs.columns])
        pd.testing.assert_frame_equal(mod.var, found[name].var[mod.var.columns])


@pytest.mark.slow
def test_a_fit_that_was_written_by_memory_is_replaced_too(mdata, fitted, tmp_path):
    fit(mdata, seed=3)
    mdata.update()
    path = written(mdata, tmp_path, ".h5mu")
    fit(path)
    same(reread(path), fitted["mdata"])


@pytest.mark.parametrize("suffix", [".h5ad", pytest.param(".zarr", marks=pytest.mark.slow)])
def test_a_crash_while_writing_leaves_a_file_without_half_a_fit(
    adata, fitted, tmp_path, monkeypatch, suffix
):
    fit(adata, seed=3)
    path = written(adata, tmp_path, suffix)
    before = digest(path)
    write, calls = files.write_elem, iter(range(99))

    def dying(*arguments: Any) -> None:
        if next(calls) == 4:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(files, "write_elem", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(path)
    assert os.listdir(tmp_path) == [path.name]
    if suffix == ".h5ad":
        assert digest(path) == before
        return
    found = reread(path)
    assert "gpnsf" not in found.uns
    assert (found.X != adata.X).nnz == 0
    monkeypatch.undo()
    fit(path)
    same(reread(path), fitted["adata"])


# ---- bad input ------------------------------------------------------------------------------------------------------


def bad_count(value: float):
    """The last count of the file."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["X/data"][-1] = value

    return change


def truncated(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)


def without_coordinates(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["obsm/spatial"]


def garbage(path: Path) -> None:
    path.write_bytes(b"not hdf5" * 99)


def unreadable_table(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["var"]


@pytest.mark.parametrize(("change", "error", "message"), [
    (bad_count(-1), ValueError, "Expected nonnegative counts"), (bad_count(np.nan), ValueError, "Expected finite values"),
    (truncated, ValueError, "Expected a readable h5ad file"), (garbage, ValueError, "Expected a readable h5ad file"),
    (unreadable_table, ValueError, "Expected a readable h5ad file"), (without_coordinates, KeyError, "spatial"),
    (lambda path: path.chmod(0o444), PermissionError, "Expected a file that can be written to; got .* read-only"),
    (lambda path: shutil.move(path, path.with_suffix(".gone")), FileNotFoundError, "Expected a file that exists"),
])  # fmt: skip
def test_a_bad_file_is_refused_and_left_as_it_is(
    adata, tmp_path, monkeypatch, change, error, message
):
    monkeypatch.setattr(types, "BLOCK_ROWS", 20)
    path = written(adata, tmp_path, ".h5ad")
    change(path)
    before = digest(path) if path.exists() else ""
    with pytest.raises(error, match=message) as found:
        fit(path)
    assert re.search(r"; got .*\. [A-Z]", str(found.value), re.DOTALL)
    assert (digest(path) if path.exists() else "") == before
    assert len(os.listdir(tmp_path)) == 1


def test_no_room_for_a_copy_is_an_error_before_the_fit(adata, tmp_path, monkeypatch):
    path = written(adata, tmp_path, ".h5ad")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10))
    with pytest.raises(
        OSError, match=r"Expected room for a copy of data\.h5ad beside it; got .*\. Make room"
    ):
        fit(path)


def test_a_path_has_no_copy_and_a_known_ending(adata, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"Expected copy=False where `data` is a path; got copy=True .*\. Copy the file",
    ):
        fit(written(adata, tmp_path, ".h5ad"), copy=True)
    backed = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
    with pytest.raises(
        ValueError,
        match=r"Expected an object in memory, of which a copy .*; got .*\. Pass data\.to_memory",
    ):
        fit(backed, copy=True)
    backed.file.close()
    with pytest.raises(
        ValueError, match=r"Expected a file \.h5ad, \.h5mu, \.zarr; got .*\.loom\. Convert it"
    ):
        fit(tmp_path / "data.loom")


def test_an_interrupted_fit_of_a_file_goes_on(adata, fitted, tmp_path, monkeypatch):
    path = written(adata, tmp_path, ".h5ad")
    monkeypatch.setattr(files, "save", _killed)
    with pytest.raises(KeyboardInterrupt):
        fit(path, checkpoint=tmp_path / "fit.npz")
    monkeypatch.undo()
    fit(path, checkpoint=tmp_path / "fit.npz")
    same(reread(path), fitted["adata"])
    assert os.listdir(tmp_path) == [path.name]


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


# ---- memory ---------------------------------------------------------------------------------------------------------


# what is freed goes back to the system at once: else the peak differs by 30 MB from run to run
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


def in_process(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", limited.__file__, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **ALLOCATOR}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of addresses are those of Linux")
def test_nothing_dense_of_200_000_features_within_3_gb_of_addresses(tmp_path):
    path = tmp_path / "wide.h5ad"
    limited.write_file(str(path), 5_000, 200_000, 1e-3)
    in_process("within", str(path), str(3 * 10**9))
    assert ad.read_h5ad(path, backed="r").varm["gpnsf_loadings"].shape == (200_000, 10)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_memory_grows_with_rows_times_factors_and_not_with_counts(tmp_path):
    """A row has 200 counts, 1.6 kB; what it costs beside them was .7 kB with four factors."""
    peaks = {}
    for n_obs in (20_000, 80_000):
        path = tmp_path / f"{n_obs}.h5ad"
        limited.write_file(str(path), n_obs, 4_000, 0.05)
        peaks[n_obs] = int(in_process("peak", str(path)))
    assert peaks[80_000] - peaks[20_000] < 60_000 * 1_200
