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
# A spot of a section holds several cells. Which cell types are in each spot, and in what proportions? Deconvolution answers this with
# a reference of single cells of the same tissue. The spots here are simulated, so every answer can be compared with the truth.

# %%
import pandas as pd
import squidpy as sq

import gpnsf

gpnsf.settings.progress = False

# %% [markdown]
# ## The data
#
# The spots have 100 counts each, which is few even for Visium. The reference has 30 cells for each of five types. Both are raw counts. With your
# own data, you would call `anndata.read_h5ad` twice.

# %%
spots, cells = gpnsf.datasets.mixture(n_obs=225, n_genes=200, n_types=5, depth=100.0, seed=0)
print(spots.shape, cells.shape, cells.obs["cell_type"].unique().tolist())

# %% [markdown]
# ## Spots by themselves, and with their neighbours
#
# Nonnegative least squares (`method="nnls"`) estimates each spot by itself. The default method pulls the proportions of neighbouring spots towards each other,
# which averages out noise. The argument `spatial_weight` sets how strongly. The table compares each result with the
# truth. `relative_error`, `rmse` and `jsd` (distance between distributions) should be low; `pcc` (Pearson
# correlation) and `ssim` (similarity of the maps) should be high. The relative error falls from .331 to .290 and
# .228.

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
# Without a truth nobody can tell which weight is best. But we know the profiles of the types, the places and depths of the spots, and, from least squares,
# roughly how smooth and how mixed the section is. So we can simulate similar sections, of which the truth is known. `method="unrolled"` does this.
# Each step of the least-squares algorithm becomes a layer of a neural network. The network learns its parameters from
# the simulated sections, so you do not choose a spatial weight. No labels are
# needed, and the network does not see the truth of our spots. `uncertainty=True` adds a standard deviation to each proportion; it works with every method.

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
# The learned network is a dictionary of plain arrays. It is saved with the object. You can use it for other sections of the same kind
# without training again.

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
# The standard deviations are those of the errors that the method makes on simulated sections like ours. The column `coverage` above is the
# share of true proportions within 1.645 standard deviations of the estimate; it should be about 90 %. The standard deviations account for
# low counts, but not for wrong profiles: if the reference lacks a type, they do not show it.

# %%
shares = pd.DataFrame(
    {"share": spots.obsm["X_learned"][0], "sd": spots.obsm["X_learned_std"][0]},
    index=spots.uns["learned"]["types"],
)
shares.round(3)

# %% [markdown]
# ## Looking at them
#
# The maps have one panel for each type, with its mean proportion below the name.

# %%
gpnsf.pl.proportions(spots, key="learned", ncols=5)

# %% [markdown]
# With a few hundred spots, pie charts show all types at once. The second figure shows the truth.

# %%
gpnsf.pl.proportions(spots, key="learned", kind="pies")

# %%
truth = spots.copy()
truth.obsm["X_learned"] = truth.obsm["true_proportions"]
gpnsf.pl.proportions(truth, key="learned", kind="pies")

# %% [markdown]
# ## From types to niches
#
# Spots with similar proportions form a niche. `gpnsf.tl.domains` finds niches from proportions as it finds domains
# from factors. squidpy then tests which niches are neighbours. Rows and columns 0 to 3 of its table are niches 1 to
# 4. Only the diagonal is positive: spots are next to spots of their own niche more often than by chance, and next to
# other niches less often.

# %%
gpnsf.tl.domains(spots, n_domains=4, key="learned", key_added="niche")
gpnsf.pl.domains(spots, key="learned", key_added="niche")

# %%
sq.gr.spatial_neighbors_knn(spots, n_neighs=6)
sq.gr.nhood_enrichment(spots, cluster_key="niche", seed=0, show_progress_bar=False)
pd.DataFrame(spots.uns["niche_nhood_enrichment"]["zscore"]).round(1)
