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
# # Groups of cells from RNA and sparse ATAC
#
# Cells without coordinates, of which both RNA and open chromatin were measured. scAI finds nonnegative factors that both
# have in common, and averages the sparse ATAC over cells that are alike in them. The cells here are simulated, so every
# result can be held against the truth.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

import gpnsf

gpnsf.settings.progress = False

# %% [markdown]
# ## The data
#
# Five groups of cells. In this variant RNA tells only three kinds of cells apart, and ATAC another three: neither knows all
# five groups. Counts stay raw: `tl.scai` normalises them itself.

# %%
mdata = gpnsf.datasets.groups("crossed", seed=0)
for name, mod in mdata.mod.items():
    print(
        f"{name}: {mod.n_obs} cells, {mod.n_vars} features, {mod.X.nnz / np.prod(mod.shape):.0%} not zero"
    )

# %% [markdown]
# ## The fit

# %%
gpnsf.tl.scai(mdata, n_factors=5, layer_added="averaged")

# %% [markdown]
# The objective never rises, and should be flat where the fit stops. Five starts were compared after 15 steps: the one whose
# loadings repeat each other least went on.

# %%
record = mdata.uns["scai"]
fig, ax = plt.subplots(figsize=(4, 2.5), layout="constrained")
ax.plot(record["objective"])
_ = ax.set(xlabel="step", ylabel="objective")
print("redundancy of the loadings, by start:", np.round(record["redundancy"], 2))

# %% [markdown]
# ## Factors and groups
#
# The largest factor of each cell is already a label. `tl.domains` clusters cells by what all their factors let them
# express, which also serves where there are more or fewer factors than groups.

# %%
gpnsf.tl.domains(mdata, n_domains=5, key="scai", key_added="cluster")
truth = mdata.obs["true_group"]
print(
    f"agreement with the true groups (adjusted Rand index): {adjusted_rand_score(truth, mdata.obs['cluster']):.2f}"
)
pd.crosstab(
    truth,
    np.array(record["factor_names"])[mdata.obsm["X_scai"].argmax(axis=1)],
    colnames=["largest factor"],
)

# %% [markdown]
# `tl.factor_adata` hands the factors to scanpy, where `sc.pp.neighbors(factors, use_rep="X_scai_embedding")`, UMAP and Leiden follow as usual.

# %%
factors = gpnsf.tl.factor_adata(mdata, key="scai")
factors.var[["importance"]].round(2)

# %% [markdown]
# ## Genes and peaks
#
# Features that stand for each factor, and how their signal divides. Where RNA cannot tell two groups apart, their genes are
# shared by two factors, while peaks still separate them.

# %%
gpnsf.tl.rank_features(mdata, modality="atac", key="scai", n_features=2)[
    ["factor", "feature", "share", "lift"]
].round(2)

# %%
gpnsf.pl.loadings(mdata, key="scai", n_features=4)

# %% [markdown]
# ## Averaged ATAC
#
# One peak in twenty is open in a cell, so a single cell says little about a peak. The layer `averaged` holds means over
# similar cells. Below are the best peaks of each factor, cells in the order of their true groups: single cells on the left,
# means, relative to the highest of the peak, on the right. Means show what the factors hold; they are no data to be tested.

# %%
atac = mdata["atac"]
best = gpnsf.tl.rank_features(mdata, modality="atac", key="scai", n_features=6)["feature"].unique()
order = np.argsort(truth.cat.codes.to_numpy(), kind="stable")
fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
for ax, values, title in zip(
    axes,
    (atac[:, best].X.toarray(), atac[:, best].layers["averaged"]),
    ("open", "averaged"),
    strict=True,
):
    ax.imshow(
        (values / values.max(axis=0))[order].T,
        aspect="auto",
        interpolation="nearest",
        cmap="magma_r",
    )
    ax.set(title=title, xlabel="cells, by true group")
_ = axes[0].set(ylabel="best peaks")

# %% [markdown]
# ## Links
#
# The simulation planted peaks near genes that mark the same groups. `tl.link_peaks` ranks pairs by how alike their loadings
# are, and `tl.evaluate_links` says how often a planted pair ranks above another one at the same distance (`auroc`, .5 by chance).
# With "crossed" groups genes and peaks differ in what they follow, which makes this harder than with groups that both tell apart.

# %%
gpnsf.tl.link_peaks(mdata, key="scai")
gpnsf.tl.evaluate_links(mdata, mdata.uns["true_links"], key="scai")[
    ["ranking", "pairs", "metric", "estimate", "base", "n_links"]
].round(2)
