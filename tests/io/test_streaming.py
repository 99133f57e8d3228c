"""Counts in a file: what is read equals what memory would hold, however the file stores it and whatever rows are asked for."""

from __future__ import annotations

import os
import re

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import sections
import zarr
from anndata.io import sparse_dataset

from gpnsf.core import types
from gpnsf.io import read, streaming
from gpnsf.settings import settings

pytestmark = pytest.mark.filterwarnings(
    "ignore:Writing zarr v2", "ignore:zarr v3 autosharding", "ignore:Consolidated metadata"
)


@pytest.fixture
def counts() -> sp.csr_matrix:
    rng = np.random.default_rng(0)
    return sp.random(
        60,
        9,
        0.4,
        "csr",
        np.float32,
        rng,
        data_rvs=lambda n: rng.integers(1, 9, n).astype(np.float32),
    )


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Seven rows of a sparse matrix, or five of a dense one, at a time."""
    monkeypatch.setattr(streaming, "rows_at_a_time", lambda *_: 7)
    monkeypatch.setattr(types, "rows_at_a_time", lambda *_: 11)
    monkeypatch.setattr(streaming, "DENSE_ENTRIES", 50)


def stored(matrix, tmp_path, kind: str = "h5"):
    """The matrix in a file of anndata."""
    adata = ad.AnnData(matrix)
    if kind == "h5":
        adata.write_h5ad(tmp_path / "a.h5ad")
        place = h5py.File(tmp_path / "a.h5ad", "r")["X"]
    else:
        adata.write_zarr(tmp_path / "a.zarr")
        place = zarr.open_group(tmp_path / "a.zarr", mode="r")["X"]
    return sparse_dataset(place) if sp.issparse(matrix) else place


def opened(matrix, likelihood: str = "nb", use: np.ndarray | None = None) -> streaming.StoredCounts:
    use = np.ones(matrix.shape[1], bool) if use is None else use
    names = [f"gene{j}" for j in np.flatnonzero(use)]
    return streaming.StoredCounts.open(
        matrix, modality="rna", use=use, likelihood=likelihood, features=names
    )


def unsorted(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Columns of each row in falling order."""
    rows = [slice(a, b) for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)]
    data, indices = (
        np.concatenate([part[row][::-1] for row in rows]) for part in (matrix.data, matrix.indices)
    )
    return sp.csr_matrix((data, indices, matrix.indptr), shape=matrix.shape)


def doubled(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Each value as two halves, and a stored zero in the first row."""
    data, indices = np.repeat(matrix.data / 2, 2), np.repeat(matrix.indices, 2)
    data, indices = np.append(0, data).astype(np.float32), np.append(0, indices)
    return sp.csr_matrix(
        (data, indices, np.append(0, 2 * matrix.indptr[1:] + 1)), shape=matrix.shape
    )


FORMS = {
    "csr": lambda x: x, "float64": lambda x: x.astype(float), "uint16": lambda x: x.astype(np.uint16),
    "dense": lambda x: x.toarray(), "dense int": lambda x: x.toarray().astype(int), "unsorted": unsorted, "doubled": doubled,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_rows_of_any_form_are_those_of_memory(counts, tmp_path, kind, subtests):
    chosen = (
        slice(0, 60),
        slice(3, 4),
        slice(5, 40),
        slice(9, 9),
        np.array([0, 1, 13, 14, 59]),
        np.arange(60) % 3 == 0,
    )
    for form, converted in FORMS.items():
        with subtests.test(form):
            (tmp_path / form).mkdir()
            found = opened(stored(converted(counts), tmp_path / form, kind))
            assert (found.shape, found.nnz) == (counts.shape, counts.nnz)
            np.testing.assert_allclose(found.totals, counts.toarray().sum(1))
            for rows in chosen:
                block = found[rows]
                assert block.dtype == np.float32
                assert block.has_canonical_format
                assert block.data.all()
                np.testing.assert_array_equal(block.toarray(), counts[rows].toarray())
            together = sp.vstack([part for _, part in types.parts(found)])
            np.testing.assert_array_equal(together.toarray(), counts.toarray())


def test_rows_in_another_order_with_gaps_and_some_features(counts, tmp_path):
    use = np.arange(9) % 2 == 0
    found = opened(stored(counts, tmp_path), use=use)
    order = np.random.default_rng(1).permutation(60)
    order[[4, 30]] = -1
    moved = found.arranged(order)
    expected = counts.toarray()[order][:, use]
    expected[[4, 30]] = 0
    assert moved.nnz == np.count_nonzero(expected)
    np.testing.assert_array_equal(moved[:].toarray(), expected)
    again = moved.arranged(np.array([30, 2, -1, 1]))
    np.testing.assert_array_equal(
        again[:].toarray(), np.stack([0 * expected[0], expected[2], 0 * expected[0], expected[1]])
    )


def test_open_peaks_are_ones(counts, tmp_path):
    found = opened(stored(counts, tmp_path), "bernoulli")
    np.testing.assert_array_equal(found[:].toarray(), counts.toarray() > 0)
    np.testing.assert_array_equal(found.totals, np.diff(counts.indptr))


@pytest.mark.parametrize(("value", "message"), [
    (-2, "Expected nonnegative counts .* got 1 negative value"), (np.nan, "finite values"), (0.5, "whole counts")
])  # fmt: skip
@pytest.mark.parametrize("form", ["csr", "dense"])
def test_a_bad_value_in_the_last_row_is_found(counts, tmp_path, value, message, form):
    counts = counts.tolil()
    counts[59, 3] = value
    with pytest.raises(ValueError, match=message + r".*'gene3'"):
        opened(stored(FORMS[form](counts.tocsr()), tmp_path))


@pytest.mark.parametrize(("name", "change"), [
    ("indices", lambda x: x + 9), ("indptr", lambda x: x[::-1]), ("indptr", lambda x: x + 1), ("indptr", lambda x: x[:-1]),
    ("data", lambda x: x[:-1]), ("indices", lambda x: x[:-1]),
])  # fmt: skip
def test_arrays_that_contradict_each_other_are_refused(counts, tmp_path, name, change):
    stored(counts, tmp_path).group.file.close()
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        values = change(file[f"X/{name}"][:])
        del file[f"X/{name}"]
        file[f"X/{name}"] = values
    with h5py.File(tmp_path / "a.h5ad", "r") as file:
        matrix = sparse_dataset(file["X"])
        with pytest.raises(
            ValueError,
            match=r"Expected a sound sparse matrix in modality 'rna'; got .*\. Build it anew",
        ):
            opened(matrix)


def test_a_part_that_cannot_be_read_is_named(counts, tmp_path):
    found = opened(stored(counts, tmp_path, "zarr"))
    for chunk in (tmp_path / "a.zarr" / "X" / "data").rglob("*"):
        if chunk.is_file() and not chunk.name.startswith((".", "zarr")):
            chunk.write_bytes(b"\xff" * 7)
    with pytest.raises(
        ValueError,
        match=r"counts of modality 'rna' can be read; got an error in rows 5 to 6: .*\. Write",
    ):
        found[5:10]


def test_words_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["X"] = np.full((3, 2), b"a")
        with pytest.raises(
            TypeError, match="Expected numeric counts in modality 'rna'; got an array of shape"
        ):
            opened(file["X"])


def test_columns_are_loaded_where_they_fit_and_refused_where_they_do_not(counts, tmp_path):
    adata = sections.section()
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "b.h5ad")
    backed = ad.read_h5ad(tmp_path / "b.h5ad", backed="r")
    found = read.read(backed)[0]
    np.testing.assert_array_equal(found.views[0].counts.toarray(), adata.X.toarray())
    with (
        settings.override(memory_budget=100),
        pytest.raises(ValueError, match=re.escape("stored by rows (CSR), or fit")),
    ):
        read.read(backed)
    backed.file.close()


def test_the_budget_is_the_setting_or_a_share_of_the_smallest_limit(tmp_path, monkeypatch):
    whole = streaming.memory_budget()
    container = tmp_path / "memory.max"
    monkeypatch.setattr(streaming, "CONTAINER", (tmp_path / "missing", container))
    container.write_text("max\n")
    assert streaming.memory_budget() >= whole
    container.write_text("4000000\n")
    assert streaming.memory_budget() == 1_000_000
    with settings.override(memory_budget=123):
        assert streaming.memory_budget() == 123


def test_what_is_left_is_the_least_of_the_limits_less_what_is_taken(tmp_path, monkeypatch):
    container, used, machine = (tmp_path / name for name in ("memory.max", "statm", "meminfo"))
    for name, path in {"CONTAINER": (container,), "USED": used, "MACHINE": machine}.items():
        monkeypatch.setattr(streaming, name, path)
    container.write_text("40000000\n")
    assert streaming.available_memory() == 40_000_000
    used.write_text("9000 1000 10 0 0 0 0\n")
    machine.write_text("MemTotal: 100 kB\nSwapFree:   1000 kB\n")
    page = os.sysconf("SC_PAGE_SIZE")
    assert streaming.available_memory() == 40_000_000 - 1000 * page  # swap is the machine's
    container.write_text("max\n")
    assert streaming.available_memory() > 40_000_000
