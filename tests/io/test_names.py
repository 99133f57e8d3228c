"""Modalities under the names that the field gives them, and what is told of those that do not fit together."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import gpnsf
from gpnsf.io.names import are_places, kind, kind_of_types, named, of_kind
from gpnsf.io.read import read

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning")


def test_names_in_any_case_tell_the_likelihood(subtests, mdata):
    for names, likelihoods in (
        (("gex", "atac"), ["nb", "bernoulli"]),
        (("RNA", "ATAC"), ["nb", "bernoulli"]),
        (("Gene Expression", "Peaks"), ["nb", "bernoulli"]),
        (("peaks", "Gene-Expression"), ["bernoulli", "nb"]),
    ):
        with subtests.test(names=names):
            mods = mdata["rna"].copy(), mdata["atac"].copy()
            other = MuData(dict(zip(names, mods, strict=True)))
            other.obsm["spatial"] = mdata.obsm["spatial"]
            dataset, layout = read(other)
            assert layout.likelihoods == dict(zip(names, likelihoods, strict=True))
            assert [kind(view.name) for view in dataset.views] == ["rna", "atac"]


def test_a_name_means_the_only_modality_of_its_kind():
    assert named("rna", ["gex", "peaks"]) == "gex"
    assert named("rna", ["rna", "gex"]) == "rna"
    assert named("rna", ["RNA", "gex"]) == "rna"  # two could be meant
    assert named("peaks", ["rna", "atac"]) == "peaks"  # a name that was asked for is taken as it is
    assert kind("image") == kind("spliced") == ""
    assert kind("prot") == kind("Antibody_Capture") == kind("ADT") == "protein"


def test_a_name_of_the_field_among_other_words_tells_the_kind(subtests):
    for name, expected in (
        ("ATAC_peaks", "atac"),
        ("rna_counts", "rna"),
        ("GEX_filtered", "rna"),
        ("scATAC.v2", "atac"),
        ("gene expression (raw)", "rna"),
        ("adt-raw", "protein"),
        ("rna_atac", ""),  # either
        ("ATAC_gene_activity", ""),  # made of peaks
        ("rna_spliced", ""),  # a part of the counts
        ("journal", ""),  # no word
        ("counts", ""),
    ):
        with subtests.test(name=name):
            assert kind(name) == expected


def test_the_very_name_goes_before_longer_ones_and_of_several_longer_ones_none_is_meant():
    assert of_kind("rna", ["rna_counts", "ATAC_peaks"]) == ["rna_counts"]
    assert of_kind("rna", ["rna", "rna_counts"]) == ["rna"]
    assert of_kind("rna", ["rna_a", "rna_b"]) == []
    assert named("atac", ["GEX_filtered", "ATAC_peaks"]) == "ATAC_peaks"


def test_what_a_longer_name_is_taken_for_is_told(mdata, caplog):
    names = {"rna": "GEX_filtered", "atac": "ATAC_peaks"}
    other = MuData({names[name]: mod.copy() for name, mod in mdata.mod.items()})
    other.obsm["spatial"] = mdata.obsm["spatial"]
    with caplog.at_level(logging.INFO, logger="gpnsf"):
        assert read(other)[1].likelihoods == {"GEX_filtered": "nb", "ATAC_peaks": "bernoulli"}
    told = [record.getMessage() for record in caplog.records if "taken for" in record.getMessage()]
    assert len(told) == 2
    assert "'ATAC_peaks' is taken for ATAC by its name, and fitted by 'bernoulli'" in told[1]


def test_what_is_left_out_is_told_and_can_be_asked_for(mdata, caplog):
    image = mdata["rna"].copy()
    mods = {"rna": mdata["rna"].copy(), "texture": image}
    image.var_names = [f"texture_{i}" for i in range(image.n_vars)]
    both = MuData(mods)
    both.obsm["spatial"] = mdata.obsm["spatial"]
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        assert read(both)[1].modalities == ("rna",)
        (record,) = caplog.records
        assert "['texture'] are left out" in record.getMessage()
        assert "modalities=['rna', 'texture']" in record.getMessage()
        caplog.clear()
        read(both, gpnsf.arguments.Reading(modalities=["rna", "texture"]))
        assert not caplog.records


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda names: names + "-1", "200 names differ only by a prefix or suffix"),
        (lambda names: "sample#" + names + "-1", "200 names differ only by a prefix or suffix"),
        (
            lambda names: names.str.replace("spot", "cell"),
            "Check that their names follow one scheme",
        ),
    ],
)
def test_modalities_that_share_no_observation_are_told_before_the_fit(change, says, caplog):
    mdata = gpnsf.datasets.tissue(n_obs=200, n_genes=30, n_peaks=30, seed=0)
    rna, atac = (mdata[name].copy() for name in ("rna", "atac"))
    for mod in (rna, atac):
        mod.obsm["spatial"] = mdata.obsm["spatial"]
    rna.obs_names = change(rna.obs_names)
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        read(MuData({"rna": rna, "atac": atac}))
    (record,) = caplog.records
    assert "share 0 observations, of 200 and 200" in record.getMessage()
    assert says in record.getMessage()


def test_features_of_several_kinds_in_one_anndata_are_refused(adata):
    adata.var["feature_types"] = np.where(np.arange(adata.n_vars) < 25, "Gene Expression", "Peaks")
    with pytest.raises(
        ValueError,
        match=r"features of one kind .* got 25 of 'Gene Expression', 15 of 'Peaks'. Split it",
    ):
        read(adata)
    assert list(MuData(adata).mod) == ["rna", "atac"]  # as the error says
    adata.var["genes"] = adata.var["feature_types"] == "Gene Expression"
    assert read(adata, gpnsf.arguments.Reading(use_var="genes"))[0].views[0].counts.shape[1] == 25


def test_controls_beside_genes_are_told_and_can_be_taken_out_as_the_warning_says(adata, caplog):
    types = ["Gene Expression"] * 30 + ["Negative Control Probe"] * (adata.n_vars - 30)
    adata.var["feature_types"] = types
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        read(adata)
        (record,) = caplog.records
        assert "30 of 'Gene Expression', 10 of 'Negative Control Probe'" in record.getMessage()
        caplog.clear()
        genes = adata[:, adata.var["feature_types"] == "Gene Expression"].copy()
        assert read(genes)[0].views[0].counts.shape[1] == 30
        assert not caplog.records


def test_feature_types_name_an_anndata(subtests, adata):
    for types, name, likelihood in (
        (["Peaks"], "atac", "bernoulli"),
        (["Gene Expression"], "rna", "nb"),
        (["Antibody Capture"], "protein", "nb"),
        (["CRISPR Guide Capture"], "rna", "nb"),
    ):
        with subtests.test(types=types):
            adata.var["feature_types"] = pd.Categorical(types * adata.n_vars)
            assert read(adata)[1].likelihoods == {name: likelihood}
            asked = gpnsf.arguments.Reading(likelihoods={"signal": "poisson"})
            assert read(adata, asked)[1].likelihoods == {"signal": "poisson"}
            assert kind_of_types(["Peaks", "Gene Expression"]) == kind_of_types([]) == ""


def test_peaks_are_not_fitted_as_rna_in_silence_and_the_remedy_works(mdata, caplog):
    peaks = mdata["atac"].copy()
    peaks.obsm["spatial"] = mdata.obsm["spatial"]
    peaks.var_names = [f"chr{i % 3}:{i}00-{i}90" for i in range(1, peaks.n_vars + 1)]
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        read(peaks)
        (record,) = caplog.records
        assert "'chr1:100-190' is the first" in record.getMessage()
        assert "likelihoods={'atac': 'bernoulli'}" in record.getMessage()
        caplog.clear()
        asked = gpnsf.arguments.Reading(likelihoods={"atac": "bernoulli"})
        assert read(peaks, asked)[1].likelihoods == {"atac": "bernoulli"}
        both = MuData({"rna": mdata["rna"].copy(), "atac": peaks})
        assert read(both)[1].likelihoods == {"rna": "nb", "atac": "bernoulli"}
        assert not caplog.records


def test_names_of_places():
    assert are_places(["chr1:10-20", "X_1_2", "chr1_KI270706v1_random:1-2", "1-5-9"])
    assert not are_places(["ACTB", "chr1:10-20"])
    assert not are_places(["HLA-A", "ERCC-00002", "AC012345.1", "peak_1"])
    assert not are_places([])
