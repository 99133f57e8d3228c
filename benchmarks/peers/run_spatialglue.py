"""SpatialGlue: graph attention over two modalities, as in its tutorial for epigenome and transcriptome."""

from __future__ import annotations

import numpy as np
import scanpy as sc
import torch
from contract import Job, main
from SpatialGlue.preprocess import construct_neighbor_graph, fix_seed, lsi, pca
from SpatialGlue.SpatialGlue_pyG import Train_SpatialGlue

KIND = "Spatial-epigenome-transcriptome"


def fit(job: Job) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    fix_seed(job.options["seed"])
    rna, atac = (job.mdata[name].copy() for name in ("rna", "atac"))
    sc.pp.filter_genes(rna, min_cells=10)
    sc.pp.highly_variable_genes(rna, flavor="seurat_v3", n_top_genes=min(3000, rna.n_vars))
    sc.pp.normalize_total(rna, target_sum=1e4)
    sc.pp.log1p(rna)
    sc.pp.scale(rna)
    rna.obsm["feat"] = pca(rna[:, rna.var["highly_variable"]], n_comps=50)
    lsi(atac, use_highly_variable=False, n_components=51)
    atac.obsm["feat"] = atac.obsm["X_lsi"].copy()
    data = construct_neighbor_graph(rna, atac, datatype=KIND)
    found = Train_SpatialGlue(data, datatype=KIND, device=torch.device("cpu")).train()
    # its tutorial clusters 20 principal components of the representation
    from sklearn.decomposition import PCA

    factors = found["SpatialGlue"]
    return {"factors": factors, "embedding": PCA(20, random_state=42).fit_transform(factors)}


if __name__ == "__main__":
    main(fit)
