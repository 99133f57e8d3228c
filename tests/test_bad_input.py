"""What users pass in by mistake, as a table: each row raises a three-part error and leaves the object as it was."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sections
from mistakes import explained
from mudata import MuData
from sections import pair, section

import gpnsf
from gpnsf.arguments import RULES, Arguments, Call, Model, Reading, Training
from gpnsf.io.read import read


def changed(change: Callable[[Any], Any], make: Callable[[], Any] = section) -> Callable[[], Any]:
    """A maker whose object was changed, or replaced where the change returns something."""

    def build() -> Any:
        data = make()
        result = change(data)
        return data if result is None else result

    return build


def counts(value: float, dtype: type = np.float32) -> Callable[[], ad.AnnData]:
    """A section with one odd value in gene3."""

    def change(adata: ad.AnnData) -> None:
        X = adata.X.toarray().astype(dtype)
        X[5, 3] = value
        adata.X = sp.csr_matrix(X)

    return changed(change)


def coords(change: Callable[[np.ndarray], Any]) -> Callable[[], ad.AnnData]:
    """A section with other coordinates."""
    return changed(
        lambda adata: adata.obsm.__setitem__("spatial", change(adata.obsm["spatial"].copy()))
    )


def nan_point(xy: np.ndarray) -> np.ndarray:
    xy[7, 1] = np.nan
    return xy


def infinite_point(xy: np.ndarray) -> np.ndarray:
    xy[7, 0] = np.inf
    return xy


def column(name: str, values: Any) -> Callable[[], ad.AnnData]:
    """A section with one more obs column."""
    return changed(lambda adata: adata.obs.__setitem__(name, values))


def moved(mdata: MuData) -> None:
    mdata["atac"].obsm["spatial"][4:7] += 2.5


def flattened(mdata: MuData) -> None:
    mdata["atac"].obsm["spatial"] = mdata["atac"].obsm["spatial"][:, :1]


def partly_placed(mdata: MuData) -> MuData:
    rna = mdata["rna"][:20].copy()
    atac = mdata["atac"].copy()
    del atac.obsm["spatial"]
    return sections.mudata(rna=rna, atac=atac)


def stale(mdata: MuData) -> None:
    mdata.mod["rna"] = mdata["rna"][2:].copy()


def stale_order(mdata: MuData) -> None:
    mdata.mod["rna"] = mdata["rna"][::-1].copy()


def duplicated(adata: ad.AnnData) -> None:
    adata.obs_names = ["spot1", *adata.obs_names[1:]]


def duplicated_in_pair() -> MuData:
    mdata = pair()
    rna = mdata["rna"].copy()
    duplicated(rna)
    return sections.mudata(rna=rna, atac=mdata["atac"].copy())


def stray(index: int) -> Callable[[], ad.AnnData]:
    """Compiled code would read beyond the end of an array."""
    return changed(lambda adata: adata.X.indices.__setitem__(0, index))


def masked(adata: ad.AnnData) -> None:
    adata.X = np.ma.masked_array(adata.X.toarray(), mask=np.eye(24, 8, dtype=bool))


def repeated(adata: ad.AnnData) -> None:
    adata.obs = pd.concat([adata.obs, adata.obs], axis=1)


def no_peaks(mdata: MuData) -> MuData:
    return sections.mudata(rna=mdata["rna"], atac=mdata["atac"][:0].copy())


def no_counts(adata: ad.AnnData) -> ad.AnnData:
    return ad.AnnData(obs=adata.obs, obsm={"spatial": adata.obsm["spatial"]}, var=adata.var)


def text_counts() -> ad.AnnData:
    adata = section()
    adata.layers["text"] = np.full(adata.shape, "a", dtype=object)
    return adata


@dataclass(frozen=True)
class Case:
    """One mistake, the error that it raises, and a part of its message."""

    name: str
    make: Callable[[], Any]
    error: type[Exception]
    says: str
    options: Mapping[str, Any] = field(default_factory=dict)


def option(
    name: str, value: Any, error: type[Exception] = ValueError, says: str = "", **others: Any
) -> Case:
    """A mistake in one argument, of otherwise good input."""
    return Case(
        f"{name}={value!r:.40}", section, error, says or f"`{name}`", {name: value, **others}
    )


CASES = [
    # counts
    Case("NaN count", counts(np.nan), ValueError, "1 NaN or infinite value(s), the first in feature 'gene3'"),
    Case("infinite count", counts(np.inf), ValueError, "finite values in modality 'rna'"),
    Case("count beyond float32", counts(1e60, np.float64), ValueError, "NaN or infinite"),
    Case("negative count", counts(-1), ValueError, "1 negative value(s), the first in feature 'gene3'"),
    Case("negative for bernoulli", counts(-1), ValueError, "negative", {"likelihoods": "bernoulli"}),
    Case("fractional count", counts(0.5), ValueError, "layers={'rna': 'counts'}"),
    Case("fractional for poisson", counts(2.25), ValueError, "whole counts", {"likelihoods": "poisson"}),
    Case("NaN for gaussian", counts(np.nan), ValueError, "finite values", {"likelihoods": "gaussian"}),
    Case("only zeros", changed(lambda d: setattr(d, "X", sp.csr_matrix(d.shape))), ValueError, "only zeros in 24 x 8"),
    Case("no X", changed(no_counts), ValueError, "counts in X"),
    Case("no observations", changed(lambda d: d[:0].copy()), ValueError, "data with observations"),
    Case("no features", changed(lambda d: d[:, :0].copy()), ValueError, "not to be empty"),
    Case("text as counts", text_counts, TypeError, "numeric data", {"layers": "text"}),
    Case("complex counts", changed(lambda d: setattr(d, "X", d.X.astype(complex))), TypeError, "dtype complex"),
    Case("count beyond reach", counts(1e15), ValueError, "1 larger value(s), the first in feature 'gene3'"),
    Case("gaussian beyond reach", counts(-1e30), ValueError, "at most 1e+12", {"likelihoods": "gaussian"}),
    Case("index beyond the features", stray(99), ValueError, "sound sparse matrix in modality 'rna'"),
    Case("index below zero", stray(-1), ValueError, "sound sparse matrix"),
    Case("masked counts", changed(masked), TypeError, "numeric data"),
    Case("modality without cells", changed(no_peaks, pair), ValueError, "modality 'atac' not to be empty"),
    # coordinates
    Case("coordinates of another universe", coords(lambda xy: xy * 3e307 - 1e308), ValueError, "half-width"),
    Case("coordinates without extent", coords(lambda xy: xy * 1e-310), ValueError, "half-width"),
    Case("coordinates too far off", coords(lambda xy: xy + 1e17), ValueError, "24 identical point(s)"),
    Case("boolean coordinates", coords(lambda xy: xy > 2), TypeError, "dtype bool"),
    Case("complex coordinates", coords(lambda xy: xy * 1j), TypeError, "dtype complex128"),
    Case("coordinates with NA",
         changed(lambda d: d.obsm.__setitem__("spatial", pd.DataFrame(
             {"x": pd.array([None, *range(23)], dtype="Int32"), "y": 1}, index=d.obs_names))),
         ValueError, "1 row(s), the first 'spot0'"),
    Case("each spot a slice", column("part", [f"s{i}" for i in range(24)]), ValueError, "in each section",
         {"library_key": "part"}),
    Case("no coordinates", changed(lambda d: d.obsm.clear()), KeyError, "'spatial'"),
    Case("NaN coordinates", coords(nan_point), ValueError, "1 row(s), the first 'spot7'"),
    Case("infinite coordinates", coords(infinite_point), ValueError, "finite coordinates"),
    Case("one point for all", coords(np.zeros_like), ValueError, "24 identical point(s)"),
    Case("one point in each slice", changed(lambda d: d.obsm.__setitem__("spatial", np.repeat([[0.0, 0], [9, 9]], 12, 0))),
         ValueError, "in each section", {"library_key": "slice"}),
    Case("four coordinates", coords(lambda xy: np.tile(xy, 2)), ValueError, "shape (24, 4)"),
    Case("no columns", coords(lambda xy: xy[:, :0]), ValueError, "shape (24, 0)"),
    Case("stacked coordinates", coords(lambda xy: xy[:, :, None]), ValueError, "shape (24, 2, 1)"),
    Case("text as coordinates", coords(lambda xy: xy.astype(str)), TypeError, "numeric array"),
    Case("sparse coordinates", coords(sp.csr_matrix), TypeError, "csr_matrix"),
    Case("text column in coordinates",
         changed(lambda d: d.obsm.__setitem__("spatial", pd.DataFrame({"x": 1.5, "y": "b"}, index=d.obs_names))),
         TypeError, "DataFrame"),
    Case("3-D on a grid", coords(lambda xy: np.column_stack([xy, xy[:, 0] ** 2])), ValueError, "field='inducing'"),
    Case("modalities in other places", changed(moved, pair), ValueError, "3 of 24 shared observation(s) that differ"),
    Case("modalities of other dimension", changed(flattened, pair), ValueError, "1 column(s) in modality 'atac'"),
    Case("cells without coordinates", changed(partly_placed, pair), ValueError, "4 observation(s), the first 'spot20'"),
    option("spatial_key", "umap", KeyError, "there: 'spatial'"),
    option("spatial_key", 3, TypeError),
    # the object
    Case("a path to nothing", lambda: "tissue.h5mu", FileNotFoundError, "got tissue.h5mu. Check the path"),
    Case("a file of another kind", lambda: "tissue.loom", ValueError, "got tissue.loom. Convert it"),
    Case("a DataFrame", lambda: section().to_df(), TypeError, "got DataFrame"),
    Case("a view", changed(lambda d: d[:20]), ValueError, ".copy()"),
    Case("a view of MuData", changed(lambda d: d[:20], pair), ValueError, ".copy()"),
    Case("MuData not updated", changed(stale, pair), ValueError, ".update()"),
    Case("MuData not updated, same size", changed(stale_order, pair), ValueError, "modality 'rna'"),
    Case("MuData of other cells", lambda: sections.mudata(axis=1, rna=section(), more=section()), ValueError, "axis=1"),
    Case("no modalities", sections.mudata, ValueError, "without modalities"),
    Case("duplicate names", changed(duplicated), ValueError, "obs_names_make_unique"),
    Case("duplicate names in MuData", duplicated_in_pair, ValueError, "modality 'rna'"),
    # columns, layers, modalities
    Case("unknown modality", pair, KeyError, "there: 'rna', 'atac'", {"modalities": ["rna", "protein"]}),
    Case("no modality named", pair, ValueError, "at least one", {"modalities": []}),
    Case("modality named twice", pair, ValueError, "each once", {"modalities": ["rna", "rna"]}),
    Case("modalities of wrong type", pair, TypeError, "type int", {"modalities": 2}),
    Case("two likelihoods for AnnData", section, ValueError, "one modality",
         {"likelihoods": {"rna": "nb", "atac": "bernoulli"}}),
    option("likelihoods", {"rna": "binomial"}),
    option("likelihoods", "zip"),
    option("likelihoods", ["nb"], TypeError),
    option("likelihoods", {"rna": None}, TypeError),
    Case("likelihood of unknown modality", pair, KeyError, "'protein'", {"likelihoods": {"protein": "nb"}}),
    option("layers", {"rna": "raw"}, KeyError, "there: 'counts'"),
    option("layers", {"protein": "counts"}, KeyError, "`layers`"),
    option("layers", {"rna": 1}, TypeError),
    option("use_var", "highly_variable", KeyError),
    Case("use_var not boolean", changed(lambda d: d.var.__setitem__("n", 1)), TypeError, "boolean", {"use_var": "n"}),
    Case("use_var nowhere true", changed(lambda d: d.var.__setitem__("n", False)), ValueError, "shape (24, 0)",
         {"use_var": "n"}),
    option("library_key", "patient", KeyError, "there: 'slice'"),
    Case("library with gaps", column("part", ["a", None] * 12), ValueError, "12 of 24 missing", {"library_key": "part"}),
    Case("library of floats", column("part", np.linspace(0, 1, 24)), TypeError, "float", {"library_key": "part"}),
    option("holdout_key", "test", KeyError),
    Case("hold-out not boolean", column("part", 1), TypeError, "boolean", {"holdout_key": "part"}),
    Case("hold-out with gaps", column("part", [True, None] * 12), ValueError, "missing", {"holdout_key": "part"}),
    Case("all held out", column("part", True), ValueError, "all 24 rows", {"holdout_key": "part"}),
    option("size_factors", "n_counts", KeyError),
    option("size_factors", "slice", TypeError, "numeric"),
    Case("columns of the same name", changed(repeated), ValueError, "2 of that name", {"holdout_key": "held"}),
    Case("size factors of the same name", changed(repeated), ValueError, "2 of that name", {"size_factors": "depth"}),
    Case("boolean size factor", column("part", True), TypeError, "numeric", {"size_factors": "part"}),
    Case("size factor of zero", column("part", np.arange(24.0)), ValueError, "1 of 24", {"size_factors": "part"}),
    Case("size factor NaN", column("part", [np.nan, 1.0] * 12), ValueError, "12 of 24", {"size_factors": "part"}),
    option("modality_weights", {"rna": -1.0}),
    option("modality_weights", {"rna": np.inf}),
    option("modality_weights", {"rna": "much"}, TypeError),
    option("modality_weights", 2.0, TypeError),
    # options
    option("model", "GPNSF", ValueError, "'gpnsf'"),
    option("model", None, TypeError),
    option("n_factors", 0),
    option("n_factors", 2.5, TypeError),
    option("n_factors", True, TypeError),
    option("n_factors", 9, ValueError, "24 observations and 8 features"),
    option("n_spatial", 5, ValueError, "at most `n_factors`"),
    option("n_spatial", -1),
    option("kernel", "linear"),
    option("field", "grid"),
    option("n_inducing", 0),
    option("lengthscale", 0.0),
    option("lengthscale", "long", TypeError),
    option("lengthscale", 1e-9, ValueError, "half-width of the tissue is 2.5"),
    option("lengthscale", 1e9, ValueError, "unit of the coordinates"),
    option("kl_weight", -0.1),
    option("kl_weight", np.nan),
    option("objective", "elbo"),
    option("objective", "closed_form", ValueError, "'bernoulli_clipped'", likelihoods="bernoulli_clipped"),
    option("model", "fa", ValueError, "gaussian", likelihoods="nb"),
    option("model", "rsf", ValueError, "gaussian", likelihoods="poisson"),
    option("n_samples", 0),
    option("init", "nmf"),
    option("split", "guessed"),
    option("refine", 1, TypeError),
    option("max_steps", 0),
    option("learning_rate", np.inf),
    option("learning_rate", 0),
    option("tol", 0.0),
    option("block_size", 0),
    option("device", 0, TypeError),
    option("seed", -1),
    option("seed", 2**32),
    option("n_factors", 10**12, ValueError, "24 observations and 8 features"),
    option("modality_weights", {"rna": np.nan}),
    option("seed", 1.0, TypeError),
    option("progress", "yes", TypeError),
    option("copy", None, TypeError),
    option("key_added", ""),
    option("key_added", "my/fit"),
    Case("key of a modality", pair, ValueError, "names of the modalities", {"key_added": "atac"}),
]  # fmt: skip


def run(data: Any, **options: Any) -> None:
    """The shortest fit there is."""
    gpnsf.tl.fit(
        data,
        **{
            "n_factors": 3,
            "max_steps": 2,
            "init": "random",
            "refine": False,
            "progress": False,
            **options,
        },
    )


def test_a_mistake_is_explained_and_changes_nothing(subtests):
    for case in CASES:
        with subtests.test(case.name):
            explained(case.make(), partial(run, **case.options), case.error, case.says)


def test_every_argument_of_fit_is_a_field_with_the_same_default_and_a_rule_or_judged_by_the_data():
    signature = {
        n: p.default for n, p in inspect.signature(gpnsf.tl.fit).parameters.items() if n != "data"
    }
    held = [own for part in (Reading, Model, Training, Call) for own in dataclasses.fields(part)]
    assert {own.name: own.default for own in held} == signature
    by_the_data = {"modalities", "likelihoods", "layers", "use_var", "modality_weights", "table"}
    assert signature.keys() == by_the_data | RULES.keys()
    assert Arguments.of({}).record.keys() == signature.keys() - {
        "progress",
        "checkpoint",
        "copy",
        "table",
    }


def test_an_unknown_device_is_refused():
    data = section()
    before = sections.digest(data)
    with pytest.raises(ValueError, match="device"):
        run(data, device="abacus")
    assert sections.digest(data) == before


def test_the_digest_sees_changes(subtests):
    changes = {
        "a count": lambda d: d.X.data.__setitem__(0, 99),
        "a column": lambda d: d.obs.__setitem__("new", 1),
        "a coordinate": lambda d: d.obsm["spatial"].__setitem__((0, 0), -1),
        "an entry of uns": lambda d: d.uns.__setitem__("gpnsf", {"a": {"b": 1}}),
        "the type of the counts": lambda d: setattr(d, "X", d.X.astype(np.float64)),
        "the order of indices": lambda d: d.layers["counts"].indices.__setitem__(
            slice(0, 2), d.layers["counts"].indices[1::-1].copy()
        ),
    }
    for name, change in changes.items():
        with subtests.test(name):
            data = section()
            before = sections.digest(data)
            change(data)
            assert sections.digest(data) != before


def stored_zeros(adata: ad.AnnData) -> None:
    X = adata.X.copy()
    X.data[::7] = 0
    adata.X = X


def unsorted_duplicates(adata: ad.AnnData) -> None:
    X = adata.X.tocsr()
    indices = np.concatenate([np.r_[row.indices[::-1], row.indices[:1]] for row in X])
    data = np.concatenate([np.r_[row.data[::-1], 1] for row in X]).astype(np.float32)
    indptr = np.r_[0, np.cumsum(np.diff(X.indptr) + 1)]
    adata.X = sp.csr_matrix((data, indices, indptr), shape=X.shape)


def empty_spots(adata: ad.AnnData) -> None:
    X = adata.X.toarray()
    X[2:5] = 0
    adata.X = sp.csr_matrix(X)


def silent_features(adata: ad.AnnData) -> None:
    X = adata.X.toarray()
    X[:, -2:] = 0
    adata.X = sp.csr_matrix(X)


def partial_overlap(mdata: MuData) -> MuData:
    return sections.mudata(rna=mdata["rna"][3:].copy(), atac=mdata["atac"][18::-1].copy())


def retyped(convert: Callable[[Any], Any]) -> Callable[[], ad.AnnData]:
    return changed(lambda adata: setattr(adata, "X", convert(adata.X)))


LEGAL = {
    "plain": (section, {}),
    "stored zeros": (changed(stored_zeros), {}),
    "unsorted and duplicate indices": (changed(unsorted_duplicates), {}),
    "csc matrix": (retyped(sp.csc_matrix), {}),
    "csr array": (retyped(sp.csr_array), {}),
    "csc array": (retyped(sp.csc_array), {}),
    "dense": (retyped(lambda X: X.toarray()), {}),
    "dense, column order": (retyped(lambda X: np.asfortranarray(X.toarray())), {}),
    "int64": (retyped(lambda X: X.astype(np.int64)), {}),
    "uint8": (retyped(lambda X: X.toarray().astype(np.uint8)), {}),
    "float16": (retyped(lambda X: X.toarray().astype(np.float16)), {}),
    "bool": (retyped(lambda X: X > 9), {"likelihoods": "bernoulli"}),
    "counts for bernoulli": (section, {"likelihoods": "bernoulli"}),
    "fractions for bernoulli": (counts(0.5), {"likelihoods": "bernoulli"}),
    "negative values for gaussian": (counts(-3.5), {"likelihoods": "gaussian"}),
    "empty spots": (changed(empty_spots), {"refine": True}),
    "all-zero features": (changed(silent_features), {"refine": True}),
    "duplicate feature names": (changed(lambda d: setattr(d, "var_names", ["gene"] * 8)), {}),
    "coordinates on a line": (coords(lambda xy: xy[:, :1]), {}),
    "constant second coordinate": (coords(lambda xy: xy * [1.0, 0.0] + 7), {}),
    "integer coordinates": (coords(lambda xy: xy.astype(np.int16)), {}),
    "two places only": (coords(lambda xy: np.where(xy[:, :1] > 2, 5.0, 0.0) * [[1, 1]]), {}),
    "DataFrame coordinates": (
        changed(lambda d: d.obsm.__setitem__("spatial", pd.DataFrame(d.obsm["spatial"], index=d.obs_names))), {},
    ),
    "3-D with inducing points": (
        coords(lambda xy: np.column_stack([xy, xy[:, 0] ** 2])), {"field": "inducing", "n_inducing": 6},
    ),
    "no coordinates, no field": (changed(lambda d: d.obsm.clear()), {"model": "pnmf"}),
    "slices": (section, {"library_key": "slice"}),
    "slices by number": (column("part", np.arange(24) % 2), {"library_key": "part"}),
    "held-out rows": (section, {"holdout_key": "held"}),
    "column of size factors": (section, {"size_factors": "depth"}),
    "chosen features": (section, {"use_var": "chosen"}),
    "two modalities": (pair, {}),
    "partial overlap in another order": (changed(partial_overlap, pair), {"refine": True}),
    "features of one modality chosen": (pair, {"use_var": "chosen"}),
}  # fmt: skip


@pytest.mark.broad(1)
@pytest.mark.parametrize("part", range(4))
def test_odd_but_legal_input_is_fitted(part, subtests):
    for name in list(LEGAL)[part::4]:
        with subtests.test(name):
            make, options = LEGAL[name]
            data = make()
            run(data, **options)
            assert np.isfinite(data.obsm["X_gpnsf"]).all()
            n_obs, n_factors = data.obsm["X_gpnsf"].shape
            assert n_obs == data.n_obs
            # of noise held-out counts show nothing: one factor is left where they are asked
            assert n_factors == 3 or (n_factors == 1 and data.uns["gpnsf"]["spatial_test"])


def test_reading_changes_nothing(subtests):
    for name, (make, options) in LEGAL.items():
        with subtests.test(name):
            data = make()
            before = sections.digest(data)
            reading = Arguments.of(options).reading
            dataset, _ = read(data, reading, spatial="model" not in options)
            assert sections.digest(data) == before
            assert all(
                view.counts.has_canonical_format and view.counts.data.all()
                for view in dataset.views
            )
