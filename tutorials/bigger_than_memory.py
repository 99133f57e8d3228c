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
# # Bigger than memory
#
# A section with a million cells may not fit into the memory of a laptop, and a long fit may be interrupted. This
# notebook shows, on a small simulated
# section, what changes then: counts that stay in their file, a forecast of memory and time, a fit that goes on after an interruption, and a fit that several processes share. Everything is
# small enough to run in a minute, so nothing here is really bigger than memory; the commands are those for data that are.

# %%
import os
import subprocess
import sys
import tempfile
import threading
from _thread import interrupt_main

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import gpnsf

gpnsf.settings.progress = False
os.chdir(tempfile.mkdtemp())  # files of this notebook are written into an empty folder

# %% [markdown]
# ## A section in a file
#
# 1,500 spots with 200 genes, three spatial patterns and a nonspatial one. Counts in a file should be stored by rows (CSR), as almost all pipelines write them: then
# a block of spots can be read without the others.

# %%
section = gpnsf.datasets.tissue(
    n_obs=1500,
    n_genes=200,
    n_peaks=10,
    n_spatial=3,
    n_nonspatial=1,
    rna_depth=800,
    dispersion=None,
    lengthscales=(0.1, 0.3),
    seed=1,
)["rna"]
section.write_h5ad("section.h5ad")
print(f"{section.n_obs} spots, {section.X.nnz:,} counts that are not zero")

# %% [markdown]
# ## What will it take?
#
# To have something larger to ask about, a hundred copies of the section are laid side by side: 150,000 spots. Nobody would fit this, but a forecast only looks at how many spots,
# genes and counts there are. `gpnsf.tl.forecast` takes the arguments of the fit; on the command line it is `gpnsf forecast large.h5ad --n-factors 20`.

# %%
width = np.ptp(section.obsm["spatial"], axis=0) + 100
places = [section.obsm["spatial"] + width * [copy % 10, copy // 10] for copy in range(100)]
large = anndata.AnnData(sp.vstack([section.X] * 100, format="csr"))
large.obsm["spatial"] = np.concatenate(places)
large.write_h5ad("large.h5ad")

# %%
in_memory = gpnsf.tl.forecast(large, n_factors=20)
in_memory

# %% [markdown]
# The parts are not all needed at the same time, so the peak is less than their sum. Three ways of fitting the same data, then: the object in memory; the path of the file, with
# 50 MB set aside for counts; and the path with small blocks of rows as well.

# %%
gpnsf.settings.memory_budget = 50e6  # bytes
ways = {
    "in memory": in_memory,
    "from the file": gpnsf.tl.forecast("large.h5ad", n_factors=20),
    "from the file, blocks of 2,000 spots": gpnsf.tl.forecast(
        "large.h5ad", n_factors=20, block_size=2000
    ),
}
pd.DataFrame(
    {
        "memory, MB": {way: found.memory / 1e6 for way, found in ways.items()},
        "time, s": {way: found.seconds for way, found in ways.items()},
    }
).round()

# %%
parts = pd.DataFrame({way: found.parts for way, found in ways.items()}) / 1e6
ax = parts.plot.barh(figsize=(7, 5), width=0.8, color=["0.75", "#56b4e9", "#0072b2"])
ax.set(xlabel="MB", title="What takes memory, part by part")
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Each group of bars is one part of the work, with one bar for each of the three ways. To read counts from the file saves less than one might hope (blue): they are
# about a fifth of the peak, since this section is shallow. Blocks of spots are a little smaller there, too. The longest bars belong to steps that work on one block of
# spots at a time, above all the local stage (each spot is adjusted to its own counts). By default blocks are large,
# because that is faster. Small blocks (dark blue) shrink them, and counts as well, because a block is in
# memory while it is read: the peak falls from 684 to 345 MB. The cost is time: the forecast is 128 s instead of 78 s.
# Parameters and outputs take the same memory in all three ways. It grows with the number of spots times the number of
# factors. There only
# fewer factors help. "Sample" and "starts" belong to a short fit
# of some of the spots, with which the fit of a large section begins; they do not grow any more.
#
# Every fit makes the same forecast. It stops with an error before it begins if it would need more than one and a half
# times the memory that is available. Expect memory to be right within 30 %, and time within a factor of two.

# %% [markdown]
# ## A fit from the file
#
# The path takes the place of the object. Here a megabyte is set aside for counts, less than there are, so most blocks are read again at every step. The slots of the fit are
# written into the file; its counts and annotations stay as they are. The noise of this simulation is Poisson noise, and its number of factors is known, so both are passed.

# %%
gpnsf.settings.memory_budget = 1e6
options = {"n_factors": 4, "n_spatial": 3, "split": "assumed", "likelihoods": "poisson"}
gpnsf.tl.fit("section.h5ad", **options, block_size=500)

# %% [markdown]
# Opened with `backed="r"`, the counts stay in the file, and only the results are in memory. All tools and figures take such an object.

# %%
backed = anndata.read_h5ad("section.h5ad", backed="r")
gpnsf.pl.spatial_factors(backed, ncols=4)

# %% [markdown]
# Four panels as after any fit. The three spatial patterns are smooth; the nonspatial factor looks like noise with a shade of order in it: each factor is
# relative to the total counts of its spot, and these totals follow the tissue.

# %% [markdown]
# ## An interruption
#
# With `checkpoint=` a fit keeps its state in a small file. This time the section is in memory, and after a second and a half something presses Ctrl-C.

# %%
gpnsf.settings.memory_budget = None  # back to the default: a quarter of the memory
threading.Timer(1.5, interrupt_main).start()
try:
    gpnsf.tl.fit(section, **options, block_size=500, checkpoint="fit.npz")
except KeyboardInterrupt:
    print("stopped; slots of a fit in the object:", "gpnsf" in section.uns)

# %% [markdown]
# The object is as it was before. The message says at which step the fit stopped, and in which phase ("pick": several
# starts are tried for a few steps each; "main": the best one goes on). The state at that step is in the checkpoint.
# The same call goes on where the first one stopped, also in a new session or after a crash, and removes the file when
# it has finished.

# %%
gpnsf.tl.fit(section, **options, block_size=500, checkpoint="fit.npz")

# %%
difference = np.abs(section.obsm["X_gpnsf"] - backed.obsm["X_gpnsf"]).max()
print(
    "largest difference from the fit that read the file and was not interrupted:", float(difference)
)

# %% [markdown]
# Not a single bit differs: reading from a file and stopping in between have no influence on the result. That holds with the same `block_size` on the same machine; other blocks add
# numbers in another order, which changes the last digits.
#
# ## Several processes
#
# `torchrun`, which comes with torch, starts processes that share one fit. Each reads its own rows. On a cluster they may run on several machines that see the same file; the user guide
# has the lines for Slurm. Here two processes fit the same file; in a terminal the command would be
#
# ```bash
# torchrun --nproc-per-node=2 -m gpnsf fit section.h5ad two.h5ad --n-factors 4 --n-spatial 3 --split assumed \
#   --likelihoods poisson --block-size 500
# ```

# %%
command = """-m torch.distributed.run --nproc-per-node=2 -m gpnsf fit section.h5ad two.h5ad --n-factors 4
    --n-spatial 3 --split assumed --likelihoods poisson --block-size 500"""
subprocess.run(
    [sys.executable, *command.split()],
    env={**os.environ, "OMP_NUM_THREADS": "1"},
    capture_output=True,
    check=True,
)
two = anndata.read_h5ad("two.h5ad", backed="r")
print(two.uns["gpnsf"]["processes"], "processes")
print("largest difference:", float(np.abs(section.obsm["X_gpnsf"] - two.obsm["X_gpnsf"]).max()))

# %% [markdown]
# Again the same bits. On this small section two processes only cost time, because each has to start Python first. They pay where counts are many: with 200,000 simulated spots and
# 2,000 genes, two processes took 22 s for the fit where one took 28 s. There are no checkpoints of a fit that processes share, and if one of them dies the others stop with an
# error and write nothing.
#
# ## How far this goes
#
# On a machine with two cores, a million simulated spots with 2,000 genes took 87 s and 1.9 GB of memory from a file of 46 million counts that are not zero
# (`gpnsf benchmark scale` measures it; tables are on the page of benchmarks). That section was shallow (46 genes seen
# in a spot), and the number of spatial factors was given. In large sections the time of one step grows in proportion
# to the number of nonzero counts.
#
# `device="cuda"` keeps parameters and counts on a GPU, and under `torchrun` each process takes one GPU. None of this has been run on a GPU so far: tests show that the same code gives
# the same numbers on the CPU with torch's own sparse products, and no more than that. Compare with a fit on the CPU before you rely on it.
#
# The user guide has the details, under "How long, how much memory", "Data that are larger than memory", "Several processes" and "Long fits".
