"""What the methods of `tl.rank_features` put first on real sections: known markers, and the same in both halves of the counts.

GPNSF_DATA_DIR=... gpnsf benchmark ranking [--only NAME ...] [--genes N]

Each section is thinned into two halves, and both are fitted, with at most `--genes` genes of the largest deviance. `same`: how many of the first 20 features of a factor are among the
first 20 of its match in the other half. `of a set`: factors of which the first 20 hold more features of one set of markers than
chance would (p < .001, by the hypergeometric distribution, times the number of sets). `household`: ribosomal, mitochondrial and
other features that every cell has. `rare`: features with fewer than 50 counts in the half. `follow`: correlation of the mean log
normalised counts of the first 20 features, in the other half, with the part of what is expressed there that its match accounts for.
The whole takes five minutes of CPU time.
"""

from __future__ import annotations

import logging
import re
import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
from report import machine, parser, write_table
from scipy import sparse
from scipy.stats import hypergeom

import gpnsf
from gpnsf.core.scores.metrics import match_factors
from gpnsf.core.scores.ranking import METHODS
from gpnsf.datasets.files import data_dir
from gpnsf.io import fits

FIRST = 20
HOUSEHOLD = re.compile(
    r"(RP[SL]\d|MRP[SL]\d|MT[-.]|EEF1A1|EEF1B2|EEF2|ACTB|ACTG1|GAPDH|TMSB4X|TMSB10|B2M|MALAT1|FTL|FTH1|TPT1|UBA52|PTMA|UBB|UBC|NEAT1)",
    re.IGNORECASE,
)
SETS = {  # well-known markers, as reviews and atlases of these tissues list them
    "brain": {
        "granule and other inhibitory neurons": "Penk Gad1 Gad2 Meis2 Pcp4 Pbx1 Synpr Camk2b Nrgn Ppp3ca Gpr88 Dlx1 Dlx2 Slc32a1 Six3",
        "mitral and other excitatory neurons": "Slc17a7 Slc17a6 Tbr1 Eomes Cdhr1 Reln Uchl1 Snap25 Nefl Nefm Nefh Thy1 Tubb3 Slc6a7 Satb2 Neurod6",
        "olfactory nerve": "Omp S100a5 Gng13 Apod Fabp7 Gnal Stoml3 Cnga2 Kctd12 Frzb Sox10 Plp1 Npy Ptn Mgst1 Cst3 Pcp4l1",
        "periglomerular": "Th Ddc Calb2 Doc2g Slc18a2 Nrsn1 Trh Vip Cck Kctd12 Cplx1 Slc6a3 Calb1",
        "oligodendrocytes": "Mbp Plp1 Mobp Mog Mag Mal Cnp Cldn11 Ermn Ugt8a Trf Aspa Opalin Olig1 Olig2 Sox10 Tspan2 Prr5l St18",
        "astrocytes": "Aldoc Slc1a2 Slc1a3 Aqp4 Gfap Gja1 Glul Atp1a2 Apoe Clu Mt2 Mt3 Ntsr2 Gpc5 Plpp3",
        "vessels and meninges": "Cldn5 Flt1 Pecam1 Vtn Igf2 Ptgds Col1a1 Col1a2 Acta2 Myl9 Tagln Slco1a4 Ly6c1 Mgp Igfbp2 Vim",
        "neuroblasts": "Dcx Sox11 Dlx1 Dlx2 Tubb3 Cd24a Mki67 Top2a Nrep Sox4 Stmn2 Igfbpl1 Dlx6os1",
        "upper layers": "Cux1 Cux2 Calb1 Lamp5 Rasgrf2 Rorb Otof Stard8 Enpp2 Kcnh5",
        "deep layers": "Foxp2 Tle4 Bcl11b Fezf2 Crym Etv1 Sulf1 Parm1 Ptprk Garnl3 Zfpm2 Hs3st4 Rprm Deptor Tshz2 Pcp4",
        "interneurons": "Gad1 Gad2 Sst Pvalb Vip Npy Lhx6 Adarb2 Erbb4 Galntl6 Kcnc2 Nxph1 Slc6a1 Cnr1 Reln",
        "microglia": "C1qa C1qb C1qc Csf1r Cx3cr1 Hexb P2ry12 Ctss Tyrobp Trem2",
    },
    "tumour": {
        "hepatocytes": "ALB APOA1 APOA2 APOC3 APOH SERPINA1 TTR CYP2E1 CYP3A4 CYP2A6 CYP2C8 CYP2C9 ASS1 HPD ADH1B ADH4 HAMP FGB FGA FGG CPS1 ALDOB ARG1 SDS HAL GLUL ADH1A APCS ORM1",
        "epithelium": "KRT8 KRT18 KRT19 KRT20 EPCAM CEACAM5 CEACAM6 LGALS4 TFF3 TFF1 TFF2 MUC2 PHGR1 FABP1 TSPAN8 S100P AGR2 CLDN4 OLFM4 PIGR LCN2 REG1A CDH17",
        "breast": "KRT5 KRT14 KRT15 KRT17 KRT7 ERBB2 ESR1 GATA3 TFF1 TFF3 SCGB2A2 SCGB1D2 MUCL1 PIP AZGP1 AGR2 XBP1 FASN KRT8 KRT18 KRT19",
        "fibroblasts": "COL1A1 COL1A2 COL3A1 COL5A1 COL6A3 COL11A1 COL10A1 SPARC POSTN FN1 DCN LUM FAP THBS2 CTHRC1 BGN SFRP2 SFRP4 FBLN1 MMP2 VCAN COMP AEBP1 TIMP1 MMP11 CTGF",
        "muscle and vessels": "ACTA2 TAGLN MYH11 DES CNN1 MYL9 TPM2 ACTG2 RGS5 PDGFRB PECAM1 VWF CLDN5 PLVAP FLT1 ENG CAV1 SYNPO2 CSRP1",
        "plasma cells": "IGKC IGHG1 IGHG2 IGHG3 IGHG4 IGHA1 IGHA2 IGHM IGLC1 IGLC2 IGLC3 IGLC7 JCHAIN MZB1 XBP1 SSR4 DERL3 IGHGP IGJ",
        "interferon": "ISG15 IFI27 IFI6 IFIT1 IFIT2 IFIT3 MX1 OAS1 OAS2 OAS3 IFI44 IFI44L STAT1 GBP1 CXCL9 CXCL10 CXCL11 IFITM1 IFITM3 BST2",
        "macrophages": "CD68 CD163 C1QA C1QB C1QC APOE APOC1 SPP1 LYZ MARCO FCGR3A CD14 TYROBP GPNMB CTSD CTSB MSR1 FTL SELENOP CTSZ",
        "neutrophils and hypoxia": "S100A8 S100A9 CXCL8 IL1B CXCL1 CXCL5 CXCL3 NDRG1 VEGFA CA9 SLC2A1 ADM PLAUR SOD2 G0S2 MMP1 MMP3",
        "lymphocytes": "CD3D CD3E CD2 TRBC1 TRBC2 TRAC CD8A GZMK GZMA CCL5 NKG7 MS4A1 CD79A CD79B CD74 HLA-DRA CXCR4 CCL19 CCL21 LTB CD37 CD52 IL7R",
        "cycle": "MKI67 TOP2A UBE2C BIRC5 CCNB1 CDK1 TUBA1B STMN1 HMGB2 PCNA TYMS CENPF TK1 RRM2 H2AFZ HIST1H4C NUSAP1",
        "acinar": "PRSS1 PRSS2 PRSS3 CTRB1 CTRB2 CTRC CPA1 CPA2 CPB1 CELA2A CELA2B CELA3A CELA3B CEL CLPS PNLIP PNLIPRP1 PNLIPRP2 PLA2G1B REG1A REG1B REG3A SPINK1 SYCN AMY2A AMY2B GP2 KLK1",
        "ducts": "MUC5B MUC5AC KRT7 KRT19 SPP1 CFTR TFF1 TFF2 TFF3 S100P CRISP3 SLC4A4 ANXA4 AQP1 AGR2 MUC1 SOX9 LCN2 CXCL5 TSPAN8 CEACAM6 PIGR CLDN18",
        "cancer of the pancreas": "TM4SF1 S100A4 S100A6 S100P KRT16 KRT17 KRT6A KRT7 CLDN1 CLDN4 LAMB3 LAMC2 PRSS22 SFN SLPI LY6D C19orf33 MUC1 CEACAM5 CEACAM6 TIMP1 ANXA2 S100A14",
        "endocrine": "INS GCG SST PPY TTR CHGA CHGB SCG2 SCG5 PCSK1N IAPP SCGN",
        "fat": "ADIPOQ PLIN1 PLIN4 FABP4 LPL CD36 ADH1B GPX3 CIDEC G0S2 LEP RBP4 CFD",
    },
    "lymph node": {
        "germinal centre": "MKI67 AICDA BCL6 MEF2B RGS13 STMN1 TCL1A CD38 MARCKSL1 TUBA1B TOP2A HMGB2 SUGCT ELL3 LMO2 GCSAM BIRC5 PCNA UBE2C NUSAP1 CXCL13 CR2 FDCSP CLU FCER2 TYMS RRM2 CDK1 MYBL1 AURKB",
        "B cells": "MS4A1 CD79A CD79B CD19 CD22 FCER2 FCRL1 PAX5 BANK1 IGHD TCL1A CR2 CXCR5 BLK FCRLA LINC00926 CD24 CD83 VPREB3 TNFRSF13C",
        "T cells": "CD3D CD3E CD3G IL7R CCR7 LEF1 TCF7 TRAC TRBC1 TRBC2 LTB MAL CD2 CD5 CD6 CD27 CD28 GZMK CD8A CD8B ITK TRAT1 BCL11B CCL19 CCL21 CD7 LDHB CD4 UBASH3A",
        "plasma cells": "IGKC IGHG1 IGHG2 IGHG3 IGHG4 IGHA1 IGHA2 IGHM IGLC1 IGLC2 IGLC3 IGLC7 JCHAIN MZB1 XBP1 SSR4 DERL3 PRDM1 SDC1 FKBP11 TNFRSF17 PIM2",
        "macrophages and sinus": "CD68 CD163 C1QA C1QB C1QC MARCO LYVE1 STAB1 STAB2 APOE LYZ CD14 FCGR3A VSIG4 CTSD SPP1 GPNMB CHIT1 CCL18 SELENOP TFF3 MMP9 S100A9 S100A8 CLEC4M CD5L",
        "stroma and vessels": "COL1A1 COL1A2 COL3A1 DCN LUM SPARC ACTA2 MYH11 TAGLN VWF PECAM1 PLVAP CLDN5 MYL9 DES TPM2 FN1 A2M IGFBP7 TIMP1 MGP BGN SPARCL1 AQP1 CCL14 ACKR1",
        "interferon and dendritic": "ISG15 IFI27 IFI6 IFIT1 IFIT3 MX1 OAS1 STAT1 CXCL9 CXCL10 CXCL11 IFI44L GBP1 GBP5 LAMP3 CCL17 CCL22 IDO1 FSCN1 CCR7 GZMB CLEC4C IRF7",
        "fat": "ADIPOQ PLIN1 PLIN4 FABP4 LPL CD36 ADH1B GPX3 CIDEC G0S2",
    },
}
FILES = {  # tissue, section column, whether the default score was found with it in sight
    "visium_crc.h5ad": ("tumour", None, True),
    "pdac_a.h5ad": ("tumour", None, True),
    "visium_lymphnode_1k.h5ad": ("lymph node", None, True),
    "mob_rep11.h5ad": ("brain", None, True),
    "mob_rep12_deconv.h5ad": ("brain", None, False),
    "bc_4sections.h5ad": ("tumour", "section", False),
    "semi_cortex_spots.h5mu": ("brain", None, False),
    "seqfish_gridded_deconv.h5ad": ("brain", None, True),
}


def halves(name: str, section: str | None, n_genes: int, n_factors: int, max_steps: int):
    """Fits of both halves of the RNA counts of a file."""
    path = data_dir() / name
    if path.suffix == ".h5mu":
        whole = mudata.read_h5mu(path)
        data = whole["rna"].copy()
        data.obsm["spatial"] = whole.obsm["spatial"]
    else:
        data = anndata.read_h5ad(path)
    if data.n_vars > n_genes:
        gpnsf.pp.deviance_features(data, n_top=n_genes)
        data = data[:, data.var["highly_deviant"].to_numpy()].copy()
    gpnsf.pp.thin(data)
    for part in ("train", "test"):
        half = data.copy()
        half.X = half.layers[f"thinned_{part}"]
        gpnsf.tl.fit(
            half,
            n_factors=n_factors,
            max_steps=max_steps,
            library_key=section,
            progress=False,
        )
        yield half


def firsts(half, method: str) -> list[list[str]]:
    """The first features of each factor."""
    table = gpnsf.tl.rank_features(half, n_features=FIRST, method=method)
    groups = table.groupby("factor", sort=False)["feature"]
    named = {factor: list(features) for factor, features in groups}
    return [named.get(factor, []) for factor in fits.find(half).names]


def is_of_a_set(features: list[str], all_features: set[str], sets: dict[str, str]) -> bool:
    """Whether one set has more of the features than chance would give."""
    chosen = {feature.upper() for feature in features}
    p = []
    for words in sets.values():
        known = set(words.upper().split()) & all_features
        p.append(hypergeom.sf(len(known & chosen) - 1, len(all_features), len(known), len(chosen)))
    return bool(p) and min(p) * len(p) < 1e-3


def normalised(half) -> np.ndarray:
    """Logarithms of counts per median total [N, P]."""
    counts = half.X.toarray() if sparse.issparse(half.X) else np.asarray(half.X)
    totals = counts.sum(axis=1, keepdims=True)
    return np.log1p(counts / np.maximum(totals, 1) * np.median(totals))


def parts(half) -> np.ndarray:
    """Part of each factor in what each observation expresses [N, K]."""
    fit = fits.find(half)
    (modality,) = fit.modalities
    own = half.obsm["X_gpnsf"] * fit.loadings[modality].sum(axis=0)
    return own / (own.sum(axis=1, keepdims=True) + fit.constant(modality).sum())


def followed(half, features: list[list[str]], matching: list[int]) -> list[float]:
    """How well features of another half go with the factors of this one that match theirs."""
    known, share = pd.DataFrame(normalised(half), columns=half.var_names), parts(half)
    found = [
        np.corrcoef(known[names].mean(axis=1), share[:, k])[0, 1]
        for names, k in zip(features, matching, strict=True)
        if k >= 0 and names
    ]
    return list(np.nan_to_num(found))


def judged(name: str, pair: list, method: str) -> dict[str, object]:
    """A row of the table."""
    tissue, _, seen = FILES[name]
    sets = SETS[tissue]
    one, other = (firsts(half, method) for half in pair)
    matching, _ = match_factors(*(half.obsm["X_gpnsf"] for half in pair))
    same = [
        len(set(one[k]) & set(other[match])) / FIRST
        for k, match in enumerate(matching)
        if match >= 0
    ]
    back = [list(matching).index(k) if k in matching else -1 for k in range(len(other))]
    follow = followed(pair[1], one, matching) + followed(pair[0], other, back)
    known = {feature.upper() for feature in pair[0].var_names}
    every = [feature for factor in (*one, *other) for feature in factor]
    counts = sum(np.asarray(half.X.sum(axis=0)).ravel() for half in pair) / 2
    total = dict(zip(pair[0].var_names, counts, strict=True))
    markers = {marker for words in sets.values() for marker in words.upper().split()}
    named = [is_of_a_set(factor, known, sets) for factor in (*one, *other) if factor]
    return {
        "file": name.partition(".")[0] + (" *" if seen else ""),
        "method": method,
        "same": f"{np.mean(same):.2f}",
        "of a set": f"{sum(named)} of {len(named)}",
        "markers": f"{np.mean([feature.upper() in markers for feature in every]):.2f}",
        "household": f"{np.mean([bool(HOUSEHOLD.match(feature)) for feature in every]):.2f}",
        "rare": f"{np.mean([total[feature] < 50 for feature in every]):.2f}",
        "follow": f"{np.mean(follow):.2f}",
    }


def main() -> None:
    """A row for each file and method."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", choices=FILES, default=list(FILES))
    arguments.add_argument("--genes", type=int, default=4000)
    arguments.add_argument("--factors", type=int, default=12)
    arguments.add_argument("--steps", type=int, default=100)
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("gpnsf").setLevel("ERROR")
    rows = []
    for name in options.only:
        section = FILES[name][1]
        pair = list(halves(name, section, options.genes, options.factors, options.steps))
        rows += [judged(name, pair, method) for method in METHODS]
        print(pd.DataFrame(rows[-len(METHODS) :]).to_string(), flush=True)
    note = (
        f"Real sections (semi_cortex_spots: semi-synthetic), at most {options.genes} genes, {options.factors} factors, {options.steps} steps, both halves of the counts; "
        f"* these files were used to choose the default score. {machine()}."
    )
    write_table("ranking", pd.DataFrame(rows), note)


if __name__ == "__main__":
    main()
