# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A real Visium section
#
# Liver metastasis of a colorectal cancer: which programmes make this tissue, which genes belong to each, and where do they lie? The section
# is measured, not simulated, so nobody knows the true answer; what can be checked is whether held-out spots are predicted, and whether the
# genes make sense.
#
# The file `visium_crc.h5ad` (3,826 spots, 2,000 genes that its source has chosen) is not part of the package. The notebook looks for it in the folder that the
# environment variable `GPNSF_DATA_DIR` names. Without it a simulated tissue takes its place, so that every cell still runs; the
# remarks on genes are then about nothing.

# %%
import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq

import gpnsf

gpnsf.settings.progress = False

# %%
file = Path(os.environ.get("GPNSF_DATA_DIR", "")) / "visium_crc.h5ad"
if file.is_file():
    section = anndata.read_h5ad(file)
    print("measured section:", section.shape)
else:
    section = gpnsf.datasets.tissue(n_obs=900, n_genes=300, seed=0)["rna"].copy()
    print("SIMULATED tissue, since", file.name, "is not there:", section.shape)

# %% [markdown]
# ## Quality control
#
# As usual with scanpy: genes seen in few spots say nothing about place, and spots with hardly any counts say nothing at all. Counts stay raw.
# A copy in a layer keeps them, whatever later steps do to `X`.

# %%
sc.pp.filter_genes(section, min_cells=20)
sc.pp.filter_cells(section, min_counts=100)
section.layers["counts"] = section.X.copy()
print(section.shape, "median counts of a spot:", float(np.median(section.obs["n_counts"])))

# %% [markdown]
# ## The fit
#
# Ten factors are an upper bound: those that the counts do not ask for are dropped. How many of them are spatial is found by a test on held-out
# counts. A tenth of the spots is kept out, to see how well the fields predict places without a measurement.

# %%
section.obs["held_out"] = np.random.default_rng(0).random(section.n_obs) < 0.1
gpnsf.tl.fit(section, layers="counts", n_factors=10, holdout_key="held_out", seed=0)
print(section.uns["gpnsf"]["factor_names"])

# %% [markdown]
# On the measured section all ten factors turn out to be spatial, and there are two warnings. One length scale is at its floor: that factor changes
# from spot to spot, which is what single cells of the immune system do. And two fields lose part of their variance, because their length scale is short for the
# grid that they are computed on; what is lost counts as the noise of single spots. Both concern how smooth these factors are drawn between
# spots, not which genes they hold. `field="inducing"` would cost more time and show whether it matters.
#
# How well are the held-out spots predicted?

# %%
gpnsf.tl.evaluate(section, metric="poisson")[["rows", "deviance", "explained", "n_obs"]].round(3)

# %% [markdown]
# `explained` is the share of the deviance that one rate for every gene leaves: 0 is no better than that, 1 is perfect. For spots that were held
# out it says how much of the tissue is spatial at this resolution, since nothing else is known about them than where they lie.
#
# ## The factors
#
# Each panel is one factor. The colour is relative to its mean over the section.

# %%
gpnsf.pl.spatial_factors(section)

# %% [markdown]
# ## Genes of the factors
#
# The table in the style of the NSF paper: for each factor the genes that it has more of than the section on the whole.

# %%
ranked = gpnsf.tl.rank_features(section, n_features=6)
ranked.groupby("factor", observed=True)["feature"].agg(", ".join).to_frame("top genes")

# %% [markdown]
# Names of factors carry no meaning, so a few sets of well-known marker genes help to read them. `p` asks whether the genes of a set load on a
# factor more than others do; only genes that are in the file count.

# %%
sets = {
    "hepatocytes": "ALB APOA1 APOA2 APOC3 TTR SERPINA1 FGB HP TF CYP3A4",
    "tumour epithelium": "EPCAM KRT8 KRT18 KRT19 CEACAM5 CEACAM6 LGALS4 TFF3",
    "fibroblasts": "COL1A1 COL1A2 COL3A1 DCN LUM FN1 SPARC POSTN",
    "muscle and vessels": "ACTA2 TAGLN MYH11 MYL9 DES CNN1",
    "plasma cells": "IGKC IGHG1 IGHA1 JCHAIN IGLC2 MZB1",
    "macrophages": "CD68 C1QA C1QB C1QC SPP1 APOE LYZ",
}
sets = {name: section.var_names.intersection(genes.split()) for name, genes in sets.items()}
sets = {name: list(genes) for name, genes in sets.items() if len(genes) >= 3}
if sets:
    found = gpnsf.tl.enrich(section, sets, min_size=3)
    print(found.sort_values("p")[["factor", "set", "p", "q"]].head(8).to_string(index=False))

# %% [markdown]
# ## How spatial is each gene?
#
# Spatial importance is the share of a gene's expected counts that comes from spatial factors. On the measured section the fit has no others, so it is 1 for all genes
# and spots: at this depth, and with 2,000 genes that were chosen for their variation, nothing varies without regard to place. With genes that are less selected
# the histogram is wider ([first fit](first_fit.ipynb)).

# %%
gpnsf.pl.importance(section)

# %% [markdown]
# ## Domains, and what lies beside what
#
# Spots whose expected expression is alike make a domain; squidpy takes the labels from there. A positive z says that two domains touch more
# often than by chance.

# %%
gpnsf.tl.domains(section, n_domains=5)
gpnsf.pl.domains(section)

# %%
sq.gr.spatial_neighbors_knn(section, n_neighs=6)
sq.gr.nhood_enrichment(section, cluster_key="gpnsf_domain", seed=0, show_progress_bar=False)
z = section.uns["gpnsf_domain_nhood_enrichment"]["zscore"]
names = section.obs["gpnsf_domain"].cat.categories
pd.DataFrame(z, index=names, columns=names).round(0)

# %% [markdown]
# ## Where to go on
#
# `section.write("fitted.h5ad")` keeps all of it. `gpnsf.tl.select_n_factors` checks the number of factors, `gpnsf.tl.check_calibration` whether the noise
# fits, `gpnsf.pl.report` writes a page with all figures. A second section of the same tissue needs no second fit: `gpnsf.tl.project` finds
# the same factors in it.
