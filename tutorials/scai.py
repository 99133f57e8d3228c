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
# scAI is for cells without coordinates in which both RNA and open chromatin were measured. It finds nonnegative factors that both
# modalities share, and averages the sparse ATAC over cells with similar factors. The cells here are simulated, so every
# result can be compared with the truth.

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
# The data hold five groups of cells. RNA separates only three kinds of cells, and ATAC three other kinds, so neither modality alone
# can tell all five groups apart. Counts stay raw: `tl.scai` normalises them itself.

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
# The objective never rises, and should be flat where the fit stops. The fit compared five starts after 15 steps, and went on with the start
# whose loadings were least alike (lowest redundancy).

# %%
record = mdata.uns["scai"]
fig, ax = plt.subplots(figsize=(4, 2.5), layout="constrained")
ax.plot(record["objective"])
_ = ax.set(xlabel="step", ylabel="objective")
print("redundancy of the loadings, by start:", np.round(record["redundancy"], 2))

# %% [markdown]
# ## Factors and groups
#
# The largest factor of a cell can serve as its label. `tl.domains` instead clusters cells by their expected expression from all factors. This
# also works if there are more or fewer factors than groups.

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
# `tl.factor_adata` makes an AnnData of the factors for scanpy. Go on with `sc.pp.neighbors(factors, use_rep="X_scai_embedding")`, UMAP and Leiden.

# %%
factors = gpnsf.tl.factor_adata(mdata, key="scai")
factors.var[["importance"]].round(2)

# %% [markdown]
# ## Genes and peaks
#
# The table lists the top peaks of each factor. The heatmap shows how the signal of the top features divides among the factors. If RNA cannot tell two groups
# apart, their genes load on both factors, while their peaks still separate them.

# %%
gpnsf.tl.rank_features(mdata, modality="atac", key="scai", n_features=2)[
    ["factor", "feature", "share", "lift"]
].round(2)

# %%
gpnsf.pl.loadings(mdata, key="scai", n_features=4)

# %% [markdown]
# ## Averaged ATAC
#
# In a cell only one peak in twenty is open, so a single cell says little about a peak. The layer `averaged` holds means over
# similar cells. The figure shows the top peaks of each factor, with the cells in order of their true groups. Left: open or not in single cells. Right: the means,
# divided by the highest mean of the peak. The means show what the factors hold. They are not data: do not test them.

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
# In the simulation, some marker peaks lie near the gene whose group pattern is most like theirs. These pairs are the
# planted links. `tl.link_peaks` ranks gene-peak pairs by the similarity of their
# loadings. `tl.evaluate_links` says how often a planted link ranks above another pair at the same distance (`auroc`; .5 is chance).
# In these "crossed" data genes and peaks mark different sets of groups, so the two patterns of a link are only
# similar. Here the AUROC at equal distance is .86.

# %%
gpnsf.tl.link_peaks(mdata, key="scai")
gpnsf.tl.evaluate_links(mdata, mdata.uns["true_links"], key="scai")[
    ["ranking", "pairs", "metric", "estimate", "base", "n_links"]
].round(2)
