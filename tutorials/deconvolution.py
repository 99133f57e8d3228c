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
# # Deconvolution
#
# A spot of a section holds several cells. Given single cells of the same tissue, which types are in which spot, and in what
# shares? The spots here are simulated, so every answer can be held against the truth.

# %%
import pandas as pd
import squidpy as sq

import gpnsf

gpnsf.settings.progress = False

# %% [markdown]
# ## The data
#
# Spots with 100 counts, few even for Visium, and a reference of 30 cells for each of five types. Both are raw counts. With your own data,
# these would be two calls of `anndata.read_h5ad`.

# %%
spots, cells = gpnsf.datasets.mixture(n_obs=225, n_genes=200, n_types=5, depth=100.0, seed=0)
print(spots.shape, cells.shape, cells.obs["cell_type"].unique().tolist())

# %% [markdown]
# ## Spots by themselves, and with their neighbours
#
# Nonnegative least squares looks at each spot alone. The default ties neighbours: what is noise in one spot is averaged over
# several. How strong the ties are is a number that somebody has to choose.

# %%
gpnsf.tl.deconvolve(spots, cells, label_key="cell_type", method="nnls", key_added="nnls")
gpnsf.tl.deconvolve(spots, cells, label_key="cell_type")
gpnsf.tl.deconvolve(spots, cells, label_key="cell_type", spatial_weight=0.5, key_added="strong")

# %%
keys = ["nnls", "proportions", "strong"]
gpnsf.tl.evaluate_deconvolution(spots, "true_proportions", key=keys).round(3)

# %% [markdown]
# ## Weights that are learned
#
# Without a truth nobody can tell which weight is best. But we know the profiles, where spots lie, how deep they are, and from least squares
# roughly how smooth and how mixed the section is. So we can simulate sections that are like ours, with a truth. `method="unrolled"` does so:
# a number of update steps become the layers of a network, whose weights are learned from simulated sections. No labels are needed, and the
# truth of our spots is not seen. `uncertainty=True` adds a standard deviation to each share; it works with every method.

# %%
gpnsf.tl.deconvolve(
    spots,
    cells,
    label_key="cell_type",
    method="unrolled",
    n_layers=30,
    n_training=60,
    uncertainty=True,
    key_added="learned",
)
gpnsf.tl.evaluate_deconvolution(spots, "true_proportions", key=[*keys, "learned"]).round(3)

# %% [markdown]
# What has been learned is a dictionary of plain arrays. It is saved with the object, and may be used for other sections of the same kind
# without learning again.

# %%
network = spots.uns["learned"]["network"]
other, _ = gpnsf.datasets.mixture(n_obs=225, n_genes=200, n_types=5, depth=100.0, seed=1)
profiles = pd.DataFrame(
    other.varm["true_profiles"], index=other.var_names, columns=other.uns["truth"]["types"]
)
gpnsf.tl.deconvolve(other, profiles, method="unrolled", train=False, network=network)
gpnsf.tl.evaluate_deconvolution(other, "true_proportions").round(3)

# %% [markdown]
# ## How sure are we?
#
# Standard deviations are those of the errors that the same method makes on simulated sections like ours. The column `coverage` above says how
# many of the true shares lie within 1.645 of them; it should be about 90 %. They know how few counts there are, but not whether the
# profiles are right: if the reference lacks a type, no interval will tell.

# %%
shares = pd.DataFrame(
    {"share": spots.obsm["X_learned"][0], "sd": spots.obsm["X_learned_std"][0]},
    index=spots.uns["learned"]["types"],
)
shares.round(3)

# %% [markdown]
# ## Looking at them
#
# Maps have one panel a type, with its mean share below the name.

# %%
gpnsf.pl.proportions(spots, key="learned", ncols=5)

# %% [markdown]
# Of a few hundred spots, pies show all types at once. For comparison the truth, drawn by the same function.

# %%
gpnsf.pl.proportions(spots, key="learned", kind="pies")

# %%
truth = spots.copy()
truth.obsm["X_learned"] = truth.obsm["true_proportions"]
gpnsf.pl.proportions(truth, key="learned", kind="pies")

# %% [markdown]
# ## From types to niches
#
# Spots whose mixtures are alike make a niche. `gpnsf.tl.domains` finds them from the shares as it does from factors, and squidpy goes on with
# the labels: which niches lie beside each other?

# %%
gpnsf.tl.domains(spots, n_domains=4, key="learned", key_added="niche")
gpnsf.pl.domains(spots, key="learned", key_added="niche")

# %%
sq.gr.spatial_neighbors_knn(spots, n_neighs=6)
sq.gr.nhood_enrichment(spots, cluster_key="niche", seed=0, show_progress_bar=False)
pd.DataFrame(spots.uns["niche_nhood_enrichment"]["zscore"]).round(1)
