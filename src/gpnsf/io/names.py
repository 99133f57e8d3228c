"""What the field calls its modalities, and the likelihood that follows from the name."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["FEATURE_TYPES", "LIKELIHOODS", "are_places", "kind", "kind_of_types", "named"]

FEATURE_TYPES = "feature_types"  # var column of Cell Ranger
PLACE = re.compile(r"\w+[:_-]\d+[_-]\d+", re.ASCII)  # "chr1:1000-1500"

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


def kind_of_types(types: Iterable[str]) -> str:
    """The one kind that types of features tell, "" where they tell several or none."""
    kinds = {kind(name) for name in types}
    return kinds.pop() if len(kinds) == 1 else ""


def are_places(features: Iterable[str]) -> bool:
    """Whether features are named after places on the genome, as peaks are."""
    names = list(features)
    return bool(names) and all(PLACE.fullmatch(name) for name in names)


def named(wanted: str, there: list[str]) -> str:
    """The modality that is meant by "rna" or "atac": the one of that name, or the only one of its kind; else the name itself."""
    alike = [name for name in there if kind(name) == wanted]
    return wanted if wanted in there or len(alike) != 1 else alike[0]
