"""Laws of reading, over everything that may hold the same data: dtypes, layouts, orders, views, files, categories."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sections
from hypothesis import HealthCheck, given, settings
from mudata import MuData

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.types import Dataset
from gpnsf.io.read import Layout, read

few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
DTYPES = (
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "bool",
)


def duplicated(X: sp.csr_matrix) -> sp.csr_matrix:
    """Each entry as a stored zero and the value, in this order, columns backwards."""
    coo = X.tocoo()
    order = np.lexsort((-coo.col, coo.row))
    data = np.column_stack([np.zeros(coo.nnz, coo.dtype), coo.data[order]]).ravel()
    indptr = np.r_[0, 2 * np.cumsum(np.bincount(coo.row, minlength=X.shape[0]))]
    return sp.csr_matrix((data, np.repeat(coo.col[order], 2), indptr), shape=X.shape)


def zeros_stored(X: sp.csr_matrix) -> sp.csr_matrix:
    """Every entry stored, zeros too."""
    n, p = X.shape
    return sp.csr_matrix(
        (X.toarray().ravel(), np.tile(np.arange(p), n), np.arange(n + 1) * p), shape=X.shape
    )


LAYOUTS: dict[str, Callable[[sp.csr_matrix], Any]] = {
    "csr": lambda X: X,
    "csc": lambda X: X.tocsc(),
    "csr array": sp.csr_array,
    "csc array": sp.csc_array,
    "dense": lambda X: X.toarray(),
    "column order": lambda X: np.asfortranarray(X.toarray()),
    "strided": lambda X: np.repeat(X.toarray(), 2, axis=1)[:, ::2],
    "read-only": lambda X: _frozen(X.toarray()),
    "duplicated": duplicated,
    "zeros stored": zeros_stored,
}


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@st.composite
def counts(draw: st.DrawFn, largest: int = 100) -> np.ndarray:
    """Counts [N, P] with at least one that is not zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape, density = (draw(st.integers(3, 20)), draw(st.integers(1, 9))), draw(st.floats(0.05, 1))
    array = rng.integers(1, largest, shape) * (rng.random(shape) < density)
    array[0, 0] = 1
    return array


def make(array: np.ndarray, prefix: str = "gene") -> ad.AnnData:
    """The canonical form of counts, on a grid."""
    adata = ad.AnnData(sp.csr_matrix(array.astype(np.float32)))
    adata.obs_names, adata.var_names = (
        [f"spot{i}" for i in range(len(array))],
        [f"{prefix}{j}" for j in range(array.shape[1])],
    )
    adata.obsm["spatial"] = np.column_stack(np.divmod(np.arange(len(array)), 4)).astype(float) * [
        3,
        2,
    ]
    adata.obs["slice"] = np.where(np.arange(len(array)) % 3, "b", "a")
    adata.obs["held"] = np.arange(len(array)) == 1
    return adata


def same(
    first: tuple[Dataset, Layout], second: tuple[Dataset, Layout], rows: np.ndarray | None = None
) -> None:
    """The two say the same; with ``rows``, once the rows of the first are taken in this order."""
    (one, about), (other, about_other) = first, second
    rows = np.arange(one.n_obs) if rows is None else rows
    np.testing.assert_allclose(one.coords[rows], other.coords, atol=1e-6)
    np.testing.assert_array_equal(one.library[rows], other.library)
    assert about.libraries == about_other.libraries
    assert about.modalities == about_other.modalities
    for view, again in zip(one.views, other.views, strict=True):
        counts = again.counts[:]
        assert counts.dtype == np.float32
        assert counts.has_canonical_format
        assert counts.data.all()
        np.testing.assert_array_equal(view.counts.toarray()[rows], counts.toarray())
        np.testing.assert_allclose(view.size[rows], again.size, rtol=1e-6)
        np.testing.assert_array_equal(view.observed[rows], again.observed)


def untouched(data: Any, **options: Any) -> tuple[Dataset, Layout]:
    """Read, and see that nothing has changed."""
    before = sections.digest(data)
    result = read(data, Reading(**options))
    assert sections.digest(data) == before
    return result


@few
@given(
    counts(),
    st.sampled_from(DTYPES),
    st.sampled_from(list(LAYOUTS)),
    st.sampled_from(["X", "layer"]),
)
def test_dtype_and_layout_say_nothing(array, dtype, layout, place):
    array = array.astype(dtype)
    canonical, other = make(array.astype(np.float32)), make(array)
    stored = LAYOUTS[layout](sp.csr_matrix(array))
    if place == "X":
        other.X = stored
    else:
        other.layers["counts"] = stored
        other.X = np.full(array.shape, -1.5)
    assert stored.dtype == dtype
    same(read(canonical), untouched(other, layers="counts" if place == "layer" else None))


@few
@given(
    counts(),
    st.sampled_from(["csr", "csc", "dense"]),
    st.sampled_from(["int32", "float32", "float64"]),
)
def test_a_file_that_stays_on_disk_is_read_as_if_in_memory(array, layout, dtype):
    adata = make(array)
    expected = read(adata)
    adata.X = LAYOUTS[layout](sp.csr_matrix(array.astype(dtype)))
    with tempfile.TemporaryDirectory() as folder:
        adata.write_h5ad(Path(folder) / "a.h5ad")
        backed = ad.read_h5ad(Path(folder) / "a.h5ad", backed="r")
        same(expected, read(backed))
        backed.file.close()


@few
@given(counts(), st.integers(0, 2**16))
def test_rows_in_another_order_give_rows_in_that_order(array, seed):
    adata = make(array)
    rows = np.random.default_rng(seed).permutation(adata.n_obs)
    options = {"library_key": "slice", "holdout_key": "held"}
    same(read(adata, Reading(**options)), untouched(adata[rows].copy(), **options), rows)


@few
@given(counts(), st.lists(st.booleans(), min_size=20, max_size=20))
def test_a_view_and_its_copy_are_what_they_show(array, kept):
    adata = make(array)
    rows = np.flatnonzero(np.array(kept[: adata.n_obs]) | (np.arange(adata.n_obs) < 3))
    part = make(array[rows])
    part.obs_names, part.obs = adata.obs_names[rows], adata.obs.iloc[rows].copy()
    part.obsm["spatial"] = adata.obsm["spatial"][rows]
    for shown in (adata[rows].copy(), adata[rows]):
        same(read(part, Reading(library_key="slice")), untouched(shown, library_key="slice"))


def unused(labels: pd.Series) -> pd.Series:
    return labels.astype("category").cat.add_categories(["zzz", "0"])


def backwards(labels: pd.Series) -> pd.Series:
    return labels.astype("category").cat.reorder_categories(["b", "a"], ordered=True)


LABELS: dict[str, Callable[[pd.Series], Any]] = {
    "category": lambda labels: labels.astype("category"),
    "unused levels": unused,
    "ordered backwards": backwards,
    "string": lambda labels: labels.astype("string"),
    "object": lambda labels: labels.astype(object),
    "integer": lambda labels: labels.map({"a": 3, "b": 7}),
    "nullable integer": lambda labels: labels.map({"a": 3, "b": 7}).astype("Int64"),
    "integer category": lambda labels: labels.map({"a": 3, "b": 7}).astype("category"),
    "boolean": lambda labels: labels == "b",
}


def test_labels_of_slices_may_have_any_type(subtests):
    for name in LABELS:
        with subtests.test(name=name):
            adata = make(np.random.default_rng(0).integers(0, 99, (12, 5)))
            (expected, _), converted = read(adata, Reading(library_key="slice")), adata.copy()
            converted.obs["slice"] = LABELS[name](adata.obs["slice"])
            dataset, layout = untouched(converted, library_key="slice")
            np.testing.assert_array_equal(dataset.library, expected.library)
            np.testing.assert_allclose(dataset.coords, expected.coords)
            assert len(layout.libraries) == 2


COORDS: dict[str, Callable[[ad.AnnData], Any]] = {
    "int8": lambda a: a.obsm["spatial"].astype(np.int8),
    "int64": lambda a: a.obsm["spatial"].astype(np.int64),
    "uint16": lambda a: a.obsm["spatial"].astype(np.uint16),
    "float16": lambda a: a.obsm["spatial"].astype(np.float16),
    "float32": lambda a: a.obsm["spatial"].astype(np.float32),
    "column order": lambda a: np.asfortranarray(a.obsm["spatial"]),
    "DataFrame": lambda a: pd.DataFrame(a.obsm["spatial"], index=a.obs_names, columns=["x", "y"]),
    "integer DataFrame": lambda a: pd.DataFrame(
        a.obsm["spatial"].astype(int), index=a.obs_names, columns=["x", "y"]
    ),
    "nullable DataFrame": lambda a: pd.DataFrame(
        a.obsm["spatial"].astype(int), index=a.obs_names, columns=["x", "y"]
    ).astype("Int32"),
    "moved and scaled": lambda a: a.obsm["spatial"] * 2.0**20 - 3.0 * 2.0**21,
    "tiny": lambda a: a.obsm["spatial"] * 2.0**-40,
}


def test_coordinates_may_have_any_type_and_unit(subtests):
    for name in COORDS:
        with subtests.test(name=name):
            adata = make(np.random.default_rng(0).integers(0, 99, (12, 5)))
            converted = adata.copy()
            converted.obsm["spatial"] = COORDS[name](adata)
            same(read(adata), untouched(converted))


@st.composite
def apart(draw: st.DrawFn) -> tuple[ad.AnnData, ad.AnnData, np.ndarray]:
    """Two modalities on some of the same cells each, in orders of their own; the two of them cover all cells."""
    rna = draw(counts())
    n, rng = len(rna), np.random.default_rng(draw(st.integers(0, 2**16)))
    peaks = (rng.random((n, 6)) < 0.6).astype(int)
    peaks[0, 0] = peaks[1, 0] = 1
    has_peaks = rng.random(n) < draw(st.floats(0.2, 1))
    has_peaks[:2] = True
    both = has_peaks & (rng.random(n) < 0.7)
    has_rna = ~has_peaks | both
    has_rna[0] = True
    orders = [rng.permutation(np.flatnonzero(has)) for has in (has_rna, has_peaks)]
    return (
        *(
            make(X, name)[rows].copy()
            for X, name, rows in zip((rna, peaks), ("gene", "peak"), orders, strict=True)
        ),
        rna,
    )


@few
@given(apart())
def test_cells_are_matched_by_name(modalities):
    rna, atac, _ = modalities
    mdata = sections.mudata(rna=rna, atac=atac)
    dataset, _ = untouched(mdata, library_key="slice", holdout_key="held")
    for view, mod in zip(dataset.views, (rna, atac), strict=True):
        rows = mdata.obs_names.get_indexer(mod.obs_names)
        trained = ~mod.obs["held"].to_numpy()
        expected = np.zeros((mdata.n_obs, mod.n_vars))
        expected[rows[trained]] = mod.X.toarray()[trained]
        np.testing.assert_array_equal(view.counts.toarray(), expected)
        assert set(np.flatnonzero(view.observed)) == set(rows[trained])
        assert not view.size[~view.observed].any()
        np.testing.assert_array_equal(
            dataset.library[rows],
            (mod.obs["slice"] == "b") if len(set(dataset.library)) == 2 else 0,
        )


@few
@given(apart(), st.integers(0, 2**16))
def test_the_order_of_cells_within_modalities_says_nothing(modalities, seed):
    rna, atac, _ = modalities
    rng = np.random.default_rng(seed)
    one = sections.mudata(rna=rna, atac=atac)
    other = sections.mudata(
        rna=rna[rng.permutation(rna.n_obs)].copy(), atac=atac[rng.permutation(atac.n_obs)].copy()
    )
    rows = one.obs_names.get_indexer(other.obs_names)
    same(read(one, Reading(library_key="slice")), untouched(other, library_key="slice"), rows)


def fitted(data: ad.AnnData | MuData) -> ad.AnnData | MuData:
    """The shortest fit; the input stays as it is."""
    before = sections.digest(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        result = gpnsf.tl.fit(
            data,
            n_factors=3,
            max_steps=3,
            init="random",
            split="assumed",
            progress=False,
            copy=True,
        )
    assert sections.digest(data) == before
    return result


@pytest.mark.broad(1)
@pytest.mark.parametrize("part", range(2))
def test_layouts_give_the_same_fit_to_the_bit(part, subtests):
    array = np.random.default_rng(0).poisson(6.0, (40, 20))
    expected, other = fitted(make(array)).obsm["X_gpnsf"], make(array)
    kinds = [*((layout, "float64") for layout in LAYOUTS), ("csr", "uint8"), ("csc", "int64")]
    for layout, dtype in kinds[part::2]:
        with subtests.test(layout=layout, dtype=dtype):
            other.X = LAYOUTS[layout](sp.csr_matrix(array.astype(dtype)))
            np.testing.assert_array_equal(fitted(other).obsm["X_gpnsf"], expected)


def test_a_modality_in_another_order_gives_the_same_fit():
    rng = np.random.default_rng(1)
    rna = make(rng.poisson(6.0, (40, 20)))
    atac = make((rng.random((40, 20)) < 0.4).astype(int), "peak")
    one = sections.mudata(rna=rna, atac=atac)
    other = sections.mudata(rna=rna, atac=atac[rng.permutation(40)].copy())
    assert (one.obs_names == other.obs_names).all()
    first, second = fitted(one), fitted(other)
    np.testing.assert_array_equal(first.obsm["X_gpnsf"], second.obsm["X_gpnsf"])
    again = second["atac"][rna.obs_names].obsm["X_gpnsf"]
    np.testing.assert_array_equal(first["atac"].obsm["X_gpnsf"], again)
