"""What the field calls its modalities, and the likelihood that follows from the name."""

from __future__ import annotations

__all__ = ["LIKELIHOODS", "kind", "named"]

NAMES = {
    "rna": {
        "rna",
        "gex",
        "gene expression",
        "genes",
        "expression",
        "mrna",
        "transcriptome",
        "scrna",
    },
    "atac": {"atac", "peaks", "chromatin accessibility", "accessibility", "scatac", "epigenome"},
    "protein": {"protein", "proteins", "prot", "adt", "antibody capture", "cite", "antibodies"},
}
LIKELIHOODS = {"rna": "nb", "atac": "bernoulli", "protein": "nb", "": "nb"}


def kind(name: str) -> str:
    """Give "rna", "atac" or "protein" for a name in any case, "" for any other."""
    plain = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    return next((kind for kind, names in NAMES.items() if plain in names), "")


def named(wanted: str, there: list[str]) -> str:
    """The modality that is meant by "rna" or "atac": the one of that name, or the only one of its kind; else the name itself."""
    alike = [name for name in there if kind(name) == wanted]
    return wanted if wanted in there or len(alike) != 1 else alike[0]
