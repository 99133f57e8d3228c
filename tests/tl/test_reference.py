"""References and spots that mislead a deconvolution are told with numbers; the remedies work."""

from __future__ import annotations

import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import gpnsf
from gpnsf.tl.logarithms import BASES, base_of


@pytest.fixture(scope="module")
def drawn():
    return gpnsf.datasets.mixture(n_obs=64, n_genes=80, n_types=4, depth=150.0, seed=0)


@pytest.fixture
def spots(drawn):
    return drawn[0].copy()


@pytest.fixture
def cells(drawn):
    return drawn[1].copy()


def told(spots, reference, caplog, **options) -> list[str]:
    """Warnings of a deconvolution."""
    caplog.clear()
    is_table = isinstance(reference, pd.DataFrame)
    options = {"label_key": None if is_table else "cell_type", "method": "nnls", **options}
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        gpnsf.tl.deconvolve(spots, reference, **options)
    return [record.getMessage() for record in caplog.records]


def linear(adata: ad.AnnData, total: float = 1e4) -> sp.csr_matrix:
    """Values that are divided by the total of their cell."""
    sums = np.maximum(np.asarray(adata.X.sum(axis=1)).ravel(), 1)
    return sp.csr_matrix(sp.diags(total / sums) @ adata.X, dtype=np.float32)


def logs(adata: ad.AnnData, base: str = "e") -> sp.csr_matrix:
    """Their logarithms."""
    values = linear(adata).log1p()
    values.data /= np.float32(BASES[base])
    return values


def means(values: sp.csr_matrix, cells: ad.AnnData) -> pd.DataFrame:
    """Means of the types, genes by types."""
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    columns = {name: values[labels == name].mean(axis=0).A1 for name in np.unique(labels)}
    return pd.DataFrame(columns, index=cells.var_names)


@pytest.mark.parametrize("side", ["spots", "reference"])
@pytest.mark.parametrize("base", BASES)
def test_logarithms_are_told_and_the_remedy_works(side, base, spots, cells, caplog):
    assert told(spots, cells, caplog) == []
    wanted = spots.obsm["X_proportions"]
    adata, name = (spots, "adata") if side == "spots" else (cells, "reference")
    adata.X = logs(adata, base)
    (message,) = told(spots, cells, caplog)
    assert message.startswith(f"Values of the {side}, up to {adata.X.max():.3g}, are logarithms")
    exec(message.split("for example ")[1].rstrip("."), {name: adata, "np": np})
    assert told(spots, cells, caplog) == []
    if side == "reference":  # cells are divided by their totals in any case
        np.testing.assert_allclose(spots.obsm["X_proportions"], wanted, atol=1e-3)


@pytest.mark.parametrize("dense", [True, False])
def test_a_layer_of_counts_is_named(dense, spots, cells, caplog):
    cells.layers["half"] = cells.X * 0.5
    cells.layers["raw"] = cells.X.toarray() if dense else cells.X.copy()
    cells.X = logs(cells)
    (message,) = told(spots, cells, caplog)
    assert "Pass reference_layer='raw'" in message
    assert told(spots, cells, caplog, reference_layer="raw") == []


def test_linear_values_of_any_kind_are_silent(spots, cells, caplog):
    for values in (linear(cells), linear(cells, 1e6), cells.X * 0.25, linear(cells, 20.0)):
        reference = cells.copy()
        reference.X = values
        assert told(spots, reference, caplog) == []
    for values in (cells.X, linear(cells)):
        assert told(spots, means(values, cells), caplog) == []
    spots.X = linear(spots)
    assert told(spots, cells, caplog) == []
    averages = sp.csr_matrix(np.random.default_rng(0).gamma(2.0, 1.0, (30, 40)))
    assert base_of(averages) == ""


def test_a_table_of_logarithms_is_told(caplog):
    rng = np.random.default_rng(0)
    genes = [f"gene_{j}" for j in range(300)]
    profiles = pd.DataFrame(rng.lognormal(0, 2.0, (300, 3)), index=genes, columns=list("abc"))
    counts = rng.poisson(profiles.to_numpy() @ rng.dirichlet(np.ones(3), 40).T).T
    spots = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)))
    spots.var_names = genes
    assert told(spots, profiles, caplog) == []
    (message,) = told(spots, np.log1p(profiles), caplog)
    assert re.search(r"as even as if \d+ genes shared .* In the spots it is \d+", message)


def test_negative_values_are_counted(spots, cells):
    cells.X = cells.X.toarray() - cells.X.mean(axis=0).A1
    with pytest.raises(ValueError, match=r"got \d+ negative values, down to -"):
        gpnsf.tl.deconvolve(spots, cells, label_key="cell_type")


SPELLINGS = {
    "case": lambda adata: setattr(adata, "var_names", adata.var_names.str.upper()),
    "versions": lambda adata: setattr(adata, "var_names", adata.var_names + ".12"),
    "identifiers": lambda adata: identifiers(adata),
}


def identifiers(adata: ad.AnnData) -> None:
    """Ensembl identifiers as names, symbols in a column."""
    adata.var["symbol"] = adata.var_names.astype(str)
    adata.var_names = [f"ENSG{j:011d}" for j in range(adata.n_vars)]


@pytest.mark.parametrize("side", ["spots", "reference"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_in_another_spelling_are_told_and_the_remedy_works(
    side, spelling, spots, cells, caplog
):
    SPELLINGS[spelling](spots if side == "spots" else cells)
    with pytest.raises(ValueError, match="got 0 among 80 of the spots") as caught:
        told(spots, cells, caplog)
    statements = re.search(r"Set (.*): 80 names are the same then", str(caught.value)).group(1)
    for statement in statements.split(" and "):
        exec(statement, {"adata": spots, "reference": cells})
    assert told(spots, cells, caplog) == []


def test_a_table_is_respelled_by_its_index(spots, cells, caplog):
    table = means(cells.X, cells).rename(index="{}.3".format)
    with pytest.raises(ValueError, match=r"Set .*reference.index") as caught:
        told(spots, table, caplog)
    statements = re.search(r"Set (.*): 80 names", str(caught.value)).group(1)
    for statement in statements.split(" and "):
        exec(statement, {"adata": spots, "reference": table})
    assert told(spots, table, caplog) == []


def test_few_names_in_common_are_counted(spots, cells, caplog):
    names = cells.var_names.to_series()
    cells.var_names = [*names[:20], *names[20:].str.upper()]
    (message,) = told(spots, cells, caplog)
    assert message.startswith("Only 20 genes are in common, of 80 of the spots ('gene_1', ..)")
    assert "80 names are the same" in message


def test_genes_of_other_panels_are_asked_about(spots, cells, caplog):
    wide = ad.AnnData(
        sp.hstack([cells.X] * 5, format="csr"), obs=cells.obs, var=pd.DataFrame(index=names(5))
    )
    others = ad.AnnData(
        sp.hstack([spots.X] * 5, format="csr"), var=pd.DataFrame(index=names(5, other="x"))
    )
    (message,) = told(others, wide, caplog)
    assert "20 genes are in common, of 400" in message
    assert "the same kind of gene names" in message


def names(times: int, other: str = "gene") -> list[str]:
    """Names of genes, of which the first 20 are the same whatever the others are called."""
    return [f"gene_{j}" if j < 20 else f"{other}_{j}" for j in range(80 * times)]


@pytest.mark.parametrize("void", ["nan", "Unassigned"])
def test_cells_without_a_type_are_told_and_the_remedy_works(void, spots, cells, caplog):
    labels = cells.obs["cell_type"].astype(str)
    labels.iloc[:7] = void
    cells.obs["cell_type"] = labels
    (message,) = told(spots, cells, caplog)
    assert message.startswith(f"7 of {cells.n_obs} cells of the reference")
    assert f"{void!r} (7)" in message
    rest = eval(message.split("Leave them out: ")[1].rstrip("."), {"reference": cells})
    assert rest.n_obs == cells.n_obs - 7
    assert told(spots, rest, caplog) == []


@pytest.mark.parametrize(
    ("section", "reference"),
    [
        ("visium_lymphnode_1k.h5ad", "scref_lymphnode.h5ad"),
        ("mob_rep12_deconv.h5ad", ""),
        ("stl_synthetic_square.h5ad", ""),
    ],
)
def test_real_pairs_are_silent(section, reference, data_file, caplog):
    spots = ad.read_h5ad(data_file(section))[:60].copy()
    table = ad.read_h5ad(data_file(reference)) if reference else spots.varm["reference_mean"]
    messages = told(spots, table, caplog)
    assert [text for text in messages if "missing (NaN)" not in text] == []


def test_logarithms_of_a_real_reference_are_told(data_file, caplog):
    spots = ad.read_h5ad(data_file("visium_lymphnode_1k.h5ad"))[:60].copy()
    cells = ad.read_h5ad(data_file("scref_lymphnode.h5ad"))
    assert base_of(linear(cells)) == ""
    cells.X = logs(cells)
    for reference in (cells, cells[:, cells.var_names.isin(spots.var_names)].copy()):
        assert any("are logarithms" in text for text in told(spots, reference, caplog))
    assert any("may be logarithms" in text for text in told(spots, means(cells.X, cells), caplog))


def test_stacked_sections_and_spots_without_a_count_are_told(spots, cells, caplog):
    stacked = ad.concat([spots, spots], keys=["one", "two"], label="sample", index_unique="-")
    stacked.X = sp.csr_matrix(sp.diags((np.arange(128) != 5).astype(np.float32)) @ stacked.X)
    messages = told(stacked, cells, caplog, method="graph", max_steps=5, tol=1.0)
    assert [text for text in messages if "Pass library_key='sample'" in text]
    named = told(stacked, cells, caplog, method="nnls", library_key="sample")
    (message,) = named
    assert message.startswith(f"1 of 128 spots (the first is {stacked.obs_names[5]!r}) have no")
