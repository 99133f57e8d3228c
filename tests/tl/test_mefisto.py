from __future__ import annotations

import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sections
from mistakes import explained

import gpnsf
from gpnsf.core.companions import mefisto as companion
from gpnsf.core.scores.metrics import match_factors

pytest.importorskip("mofapy2", reason="mofapy2 is not installed: pip install 'gpnsf[mefisto]'")

REMEDY = re.compile(r"\. [A-Z][^.]*.*\.$")
SLOTS = {"X_mefisto", "X_mefisto_smooth", "X_mefisto_std"}


def run(data: Any, **options: Any) -> Any:
    """A short fit with exact fields; the totals of these data carry signal."""
    options = {"n_factors": 2, "size_factors": None, "max_steps": 21, "progress": False, **options}
    return gpnsf.tl.mefisto(data, **options)


def waves(n_side: int = 8, n_genes: int = 24, seed: int = 0) -> ad.AnnData:
    """Simulated counts of which each gene follows one of two patterns; coordinates in hundreds."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*[np.linspace(-1, 1, n_side)] * 2)
    H = np.exp(np.column_stack([np.sin(2 * x.ravel()), np.cos(3 * y.ravel())]))
    adata = ad.AnnData(
        sp.csr_matrix(rng.poisson(8 * H[:, np.arange(n_genes) % 2]).astype(np.float32))
    )
    adata.obs_names, adata.var_names = (
        [f"spot{i}" for i in range(n_side**2)],
        [f"gene{j}" for j in range(n_genes)],
    )
    adata.obsm["spatial"], adata.obsm["truth"] = (
        500 + 200 * np.column_stack([x.ravel(), y.ravel()]),
        np.log(H),
    )
    return adata


def both(**options: Any) -> mudata.MuData:
    """The same with simulated peaks, in another order, that some of the spots lack."""
    rna, atac = waves(**options), waves(seed=1, **options)
    atac.X = (atac.X > 8).astype(np.float32)
    atac.var_names = [f"chr1:{100 * j}-{100 * j + 50}" for j in range(atac.n_vars)]
    return sections.mudata(rna=rna, atac=atac[50::-1].copy())


@pytest.fixture(scope="module")
def fitted() -> mudata.MuData:
    data = both()
    run(data, max_steps=31)
    return data


def test_every_slot_is_written_on_the_object_and_its_modalities(fitted):
    for holder in (fitted, fitted["rna"], fitted["atac"]):
        assert set(holder.obsm) >= SLOTS
        for slot in SLOTS:
            assert type(holder.obsm[slot]) is np.ndarray
            assert holder.obsm[slot].dtype == np.float32
            assert holder.obsm[slot].shape == (holder.n_obs, 2)
            index = fitted.obs_names.get_indexer(holder.obs_names)
            np.testing.assert_array_equal(holder.obsm[slot], fitted.obsm[slot][index])
        assert holder.obs["mefisto_spatial_importance"].between(0, 1).all()
    for mod in fitted.mod.values():
        assert mod.varm["mefisto_loadings"].shape == (mod.n_vars, 2)
        assert (mod.varm["mefisto_loadings"] < 0).any() or (mod.varm["mefisto_loadings"] > 0).all()
        assert mod.var["mefisto_spatial_importance"].between(0, 1).all()
    record = fitted.uns["mefisto"]
    assert record["factor_names"] == ["factor_1", "factor_2"]
    assert record["params"] == {
        **{
            "n_factors": 2,
            "modalities": ["rna", "atac"],
            "layers": None,
            "use_var": None,
            "spatial_key": "spatial",
        },
        **{
            "library_key": None,
            "size_factors": None,
            "holdout_key": None,
            "n_inducing": 200,
            "max_steps": 31,
            "seed": 0,
        },
        **{"key_added": "mefisto", "model": "mefisto"},
    }
    assert set(record["variance_explained"]) == {"rna", "atac"}
    assert record["history"]["elbo"].shape == record["history"]["step"].shape
    assert record["versions"].keys() == {"gpnsf", "mofapy2", "numpy", "scipy"}
    assert ((record["kernel"]["scale"] >= 0) & (record["kernel"]["scale"] <= 1)).all()


def test_the_patterns_are_found_where_some_spots_lack_a_modality(fitted):
    assert (
        match_factors(fitted["rna"].obsm["truth"], fitted["rna"].obsm["X_mefisto"])[1].min() > 0.95
    )
    assert fitted["atac"].n_obs < fitted.n_obs
    assert fitted.uns["mefisto"]["is_spatial"].all()


def test_length_scales_are_in_the_unit_of_the_coordinates(fitted):
    ell = fitted.uns["mefisto"]["kernel"]["lengthscale"]
    assert ((ell > 40) & (ell < 600)).all()
    metres = both()
    for mod in metres.mod.values():
        mod.obsm["spatial"] *= 1e-6
    run(metres, max_steps=31)
    np.testing.assert_allclose(
        metres.uns["mefisto"]["kernel"]["lengthscale"], 1e-6 * ell, rtol=1e-4
    )


def test_the_tools_that_read_factors_read_these(fitted):
    data = fitted.copy()
    factors = gpnsf.tl.factor_adata(data, key="mefisto")
    assert factors.var_names.tolist() == ["factor_1", "factor_2"]
    np.testing.assert_array_equal(factors.X, data.obsm["X_mefisto"])
    table = gpnsf.tl.rank_features(data, key="mefisto", modality="rna", n_features=5)
    odd = table["feature"].str.removeprefix("gene").astype(int) % 2
    assert odd.groupby(table["factor"]).nunique().eq(1).all()
    explained = gpnsf.tl.variance_explained(data, key="mefisto")
    assert len(explained) == 4
    gpnsf.tl.domains(data, n_domains=3, key="mefisto", key_added="region")
    assert data.obs["region"].nunique() == 3
    panels = gpnsf.pl.spatial_factors(data, key="mefisto", show=False, return_fig=True).axes
    assert {panel.get_title(loc="left") for panel in panels} >= {"factor_1", "factor_2"}


def test_it_is_judged_by_counts_on_rows_that_it_has_not_seen():
    data = both(n_genes=12)
    data.obs["held"] = np.arange(data.n_obs) % 9 == 4
    run(data, max_steps=31, holdout_key="held")
    altered = both(n_genes=12)
    altered.obs["held"] = data.obs["held"]
    for mod in altered.mod.values():
        counts = mod.X.toarray() if sp.issparse(mod.X) else mod.X.copy()
        counts[altered.obs["held"][mod.obs_names].to_numpy()] *= 3
        mod.X = counts
    run(altered, max_steps=31, holdout_key="held")
    np.testing.assert_array_equal(altered.obsm["X_mefisto"], data.obsm["X_mefisto"])

    table = gpnsf.tl.evaluate(data, metric="poisson", key="mefisto")
    assert table["rows"].tolist() == ["train", "holdout"] * 2
    assert (table["explained"][:2] > 0.5).all()
    rna, held = data["rna"], data.obs["held"].to_numpy()
    unit = data.uns["mefisto"]["normalised"]["rna"]["unit"]
    logs = unit * data.obsm["X_mefisto"] @ rna.varm["mefisto_loadings"].T
    logs += rna.var["mefisto_centre"].to_numpy()
    noise = unit * rna.var["mefisto_dispersion"].to_numpy()
    y, mu = rna.X.toarray(), np.exp(logs + noise**2 / 2) - 1
    wanted = 2 * (np.where(y > 0, y * np.log(np.maximum(y, 1) / mu), 0) - y + mu)
    np.testing.assert_allclose(
        table["deviance"][:2], [wanted[~held].mean(), wanted[held].mean()], rtol=1e-5
    )

    own = gpnsf.tl.evaluate(data, key="mefisto").set_index(["modality", "rows"])
    residual = (np.log1p(y) - logs) / noise
    assert own.loc[("rna", "train"), "deviance"] == pytest.approx(
        (residual[~held] ** 2).mean(), rel=1e-4
    )
    assert own.loc["rna", "deviance"].between(0.5, 2).all()
    for mod in data.mod.values():
        mod.layers["again"] = mod.X.copy()
    for metric in ("deviance", "poisson", "rmse"):
        again = gpnsf.tl.evaluate(data, metric=metric, key="mefisto", layers="again")
        values = again.set_index(["modality", "rows"])["explained"].unstack()
        np.testing.assert_allclose(values["thinned"], values["train"], rtol=1e-6)
    assert len(gpnsf.tl.evaluate(data, metric="moran", key="mefisto")) == 2
    assert gpnsf.tl.evaluate(data, metric="sparsity", key="mefisto")["sparsity"].between(0, 1).all()


@pytest.mark.parametrize("tool", ["denoise", "predict"])
def test_the_tools_that_need_a_background_refuse(fitted, tool):
    data = fitted.copy()
    before = sections.digest(data)
    with pytest.raises((KeyError, ValueError), match="Expected .*; got "):
        getattr(gpnsf.tl, tool)(data, key="mefisto")
    assert sections.digest(data) == before


@pytest.mark.broad(1)
@pytest.mark.parametrize("suffix", ["h5mu", "zarr"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_results_survive_a_file(fitted, tmp_path, suffix):
    path = tmp_path / f"fit.{suffix}"
    getattr(fitted, "write" if suffix == "h5mu" else "write_zarr")(path)
    again = mudata.read_h5mu(path) if suffix == "h5mu" else mudata.read_zarr(path)
    np.testing.assert_array_equal(again.obsm["X_mefisto"], fitted.obsm["X_mefisto"])
    for read in (gpnsf.tl.rank_features, partial(gpnsf.tl.evaluate, metric="poisson")):
        table, expected = (read(data, key="mefisto") for data in (again, fitted))
        pd.testing.assert_frame_equal(table, expected, check_dtype=False)


def test_an_anndata_gets_the_slots_and_a_second_call_replaces_them():
    adata = waves()
    run(adata, key_added="other")
    run(adata)
    assert set(adata.obsm) >= SLOTS | {"X_other"}
    adata.obs["mefisto_spatial_importance"] = -1.0
    run(adata, n_factors=1, max_steps=3)
    assert adata.obsm["X_mefisto"].shape == (64, 1)
    assert adata.obs["mefisto_spatial_importance"].between(0, 1).all()
    assert adata.obsm["X_other"].shape == (64, 2)


def test_a_copy_leaves_the_object_alone():
    adata = waves()
    before = sections.digest(adata)
    annotated = run(adata, copy=True, max_steps=3)
    assert "X_mefisto" in annotated.obsm
    assert sections.digest(adata) == before
    assert run(adata, max_steps=3) is None


def test_only_slots_change_and_the_same_seed_gives_the_same_bits():
    first, second = both(), both()
    before = {name: mod.X.copy() for name, mod in first.mod.items()}
    run(first)
    run(second)
    for slot in SLOTS:
        np.testing.assert_array_equal(first.obsm[slot], second.obsm[slot])
    assert all((mod.X != before[name]).nnz == 0 for name, mod in first.mod.items())


def test_nothing_is_printed_and_no_file_is_left(capfd, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    filters, state = list(warnings.filters), np.random.get_state()[1].copy()  # noqa: NPY002
    with caplog.at_level(logging.INFO, "gpnsf"):
        run(waves(), max_steps=3)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Iteration" not in err
    assert not list(tmp_path.rglob("*"))
    assert warnings.filters == filters
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert "MEFISTO fits the fields from step 20 on" in caplog.text


def test_a_bar_shows_how_far_it_is_where_it_is_asked_for(capfd):
    run(waves(), max_steps=3, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "MEFISTO" in err
    assert "100%" in err


def changed(**options: Any) -> ad.AnnData:
    """A fit of one section with some options."""
    adata = waves()
    adata.layers["other"] = adata.X[::-1].copy()
    adata.var["chosen"] = np.arange(24) < 12
    adata.obs["depth"] = np.linspace(1, 3, 64)
    adata.obsm["elsewhere"] = np.random.default_rng(0).permutation(adata.obsm["spatial"])
    adata.obs["slice"] = np.repeat(["a", "b"], 32)
    run(adata, **options)
    return adata


@pytest.fixture(scope="module")
def plain() -> ad.AnnData:
    return changed()


@pytest.mark.broad(3)
@pytest.mark.parametrize(
    "options",
    [
        {"layers": "other"},
        {"use_var": "chosen"},
        {"spatial_key": "elsewhere"},
        {"library_key": "slice"},
        {"size_factors": "total"},
        {"size_factors": "depth"},
        {"max_steps": 30},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_matters(plain, options):
    assert not np.array_equal(changed(**options).obsm["X_mefisto"], plain.obsm["X_mefisto"])


def test_features_that_are_left_out_have_no_loadings():
    loadings = changed(use_var="chosen").varm["mefisto_loadings"]
    assert loadings[:12].any(axis=1).all()
    assert not loadings[12:].any()


def test_modalities_choose_what_is_read():
    data = both()
    run(data, modalities=["atac"], max_steps=3)
    assert data.uns["mefisto"]["modalities"] == ["atac"]
    assert "mefisto_loadings" not in data["rna"].varm


def test_slices_at_the_same_places_have_fields_of_their_own():
    first, second = waves(7), waves(7, seed=1)
    second.X = second.X[
        ::-1
    ].copy()  # what is left in one is right in the other; up and down are alike
    second.obsm["truth"] = second.obsm["truth"][::-1].copy()
    second.obs_names = [f"other{i}" for i in range(second.n_obs)]
    data = ad.concat({"a": first, "b": second}, label="slice")
    run(data, library_key="slice", max_steps=31)
    run(data, key_added="mixed", max_steps=31)
    assert match_factors(data.obsm["truth"], data.obsm["X_mefisto_smooth"])[1].min() > 0.9
    assert data.uns["mefisto"]["kernel"]["scale"].min() > 0.9
    assert data.uns["mixed"]["kernel"]["scale"].min() < 0.1


def test_without_mofapy2_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mofapy2", None)
    with pytest.raises(
        ImportError, match=r"Expected mofapy2 .*; got no such package\. .*gpnsf\[mefisto\]"
    ):
        run(waves())


def test_a_fit_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["gpnsf.tl.mefisto"], "available_memory", lambda: 1e5)
    with pytest.raises(
        MemoryError, match="Expected a fit that fits into memory; got .* GB are left. Pass fewer"
    ):
        run(waves())


def test_a_fit_that_diverges_is_refused(monkeypatch):
    fit = companion.fit

    def diverged(*arguments, **options):
        found = fit(*arguments, **options)
        found.mean[3, 0] = np.nan
        return found

    monkeypatch.setattr(companion, "fit", diverged)
    adata = waves()
    before = sections.digest(adata)
    with pytest.raises(ValueError, match="Expected a fit of finite numbers"):
        run(adata, max_steps=2)
    assert sections.digest(adata) == before


@dataclass(frozen=True)
class Case:
    """One mistake, the error that it raises, and a part of its message."""

    name: str
    options: Mapping[str, Any]
    error: type[Exception] = ValueError
    says: str = ""
    make: Callable[[], Any] = sections.section


def constant() -> ad.AnnData:
    adata = sections.section()
    adata.X = sp.csr_matrix(np.ones(adata.shape, np.float32))
    return adata


CASES = [
    Case("no factors", {"n_factors": 0}, says="`n_factors`"),
    Case("more factors than features", {"n_factors": 9}, says="24 observations and 8 features"),
    Case("factors of a fraction", {"n_factors": 2.5}, TypeError),
    Case(
        "unknown modality", {"modalities": ["rna", "protein"]}, KeyError, "'protein'", sections.pair
    ),
    Case("unknown layer", {"layers": "raw"}, KeyError, "there: 'counts'"),
    Case("unknown features", {"use_var": "highly_variable"}, KeyError),
    Case("unknown coordinates", {"spatial_key": "umap"}, KeyError, "there: 'spatial'"),
    Case("unknown slices", {"library_key": "patient"}, KeyError, "there: 'slice'"),
    Case("unknown size factors", {"size_factors": "n_counts"}, KeyError),
    Case("unknown rows to hold out", {"holdout_key": "holdout"}, KeyError, "'held'"),
    Case("too few inducing points", {"n_inducing": 99}, says="at least 100"),
    Case("inducing points as text", {"n_inducing": "many"}, TypeError),
    Case("no steps", {"max_steps": 0}),
    Case("seed below zero", {"seed": -1}),
    Case("progress as text", {"progress": "yes"}, TypeError),
    Case(
        "key of a modality",
        {"key_added": "atac"},
        says="names of the modalities",
        make=sections.pair,
    ),
    Case("key with a slash", {"key_added": "my/fit"}, says="without '/'"),
    Case("copy of nothing", {"copy": None}, TypeError),
    Case("a view", {}, says=".copy()", make=lambda: sections.section()[:20]),
    Case("a path", {}, TypeError, "Pass the object itself", make=lambda: "tissue.h5mu"),
    Case("nothing varies", {}, says="at least 2 features of 'rna' that vary", make=constant),
]


def test_a_mistake_is_explained_and_changes_nothing(subtests):
    for case in CASES:
        with subtests.test(case.name):
            call = partial(run, **case.options)
            explained(case.make(), call, case.error, case.says, REMEDY)


def test_every_argument_is_in_the_table():
    arguments = set(inspect.signature(gpnsf.tl.mefisto).parameters) - {"data"}
    assert arguments == {name for case in CASES for name in case.options}


@pytest.mark.slow
def test_shapes_of_a_simulated_section_are_found():
    """As far as signed factors of normalised counts go: parts mix, here as elsewhere."""
    data = gpnsf.datasets.ggblocks(n_side=18, n_genes=200, n_peaks=10, nonspatial=False, seed=0)
    rna = data["rna"].copy()
    rna.obsm["spatial"] = data.obsm["spatial"]
    run(rna, n_factors=4, size_factors=None, n_inducing=100, max_steps=100)
    assert match_factors(data.obsm["true_factors"][:, :4], rna.obsm["X_mefisto"])[1].mean() > 0.7
    assert rna.uns["mefisto"]["is_spatial"].any()
