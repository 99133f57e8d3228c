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
# # Several sections
#
# Two situations, and what to do in each. First, four sections are analysed together, and one of them differs from the others in a way that may be
# technical: what does `batch_key` change? Second, one section has been fitted, and a new one arrives: `gpnsf.tl.project` finds the same factors in
# it.
#
# Both data sets are measured: four consecutive sections of a breast cancer (Spatial Transcriptomics, RNA), and 31 proteins on two sections of a
# human lymph node (CytAssist). The files `bc_4sections.h5ad` and `hln_protein_2sections.h5ad` are not part of the package. The notebook looks for
# them in the folder that the environment variable `GPNSF_DATA_DIR` names. Without them, simulated sections take their place, so that every cell
# still runs; the remarks on genes, proteins and numbers are then about nothing.

# %%
import os
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.metrics import adjusted_rand_score

import gpnsf

gpnsf.settings.progress = False
folder = Path(os.environ.get("GPNSF_DATA_DIR", ""))


# %%
def simulated_sections(n_sections, *, batch_sd, seed):
    """In place of files that are not there: parts of a simulated tissue, genes of each thinned by rates of its own."""
    rng = np.random.default_rng(seed)
    tissue = gpnsf.datasets.tissue(n_obs=900, n_genes=200, n_spatial=4, seed=seed)["rna"].copy()
    part = np.argsort(np.argsort(tissue.obsm["spatial"][:, 0])) * n_sections // tissue.n_obs
    rates = np.exp(-np.abs(rng.normal(0, batch_sd, (n_sections, tissue.n_vars))))
    tissue.X = rng.binomial(tissue.X.toarray().astype(int), rates[part]).astype("float32")
    tissue.obs["section"] = pd.Categorical([f"S{k + 1}" for k in part])
    return tissue


# %% [markdown]
# ## Four sections of a breast cancer
#
# Spots with hardly any counts go. Genes are chosen by how much they vary *within* sections (`batch_key`), 400 of them to keep this notebook short.

# %%
file = folder / "bc_4sections.h5ad"
if file.is_file():
    cancer = anndata.read_h5ad(file)
    print("measured sections:", cancer.shape)
else:
    cancer = simulated_sections(4, batch_sd=0.5, seed=0)
    print("SIMULATED sections, since", file.name, "is not there:", cancer.shape)

# %%
sc.pp.filter_cells(cancer, min_counts=200)
gpnsf.pp.deviance_features(cancer, n_top=400, batch_key="section")
cancer.obs.groupby("section", observed=True)["n_counts"].describe().round(0)

# %% [markdown]
# ## Sections together, without a word on batches
#
# `library_key` says which spots belong together. All sections share the loadings, so a factor means the same genes in each of them. Where the
# factor lies is up to each section: sections need not be aligned, and none knows of its neighbours.

# %%
gpnsf.tl.fit(cancer, n_factors=6, use_var="highly_deviant", library_key="section", seed=0)

# %%
gpnsf.pl.spatial_factors(cancer)

# %% [markdown]
# Four small maps for each factor, one for each section, in one colour scale. Most factors lie at the same place in all four, although no section
# knows of the others: those of *COL1A1* and *COL3A1* and of *FGB* at the upper edge, that of *PRSS23* and *SCD* in islands (genes are in a table
# below). The largest one, spatial_1, is different: it fills the lower half of L4, and is dimmer in L1 and L2.
#
# How much of each factor is a difference *between* sections? Of consecutive sections of one piece of tissue one expects next to nothing. We compare
# the variance of the means of the four sections with all variance.


# %%
def between_sections(data, labels, key):
    """Mean of each factor in each section, and the share of its variance that lies between sections."""
    fields = pd.DataFrame(data.obsm[f"X_{key}_smooth"], columns=list(data.uns[key]["factor_names"]))
    sections = fields.groupby(data.obs[labels].to_numpy())
    table = sections.mean().T
    table["share between"] = sections.transform("mean").var() / fields.var()
    return table.round(2)


between_sections(cancer, "section", "gpnsf")

# %%
gpnsf.tl.rank_features(cancer, n_features=8).groupby("factor", observed=True)["feature"].agg(
    ", ".join
).to_frame("best genes")

# %% [markdown]
# More than a quarter of the variance of spatial_1 lies between sections: L4 has more than twice as much of it as L1. Nothing
# warned of that. A fit warns of a batch effect only if many genes differ between sections by more than another
# mixture of the same factors can explain. So either L4 has
# more of this tissue, or its RNA was treated differently in a way that looks like it. Make this table whenever you fit several sections.
#
# ## The same with a batch key
#
# `batch_key` gives every gene a multiplier for each section, near 1 unless the counts say otherwise. What differs between sections gene by gene
# then need not become a factor. Here sections and batches are the same column; with three sections on each of two
# slides they would not be. This fit takes one and a half times to twice as long as the one without the key.

# %%
gpnsf.tl.fit(
    cancer,
    n_factors=6,
    use_var="highly_deviant",
    library_key="section",
    batch_key="section",
    key_added="corrected",
    seed=0,
)

# %%
gpnsf.pl.spatial_factors(cancer, key="corrected")

# %%
between_sections(cancer, "section", "corrected")

# %% [markdown]
# The largest factor is now much more even, with .06 of its variance between sections in place of .29, and no factor has more.
#
# Are these still the same factors? The cosine of their loadings, without the key in rows and with it in columns, says so: each has its counterpart,
# at .98 or more (spatial_3 and spatial_4 trade places, since factors are numbered by size). The programmes are the same; what has changed is how much of each a section has.

# %%
used = cancer.var["highly_deviant"].to_numpy()
loadings = [cancer[:, used].varm[f"{key}_loadings"] for key in ("gpnsf", "corrected")]
cosines = [L / np.linalg.norm(L, axis=0) for L in loadings]
pd.DataFrame(
    cosines[0].T @ cosines[1],
    index=cancer.uns["gpnsf"]["factor_names"],
    columns=cancer.uns["corrected"]["factor_names"],
).round(2)

# %% [markdown]
# Where has the difference gone? Into the multipliers. In each section at least half of them are within 15 % of 1; those that differ most are these.

# %%
multipliers = pd.DataFrame(
    cancer.varm["corrected_batch"][used],
    index=cancer.var_names[used],
    columns=cancer.obs["section"].cat.categories,
)
largest = np.log(multipliers).std(axis=1).sort_values(ascending=False).index[:8]
multipliers.loc[largest].round(2)

# %%
multipliers.describe().loc[["min", "25%", "50%", "75%", "max"]].round(2)

# %% [markdown]
# In L4, *IGLL5* (plasma cells), *CD248* and *COL6A2* (stroma) are 1.5 to 1.6 times as high as the factors predict,
# and *B2M* and *SOD2* only .6 times.
#
# Which of the two fits is right? Both explain the counts, and no fit can tell. That the four sections lie next to each other in the tissue speaks
# for the second one: they should be alike. The first fit has this in its favour: another mixture of the same factors
# is enough to explain L4, and no gene needs a correction. Between patients, or before and after
# a treatment, such differences may be the very result that you are after, and a batch key would take them out of the factors. Then leave it out, or
# pass the column of the slide or of the chemistry in its place.
#
# ## Domains across sections
#
# Spots of all sections are divided together, so a domain means the same in each.

# %%
for key in ("gpnsf", "corrected"):
    gpnsf.tl.domains(cancer, n_domains=5, key=key, key_added=f"domain_{key}")
gpnsf.pl.domains(cancer, key="corrected", key_added="domain_corrected")

# %%
pd.concat(
    {
        name: pd.crosstab(cancer.obs["section"], cancer.obs[f"domain_{key}"])
        for name, key in {"without": "gpnsf", "with batch_key": "corrected"}.items()
    },
    axis=1,
)

# %% [markdown]
# Each fit numbers its domains by size, so domain 1 on the left is not domain 1 on the right. Compare the sections
# within the left half, then within the right half. Without the key, the two largest domains trade places from L1 to
# L4: domain 1 goes from 7 spots to 138, domain 2 from 115 to 38. With it, domain 2 has 58 to 99 spots in every section.
# But domain 1 still grows from 48 spots in L1 to 128 in L4, and domain 3 falls from 63 spots to 7. In the map, these two
# share the lower half of L1, and in L4 domain 1 is one block there. So part of the difference is still there when
# genes have been corrected, and may be tissue.
#
# ## A new section at the factors of an old one
#
# 31 proteins on two sections of a lymph node, with regions that experts have drawn. The first section is fitted. Then comes the second one, and it
# should get the same factors, not new ones that have to be matched.
#
# The coordinates of this file are rows and columns of the array. Rows are √3 times as far apart as columns, so the tissue would be squeezed, and a
# fit would say so. They become µm first.

# %%
file = folder / "hln_protein_2sections.h5ad"
if file.is_file():
    node = anndata.read_h5ad(file)
    node.obsm["spatial"] = node.obsm["spatial"] * [50 * 3**0.5, 50]  # rows and columns to µm
    first, second = (node[node.obs["library"] == name].copy() for name in ("A1", "D1"))
    print("measured sections:", first.shape, second.shape)
else:
    node = simulated_sections(2, batch_sd=0.0, seed=1)
    node.obs["region"] = node.obsm["true_factors"].argmax(axis=1).astype(str)
    node.obs["region"] = "factor " + node.obs["region"].astype(object)
    first, second = (node[node.obs["section"] == name].copy() for name in ("S1", "S2"))
    print("SIMULATED sections, since", file.name, "is not there:", first.shape, second.shape)

# %%
gpnsf.tl.fit(first, n_factors=8, seed=0)

# %%
gpnsf.tl.project(second, first)

# %% [markdown]
# The projection takes a few seconds: loadings, backgrounds and length scales stay as they are, and only the maps of
# the new section are sought. The fit warns about the fields (smooth maps) of five factors, and the projection about four
# of these. They change within a few spots, and up to a quarter of their variance is taken for noise of single spots. Maps
# at the spots are adjusted to the counts, but maps between the spots miss the finest detail. Finer fields were tried, as the log says, and undone: with thousands of counts a spot, they would have followed
# the noise of the counts.

# %%
gpnsf.tl.rank_features(first, n_features=4).groupby("factor", observed=True)["feature"].agg(
    ", ".join
).to_frame("best proteins")

# %% [markdown]
# Few of the 31 proteins belong to one kind of cell alone, so factors are mixtures. Four that can be read: spatial_3 has macrophages (*CD68*,
# *CD163*), spatial_4 T cells of the cortex (*CCR7*, *CD3E*), spatial_5 the follicles (*PAX5* of B cells, together with *ITGAX* and *ITGAM*), spatial_7
# vessels (*ACTA2*, *PECAM1*). The first section:

# %%
names = list(first.uns["gpnsf"]["factor_names"])
shown = [names[k] for k in (2, 3, 4, 6)] if file.is_file() else names[:4]
gpnsf.pl.spatial_factors(first, factors=shown, ncols=4)

# %% [markdown]
# And the second one:

# %%
gpnsf.pl.spatial_factors(second, factors=shown, ncols=4)

# %% [markdown]
# The second section lies the other way round, and its follicles and cortex are at the right edge instead of the left one. Nothing had to be
# aligned.
#
# Do the old loadings explain the new counts? They explain .71 of the deviance, against .79 for the counts that they were made from:

# %%
explained = {
    name: gpnsf.tl.evaluate(section, metric="poisson")["explained"].iloc[0]
    for name, section in {"first": first, "second, projected": second}.items()
}
pd.Series(explained, name="explained").to_frame().round(2)

# %% [markdown]
# Does a factor mean the same in both sections? The experts have drawn the regions on each section without looking at factors, so the mean of a
# factor in each region can be compared. Values of the second section are in units of the first, where every factor has mean 1.

# %%
means = pd.concat(
    {
        name: pd.DataFrame(section.obsm["X_gpnsf"], columns=names)[shown]
        .groupby(section.obs["region"].to_numpy())
        .mean()
        for name, section in {"first": first, "second": second}.items()
    },
    axis=1,
)
means.round(1)

# %%
pd.Series({name: means["first"][name].corr(means["second"][name]) for name in shown}).round(2)

# %% [markdown]
# Follicles have most of spatial_5 in both sections, sinuses of spatial_3, cortex of spatial_4, hilum and fat of spatial_7; over all regions the
# means correlate at .93 or better. The second section has more of spatial_5 in every region: other tissue, or an antibody that stained more strongly.
# Because the loadings are fixed, either cause shows up as higher values of the factor. Where that matters, fit the
# two together with `library_key` and `batch_key`, as above.
#
# ## Domains and the regions of experts

# %%
for name, section in {"first": first, "second": second}.items():
    gpnsf.tl.domains(section, n_domains=section.obs["region"].nunique())
    index = adjusted_rand_score(section.obs["region"], section.obs["gpnsf_domain"])
    print(f"{name} section: adjusted Rand index {index:.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
gpnsf.pl.domains(second, key_added="region", ax=axes[0], show=False)
gpnsf.pl.domains(second, ax=axes[1], show=False)
plt.show()

# %% [markdown]
# An index of about .2 is low, and the figure shows why. The experts' medulla (cords and sinuses, more than half of all spots) is a fine mesh that
# they saw in the stained tissue; spots of 55 µm with 31 proteins do not resolve it, and the domains divide the medulla into large areas instead.
# Cortex and the fat outside the capsule are found, each in pieces. Other methods are also weak on these proteins.
# Clusters of principal components reach .12 to .14, and clusters of KL-NMF (nonnegative factorization without
# coordinates) .14 to .16 ([benchmarks](../benchmarks.md#proteins-of-two-lymph-node-sections)). In the comparison with
# other tools, KL-NMF is ahead of gpnsf (.23 and .20, [peers](../benchmarks.md#peers)). The second section, which was
# projected, is
# divided no worse than the one that was fitted.
#
# Note that the numbers of the domains are those of each section by itself. For domains that are shared, fit the sections together, or cluster the
# factors of both at once: they have the same units.
#
# ## Which way?
#
# | situation | way |
# |---|---|
# | sections of one study, of one chemistry | one fit, `library_key` |
# | the same, and genes differ between sections for technical reasons | one fit, `library_key` and `batch_key` |
# | what differs between sections is the question | one fit, `library_key`; then look at the table of means |
# | a new section, when factors of an earlier fit are to stay what they are | `gpnsf.tl.project` |
