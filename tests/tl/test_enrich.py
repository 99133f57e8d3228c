from __future__ import annotations

import gzip
import sys

import fitted
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gpnsf.core.scores.enrichment import signed_gain
from gpnsf.tl.enrich import enrich
from gpnsf.tl.rank import rank_features


@pytest.fixture(scope="module")
def toy():
    return fitted.anndata(n_obs=81, n_genes=120)


@pytest.fixture(scope="module")
def sets(toy):
    """The best genes of each factor, and genes that are taken at random."""
    table = rank_features(toy, n_features=12)
    rng = np.random.default_rng(0)
    best = {
        f"of {factor}": part["feature"].tolist()
        for factor, part in table.groupby("factor", sort=False)
    }
    return best | {
        f"random {i}": rng.choice(toy.var_names[:-1], 12, replace=False).tolist() for i in range(3)
    }


@pytest.mark.parametrize("method", ["ora", "ulm"])
def test_each_factor_gets_its_own_set_first(toy, sets, method):
    if method == "ulm":
        pytest.importorskip("decoupler")
    table = enrich(toy, sets, method=method, n_features=20)
    assert list(table) == ["factor", "set", "size", "score", "p", "q"]
    assert len(table) == len(sets) * len(toy.uns["gpnsf"]["factor_names"])
    first = table.groupby("factor", sort=False).first()
    assert (first["set"] == "of " + first.index).all()
    assert (first["q"] < 0.01).all()
    assert (table["q"] >= table["p"]).all()
    assert table.loc[table["set"].str.startswith("random"), "p"].median() > 0.1


def test_over_representation_counts_features_with_signal(toy, sets):
    table = enrich(
        toy, {"of spatial_1": [*sets["of spatial_1"], toy.var_names[-1], "unknown"]}, n_features=12
    )
    line = table[table["factor"] == "spatial_1"].iloc[0]
    assert line["size"] == 12
    assert line["p"] == pytest.approx(stats.hypergeom.pmf(12, 119, 12, 12))


def test_the_linear_model_is_an_ordinary_regression(toy, sets):
    pytest.importorskip("decoupler")
    rows = [
        (name, gene, weight)
        for name, genes in sets.items()
        for gene, weight in zip(genes, range(1, 13), strict=True)
    ]
    network = pd.DataFrame(rows, columns=["source", "target", "weight"])
    table = enrich(toy, network, method="ulm").set_index(["factor", "set"])
    names, W = toy.var_names[:-1], toy.varm["gpnsf_loadings"][:-1]
    for name, part in network.groupby("source"):
        weight = part.set_index("target")["weight"].reindex(names, fill_value=0)
        for k, factor in enumerate(toy.uns["gpnsf"]["factor_names"]):
            expected = stats.linregress(weight, signed_gain(W)[:, k])
            line = table.loc[(factor, name)]
            assert line["score"] == pytest.approx(expected.slope / expected.stderr, rel=1e-4)
            assert line["p"] == pytest.approx(expected.pvalue, rel=1e-3)


def test_sets_come_as_dict_table_or_file(toy, sets, tmp_path):
    rows = [(name, gene) for name, genes in sets.items() for gene in genes]
    text = "".join("\t".join([name, "a comment", *genes]) + "\n" for name, genes in sets.items())
    (tmp_path / "sets.gmt").write_text(text)
    table = pd.DataFrame(rows + rows[:3], columns=["source", "target"])
    expected = enrich(toy, sets)
    (tmp_path / "sets.gmt.gz").write_bytes(gzip.compress(text.encode()))
    usual = table.rename(columns={"source": "geneset", "target": "genesymbol"})
    for other in (
        table,
        usual,
        tmp_path / "sets.gmt",
        str(tmp_path / "sets.gmt"),
        tmp_path / "sets.gmt.gz",
    ):
        pd.testing.assert_frame_equal(enrich(toy, other), expected)


def test_lines_without_a_set_or_a_member_are_told_and_left_out(toy, sets, caplog):
    pairs = [(name, gene) for name, genes in sets.items() for gene in genes]
    table = pd.DataFrame(pairs, columns=["source", "target"])
    expected = enrich(toy, table)
    gaps = pd.DataFrame(
        {"source": [None] * 6 + ["of spatial_1"], "target": [*toy.var_names[:6], None]}
    )
    found = enrich(toy, pd.concat([table, gaps]))
    pd.testing.assert_frame_equal(found, expected)
    assert f"7 of {len(table) + 7} line(s) name no set or no member" in caplog.text


def test_some_factors_alone_and_small_sets_left_out(toy, sets):
    table = enrich(toy, sets | {"small": sets["random 0"][:3]}, factors=["nonspatial_1"])
    assert set(table["factor"]) == {"nonspatial_1"}
    assert "small" not in set(table["set"])
    assert "small" in set(enrich(toy, sets | {"small": sets["random 0"][:3]}, min_size=3)["set"])


def test_without_decoupler_the_error_names_the_extra(toy, sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "decoupler", None)
    assert len(enrich(toy, sets)) > 0
    with pytest.raises(ImportError, match=r"gpnsf\[enrich\]"):
        enrich(toy, sets, method="ulm")


@pytest.mark.parametrize(
    ("gene_sets", "options", "error", "message"),
    [
        ({"a": ["x", "y"]}, {}, ValueError, "0 of 119 features"),
        (["a"], {}, TypeError, "`gene_sets` to be a dict"),
        (pd.DataFrame({"source": ["a"]}), {}, KeyError, "'target'"),
        ({}, {"method": "gsea"}, ValueError, "'ora', 'ulm'"),
        ({}, {"n_features": 0}, ValueError, "n_features"),
        ({}, {"modality": "atac"}, KeyError, "'atac'"),
    ],
)
def test_bad_input_is_refused(toy, gene_sets, options, error, message):
    with pytest.raises(error, match=message):
        enrich(toy, gene_sets, **options)


@pytest.mark.parametrize("method", ["ora", "ulm"])
def test_a_set_of_all_features_says_nothing(toy, sets, method):
    if method == "ulm":
        pytest.importorskip("decoupler")
    table = enrich(toy, sets | {"all": toy.var_names}, method=method)
    everything = table["set"] == "all"
    assert (table.loc[everything, "score"] == 0).all()
    assert (table.loc[everything, "p"] == 1).all()
    assert table[["score", "p", "q"]].notna().all(axis=None)


def test_a_set_named_twice_in_a_file_has_the_members_of_both_lines(toy, sets, tmp_path):
    members = sets["of spatial_1"]
    text = "".join(
        f"of spatial_1\t\t{part}\n" for part in ("\t".join(members[:5]), "\t".join(members[5:]))
    )
    (tmp_path / "sets.gmt").write_text(text)
    pd.testing.assert_frame_equal(
        enrich(toy, tmp_path / "sets.gmt"), enrich(toy, {"of spatial_1": members})
    )


def test_features_that_share_a_name_are_refused(toy, sets):
    twice = toy.copy()
    twice.var_names = [*toy.var_names[:1], *toy.var_names[:-1]]
    with pytest.raises(ValueError, match="unique var_names in modality 'rna'"):
        enrich(twice, sets)
