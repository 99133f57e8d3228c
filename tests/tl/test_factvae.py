from __future__ import annotations

import logging
from functools import partial

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sections
from anndata import AnnData
from mistakes import explained
from mudata import MuData
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import gpnsf
from gpnsf.core.scores.expected import expected_shares

FAST = {"n_latent": 5, "max_epochs": 3, "progress": False}


def run(mdata, **options):
    """The shortest training there is."""
    gpnsf.tl.factvae(mdata, **{**FAST, **options})


@pytest.fixture(scope="module")
def trained(simulated):
    """A simulated tissue, trained with everything on."""
    mdata = simulated.copy()
    run(mdata, layer_added="augmented", held_out_pairs=0.25, max_epochs=6)
    return mdata


def test_slots_are_plain_arrays_on_the_object_and_its_modalities(trained):
    assert trained.obsm["X_factvae"].shape == (150, 10)
    for name, columns in (("atac", slice(0, 5)), ("rna", slice(5, 10))):
        mod = trained[name]
        np.testing.assert_array_equal(mod.obsm["X_factvae"], trained.obsm["X_factvae"][:, columns])
        assert mod.varm["factvae_loadings"].shape == (mod.n_vars, 10)
        assert mod.varm["factvae_loadings"].dtype == mod.obsm["X_factvae"].dtype == np.float32
    record = trained.uns["factvae"]
    assert record["modalities"] == ["rna", "atac"]
    assert record["params"]["n_latent"] == 5
    assert record["seed"] == 0
    assert record["seconds"] > 0
    assert len(record["history"]["held_out"]) == 6


def test_a_file_keeps_all_of_it_and_links_follow_from_what_was_read(trained, tmp_path):
    trained.write_h5mu(tmp_path / "codes.h5mu")
    again = mudata.read_h5mu(tmp_path / "codes.h5mu")
    np.testing.assert_array_equal(again.obsm["X_factvae"], trained.obsm["X_factvae"])
    pd.testing.assert_frame_equal(
        again.uns["factvae"]["overlaps"], trained.uns["factvae"]["overlaps"]
    )
    assert again.uns["factvae"]["params"]["layers"] is None
    mdata = trained.copy()
    for data in (mdata, again):
        gpnsf.tl.link_peaks(data, key="factvae")
    pd.testing.assert_frame_equal(again.uns["factvae_links"], mdata.uns["factvae_links"])


def test_scores_of_links_are_cosines_of_the_loadings_and_can_be_judged(trained):
    mdata = trained.copy()
    gpnsf.tl.link_peaks(mdata, key="factvae")
    table = mdata.uns["factvae_links"]
    W = {name: mod.varm["factvae_loadings"] for name, mod in mdata.mod.items()}
    genes = W["rna"][mdata["rna"].var_names.get_indexer(table["gene"])]
    peaks = W["atac"][mdata["atac"].var_names.get_indexer(table["peak"])]
    cosine = (
        (genes * peaks).sum(axis=1) / np.linalg.norm(genes, axis=1) / np.linalg.norm(peaks, axis=1)
    )
    np.testing.assert_allclose(table["score"], cosine, atol=1e-5)
    judged = gpnsf.tl.evaluate_links(mdata, mdata.uns["true_links"], key="factvae", n_bootstrap=20)
    assert judged["estimate"].between(0, 1).all()


def test_the_same_seed_gives_the_same_bits_and_another_call_takes_the_place_of_the_first(
    trained, simulated
):
    mdata = simulated.copy()
    run(mdata, layer_added="augmented", held_out_pairs=0.25, max_epochs=6)
    np.testing.assert_array_equal(mdata.obsm["X_factvae"], trained.obsm["X_factvae"])
    gpnsf.tl.link_peaks(mdata, key="factvae")
    run(mdata, seed=1, n_latent=4)
    assert mdata.obsm["X_factvae"].shape == (150, 8)
    assert "factvae_links" not in mdata.uns


def test_two_results_live_side_by_side(trained):
    mdata = trained.copy()
    run(mdata, key_added="again")
    assert {"X_factvae", "X_again"} <= set(mdata.obsm)
    assert {"factvae", "again"} <= set(mdata.uns)


def test_augmented_peaks_are_expected_at_the_depth_of_the_cell(simulated):
    mdata = simulated.copy()
    run(mdata, n_peaks=20, layer_added="augmented")
    atac = mdata["atac"]
    used = atac.varm["factvae_loadings"].any(axis=1)
    layer = atac.layers["augmented"]
    assert used.sum() == 20
    assert layer.dtype == np.float32
    assert not layer[:, ~used].any()
    depth = np.asarray(atac.X[:, used].sum(axis=1)).ravel()
    np.testing.assert_allclose(layer.sum(axis=1), depth, rtol=1e-4)


def test_augmented_shares_follow_the_codes(simulated):
    mdata = simulated.copy()
    run(mdata, layer_added="augmented", variant="paper")
    atac = mdata["atac"]
    used = atac.varm["factvae_loadings"].any(axis=1)
    W = atac.varm["factvae_loadings"][used]
    shares = expected_shares(atac.obsm["X_factvae"], W, np.zeros(len(W)))
    depth = np.asarray(atac.X[:, used].sum(axis=1))
    np.testing.assert_allclose(
        atac.layers["augmented"][:, used], depth * shares, rtol=1e-3, atol=1e-6
    )


def test_pairs_are_genes_and_peaks_that_overlap_and_some_are_held_out(trained, simulated):
    table = trained.uns["factvae"]["overlaps"]
    assert list(table) == ["gene", "peak", "trained"]
    assert (~table["trained"]).sum() == round(0.25 * len(table)) > 0
    genes, peaks = simulated["rna"].var.loc[table["gene"]], simulated["atac"].var.loc[table["peak"]]
    low = genes["chromStart"].to_numpy() - 2000 * (genes["strand"] != "-").to_numpy()
    high = genes["chromEnd"].to_numpy() + 2000 * (genes["strand"] != "+").to_numpy()
    assert (genes["chrom"].to_numpy() == peaks["chrom"].to_numpy()).all()
    assert (np.maximum(low, peaks["chromStart"]) < np.minimum(high, peaks["chromEnd"])).all()


@pytest.mark.slow
def test_held_out_pairs_are_not_trained(simulated):
    def cosines(mdata):
        W = {name: mod.varm["factvae_loadings"] for name, mod in mdata.mod.items()}
        table = mdata.uns["factvae"]["overlaps"]
        genes = W["rna"][mdata["rna"].var_names.get_indexer(table["gene"])]
        peaks = W["atac"][mdata["atac"].var_names.get_indexer(table["peak"])]
        cosine = (
            (genes * peaks).sum(axis=1)
            / np.linalg.norm(genes, axis=1)
            / np.linalg.norm(peaks, axis=1)
        )
        return cosine[table["trained"]].mean(), cosine[~table["trained"]].mean()

    mdata = simulated.copy()
    mdata["atac"].var["chromStart"] = (
        mdata["rna"].var["chromStart"].iloc[np.arange(60) % 40].to_numpy()
    )
    mdata["atac"].var["chromEnd"] = mdata["atac"].var["chromStart"] + 100
    mdata["atac"].var["chrom"] = mdata["rna"].var["chrom"].iloc[np.arange(60) % 40].to_numpy()
    run(
        mdata,
        variant="paper",
        held_out_pairs=0.5,
        regulatory_weight=10.0,
        max_epochs=25,
        batch_size=16,
        learning_rate=5e-3,
    )
    trained, held = cosines(mdata)
    assert trained > 0.8
    assert held < 0.5


def without_places(mdata):
    for mod in mdata.mod.values():
        mod.var = mod.var.drop(columns=["chrom", "chromStart", "chromEnd"])


def test_without_places_the_regulatory_loss_is_off_and_the_log_says_so(simulated, caplog, tmp_path):
    mdata = simulated.copy()
    without_places(mdata)
    with caplog.at_level(logging.WARNING, "gpnsf"):
        logging.getLogger("gpnsf").addHandler(caplog.handler)
        run(mdata)
        logging.getLogger("gpnsf").removeHandler(caplog.handler)
    assert "The regulatory loss is off" in caplog.text
    assert not mdata.uns["factvae"]["history"]["regulatory"].any()
    assert mdata.uns["factvae"]["overlaps"].empty
    mdata.write_h5mu(tmp_path / "codes.h5mu")
    assert mudata.read_h5mu(tmp_path / "codes.h5mu").uns["factvae"]["overlaps"].shape == (0, 3)


def test_an_annotation_gives_the_places(simulated):
    mdata, genes = simulated.copy(), simulated["rna"].var.rename_axis("gene").reset_index()
    mdata["rna"].var = mdata["rna"].var.drop(columns=["chrom", "chromStart", "chromEnd", "strand"])
    run(mdata, annotation=genes)
    with_columns = simulated.copy()
    run(with_columns)
    pd.testing.assert_frame_equal(
        mdata.uns["factvae"]["overlaps"], with_columns.uns["factvae"]["overlaps"]
    )
    np.testing.assert_array_equal(mdata.obsm["X_factvae"], with_columns.obsm["X_factvae"])


def test_no_weight_is_no_loss(simulated):
    mdata = simulated.copy()
    run(mdata, regulatory_weight=0)
    assert not mdata.uns["factvae"]["history"]["regulatory"].any()
    assert mdata.uns["factvae"]["overlaps"].empty


def test_cells_are_matched_whatever_their_order(simulated):
    mdata = simulated.copy()
    order = np.random.default_rng(0).permutation(150)
    turned = sections.mudata(rna=mdata["rna"].copy(), atac=mdata["atac"][order].copy())
    run(mdata, layer_added="augmented")
    run(turned, layer_added="augmented")
    np.testing.assert_array_equal(turned.obsm["X_factvae"], mdata.obsm["X_factvae"])
    for slot in ("obsm", "layers"):
        name = {"obsm": "X_factvae", "layers": "augmented"}[slot]
        found, expected = (getattr(data["atac"], slot)[name] for data in (turned, mdata))
        np.testing.assert_array_equal(found, expected[order])


def test_counts_come_from_the_layer_that_is_named(simulated):
    mdata = simulated.copy()
    run(mdata)
    layered = simulated.copy()
    for mod in layered.mod.values():
        mod.layers["counts"] = mod.X
        mod.X = sp.csr_matrix(mod.X.shape, dtype=np.float32)
    run(layered, layers="counts")
    np.testing.assert_array_equal(layered.obsm["X_factvae"], mdata.obsm["X_factvae"])


def test_features_of_largest_deviance_are_taken(simulated):
    mdata = simulated.copy()
    run(mdata, n_genes=12)
    gpnsf.pp.deviance_features(mdata, n_top=12, modality="rna", likelihood="poisson")
    used = mdata["rna"].varm["factvae_loadings"].any(axis=1)
    np.testing.assert_array_equal(used, mdata["rna"].var["highly_deviant"])


def test_the_published_variant_keeps_the_embeddings_of_its_decoders(simulated):
    mdata = simulated.copy()
    run(mdata, variant="paper")
    assert mdata["rna"].varm["factvae_loadings"].shape == (40, 5)
    gpnsf.tl.link_peaks(mdata, key="factvae")


@pytest.mark.slow
def test_neighbours_of_scanpy_take_the_codes(trained):
    sc = pytest.importorskip("scanpy")
    mdata = trained.copy()
    sc.pp.neighbors(mdata, use_rep="X_factvae")
    assert mdata.obsp["connectivities"].shape == (150, 150)


def changed(change):
    """A maker of a simulated pair of which something was changed, or replaced where the change returns it."""

    def build():
        mdata = sections.pair()
        result = change(mdata)
        return mdata if result is None else result

    return build


def partly(mdata):
    return sections.mudata(rna=mdata["rna"].copy(), atac=mdata["atac"][:20].copy())


def few(mdata):
    return sections.mudata(**{name: mod[:9].copy() for name, mod in mdata.mod.items()})


def twins(mdata):
    mdata["atac"].var_names = ["twin", "twin", *mdata["atac"].var_names[2:]]


def flat(mdata):
    mdata["atac"].X = sp.csr_matrix(
        (np.ones(24), (np.arange(24), np.zeros(24, int))), shape=(24, 10), dtype=np.float32
    )


GENES = pd.DataFrame({"chrom": ["1"], "start": [1], "end": [2]}, ["TP53"])
CASES = {
    "an AnnData": (sections.section, {}, TypeError, "MuData with RNA and ATAC of the same cells; got AnnData"),
    "a DataFrame": (lambda: sections.section().to_df(), {}, TypeError, "got DataFrame"),
    "a view": (changed(lambda d: d[:20]), {}, ValueError, "data.copy()"),
    "unknown modality": (sections.pair, {"atac": "peaks"}, KeyError, "'peaks'"),
    "one modality twice": (sections.pair, {"atac": "rna"}, ValueError, "each once"),
    "cells without peaks": (changed(partly), {}, ValueError, "4 of 24 observation(s) without 'atac'"),
    "too few cells": (changed(few), {}, ValueError, "at least 10 observations; got 9"),
    "names that are not unique": (changed(twins), {}, ValueError, "unique var_names in modality 'atac'"),
    "nothing varies": (changed(flat), {}, ValueError, "at least 2 features of 'atac'"),
    "fractions": (changed(lambda d: setattr(d["rna"], "X", d["rna"].X * 0.5)), {}, ValueError, "whole counts"),
    "negative": (changed(lambda d: setattr(d["rna"], "X", -d["rna"].X)), {}, ValueError, "nonnegative counts"),
    "unknown layer": (sections.pair, {"layers": {"atac": "raw"}}, KeyError, "'raw'"),
    "annotation of other genes": (sections.pair, {"annotation": GENES}, ValueError, "none of 8"),
    "layer of the counts": (sections.pair, {"layers": {"atac": "c"}, "layer_added": "c"}, KeyError, "'c'"),
    "layer with a slash": (sections.pair, {"layer_added": "a/b"}, ValueError, "without '/'"),
    "key of a modality": (sections.pair, {"key_added": "rna"}, ValueError, "names of the modalities"),
    "unknown device": (sections.pair, {"device": "abacus"}, ValueError, "`device`"),
    "n_genes": (sections.pair, {"n_genes": 1}, ValueError, "`n_genes`"),
    "n_peaks": (sections.pair, {"n_peaks": 0}, ValueError, "`n_peaks`"),
    "n_latent": (sections.pair, {"n_latent": 2.5}, TypeError, "`n_latent`"),
    "variant": (sections.pair, {"variant": "published"}, ValueError, "'corrected', 'paper'"),
    "alignment": (sections.pair, {"alignment": 1}, TypeError, "`alignment`"),
    "regulatory_weight": (sections.pair, {"regulatory_weight": -1.0}, ValueError, "`regulatory_weight`"),
    "held_out_pairs": (sections.pair, {"held_out_pairs": 1.0}, ValueError, "at most 0.9"),
    "max_epochs": (sections.pair, {"max_epochs": 0}, ValueError, "`max_epochs`"),
    "batch_size": (sections.pair, {"batch_size": 1}, ValueError, "`batch_size`"),
    "learning_rate": (sections.pair, {"learning_rate": 0.0}, ValueError, "`learning_rate`"),
    "seed": (sections.pair, {"seed": -1}, ValueError, "`seed`"),
    "progress": (sections.pair, {"progress": "yes"}, TypeError, "`progress`"),
}  # fmt: skip


def test_a_mistake_is_explained_and_changes_nothing(subtests):
    for name, (make, options, error, says) in CASES.items():
        with subtests.test(name):
            explained(make(), partial(run, **options), error, says)


def test_a_layer_that_is_too_large_or_that_holds_the_counts_is_refused(simulated):
    mdata = simulated.copy()
    mdata["atac"].layers["counts"] = mdata["atac"].X.copy()
    with (
        gpnsf.settings.override(memory_budget=1000),
        pytest.raises(ValueError, match="memory_budget"),
    ):
        run(mdata, layer_added="augmented")
    for layers in ("counts", {"atac": "counts"}):
        with pytest.raises((ValueError, KeyError), match="layer"):
            run(mdata, layers=layers, layer_added="counts")


def test_links_need_loadings_of_both_modalities_in_one_space(trained):
    with pytest.raises(KeyError, match="gpnsf_loadings"):
        gpnsf.tl.link_peaks(trained.copy())
    mdata = trained.copy()
    mdata["atac"].varm["factvae_loadings"] = mdata["atac"].varm["factvae_loadings"][:, :3]
    with pytest.raises(ValueError, match="shape"):
        gpnsf.tl.link_peaks(mdata, key="factvae")


def test_empty_cells_and_features_are_legal():
    rng = np.random.default_rng(0)
    mods = {}
    for name, n_features in (("rna", 20), ("atac", 30)):
        X = rng.poisson(1.0, (40, n_features)).astype(np.float32)
        X[3], X[:, 5] = 0, 0
        mods[name] = AnnData(sp.csr_matrix(X))
    mdata = sections.mudata(**mods)
    assert isinstance(mdata, MuData)
    run(mdata, layer_added="augmented")
    assert np.isfinite(mdata.obsm["X_factvae"]).all()
    assert not mdata["rna"].varm["factvae_loadings"][5].any()
    assert not mdata["atac"].layers["augmented"][3].any()


@pytest.mark.slow
def test_planted_links_are_found_without_a_prior():
    mdata = gpnsf.datasets.tissue(
        n_obs=600, n_genes=300, n_peaks=600, rna_depth=2000.0, atac_depth=300.0, seed=0
    )
    gpnsf.tl.factvae(mdata, n_latent=20, regulatory_weight=0, max_epochs=50, progress=False)
    gpnsf.tl.link_peaks(mdata, key="factvae")
    assert (
        gpnsf.tl.evaluate_links(mdata, mdata.uns["true_links"], key="factvae", n_bootstrap=20)[
            "estimate"
        ][0]
        > 0.8
    )


@pytest.mark.slow
def test_cell_lines_are_told_apart(data_file):
    mdata = mudata.read_h5mu(data_file("snareseq_human_celllines.h5mu"))
    gpnsf.tl.factvae(
        mdata, annotation=data_file("genes_hg38.csv"), n_peaks=2000, max_epochs=60, progress=False
    )
    found = KMeans(4, n_init=10, random_state=0).fit_predict(mdata.obsm["X_factvae"])
    assert adjusted_rand_score(mdata.obs["cell_type"], found) >= 0.93
