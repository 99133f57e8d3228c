# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # First fit
#
# This notebook goes from counts to spatial factors, then to the genes and peaks of each factor, and to a score of how spatial each
# gene and peak is. The section is simulated, so every result can be compared with the truth.

# %%
import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq

import gpnsf

gpnsf.settings.progress = False

# %% [markdown]
# ## The data
#
# Two modalities of the same spots: RNA counts and open ATAC peaks. The coordinates lie in `obsm["spatial"]`. With your
# own data, you would begin with `mdata = mudata.read_h5mu("section.h5mu")`. Counts stay raw: no normalisation, no logarithm.

# %%
mdata = gpnsf.datasets.tissue(
    n_obs=900,
    n_genes=300,
    n_peaks=600,
    n_spatial=4,
    n_nonspatial=2,
    atac_depth=100,
    lengthscales=(0.1, 0.3),
    seed=0,
)
print({name: mod.shape for name, mod in mdata.mod.items()}, mdata.obsm["spatial"].shape)

# %% [markdown]
# ## The fit
#
# We ask for at most six factors, at most four of them spatial. Spatial factors vary smoothly over the tissue. Nonspatial factors
# describe variation that neighbouring spots do not share. RNA gets the negative binomial likelihood, ATAC the Bernoulli likelihood.

# %%
gpnsf.tl.fit(mdata, n_factors=6, n_spatial=4)

# %% [markdown]
# The result is in the object, and `mdata.write("fitted.h5mu")` would save all of it. First we check that the optimisation has
# converged: the curve of the evidence lower bound (ELBO) should be flat at its end. Colours are stages of the fit. The last stage, "polish",
# has an objective of its own, so its line begins anew.

# %%
gpnsf.pl.convergence(mdata)

# %% [markdown]
# ## The factors
#
# Each panel is one factor, scaled to mean 1. Its title gives the length scale (the distance over which the factor changes) and the
# share of the expected signal.

# %%
gpnsf.pl.spatial_factors(mdata)

# %% [markdown]
# Are these the simulated factors? The order of factors is arbitrary, so we compare each true factor with all factors of the fit: in
# every row of the table, one correlation should stand out. Expected counts are in proportion to the total count of a spot, so a factor is a
# part of that total. We therefore divide the truth by the expected RNA total too. Parts of one total cannot all be large in the same spot,
# which is why the other correlations are negative. If the total itself carries signal that you want in
# the factors, fit with `size_factors=None`.

# %%
truth = mdata.obsm["true_factors"]
truth = truth / (truth @ mdata["rna"].varm["true_loadings"].sum(axis=0))[:, None]
found = mdata.obsm["X_gpnsf"]
names = list(mdata.uns["gpnsf"]["factor_names"])
correlation = np.corrcoef(truth, found, rowvar=False)[: truth.shape[1], truth.shape[1] :]
pd.DataFrame(
    correlation, index=[f"true {k + 1}" for k in range(truth.shape[1])], columns=names
).round(2)

# %% [markdown]
# ## Genes and peaks
#
# Loadings say how much of each feature belongs to a factor. The top features are those that are surely enriched in it. A score
# of 2 means that the factor has at least four times as much of the feature as the whole section.

# %%
gpnsf.tl.rank_features(mdata, modality="rna", n_features=3)

# %%
gpnsf.pl.top_features(mdata)

# %% [markdown]
# ## Spatial importance
#
# The spatial importance of a feature is the share of its expected signal that comes from spatial factors. At 1 all of its
# signal is in spatial factors, at 0 all of it in nonspatial ones. A gene with the same part in every spatial factor has 1 and a flat map.
# The importance describes the fit; it is not a test.

# %%
gpnsf.pl.importance(mdata)

# %%
rna = mdata["rna"].var
print(
    f"correlation with the truth: {np.corrcoef(rna['true_spatial_importance'], rna['gpnsf_spatial_importance'])[0, 1]:.2f}"
)

# %% [markdown]
# ## On with scanpy
#
# For neighbours, UMAP and clusters use the embedding of the fit: spots with similar expected expression are close in it.

# %%
factors = gpnsf.tl.factor_adata(mdata)
sc.pp.neighbors(factors, use_rep="X_gpnsf_embedding")
sc.tl.umap(factors, random_state=0)
sc.pl.umap(factors, color=names[:2])

# %% [markdown]
# ## On with squidpy
#
# `factor_adata` keeps the coordinates, so spatial statistics work on the factors. Moran's I measures how similar neighbouring spots
# are: it is high for the spatial factors and low for the others.

# %%
sq.gr.spatial_neighbors_knn(factors)
sq.gr.spatial_autocorr(factors, mode="moran")
factors.uns["moranI"][["I"]].round(2)
