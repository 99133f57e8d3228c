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
# # FactVAE: paired RNA and ATAC without coordinates
#
# Codes of cells by two variational autoencoders, and links of genes and peaks from what their decoders have learned. The
# data are simulated, with places on a genome and planted links, so links can be held against the truth.

# %%
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import gpnsf

gpnsf.settings.progress = False

# %% [markdown]
# ## The data
#
# Raw counts of the same cells in both modalities. Coordinates are there, and are not used.

# %%
mdata = gpnsf.datasets.tissue(
    n_obs=400,
    n_genes=200,
    n_peaks=400,
    n_spatial=4,
    n_nonspatial=2,
    rna_depth=2000,
    atac_depth=150,
    seed=0,
)
mdata

# %% [markdown]
# ## The training
#
# Places of genes and peaks are in `var`, so pairs that overlap are drawn towards like embeddings. A fifth of these pairs is
# held out. On real data, `annotation="genes.csv"` gives the places of the genes.

# %%
gpnsf.tl.factvae(mdata, n_latent=15, held_out_pairs=0.2, max_epochs=30, seed=0)
print(
    mdata.obsm["X_factvae"].shape,
    mdata.uns["factvae"]["overlaps"]["trained"].value_counts().to_dict(),
)

# %% [markdown]
# A tenth of the cells trains nothing; training stops where their loss stops falling, or at `max_epochs`.

# %%
history = mdata.uns["factvae"]["history"]
figure, axes = plt.subplots(1, 3, figsize=(8, 2.2), layout="constrained")
for ax, name in zip(axes, ("joint", "held_out", "alignment"), strict=True):
    ax.plot(np.arange(1, len(history[name]) + 1), history[name])
    ax.set(title=name, xlabel="epoch")

# %% [markdown]
# ## The codes
#
# `obsm["X_factvae"]` holds the codes of ATAC, then those of RNA; each modality has its own in its own `obsm`. They are an
# ordinary representation for neighbours, UMAP and clusters. Colours: the strongest of the simulated factors in each cell.

# %%
mdata.obs["strongest"] = (mdata.obsm["true_factors"].argmax(axis=1) + 1).astype(str)
sc.pp.neighbors(mdata, use_rep="X_factvae")
sc.tl.umap(mdata, random_state=0)
sc.pl.embedding(mdata, "X_umap", color="strongest")

# %% [markdown]
# ## Links
#
# The score of a pair is the correlation, over cells, of what the decoders expect of the gene and of the peak.
# Pairs that were trained are no evidence and are left out here before the ranking is judged. Here distance says nothing,
# since links were planted at all distances alike; where a score only repeats the distance, the lines of "equal distance" tell.

# %%
gpnsf.tl.link_peaks(mdata, key="factvae")
overlaps = mdata.uns["factvae"]["overlaps"]
links = mdata.uns["factvae_links"].merge(overlaps, how="left", on=["gene", "peak"])
mdata.uns["factvae_links"] = links[~links["trained"].eq(True)].drop(columns="trained")
judged = gpnsf.tl.evaluate_links(mdata, mdata.uns["true_links"], key="factvae")
judged[judged["pairs"].isin(["equal distance", "all"])].round(3)

# %% [markdown]
# Does knowing some overlaps help with those that were held out? Compare their scores with those of all other pairs.

# %%
held = links["trained"].eq(False)
print(
    f"held-out overlaps {links['score'][held].mean():.2f}, other pairs {links['score'][links['trained'].isna()].mean():.2f}"
)

# %% [markdown]
# ## Augmented peaks
#
# With `layer_added`, the expected counts of every peak in every cell become a layer, at the depth of the cell. It is what the
# model thinks, not data: do not fit it again.

# %%
gpnsf.tl.factvae(
    mdata, n_latent=15, max_epochs=30, regulatory_weight=0, layer_added="factvae_augmented"
)
atac = mdata["atac"]
rate = atac.layers["factvae_augmented"]
print(
    f"{(atac.X > 0).mean():.1%} of the entries were seen open; expected counts lie between {rate.min():.2g} and {rate.max():.2g}"
)

# %% [markdown]
# Without the pairs, links rest on the counts alone.

# %%
gpnsf.tl.link_peaks(mdata, key="factvae")
judged = gpnsf.tl.evaluate_links(mdata, mdata.uns["true_links"], key="factvae")
judged[judged["pairs"].isin(["equal distance", "all"])].round(3)
