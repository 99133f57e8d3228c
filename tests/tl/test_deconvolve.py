"""Deconvolution on annotated data: what is read, what is written, what each option does, and what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sections
from mistakes import explained
from sections import digest

import gpnsf
from gpnsf.core.scores.agreement import relative_error
from gpnsf.tl.deconvolve import ARGUMENTS

LEARN = {"method": "unrolled", "n_layers": 4, "n_training": 2, "progress": False}


@pytest.fixture(scope="module")
def drawn():
    return gpnsf.datasets.mixture(
        n_obs=144, n_genes=80, n_types=4, depth=150.0, n_regions=3, seed=0
    )


@pytest.fixture
def spots(drawn):
    return drawn[0].copy()


@pytest.fixture
def cells(drawn):
    return drawn[1].copy()


def run(spots, cells, **options):
    gpnsf.tl.deconvolve(spots, cells, **{"label_key": "cell_type", **options})
    return spots.obsm[f"X_{options.get('key_added', 'proportions')}"]


def error(spots, cells, **options) -> float:
    return relative_error(run(spots, cells, **options), spots.obsm["true_proportions"])


def test_slots(spots, cells):
    assert gpnsf.tl.deconvolve(spots, cells, label_key="cell_type") is None
    X, record = spots.obsm["X_proportions"], spots.uns["proportions"]
    assert type(X) is np.ndarray
    assert X.dtype == np.float32
    assert X.shape == (144, 4)
    assert X.min() >= 0
    np.testing.assert_allclose(X.sum(axis=1), 1, rtol=1e-6)
    assert record["types"] == ["type_1", "type_2", "type_3", "type_4"]
    assert record["n_genes"] == 80
    assert record["converged"]
    assert (np.diff(record["objective"]) <= 1e-12).all()
    assert record["params"]["spatial_weight"] == 0.1
    assert record["seconds"] > 0
    assert 0.7 < spots.obs["proportions_sum"].mean() < 1.3


def test_the_methods_rank_as_they_should_at_low_depth(spots, cells):
    nnls, graph = (
        error(spots, cells, method=method, spatial_weight=0.3) for method in ("nnls", "graph")
    )
    assert graph < 0.85 * nnls
    assert nnls < 0.6


@pytest.mark.slow
def test_learning_does_as_well_as_tuning(spots, cells):
    tuned = min(error(spots, cells, spatial_weight=weight) for weight in (0.03, 0.1, 0.3, 1.0))
    assert error(spots, cells, method="unrolled", progress=False) < 1.02 * tuned


@pytest.mark.parametrize(
    "options", [{"method": "nnls"}, {}, LEARN], ids=["nnls", "graph", "unrolled"]
)
def test_intervals_cover_the_truth_and_go_with_the_next_run(spots, cells, options):
    run(spots, cells, uncertainty=True, **options)
    std = spots.obsm["X_proportions_std"]
    assert std.shape == (144, 4)
    assert std.dtype == np.float32
    assert (std > 0).all()
    assert spots.uns["proportions"]["excess"] >= 1
    table = gpnsf.tl.evaluate_deconvolution(spots, "true_proportions")
    assert 0.82 < table["coverage"][0] < 0.97
    run(spots, cells, method="nnls")
    assert "X_proportions_std" not in spots.obsm
    assert np.isnan(gpnsf.tl.evaluate_deconvolution(spots, "true_proportions")["coverage"][0])


def test_genes_that_do_not_differ_for_sure_are_left_out(spots, cells, drawn):
    rng = np.random.default_rng(0)
    flat = cells[:, :30].copy()  # as many cells as before, but their labels say nothing of these
    flat.X = flat.X[rng.permutation(cells.n_obs)]
    flat.var_names = [f"flat_{k}" for k in range(30)]
    both = anndata.concat([cells, flat], axis=1, merge="first")
    more = sp.csr_matrix(rng.poisson(2, (spots.n_obs, 30)).astype(np.float32))
    wide = anndata.concat(
        [spots, anndata.AnnData(more, obs=spots.obs, var=flat.var)], axis=1, merge="first"
    )
    run(wide, both, reliable_genes=True)
    kept = wide.uns["proportions"]["n_genes"]
    used = wide.varm["proportions_loadings"].any(axis=1)
    assert kept == used.sum()
    assert used[:80].mean() > 0.9
    assert used[80:].mean() < 0.35
    with pytest.raises(ValueError, match="a table of means"):
        run(spots, pd.DataFrame(np.ones((80, 4))), label_key=None, reliable_genes=True)


def test_deeper_spots_are_surer(drawn):
    spots, cells = drawn[0].copy(), drawn[1]
    spots.X[:72] *= 9
    run(spots, cells, uncertainty=True, method="nnls")
    std = spots.obsm["X_proportions_std"]
    assert std[:72].mean() < 0.8 * std[72:].mean()


def test_a_table_of_profiles_says_the_same_as_the_cells(spots, cells):
    X = cells.X.toarray()
    X = X / X.sum(axis=1, keepdims=True)
    means = {
        name: X[cells.obs["cell_type"] == name].mean(axis=0)
        for name in cells.obs["cell_type"].cat.categories
    }
    table = pd.DataFrame(means, index=cells.var_names)
    expected = run(spots, cells).copy()
    found = run(spots, table.iloc[::-1], label_key=None)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_genes_are_matched_by_name_and_silent_ones_left_out(spots, cells):
    expected = run(spots[:, :60].copy(), cells).copy()
    other = cells[:, ::-1].copy()
    other.var_names = [name if int(name[5:]) <= 60 else f"other_{name}" for name in other.var_names]
    np.testing.assert_allclose(run(spots, other), expected, atol=1e-6)
    assert spots.uns["proportions"]["n_genes"] == 60
    cells.X = cells.X.multiply(np.arange(80) != 5).tocsr()
    run(spots, cells)
    assert spots.uns["proportions"]["n_genes"] == 79


def test_layers_are_read(spots, cells):
    expected = run(spots, cells).copy()
    spots.layers["counts"], cells.layers["counts"] = spots.X.copy(), cells.X.copy()
    spots.X, cells.X = spots.X.log1p(), cells.X.log1p()
    np.testing.assert_array_equal(
        run(spots, cells, layer="counts", reference_layer="counts"), expected
    )
    assert not np.array_equal(run(spots, cells, reference_layer="counts"), expected)
    assert not np.array_equal(run(spots, cells, layer="counts"), expected)


DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(gpnsf.tl.deconvolve).parameters.items()
}
CHANGES: dict[str, Any] = {
    "spatial_weight": 0.5, "total_weight": 2.0, "n_neighbors": 2, "bandwidth": 0.3, "region_key": "region",
    "library_key": "region", "max_steps": 5, "tol": 1e-2, "method": "nnls",
}  # fmt: skip


def test_an_option_changes_the_result(subtests, spots, cells):
    plain = run(spots, cells).copy()
    for name, value in CHANGES.items():
        with subtests.test(name):
            assert np.abs(run(spots, cells, **{name: value}) - plain).max() > 1e-4
            assert spots.uns["proportions"]["params"][name] == value != DEFAULTS[name]


LEARNING: dict[str, Any] = {
    "n_layers": 9, "shared": True, "n_training": 6, "learning_rate": 0.5, "seed": 3, "spatial_weight": 1.0,
    "total_weight": 1.0, "n_neighbors": 2, "region_key": "region", "library_key": "region",
}  # fmt: skip


@pytest.mark.parametrize("part", range(2))
def test_an_option_of_learning_changes_the_result(part, subtests, drawn):
    def learned(**options: Any) -> np.ndarray:
        return run(drawn[0].copy(), drawn[1], **{**LEARN, **options})

    plain = learned()
    for name in list(LEARNING)[part::2]:
        with subtests.test(name):
            assert np.abs(learned(**{name: LEARNING[name]}) - plain).max() > 1e-5


def test_the_bandwidth_of_regions_changes_the_result(spots, cells):
    for options in ({}, LEARN):
        one, other = (
            run(spots, cells, region_key="region", region_bandwidth=width, **options).copy()
            for width in (0.5, 5.0)
        )
        assert np.abs(one - other).max() > 1e-5


def test_both_solvers_agree(spots, cells):
    one = run(spots, cells, tol=1e-10, max_steps=20_000).copy()
    np.testing.assert_allclose(run(spots, cells, solver="fista", tol=1e-12), one, atol=1e-3)
    assert len(spots.uns["proportions"]["objective"]) < 500


def test_regions_may_be_categories_or_numbers_and_keep_compositions_apart(spots, cells):
    code = spots.obs["region"].cat.codes.to_numpy()
    plain = error(spots, cells, spatial_weight=1.0)
    assert error(spots, cells, spatial_weight=1.0, region_key="region") < plain
    by_category = run(spots, cells, region_key="region").copy()
    spots.obsm["image"] = np.eye(3)[code] * 1e3
    spots.obs["stain"] = code.astype(float)
    for key in ("image", "stain"):
        by_number = run(spots, cells, region_key=key).copy()
        assert np.abs(by_number - by_category).max() > 1e-6  # in standard deviations
        spots.obsm["image"] *= 7
        spots.obs["stain"] *= 7
        np.testing.assert_allclose(run(spots, cells, region_key=key), by_number, atol=1e-6)


def test_slices_are_deconvolved_as_if_alone(cells):
    one, other = (
        gpnsf.datasets.mixture(n_obs=49, n_genes=80, n_types=4, seed=0)[0] for _ in range(2)
    )
    other = other[:, :].copy()
    other.X = other.X[::-1].copy()
    other.obs_names = [f"other_{name}" for name in other.obs_names]
    both = anndata.concat([one, other], label="slice")
    X = run(both, cells, library_key="slice", tol=1e-12, max_steps=300)
    np.testing.assert_allclose(X[:49], run(one, cells, tol=1e-12, max_steps=300), atol=1e-6)


def test_costs_keep_types_out_of_regions(spots, cells):
    costs = pd.DataFrame(
        0.0,
        index=["region_3", "region_1", "region_2"],
        columns=["type_4", "type_2", "type_1", "type_3"],
    )
    costs.loc["region_2", "type_3"] = 5.0
    for options in ({}, LEARN):
        plain = run(spots, cells, region_key="region", **options).copy()
        priced = run(
            spots, cells, region_key="region", group_costs=costs, group_weight=5.0, **options
        )
        inside = (spots.obs["region"] == "region_2").to_numpy()
        assert priced[inside, 2].mean() < 0.7 * plain[inside, 2].mean()


def test_columns_of_types_are_written_when_asked_for_and_do_not_outlive_a_new_run(spots, cells):
    run(spots, cells, obs_columns=True)
    np.testing.assert_allclose(
        spots.obs["proportions_type_3"], spots.obsm["X_proportions"][:, 2], rtol=1e-5
    )
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"type_3": "other"})
    run(spots, cells)
    assert not [name for name in spots.obs if name.startswith("proportions_type")]


def test_a_slash_in_the_name_of_a_type_can_be_written(spots, cells, tmp_path):
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"type_1": "B/T"})
    run(spots, cells, obs_columns=True)
    spots.write(tmp_path / "spots.h5ad")
    again = anndata.read_h5ad(tmp_path / "spots.h5ad")
    assert again.uns["proportions"]["types"].tolist()[0] == "B/T"
    assert "proportions_B_T" in again.obs


def test_nnls_needs_no_coordinates(spots, cells):
    del spots.obsm["spatial"]
    run(spots, cells, method="nnls")
    with pytest.raises(KeyError, match="spatial_key"):
        run(spots, cells)


@pytest.mark.parametrize(
    "options", [{"method": "nnls"}, {}, LEARN], ids=["nnls", "graph", "unrolled"]
)
def test_the_same_seed_gives_the_same_bits_and_the_input_stays(spots, cells, options):
    before = digest(cells), digest(spots)
    results = []
    for _ in range(2):
        copy = spots.copy()
        run(copy, cells, **options)
        results.append(copy)
    np.testing.assert_array_equal(
        results[0].obsm["X_proportions"], results[1].obsm["X_proportions"]
    )
    assert digest(cells) == before[0]
    for slot, key in (
        ("obsm", "X_proportions"),
        ("varm", "proportions_loadings"),
        ("obs", "proportions_sum"),
        ("uns", "proportions"),
    ):
        del getattr(results[0], slot)[key]
    assert digest(results[0]) == before[1]


def test_a_learned_network_survives_a_file_and_serves_other_spots(spots, cells, tmp_path):
    expected = run(spots, cells, **LEARN).copy()
    losses = spots.uns["proportions"]["network"]["loss"]
    assert losses.shape == (2,)
    spots.write(tmp_path / "spots.h5ad")
    again = anndata.read_h5ad(tmp_path / "spots.h5ad")
    network = again.uns["proportions"]["network"]
    np.testing.assert_array_equal(run(again, cells, **{**LEARN, "train": False}), expected)
    fresh = spots.copy()
    del fresh.uns["proportions"]
    np.testing.assert_array_equal(
        run(fresh, cells, **LEARN, train=False, network=network), expected
    )
    goes_on = run(fresh, cells, **LEARN, network=network).copy()
    assert not np.array_equal(goes_on, expected)
    other, _ = gpnsf.datasets.mixture(n_obs=30, n_genes=80, n_types=4, seed=5)
    assert run(other, cells, **LEARN, train=False, network=network).shape == (30, 4)


def without_counts(spots, rows):
    X = spots.X.tolil()
    X[rows] = 0
    spots.X = X.tocsr()


@pytest.mark.parametrize(
    "options", [{}, LEARN, {"method": "nnls"}, {"uncertainty": True, "n_neighbors": 3}]
)
def test_spots_without_counts_are_missing_and_nobodys_neighbours(spots, cells, options, caplog):
    empty = [0, 1, 12, 13, 100]
    without_counts(spots, empty)
    found = run(spots, cells, **options)
    assert "5 of 144 spots (the first is 'spot_0')" in caplog.text.replace(
        str(spots.obs_names[0]), "spot_0"
    )
    others = np.setdiff1d(np.arange(144), empty)
    alone = run(spots[others].copy(), cells, **options)
    np.testing.assert_allclose(found[others], alone, atol=1e-5)
    assert np.isnan(found[empty]).all()
    assert spots.obs["proportions_sum"].isna().sum() == 5
    if "uncertainty" in options:
        assert np.isnan(spots.obsm["X_proportions_std"][empty]).all()
        assert np.isfinite(spots.obsm["X_proportions_std"][others]).all()


def test_spots_with_few_counts_can_be_left_out(spots, cells):
    totals = spots.X.sum(axis=1).A1
    least = int(np.quantile(totals, 0.2))
    found = run(spots, cells, min_counts=least)
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), totals < least)
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), totals < least)
    with pytest.raises(ValueError, match="Pass a lower min_counts"):
        run(spots, cells, min_counts=10**6)


def test_what_reads_proportions_knows_of_missing_ones(spots, cells):
    run(spots, cells)
    complete = gpnsf.tl.evaluate_deconvolution(spots, "true_proportions")
    without_counts(spots, [3, 50])
    run(spots, cells)
    table = gpnsf.tl.evaluate_deconvolution(spots, "true_proportions")
    assert (complete["n_obs"] - table["n_obs"]).tolist() == [2]
    assert abs(complete["rmse"] - table["rmse"]).item() < 0.01
    for kind in ("maps", "pies"):
        figure = gpnsf.pl.proportions(spots, kind=kind, return_fig=True)
        figure.canvas.draw()
    with pytest.raises(ValueError, match="Go on without them") as error:
        gpnsf.tl.domains(spots, n_domains=3, key="proportions")
    adata = spots
    scope = {"adata": adata, "np": np}
    exec(str(error.value).split("Go on without them: ")[1].rstrip("."), scope)
    gpnsf.tl.domains(scope["adata"], n_domains=3, key="proportions", key_added="niche")
    assert scope["adata"].obs["niche"].nunique() == 3


def swap(name: str, value: Any) -> Callable[..., Any]:
    """Change one attribute or slot of the spots."""

    def change(spots, cells):
        getattr(spots, name).update(value) if isinstance(value, dict) else setattr(
            spots, name, value(spots)
        )
        return spots, cells

    return change


def negative(adata):
    X = adata.X.copy()
    X.data[3] = -1.0
    return X


TABLE = pd.DataFrame(1.0, index=[f"gene_{j}" for j in range(1, 81)], columns=["a", "b"])
BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "a view": (lambda s, c: (s[:20], c), {}, ValueError, "owns its data"),
    "a MuData": (lambda s, c: (sections.mudata(rna=s), c), {}, TypeError, "AnnData of spots"),
    "a path": (lambda s, c: ("spots.h5ad", c), {}, TypeError, "AnnData of spots"),
    "reference of another kind": (lambda s, c: (s, c.X), {}, TypeError, "AnnData or DataFrame"),
    "no label key": (None, {"label_key": None}, ValueError, "obs column of the cell types"),
    "unknown label key": (None, {"label_key": "types"}, KeyError, "`label_key`"),
    "label key for a table": (lambda s, c: (s, TABLE), {}, ValueError, "neither `label_key`"),
    "a single type": (lambda s, c: (s, c[:20].copy()), {}, ValueError, "at least two types"),
    "labels are missing": (
        lambda s, c: (c.obs.__setitem__("cell_type", [None] * len(c)), (s, c))[1], {}, ValueError, "missing",
    ),
    "table of text": (lambda s, c: (s, TABLE.astype(str)), {"label_key": None}, TypeError, "numbers in the table"),
    "table of logs": (lambda s, c: (s, TABLE - 2), {"label_key": None}, ValueError, "nonnegative profiles"),
    "table with NaN": (lambda s, c: (s, TABLE.replace(1, np.nan)), {"label_key": None}, ValueError, "finite, nonnegative profiles"),
    "types of one name": (
        lambda s, c: (s, TABLE.set_axis(["a", "a"], axis=1)), {"label_key": None}, ValueError, "different names",
    ),
    "a silent type": (lambda s, c: (s, TABLE.assign(c=0.0)), {"label_key": None}, ValueError, "none for 'c'"),
    "other genes": (lambda s, c: (s, TABLE.set_axis(range(80))), {"label_key": None}, ValueError, "genes in common"),
    "genes twice in the reference": (
        lambda s, c: (s, TABLE.set_axis(["gene_1"] * 80)), {"label_key": None}, ValueError, "unique names of genes",
    ),
    "genes twice in the spots": (swap("var_names", lambda s: ["gene_1"] * 80), {}, ValueError, "unique names of genes"),
    "negative counts": (swap("X", negative), {}, ValueError, "not negative"),
    "no counts": (swap("X", lambda s: sp.csr_matrix(s.shape)), {}, ValueError, "nonzero"),
    "unknown layer": (None, {"layer": "raw"}, KeyError, "layer"),
    "unknown layer of the reference": (None, {"reference_layer": "raw"}, KeyError, "layer"),
    "unknown method": (None, {"method": "bayes"}, ValueError, "`method`"),
    "unknown solver": (None, {"solver": "adam"}, ValueError, "`solver`"),
    "negative weight": (None, {"spatial_weight": -1.0}, ValueError, "`spatial_weight`"),
    "key with a slash": (None, {"key_added": "a/b"}, ValueError, "key_added"),
    "key of another tool": (swap("uns", {"proportions": {"a": 1}}), {}, ValueError, "no other tool"),
    "columns of one name": (
        lambda s, c: (s, TABLE.set_axis(["a/b", "a_b"], axis=1)), {"label_key": None, "obs_columns": True}, ValueError,
        "a slash only",
    ),
    "unknown region": (None, {"region_key": "zone"}, KeyError, "`region_key`"),
    "region of text arrays": (
        swap("obsm", {"image": np.full((144, 1), "x")}), {"region_key": "image"}, TypeError, "array of numbers",
    ),
    "region with NaN": (
        swap("obsm", {"image": np.full((144, 1), np.nan)}), {"region_key": "image"}, ValueError, "finite numbers",
    ),
    "costs without weight": (None, {"group_costs": TABLE}, ValueError, "together"),
    "weight without costs": (None, {"group_weight": 1.0}, ValueError, "together"),
    "costs without regions": (None, {"group_costs": TABLE, "group_weight": 1.0}, ValueError, "regions in `region_key`"),
    "costs of other regions": (
        None, {"group_costs": TABLE, "group_weight": 1.0, "region_key": "region"}, KeyError, "a row for each region",
    ),
    "costs that are no table": (
        None, {"group_costs": np.ones(3), "group_weight": 1.0, "region_key": "region"}, TypeError, "DataFrame",
    ),
    "no coordinates": (lambda s, c: (s.obsm.pop("spatial"), (s, c))[1], {}, KeyError, "spatial_key"),
    "unknown slices": (None, {"library_key": "slide"}, KeyError, "library_key"),
    "nothing learned yet": (None, {**LEARN, "train": False}, KeyError, "a network"),
    "a network that is none": (None, {**LEARN, "network": [1, 2]}, TypeError, "mapping"),
    "a network without layers": (None, {**LEARN, "network": {"n_layers": 2}}, KeyError, "log_spatial"),
    "a network of another shape": (
        None, {**LEARN, "network": {"n_layers": 2, "log_spatial": np.zeros(5), "log_total": np.zeros(5)}}, ValueError, "shape",
    ),
    "learning from zero": (None, {**LEARN, "spatial_weight": 0.0}, ValueError, "above 0"),
    "unknown device": (None, {**LEARN, "device": "abacus"}, ValueError, "device"),
}  # fmt: skip


def test_a_mistake_is_explained_and_changes_nothing(subtests, drawn):
    for name, (change, options, kind, says) in BAD.items():
        with subtests.test(name):
            data, reference = (part.copy() for part in drawn)
            if change:
                data, reference = change(data, reference)
            before = digest(reference)
            options = {"reference": reference, "label_key": "cell_type", **options}
            explained(data, partial(gpnsf.tl.deconvolve, **options), kind, says)
            assert digest(reference) == before


def test_every_argument_has_a_rule_or_is_checked_with_the_data():
    assert set(inspect.signature(gpnsf.tl.deconvolve).parameters) == set(ARGUMENTS) | {
        "adata",
        "reference",
        "network",
        "group_costs",
    }


def test_a_wrong_type_is_refused(subtests, spots, cells):
    for name in ARGUMENTS:
        with subtests.test(name=name), pytest.raises(TypeError, match=f"`{name}`"):
            gpnsf.tl.deconvolve(spots, cells, **{"label_key": "cell_type", name: [object()]})


def test_a_mudata_names_the_modality_to_pass(spots, cells):
    with pytest.raises(TypeError, match=r"mdata\['rna'\]"):
        gpnsf.tl.deconvolve(mudata.MuData({"rna": spots}), cells, label_key="cell_type")
