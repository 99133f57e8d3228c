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
# The section is a liver metastasis of a colorectal cancer. Which gene programmes make up this tissue, which genes belong to each, and where do
# they lie? The data are measured, not simulated, so nobody knows the true answer. We can check two things: whether the fit predicts held-out
# spots, and whether the genes of a factor make sense together.
#
# The file `visium_crc.h5ad` is not part of the package. It has 3,826 spots and 2,000 genes, which its authors selected. The notebook looks for it in
# the folder that the environment variable `GPNSF_DATA_DIR` names. If it is not there, the notebook uses simulated tissue, so that every cell
# still runs. The remarks on genes then do not apply.

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
# Quality control is that of scanpy: remove genes seen in few spots, and spots with hardly any counts. Counts stay raw.
# A copy in a layer keeps them, whatever later steps do to `X`.

# %%
sc.pp.filter_genes(section, min_cells=20)
sc.pp.filter_cells(section, min_counts=100)
section.layers["counts"] = section.X.copy()
print(section.shape, "median counts of a spot:", float(np.median(section.obs["n_counts"])))

# %% [markdown]
# ## The fit
#
# Ten factors are an upper bound: factors that the counts do not support are dropped. A test on held-out counts decides which of them are
# spatial. A tenth of the spots is held out, to see how well the fit predicts places without a measurement.

# %%
section.obs["held_out"] = np.random.default_rng(0).random(section.n_obs) < 0.1
gpnsf.tl.fit(section, layers="counts", n_factors=10, holdout_key="held_out", seed=0)
print(section.uns["gpnsf"]["factor_names"])

# %% [markdown]
# On the measured section all ten factors are spatial. The log says that the fields became finer on the way: here the tissue changes from one spot
# to the next, in glands, vessels and strands of connective tissue, and a fit that finds this goes on with as many waves as it takes to follow it.
# On the way the log counts nine spatial factors, since one was fitted without a smooth map. Held-out counts show its order, so it is spatial as well.
#
# The fit warns about `spatial_7` and `spatial_10`: their length scale is the shortest that it allows (127, where neighbouring spots are 100 apart).
# So these two change from spot to spot. Trust their genes, and not their maps between the spots.
#
# How well are the held-out spots predicted?

# %%
gpnsf.tl.evaluate(section, metric="poisson")[["rows", "deviance", "explained", "n_obs"]].round(3)

# %% [markdown]
# `explained` is the explained deviance: 0 is no better than one rate for each gene in all spots, 1 is perfect. The fit knows only the place and the depth of
# a held-out spot. So for these spots `explained` says how much of the expression follows the tissue at this resolution.
#
# ## The factors
#
# Each panel is one factor. Colours are relative to the mean of the factor over the section.

# %%
gpnsf.pl.spatial_factors(section)

# %% [markdown]
# ## Genes of the factors
#
# The table follows the NSF paper: it lists, for each factor, the genes that are most enriched in it compared with the whole section.

# %%
ranked = gpnsf.tl.rank_features(section, n_features=6)
ranked.groupby("factor", observed=True)["feature"].agg(", ".join).to_frame("top genes")

# %% [markdown]
# The names of factors carry no meaning. A few sets of well-known marker genes help to interpret them. A small `p` means that the genes of a set load on a
# factor more than other genes do. Only genes that are in the file count.

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
# Spatial importance is the share of a gene's expected counts that comes from spatial factors. On the measured section all factors are spatial, so the importance is 1
# for all genes and spots. At this depth, and with 2,000 genes selected for their variation, the fit finds no nonspatial factor. In simulated data
# with nonspatial factors, the importances differ between genes ([first fit](first_fit.ipynb)).

# %%
gpnsf.pl.importance(section)

# %% [markdown]
# ## Domains, and which of them are neighbours
#
# Spots with similar expected expression form a domain. squidpy then tests which domains are neighbours: a positive z means that two domains
# touch more often than by chance.

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
# - `section.write("fitted.h5ad")` saves the whole result.
# - `gpnsf.tl.select_n_factors` recommends a number of factors.
# - `gpnsf.tl.check_calibration` simulates from the fit, and says which factors can be recovered.
# - `gpnsf.pl.report` writes a page with all figures.
# - `gpnsf.tl.project` finds the same factors in a second section of the same tissue, without a second fit.
