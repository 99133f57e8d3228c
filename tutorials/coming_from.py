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
# # Coming from MOFA, MEFISTO, NSF or cNMF
#
# All of these divide a table of counts into a few factors. If you know one of them, this page says what its calls, terms and slots are called here, shows on a
# simulated section what you would look at first, and says where the results are **not** the same thing.
#
# ## What is called what
#
# | | MOFA, MEFISTO (mofapy2, muon, MOFA2) | NSF (code of the paper) | cNMF | gpnsf |
# |---|---|---|---|---|
# | fit | `entry_point()`, `set_..`, `build`, `run`; `mu.tl.mofa` | `ProcessFactorization`, `ModelTrainer` | `prepare`, `factorize`, `combine`, `consensus` | `tl.fit` |
# | input | normalised values; MOFA also counts | counts | counts, scaled inside | raw counts, several modalities |
# | number of factors | `factors=`, unused ones are shrunk to nothing | `L` | `components=` | `n_factors=`, an upper bound |
# | choose the number | drop factors by variance explained | held-out deviance | `k_selection_plot` | `tl.select_n_factors` |
# | spatial, nonspatial | `scale` of each factor, 0 to 1 | first `T` of `L` factors | none | `n_spatial=`, tested; `uns["gpnsf"]["spatial_test"]` |
# | coordinates | `set_covariates`, `set_smooth_options` | `X` | none | `obsm["spatial"]` |
# | approximation | `sparseGP`, `frac_inducing` | inducing points `Z` | none | `field="hilbert"`, or `"inducing"` with `n_inducing=` |
# | factors | `Z`, `obsm["X_mofa"]`; R: `get_factors` | factors | usages | `obsm["X_gpnsf"]` |
# | loadings | `W`, weights, `varm["LFs"]`; R: `get_weights` | loadings | `gene_spectra_tpm` | `varm["gpnsf_loadings"]` of each modality |
# | genes of a factor | R: `plot_top_weights` | loadings, rows sum to 1 | `top_genes` by `gene_spectra_score` | `tl.rank_features`, `pl.top_features` |
# | variance explained | R: `plot_variance_explained` | deviance explained | none | `tl.variance_explained`, `pl.variance_explained` |
# | spatial importance | none | `interpret_npfh` | none | `var`, `obs["gpnsf_spatial_importance"]` |
# | samples, batches | groups | none | `Preprocess` (Harmony) | `library_key=`, `batch_key=` |
# | between the spots | `predict_factor`; R: `interpolate_factors` | `sample_latent_GP_funcs` | none | `tl.predict`, `pl.spatial_map` |
# | gene sets | R: `run_enrichment` | none | none | `tl.enrich` |
# | missing modality | R: `impute` | none | none | `tl.impute` |
# | new data | none | none | starCAT | `tl.project` |
# | the method itself | `tl.mefisto` (extra `mefisto`) | `model="nsf"`, `"nsfh"`, `split="assumed"`, `refine=False` | none; `model="pnmf"` is its nearest relative | `model="gpnsf"` |

# %%
from importlib.util import find_spec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import gpnsf

gpnsf.settings.progress = False

# %% [markdown]
# ## One simulated section
#
# 600 spots with RNA and open chromatin; three factors follow the tissue, two vary from spot to spot. Eight factors are asked for, three too many, as one would who does not know.

# %%
mdata = gpnsf.datasets.tissue(
    n_obs=600,
    n_genes=200,
    n_peaks=300,
    n_spatial=3,
    n_nonspatial=2,
    rna_depth=3000,
    atac_depth=150,
    lengthscales=(0.15, 0.3),
    amplitude=1.2,
    seed=2,
)
gpnsf.tl.fit(mdata, n_factors=8)
mdata.uns["gpnsf"]["factor_names"]

# %% [markdown]
# Three spatial factors were found, as many as there are, and five nonspatial ones where there are two. `n_factors` is an upper bound, but a soft one: factors are dropped that hold next to no counts, repeat
# another one, or leave no trace in counts that were held back; small ones may stay. We will see which three of them are small.
#
# The first two messages are about short trial fits that find the number of spatial factors. The next two give the
# weight of each modality (.98 for RNA, 1.00 for ATAC). The fifth says that finer maps were tried, and undone, since they
# did not fit better. The sixth is about the result. `spatial_1` changes over shorter distances than the grid
# behind the fit can follow, so a tenth of its variance is taken for noise of single spots. A figure below shows what that looks like.
#
# ## If you come from MOFA
#
# The first figure is the variance that each factor explains in each modality. Here it is deviance, the analogue of
# variance for counts: 100 % would be all differences between spots, noise included. Most of the variation of single
# counts is noise, so small percentages are normal.

# %%
gpnsf.pl.variance_explained(mdata)

# %% [markdown]
# The five factors on the left explain 6 to 13 % of the RNA and 0.6 to 3.2 % of the peaks, which are sparser. The three on the right explain 2 to 6 % of the RNA and next to nothing of the peaks. Those are the
# superfluous ones. "(rna)" says that a factor is a matter of one modality alone, which in MOFA would be a factor active in one view.
#
# Next come the top weights. Loadings are nonnegative here, so there are no negative weights to be plotted apart.

# %%
gpnsf.pl.top_features(mdata, factors=["spatial_1", "spatial_2", "spatial_3"], n_features=8, ncols=3)

# %% [markdown]
# Four genes (blue) and four peaks (orange) for each factor, best first. Features are ordered by a cautious ratio: how
# many times more of the feature the factor has than the whole section, at least (with 95 % probability). Ordering by
# the size of the weight would put the abundant genes at the top of every list. `method="loading"` of
# `tl.rank_features` gives the plain order of weights.
#
# ## If you come from MEFISTO
#
# First the factors over the tissue, and how smooth each is. `tl.mefisto` runs mofapy2 on the same object, where it is installed, so that both can be read by the same functions.

# %%
gpnsf.pl.spatial_factors(mdata, ncols=4)

# %%
has_mefisto = find_spec("mofapy2") is not None
if has_mefisto:
    gpnsf.tl.mefisto(mdata, n_factors=8, n_inducing=100)
    gpnsf.pl.spatial_factors(mdata, key="mefisto", factors=[0, 1, 2, 3], ncols=4)
else:
    print("mofapy2 is not installed: pip install 'gpnsf[mefisto]'")

# %% [markdown]
# Our factors are amounts, from none (black) to several times the mean. MEFISTO's are directions: red is more than average, blue is less, and which of them is red is arbitrary. The same three patterns can be seen in
# both figures: the patch on the right (`spatial_3`, `factor_1`), the one in the middle (`spatial_2`, `factor_3`), the
# one at the lower left (`spatial_1`, `factor_4`). MEFISTO's maps are smoother, because its kernel (the rule for how
# similar near spots must be; here squared exponential) assumes very smooth maps. `factor_2` has no smooth map: its
# `scale` is 0 (table below).
#
# The section is simulated, so both can be held against the truth. The size factor of a spot is its total count, so
# our factors are relative to that total. The true factors are divided by the expected RNA total of the spot, to be
# comparable.

# %%
truth = mdata.obsm["true_factors"]
truth = truth / (truth @ mdata["rna"].varm["true_loadings"].sum(axis=0))[:, None]
names = [
    "true spatial 1",
    "true spatial 2",
    "true spatial 3",
    "true nonspatial 1",
    "true nonspatial 2",
]


def correlations(key):
    """Correlation of each true factor with each factor that was found and varies."""
    factors = gpnsf.tl.factor_adata(mdata, key=key).to_df()
    factors = factors.loc[:, factors.std() > 1e-6]
    return pd.DataFrame(
        np.corrcoef(truth, factors, rowvar=False)[: len(names), len(names) :],
        names,
        factors.columns,
    )


correlations("gpnsf").round(2)

# %%
correlations("mefisto").round(2) if has_mefisto else None

# %% [markdown]
# In the first table each true factor has one column with .95 or more, and that column is close to no other. In the second, the spatial ones have .90, .86 and .72, and the two nonspatial ones share an axis:
# `factor_2` has one of them at its positive end (.83) and the other at its negative end (-.66). A signed factor can do that, which is economical and makes it hard to read gene by gene; a nonnegative one cannot.
# On the other hand, MEFISTO has shrunk three of its eight factors to exactly nothing (they are left out of the table), which is what one would like, while ours has kept three small ones.
#
# This is no race. The section is simulated from nonnegative factors and counts, which is our model and not MEFISTO's. The benchmarks compare both, and others, on measured sections too.
#
# How spatial is each factor? In `gpnsf` that is a test: do held-out counts of a spot resemble those of its neighbours?

# %%
ours = mdata.uns["gpnsf"]
pd.DataFrame(
    {
        "length scale": ours["kernel"]["lengthscale"].round(),
        "z": ours["spatial_test"]["z"].round(1),
    },
    index=ours["factor_names"],
)

# %%
if has_mefisto:
    theirs = mdata.uns["mefisto"]
    table = pd.DataFrame(
        {
            "length scale": theirs["kernel"]["lengthscale"].round(),
            "scale": theirs["kernel"]["scale"].round(2),
        },
        index=theirs["factor_names"],
    )
table if has_mefisto else None

# %% [markdown]
# The spatial factors have z above 20, the others below 3, the least that counts as spatial order. `nonspatial_5` has 2.9; one should not read much into that. In MEFISTO the smoothness is a
# parameter of the fit, `scale`, from 0 to 1: no test, and `factor_5` has .81 although it explains hardly anything. Length scales cannot be compared, since the kernels differ.
#
# Interpolation is the other thing that MEFISTO is used for.

# %%
gpnsf.pl.spatial_map(mdata, factors=["spatial_1", "spatial_2", "spatial_3"], ncols=3)

# %% [markdown]
# The fields between the spots, on a fine grid. `spatial_3` is a clear patch with little around it. `spatial_1` is patchy, with faint ripples: this is what the warning after the fit meant. The field is asked for more detail than it can follow, and
# the ripples should not be interpreted. Its values at the spots, in the maps above, do not have them, since each spot is adjusted to its own counts afterwards.
#
# ## If you come from NSF
#
# NSFH was made to give the spatial importance of each gene: the share of its expected signal that comes from spatial
# factors, from 0 to 1 (the background is not counted).

# %%
gpnsf.pl.importance(mdata)

# %%
for name, modality in mdata.mod.items():
    error = modality.var["gpnsf_spatial_importance"] - modality.var["true_spatial_importance"]
    print(f"{name}: mean error of the importance {error.abs().mean():.2f}")

# %% [markdown]
# Most genes are found at the right place between 0 and 1; of peaks, which have few reads, less is known. In the
# histograms, many genes are close to 1. Peaks spread over the whole range, and most often have about .75 to .85. The
# map shows where most of the signal comes from spatial factors (yellow) and where it does not (dark): in the dark
# area at the top all three spatial factors are below their mean.
#
# `interpret_npfh` of the paper's code computes the same share for the factors that it has been told are spatial, the first `T` of `L`, half of them by default. Here the number is tested. The published model is
# `tl.fit(data, "nsfh", n_factors=L, n_spatial=T, split="assumed", refine=False)`. Loadings whose rows sum to 1, as in the paper's figures, are the column `share` of `tl.rank_features`, and what `pl.loadings` draws.
#
# ## If you come from cNMF
#
# Usages are factors times the total loading of each, divided by their sum: what share of the spot's RNA belongs to which programme.

# %%
factors = gpnsf.tl.factor_adata(mdata)
usage = factors.to_df() * mdata["rna"].varm["gpnsf_loadings"].sum(axis=0)
usage = usage.div(usage.sum(axis=1), axis=0)
order = np.lexsort((-usage.max(axis=1), usage.to_numpy().argmax(axis=1)))

# %%
fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
image = ax.imshow(usage.to_numpy()[order].T, aspect="auto", cmap="magma", interpolation="none")
ax.set_yticks(range(usage.shape[1]), usage.columns)
ax.set_xlabel("spots, by the factor that they use most")
bar = fig.colorbar(image, label="usage")

# %% [markdown]
# Each column is a spot; spots are sorted by the factor that they use most. In all five blocks the brightest spots are few, and most spots share their RNA between two or three factors, as mixtures of cells do.
# `nonspatial_3` to `nonspatial_5` have almost no spot for themselves. That part of the RNA which is the same everywhere, the background, belongs to no factor and is left out here; cNMF has no background, so
# there a programme that all cells use often takes its place.
#
# The genes of each programme (GEP):

# %%
ranked = gpnsf.tl.rank_features(mdata, modality="rna", n_features=5)
ranked.groupby("factor", observed=True)["feature"].agg(", ".join).to_frame("top genes")

# %% [markdown]
# cNMF orders genes by `gene_spectra_score`, a regression coefficient of z-scored expression; our order is by the
# cautious ratio explained above. Both put specific genes before abundant genes.
#
# ## What is not the same
#
# - **Raw counts.** The noise is part of the model, so pass counts, not normalised values; those are refused. MOFA, MEFISTO and cNMF expect normalised values or scale the counts themselves.
# - **Nonnegative.** A factor adds; it cannot take away. "Less of a gene here" has to be said as "more of it elsewhere". In return a factor is one programme and not a contrast of two, and there is no sign to be turned.
# - **Rotation.** MOFA's Gaussian factors can be rotated into each other, and only the sparse prior on weights holds them in place. Nonnegative factors cannot be rotated freely, but two that always occur together come out as one.
# - **K is an upper bound**, softer than in MOFA, as seen above. `tl.select_n_factors` recommends a number by held-out counts, as a `k_selection_plot` does by stability and error.
# - **One fit, not a consensus.** cNMF runs a hundred factorisations and clusters them. Here the best of a few starts is taken. Try a second `seed=` before you rely on a small factor.
# - **Space is tested**, not assumed, unless you pass `split="assumed"`.
# - **What has no counterpart here**: aligning time courses or sections (`warping` of MEFISTO), factors that are active in some groups only (MOFA), and bulk data with few samples and continuous values. Stay with MOFA for these.
