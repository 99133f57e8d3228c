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
# From counts to spatial factors, to the genes and peaks behind them, and to a score of how spatial each of them is. The
# section is simulated, so every result can be held against the truth.

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
# own data, this line would be `mdata = mudata.read_h5mu("section.h5mu")`. Counts stay raw: no normalisation, no logarithm.

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
# Six factors, four of them spatial. Spatial factors vary smoothly over the tissue; nonspatial ones take up what varies
# from spot to spot without regard to place. RNA gets the negative binomial likelihood, ATAC the Bernoulli one.

# %%
gpnsf.tl.fit(mdata, n_factors=6, n_spatial=4)

# %% [markdown]
# The result is in the object; `mdata.write("fitted.h5mu")` would keep all of it. First a look at whether the optimisation
# came to an end: the curve of the evidence lower bound should be flat where it stops.

# %%
gpnsf.pl.convergence(mdata)

# %% [markdown]
# ## The factors
#
# Each panel is one factor, scaled to mean 1, with its length scale and its share of the expected signal.

# %%
gpnsf.pl.spatial_factors(mdata)

# %% [markdown]
# Are these the simulated factors? Two things to mind. Order and names are arbitrary, so each true factor is compared with
# all of the found ones: in every row, one correlation should stand out. And size factors are totals by default, so a
# factor is found relative to the total of its spot; the truth is put on the same footing. Where the total itself carries
# signal that you want in the factors, fit with `size_factors=None`.

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
# Loadings say how much of each feature belongs to a factor. The top features are those that are specific to it for
# sure: a score of 2 says that the factor has at least four times as much of the feature as the section on the whole.

# %%
gpnsf.tl.rank_features(mdata, modality="rna", n_features=3)

# %%
gpnsf.pl.top_features(mdata)

# %% [markdown]
# ## Spatial importance
#
# For each feature, the share of its expected signal that comes from spatial factors: 1 follows the tissue entirely, 0 not
# at all. It describes the fit; it is not a test.

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
# Neighbours, UMAP and clusters are sought in the embedding of the fit, whose distances are those of what spots express.

# %%
factors = gpnsf.tl.factor_adata(mdata)
sc.pp.neighbors(factors, use_rep="X_gpnsf_embedding")
sc.tl.umap(factors, random_state=0)
sc.pl.umap(factors, color=names[:2])

# %% [markdown]
# ## On with squidpy
#
# `factor_adata` carries the coordinates, so spatial statistics work on the factors. Moran's I is high for the spatial
# factors and near zero for the others.

# %%
sq.gr.spatial_neighbors_knn(factors)
sq.gr.spatial_autocorr(factors, mode="moran")
factors.uns["moranI"][["I"]].round(2)
