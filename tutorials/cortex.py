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
# # A cortex section with RNA and ATAC
#
# The section is **semi-synthetic**: the counts are real, RNA and open chromatin of the same cells of mouse cortex (SNARE-seq), but the cells were
# not measured where they lie here. Each was put at the place of a cell of the same type in another section of cortex (osmFISH), and cells within
# the same square of 60 µm were added up. So layers, cell types and their genes are real, and so is the noise; what varies *within* a cell type from
# place to place is not there. Nobody should draw conclusions on biology from it. It shows the way from raw counts of two modalities to factors,
# peaks and regions.
#
# The file `semi_cortex_spots.h5mu` (602 spots, 1,591 genes, 10,910 peaks) is not part of the package. The notebook looks for it in the folder that
# the environment variable `GPNSF_DATA_DIR` names. Without it a simulated tissue takes its place, so that every cell still runs; remarks on genes
# and layers are then about nothing.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import mudata
import pandas as pd
import scanpy as sc
import squidpy as sq
from sklearn.metrics import adjusted_rand_score

import gpnsf

mudata.set_options(pull_on_update=False)
gpnsf.settings.progress = False

# %%
file = Path(os.environ.get("GPNSF_DATA_DIR", "")) / "semi_cortex_spots.h5mu"
there = file.is_file()
if there:
    mdata = mudata.read_h5mu(file)
    pairs = mdata["atac"].uns["gene_peak_links"]
    title = "Semi-synthetic cortex"
else:
    mdata = gpnsf.datasets.tissue(n_obs=600, n_genes=300, n_peaks=600, seed=0)
    main = mdata.obsm["true_factors"].argmax(axis=1)
    mdata.obs["region"] = pd.Categorical([f"factor {k + 1}" for k in main])
    pairs = mdata.uns["true_links"]
    title = f"SIMULATED tissue, since {file.name} is not there"
print(title, {name: modality.shape for name, modality in mdata.mod.items()})

# %% [markdown]
# ## Quality control
#
# Each modality has its own quality control, and a spot has to pass both. The spots of this file were put together from cells that had passed
# before, so nothing has to go: each spot has at least 77 RNA counts and 17 fragments. With your own section, look at this table first and set the two
# limits below. Counts stay raw.

# %%
for modality in mdata.mod.values():
    sc.pp.calculate_qc_metrics(modality, percent_top=None, log1p=False, inplace=True)
totals = pd.DataFrame({name: mod.obs["total_counts"] for name, mod in mdata.mod.items()})
totals.describe().round(0)

# %%
mdata = mdata[((totals["rna"] >= 50) & (totals["atac"] >= 15)).to_numpy()].copy()
print(mdata.n_obs, "spots are left")

# %% [markdown]
# ## Genes and peaks
#
# Half of the peaks are open in fewer than 15 of the 602 spots. They cost time and say little about where anything lies. `deviance_features` asks,
# on raw counts, how far each feature is from being the same everywhere, and marks the 2,000 that are farthest in each modality: here all genes and
# a fifth of the peaks. Peaks that are left out get loadings of zero.

# %%
gpnsf.pp.deviance_features(mdata, n_top=2000)
{name: int(modality.var["highly_deviant"].sum()) for name, modality in mdata.mod.items()}

# %% [markdown]
# ## The fit
#
# One fit for both modalities: every factor has loadings on genes and on peaks. Ten factors are an upper bound, and a test on held-out counts
# decides which of them are spatial.

# %%
gpnsf.tl.fit(mdata, n_factors=10, use_var="highly_deviant", seed=0)
print(*mdata.uns["gpnsf"]["factor_names"])

# %% [markdown]
# Not all ten are left. Some messages came on the way; these four matter.
#
# - *Modality 'atac' holds values other than 0 and 1.* A peak counts as open or closed. Spots hold several cells, so a peak with three fragments may
#   be open in three cells, and that is lost. We leave it so, because 93 % of the counts above 0 are 1; in deeper spots
#   `likelihoods={"atac": "poisson"}` would keep it.
# - *weight of atac*: the modalities weigh by what held-out counts confirm of their loadings, genes 1 and peaks .14. Most of what 2,000 sparse peaks
#   seem to say is noise, so the factors follow the genes, and the peaks help. Nothing has to be done.
# - *finer fields, 65 basis functions per axis*: the oligodendrocytes below, among others, change within the distance of two spots (60 µm), which the
#   smooth fields of the beginning could not follow. The fit made them finer, since that raises the objective. Nothing has to be done.
# - *2 spatial factors as nonspatial ones*: two factors began with a smooth map, but changed from spot to spot. The fit was better without their
#   maps, so they are called nonspatial. Nothing has to be done.
#
# ## The factors

# %%
figure = gpnsf.pl.spatial_factors(mdata, ncols=4, return_fig=True)
figure.suptitle(title, y=1.05)
plt.show()

# %% [markdown]
# The narrow part at the top is white matter, the lower edge is the surface of the brain. Most spatial factors are bands between these two, and two
# are glia. The nonspatial ones are single spots all over the tissue: in held-out counts, a spot with much of such a factor
# has neighbours that are hardly more like it than by chance.
#
# ## Marker genes

# %%
best = gpnsf.tl.rank_features(mdata, modality="rna", n_features=7)
best.groupby("factor", observed=True)["feature"].agg(", ".join).to_frame("best genes")

# %% [markdown]
# The genes say what the factors are. *Cux2* and *Unc5d*: upper layers; *Hs3st4* and *Foxp2*: layer 6; *Plp1* and *Mbp*: oligodendrocytes; *Slc1a2*
# and *Slc1a3*: astrocytes; *Nxph1* and *Adarb2*: two families of interneurons, which are sparse in all layers. Two bands are told better by their
# maps than by their genes: the one with *Il1rapl2* is layer 4, and the weaker one with *Tox* and *Tenm3*, between layers 4 and 6, is layer 5.
#
# How far to trust that? Layer 5 is the weak point: it is thin, has few spots, and its factor is the smallest of the spatial ones. An earlier version of
# this fit, which differed in details of the search only, gave it no factor, and its spots went into the others. So compare fits with several values
# of `seed` before you say that a layer has a programme of its own, or that it has none.
#
# ## Genes and peaks of a factor
#
# Beside the factor, the counts of each spot divided by its size factor (peaks: open or closed): two genes and two peaks for white matter, for astrocytes and for layer 6. We name these
# factors by a marker gene of each, since their numbers may change from fit to fit.

# %%
names = list(mdata.uns["gpnsf"]["factor_names"])
top = mdata["rna"].var["gpnsf_top_factor"]
shown = top[["Plp1", "Slc1a2", "Hs3st4"]].tolist() if there else names[:3]
figure = gpnsf.pl.feature_maps(mdata, factors=shown, n_features=4, return_fig=True)
figure.suptitle(title, y=1.02)
plt.show()

# %% [markdown]
# Genes follow their factor well. Peaks do so less: each is seen open or closed, and a spot of the right place may well show it closed. Those of
# white matter (upper row) are open mostly there: most of their expected signal comes from this factor. Those of layer 6 (lower row) are
# open in many other places too, but more densely in the band.
#
# How many peaks can be told to belong to a factor? A score above 0 says that the factor has more of the peak than the section has, as far as its
# counts can tell.

# %%
peaks = gpnsf.tl.rank_features(mdata, modality="atac", n_features=mdata["atac"].n_vars)
certain = peaks[peaks["score"] > 0]
certain.groupby("factor", observed=False).size().reindex(names, fill_value=0).to_frame("peaks")

# %% [markdown]
# Oligodendrocytes have about a hundred such peaks, astrocytes about eighty, layers 2-3 and layer 6 some forty each, layer 4 and the interneurons
# ten to thirty. Layer 5, the weakest of the bands, has none: the neurons of the layers share most of their open chromatin, and at a few hundred
# fragments a spot most differences are not seen peak by peak. That is a reason to fit both modalities at once: genes find the factor, and its peaks follow.
#
# ## Links between genes and peaks
#
# The file says which peaks lie in which gene. Which of these go with their gene over the tissue? The score of a pair is the cosine of the profiles
# of the two over factors.

# %%
gpnsf.tl.link_peaks(mdata, pairs=pairs)
mdata.uns["gpnsf_links"].head(8).round(4)

# %% [markdown]
# Two columns disappoint. No `q` is small: with so few factors, many pairs agree by chance, so read the table as a ranking. And `distance` is empty,
# because the file does not say where genes begin.
#
# Places of genes are in the annotation that reads were counted with: `annotation="genes.gtf.gz"` reads it. Here a table of six genes will do, with
# the start of each in the genome mm10 (RefSeq). With places, all peaks within 150 kb of the start are looked at, in the gene or not.

# %%
places = pd.DataFrame(
    [
        ("Unc5d", "chr8", 29219636, "-"),
        ("Cux2", "chr5", 122049851, "-"),
        ("Pdzrn3", "chr6", 101377897, "-"),
        ("Hs3st4", "chr7", 123983181, "+"),
        ("Mbp", "chr18", 82475123, "+"),
        ("Slc1a2", "chr2", 102658689, "+"),
    ],
    columns=["gene", "chrom", "start", "strand"],
).assign(end=lambda table: table["start"])
if not there:
    places = None  # simulated genes have theirs in var

# %%
gpnsf.tl.link_peaks(mdata, annotation=places)
near = mdata.uns["gpnsf_links"].sort_values("score", ascending=False, ignore_index=True)
near[["gene", "peak", "distance", "score"]].head(10).round(2)

# %% [markdown]
# Now there are distances, and a warning: with six genes there is little to compare a pair with, so its `p` could not be small whatever the score.
# With the whole annotation and `genes=` it could. We read the scores. One gene along the genome:

# %%
gpnsf.pl.links(mdata, "Mbp" if there else near["gene"][0], annotation=places, min_score=0.5)

# %% [markdown]
# The blue arrow is the start of *Mbp*; its body is not drawn, since our table has starts only. Arcs lead to the peaks whose profile agrees with the
# gene (score above .5), grey ticks are the other peaks near it. The dark arc, with a score of .99, ends 79 kb away. That is no distant enhancer:
# the short transcripts that make the myelin basic protein of oligodendrocytes begin there, at 82.554 Mb. In the table above, the promoter itself
# (within 200 bases of the start) is among the best peaks of *Pdzrn3*, *Slc1a2* and *Unc5d*; *Cux2* has only one that is far inside the gene, and
# *Hs3st4* has none within 150 kb. Whether a peak regulates its gene, no cosine can tell.
#
# ## Domains and the known layers
#
# Spots whose expected expression is alike make a domain, and a spot between two domains goes with its neighbours. We ask for eight, since the
# section has eight annotated regions.

# %%
gpnsf.tl.domains(mdata, n_domains=8)
labels = mdata.obs[["region", "gpnsf_domain"]].astype(str)
print(f"adjusted Rand index: {adjusted_rand_score(labels['region'], labels['gpnsf_domain']):.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4.5))
gpnsf.pl.domains(mdata, key_added="region", ax=axes[0], show=False)
gpnsf.pl.domains(mdata, ax=axes[1], show=False)
figure.suptitle(title)
plt.show()

# %%
pd.crosstab(labels["region"], labels["gpnsf_domain"])

# %% [markdown]
# Layers 2-3, 4, 5 and 6 and white matter each have a domain that holds most of their spots. That of layer 5, the thin band, is the least sure: four
# in ten of its spots are of other regions, mostly of layer 6. What is not found: *lateral*, *medial* and *3-4*, which hold the same types of
# neurons, so nothing tells them apart. White matter is in three parts: its upper end (domain 4), its thin left end (6), and spots between them
# with many astrocytes (7). Of the surface (*Pia Layer 1*), where astrocytes are too, the right end is a domain (8), and the rest goes with layers 2-3. The
# index counts all of that as errors. Annotations were drawn by region; domains follow counts and neighbours.
#
# ## On with squidpy
#
# `factor_adata` has one column per factor, with coordinates and labels, so what squidpy does with genes it does with factors. Which domains lie
# beside each other?

# %%
factors = gpnsf.tl.factor_adata(mdata)
sq.gr.spatial_neighbors_knn(factors, n_neighs=6)
sq.gr.nhood_enrichment(factors, cluster_key="gpnsf_domain", seed=0, show_progress_bar=False)
z = factors.uns["gpnsf_domain_nhood_enrichment"]["zscore"]
domain = factors.obs["gpnsf_domain"].cat.categories
pd.DataFrame(z, index=domain, columns=domain).round(0)

# %% [markdown]
# A positive z says that two domains touch more often than if their labels were shuffled. On the diagonal all are: domains hold together. Beside it,
# layers have negative values even with the layer next to them, since they meet along one line only. The positive ones are small:
# the thin end of white matter (6) lies along layer 6 (3) and touches the part with astrocytes (7).
#
# How smooth is each factor? Moran's I is 1 where neighbours are equal and 0 where they know nothing of each other.

# %%
sq.gr.spatial_autocorr(factors, mode="moran")
factors.uns["moranI"].loc[names, ["I", "pval_norm"]].round(3)

# %% [markdown]
# The bands have about .7, glia follow, and the interneurons are near zero.
#
# ## Peaks of a factor as regions
#
# Tools for motifs and regulons, such as SCENIC+, take sets of regions as BED files: one file for each set, in one folder. Positions come from `var`
# of the peaks.

# %%
folder = Path(tempfile.mkdtemp()) / "region_sets" / "factors"
folder.mkdir(parents=True)
for name, group in certain.groupby("factor", observed=True):
    regions = mdata["atac"].var.loc[group["feature"], ["chrom", "chromStart", "chromEnd"]]
    regions.to_csv(folder / f"{name}.bed", sep="\t", header=False, index=False)
{file.name: len(file.read_text().splitlines()) for file in sorted(folder.iterdir())}

# %%
print(*(folder / f"{shown[0]}.bed").read_text().splitlines()[:3], sep="\n")

# %% [markdown]
# Sets of a hundred regions are something to look for motifs in; sets of forty or fewer, as the layers have, are hardly. For those, fit more peaks
# (all of them take two to three times as long), or take the best few hundred by `method="share"` and treat them as a ranking.
#
# ## Where to go on
#
# `mdata.write("fitted.h5mu")` keeps all of it. `gpnsf.tl.select_n_factors` checks the number of factors, several seeds give a consensus of domains
# (`consensus=` of `gpnsf.tl.domains`), `gpnsf.pl.report` writes a page with all figures. With more than one section, go on with
# [several sections](several_sections.ipynb).
