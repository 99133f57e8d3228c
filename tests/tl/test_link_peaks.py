from __future__ import annotations

import fitted
import mudata
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from gpnsf.core.scores.links import profiles
from gpnsf.datasets import tissue
from gpnsf.keys import Keys
from gpnsf.tl.evaluate_links import evaluate_links
from gpnsf.tl.fit import fit
from gpnsf.tl.link_peaks import link_peaks

COLUMNS = ["gene", "peak", "distance", "score", "p", "q"]


@pytest.fixture(scope="module")
def planted():
    """A simulated tissue with its true loadings, a little noisy, in place of a fit."""
    mdata = tissue(n_obs=60, n_genes=200, n_peaks=500, n_spatial=5, n_nonspatial=3, seed=1)
    fitted.fill(mdata, mdata.obsm["true_factors"], n_spatial=5)
    rng = np.random.default_rng(0)
    for mod in mdata.mod.values():
        W = mod.varm["true_loadings"]
        mod.varm[Keys().loadings] = (W * rng.gamma(5, 0.2, W.shape)).astype(np.float32)
    return mdata


@pytest.fixture
def linked(planted):
    mdata = planted.copy()
    link_peaks(mdata)
    return mdata


def shuffled(mdata, seed):
    """The same with peaks at places of other peaks: nothing is linked."""
    mdata = mdata.copy()
    order = np.random.default_rng(seed).permutation(mdata["atac"].n_vars)
    for column in ("chrom", "chromStart", "chromEnd"):
        mdata["atac"].var[column] = mdata["atac"].var[column].to_numpy()[order]
    return mdata


def test_the_table_is_tidy_and_survives_a_file(linked, tmp_path):
    table = linked.uns["gpnsf_links"]
    assert list(table) == COLUMNS
    assert table["p"].is_monotonic_increasing
    assert not table.duplicated(["gene", "peak"]).any()
    assert table["distance"].abs().max() <= 150_000
    assert table[["p", "q"]].stack().between(0, 1, inclusive="right").all()
    linked.write_h5mu(tmp_path / "links.h5mu")
    pd.testing.assert_frame_equal(
        mudata.read_h5mu(tmp_path / "links.h5mu").uns["gpnsf_links"], table
    )


def test_modalities_may_have_the_names_of_the_field_and_genes_an_interval(planted, linked):
    rna, atac = (planted[name].copy() for name in ("rna", "atac"))
    columns = ["chrom", "chromStart", "chromEnd"]
    chrom, start, end = (rna.var[name].astype(str) for name in columns)
    rna.var = rna.var.drop(columns=columns).assign(interval=chrom + ":" + start + "-" + end)
    other = mudata.MuData({"GEX": rna, "peaks": atac})
    link_peaks(other)
    pd.testing.assert_frame_equal(other.uns["gpnsf_links"], linked.uns["gpnsf_links"])


def test_an_annotation_of_other_names_is_told_with_the_first_of_both(planted):
    ensembl = planted["rna"].var.set_axis([f"ENSG{i:05d}" for i in range(200)])
    with pytest.raises(ValueError, match="'gene_1' in the data and 'ENSG00000' there"):
        link_peaks(planted.copy(), annotation=ensembl)


def test_planted_links_are_found(linked):
    scores = evaluate_links(linked, linked.uns["true_links"], n_bootstrap=50)
    assert scores["metric"][:2].tolist() == ["auroc", "average_precision"]
    assert scores["estimate"][0] > 0.9
    assert (scores["low"] < scores["estimate"]).all()
    assert (scores["estimate"] < scores["high"]).all()
    assert scores["low"][1] > scores["base"][1]
    truth = pd.MultiIndex.from_frame(linked.uns["true_links"])
    table = linked.uns["gpnsf_links"]
    sure = table[table["q"] < 0.2]
    assert len(sure) > 20
    assert pd.MultiIndex.from_frame(sure[["gene", "peak"]]).isin(truth).mean() > 0.7


def test_p_values_are_uniform_without_links(planted):
    rates = []
    for seed in range(5):
        mdata = shuffled(planted, seed)
        link_peaks(mdata)
        p = mdata.uns["gpnsf_links"]["p"]
        rates.append([(p <= level).mean() for level in (0.05, 0.2, 0.5)])
    np.testing.assert_allclose(np.mean(rates, axis=0), [0.05, 0.2, 0.5], atol=0.015)


def test_p_values_of_chance_pairs_do_not_depend_on_how_specific_genes_are(planted):
    mdata, rng = planted.copy(), np.random.default_rng(0)
    genes, peaks = np.divmod(rng.choice(200 * 500, 3000, replace=False), 500)
    names = {"gene": mdata["rna"].var_names[genes], "peak": mdata["atac"].var_names[peaks]}
    link_peaks(mdata, pairs=pd.DataFrame(names))
    table = mdata.uns["gpnsf_links"]
    specific = pd.Series(profiles(mdata["rna"].varm[Keys().loadings])[1], mdata["rna"].var_names)
    third = pd.qcut(table["gene"].map(specific), 3, labels=False)
    np.testing.assert_allclose((table["p"] <= 0.05).groupby(third).mean(), 0.05, atol=0.015)


def test_some_genes_keep_their_p_values(linked):
    table = linked.uns["gpnsf_links"].copy()
    link_peaks(linked, genes=["gene_3", "gene_7"])
    part = linked.uns["gpnsf_links"]
    assert set(part["gene"]) == {"gene_3", "gene_7"}
    expected = table[table["gene"].isin(["gene_3", "gene_7"])]
    np.testing.assert_array_equal(part["p"], expected["p"])


def test_too_few_pairs_to_compare_with_are_told_and_the_remedy_works(linked, caplog):
    assert not [record for record in caplog.records if "compared with" in record.getMessage()]
    genes = linked.uns["gpnsf_links"]["gene"].unique()[:2].tolist()
    link_peaks(linked, annotation=linked["rna"].var.loc[genes])
    (message,) = [text for text in caplog.messages if "compared with" in text]
    alone = linked.uns["gpnsf_links"]
    assert f"{len(alone)} of {len(alone)} pairs are compared with fewer than 20" in message
    assert alone["p"].min() > 0.01
    caplog.clear()
    link_peaks(linked, annotation=linked["rna"].var, genes=genes)
    assert not [text for text in caplog.messages if "compared with" in text]
    assert linked.uns["gpnsf_links"]["p"].min() < 0.01


def test_an_annotation_takes_the_place_of_var_columns(linked, tmp_path):
    table = linked.uns["gpnsf_links"].copy()
    var = linked["rna"].var
    var.rename_axis("gene").reset_index().to_csv(tmp_path / "genes.csv", index=False)
    linked["rna"].var = var.drop(columns=["chrom", "chromStart", "chromEnd", "strand"])
    link_peaks(linked, annotation=tmp_path / "genes.csv")
    pd.testing.assert_frame_equal(linked.uns["gpnsf_links"], table)


def test_given_pairs_are_scored_and_no_others(linked):
    table = linked.uns["gpnsf_links"].copy()
    some = table.sample(100, random_state=0)
    link_peaks(linked, pairs=some[["gene", "peak"]])
    assert linked.uns["gpnsf_links"]["distance"].isna().all()
    link_peaks(linked, pairs=some[["gene", "peak"]], annotation=linked["rna"].var)
    found = linked.uns["gpnsf_links"].merge(some, on=["gene", "peak"])
    assert len(found) == 100
    np.testing.assert_allclose(found["score_x"], found["score_y"])
    np.testing.assert_allclose(found["distance_x"], found["distance_y"])
    link_peaks(linked, pairs=some[["gene", "peak"]].assign(distance=7.0))
    assert (linked.uns["gpnsf_links"]["distance"] == 7).all()


def test_features_without_signal_are_left_out(planted):
    mdata = planted.copy()
    mdata["rna"].varm["gpnsf_loadings"][:100] = 0
    mdata["atac"].varm["gpnsf_loadings"][::2] = 0
    link_peaks(mdata)
    table = mdata.uns["gpnsf_links"]
    assert not set(table["gene"]) & set(mdata["rna"].var_names[:100])
    assert not set(table["peak"]) & set(mdata["atac"].var_names[::2])


def test_bad_options_are_refused(subtests, planted):
    for options, error, message in (
        ({"genes": ["gene_x"]}, KeyError, "gene_x"),
        ({"atac": "protein"}, KeyError, "protein"),
        ({"window": -1}, ValueError, "window"),
        ({"n_permutations": 1}, ValueError, "n_permutations"),
        ({"conditional": "yes"}, TypeError, "conditional"),
        ({"pairs": [("gene_1", "peak_1")]}, TypeError, "`pairs` to be a DataFrame"),
        ({"pairs": pd.DataFrame({"gene": ["gene_1"]})}, KeyError, "'peak'"),
        (
            {"pairs": pd.DataFrame({"gene": ["gene_1"] * 2, "peak": ["peak_1"] * 2})},
            ValueError,
            "1 of 2 again",
        ),
        ({"pairs": pd.DataFrame({"gene": ["gene_1"], "peak": ["peak_x"]})}, KeyError, "peak_x"),
        (
            {"annotation": pd.DataFrame({"chrom": ["1"], "start": [1], "end": [2]}, ["TP53"])},
            ValueError,
            "none of 200",
        ),
        (
            {"pairs": pd.DataFrame({"gene": ["gene_1"], "peak": ["peak_1"], "distance": ["12bp"]})},
            TypeError,
            "'distance'",
        ),
        (
            {"annotation": pd.DataFrame({"chrom": ["99"], "start": [1], "end": [2]}, ["gene_1"])},
            ValueError,
            "same genome",
        ),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            link_peaks(planted.copy(), **options)


def test_another_fit_removes_the_links_of_the_first(linked):
    fit(linked, n_factors=3, max_steps=1, split="assumed", progress=False)
    assert "gpnsf_links" not in linked.uns
    assert "true_links" in linked.uns


def test_names_that_are_not_unique_are_refused(planted):
    mdata = planted.copy()
    mdata["rna"].var_names = ["twin", "twin", *mdata["rna"].var_names[2:]]
    with pytest.raises(ValueError, match="unique var_names in modality 'rna'"):
        link_peaks(mdata)


def test_another_score_can_be_judged_and_distance_alone_says_nothing(linked):
    table, truth = linked.uns["gpnsf_links"], linked.uns["true_links"]
    table["near"] = -(table["distance"].abs() // 25_000)
    assert evaluate_links(linked, truth, score="near", n_bootstrap=20)["estimate"][0] == 0.5
    table["near"] = np.nan
    with pytest.raises(ValueError, match="Expected a score for every pair"):
        evaluate_links(linked, truth, score="near")


def test_score_and_distance_are_judged_alone_and_together(linked):
    table, truth = linked.uns["gpnsf_links"], linked.uns["true_links"]
    known = pd.MultiIndex.from_frame(truth)
    is_link = pd.MultiIndex.from_frame(table[["gene", "peak"]]).isin(known)
    weight = (table["distance"].abs().clip(lower=5000) / 5000) ** -1.024
    expected = {
        "score": table["score"],
        "distance": -table["distance"].abs(),
        "score x distance": table["score"].clip(lower=0) * weight,
    }
    judged = evaluate_links(linked, truth, n_bootstrap=20)
    among_all = judged.query("pairs == 'all'").set_index(["ranking", "metric"])
    for ranking, by in expected.items():
        area, precision = (
            among_all.loc[(ranking, metric)] for metric in ("auroc", "average_precision")
        )
        assert area["estimate"] == pytest.approx(roc_auc_score(is_link, by))
        assert precision["estimate"] == pytest.approx(average_precision_score(is_link, by))
        assert precision["base"] == pytest.approx(is_link.mean())
        assert area["low"] <= area["estimate"] <= area["high"]


def test_each_bin_of_distances_has_its_own_lines(linked):
    truth = linked.uns["true_links"]
    judged = evaluate_links(linked, truth, distances=(0, 50_000, 100_000), n_bootstrap=20)
    bins = judged[~judged["pairs"].isin(["equal distance", "all"])]
    assert bins["pairs"][::2].tolist() == ["0 to 50 kb", "50 to 100 kb", "above 100 kb"]
    assert bins["n_pairs"][::2].sum() == len(linked.uns["gpnsf_links"])
    mean = np.average(bins["estimate"][1::2], weights=bins["n_links"][1::2])
    assert mean == pytest.approx(judged["estimate"][1])
    one = evaluate_links(linked, truth, distances=None, n_bootstrap=20)
    assert set(one["pairs"]) == {"equal distance", "all"}


def test_distances_that_are_not_known_rank_nothing(linked):
    linked.uns["gpnsf_links"].loc[3, "distance"] = np.nan
    judged = evaluate_links(linked, linked.uns["true_links"], n_bootstrap=20)
    assert set(judged["ranking"]) == {"score"}


def test_conditional_links_keep_the_cosine_beside_them(linked):
    before = linked.uns["gpnsf_links"].set_index(["gene", "peak"])
    link_peaks(linked, conditional=True)
    table = linked.uns["gpnsf_links"]
    assert list(table) == [*COLUMNS[:4], "cosine", *COLUMNS[4:]]
    found = table.set_index(["gene", "peak"])
    np.testing.assert_allclose(found["cosine"], before.loc[found.index, "score"])
    single = found.groupby("gene").filter(lambda part: len(part) == 1)
    np.testing.assert_allclose(single["score"], single["cosine"], atol=1e-6)
    assert table["score"].between(-1, 1).all()
    link_peaks(linked, conditional=True, genes="gene_3")  # the other genes do not matter
    np.testing.assert_allclose(
        linked.uns["gpnsf_links"].set_index("peak")["score"].sort_index(),
        found.loc["gene_3", "score"].sort_index(),
    )


def test_evaluation_needs_links_and_a_truth_among_them(planted, linked):
    with pytest.raises(KeyError, match="link_peaks"):
        evaluate_links(planted, planted.uns["true_links"])
    with pytest.raises(ValueError, match="0 of the 1 known links"):
        evaluate_links(linked, pd.DataFrame({"gene": ["a"], "peak": ["b"]}))
    with pytest.raises(KeyError, match="importance"):
        evaluate_links(linked, linked.uns["true_links"], score="importance")


@pytest.mark.slow
def test_a_fit_finds_planted_links():
    mdata = tissue(n_obs=600, n_genes=400, n_peaks=1000, rna_depth=2000.0, atac_depth=300.0, seed=0)
    fit(mdata, n_factors=10, n_spatial=8, init="spot", progress=False)
    link_peaks(mdata)
    assert evaluate_links(mdata, mdata.uns["true_links"], n_bootstrap=20)["estimate"][0] > 0.9


def test_a_gene_without_near_peaks_is_no_empty_table(linked):
    before = linked.uns["gpnsf_links"]
    linked["rna"].var.loc["gene_3", ["chromStart", "chromEnd"]] = 2_000_000_000
    with pytest.raises(ValueError, match="of the `genes`"):
        link_peaks(linked, genes="gene_3")
    assert linked.uns["gpnsf_links"] is before


def test_views_and_a_single_factor_are_refused(planted):
    with pytest.raises(ValueError, match="a view of"):
        link_peaks(planted[:10])
    alone = fitted.mudata(n_obs=36, n_factors=1, n_spatial=1)
    with pytest.raises(ValueError, match="at least two factors"):
        link_peaks(alone)


def test_a_score_is_a_column_of_numbers(linked):
    with pytest.raises(TypeError, match="numbers in column 'gene'"):
        evaluate_links(linked, linked.uns["true_links"], score="gene")


@pytest.mark.parametrize("ends", [[5, 1], [0, np.nan], [0], "near"])
def test_ends_of_bins_rise(linked, ends):
    link_peaks(linked)
    with pytest.raises(ValueError, match="`distances` to be rising ends of bins"):
        evaluate_links(linked, linked.uns["true_links"], distances=ends)
