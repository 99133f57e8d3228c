from __future__ import annotations

import fitted
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

from gpnsf.tl.nearest_genes import nearest_genes
from gpnsf.tl.rank import rank_features

GENES = pd.DataFrame(
    {
        "gene": ["Left", "Right"],
        "chrom": "chr1",
        "start": [1000, 9000],
        "end": [3000, 9900],
        "strand": ["+", "-"],
    }
)


def peaks(*names):
    data = fitted.anndata(n_obs=36, n_genes=len(names))
    data.var_names = list(names)
    return data


def test_peaks_of_an_anndata_get_their_gene_and_signed_distance():
    data = peaks("chr1:400-600", "chr1:10000-10100", "chr1:4000-4200", "chr2:1-9")
    nearest_genes(data, annotation=GENES)
    assert data.var["nearest_gene"].tolist() == ["Left", "Right", "Left", ""]
    np.testing.assert_array_equal(data.var["nearest_gene_distance"], [-500, -150, 3100, np.nan])


def test_without_an_annotation_genes_come_from_the_other_modality_and_the_ranking_shows_them(mdata):
    nearest_genes(mdata)
    var = mdata["atac"].var
    linked = mdata.uns["true_links"].set_index("peak")["gene"]
    assert (var.loc[linked.index, "nearest_gene"] == linked).mean() > 0.2
    assert (var["nearest_gene_distance"].abs() <= 150_001).all()
    toy = fitted.mudata(n_obs=36)
    assert "nearest_gene" not in rank_features(toy)
    toy["atac"].var["nearest_gene"] = [f"near {name}" for name in toy["atac"].var_names]
    table = rank_features(toy, n_features=3)
    rna = table["modality"] == "rna"
    assert (table.loc[rna, "nearest_gene"] == "").all()
    assert (table.loc[~rna, "nearest_gene"] == "near " + table.loc[~rna, "feature"]).all()


def test_modalities_may_have_the_names_of_the_field(mdata):
    other = MuData({"Gene Expression": mdata["rna"].copy(), "Peaks": mdata["atac"].copy()})
    nearest_genes(mdata)
    nearest_genes(other)
    pd.testing.assert_frame_equal(other["Peaks"].var, mdata["atac"].var)


def test_missing_places_and_modalities_are_refused(mdata):
    with pytest.raises(KeyError, match="'protein'"):
        nearest_genes(mdata, atac="protein")
    with pytest.raises(KeyError, match="'rna'"):
        nearest_genes(mdata["atac"])
    with pytest.raises(ValueError, match="place on the genome"):
        nearest_genes(peaks("one", "two"), annotation=GENES)


def test_views_and_other_objects_are_refused_before_anything_is_written(mdata):
    with pytest.raises(ValueError, match="a view of"):
        nearest_genes(mdata[:10])
    with pytest.raises(TypeError, match="AnnData or MuData"):
        nearest_genes("x")
