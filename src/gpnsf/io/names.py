"""What the field calls its modalities, and the likelihood that follows from the name."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "FEATURE_TYPES",
    "LIKELIHOODS",
    "are_places",
    "kind",
    "kind_of_type",
    "kind_of_types",
    "named",
    "of_kind",
]

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
# of a name that says what was made of the counts, or a part of them
DERIVED = re.compile(
    r" (gene|activity|activities|scores?|motifs?|tf|chromvar|lsi|pca|embeddings?|imputed|predicted|spliced|unspliced|velocity|pseudobulk) "
)


def kind(name: str) -> str:
    """Give "rna", "atac" or "protein" for a name of a modality in any case, "" for any other.

    A name that holds names of one kind as whole words ("ATAC_peaks", "rna_counts") is of that kind.
    """
    words = f" {_plain(name)} "
    held = {kind for kind, names in NAMES.items() if any(f" {known} " in words for known in names)}
    if len(held) > 1 or DERIVED.search(words.replace(" gene expression ", " ")):
        held = set()
    return kind_of_type(name) or "".join(held)


def kind_of_type(name: str) -> str:
    """The same for a type of features, which is a name and nothing else."""
    return next((kind for kind, names in NAMES.items() if _plain(name) in names), "")


def _plain(name: str) -> str:
    """The words of a name in lower case, a space between them."""
    return " ".join(re.split(r"[\W_]+", name.lower())).strip()


def kind_of_types(types: Iterable[str]) -> str:
    """The one kind that types of features tell, "" where they tell several or none."""
    kinds = {kind_of_type(name) for name in types}
    return kinds.pop() if len(kinds) == 1 else ""


def are_places(features: Iterable[str]) -> bool:
    """Whether features are named after places on the genome, as peaks are."""
    names = list(features)
    return bool(names) and all(PLACE.fullmatch(name) for name in names)


def of_kind(wanted: str, there: list[str]) -> list[str]:
    """Modalities of a kind: those of its very names, else the only one whose name holds one of them."""
    exact = [name for name in there if kind_of_type(name) == wanted]
    held = [name for name in there if kind(name) == wanted]
    return exact or (held if len(held) == 1 else [])


def named(wanted: str, there: list[str]) -> str:
    """The modality that is meant by "rna" or "atac": the one of that name, or the only one of its kind; else the name itself."""
    alike = of_kind(wanted, there)
    return wanted if wanted in there or len(alike) != 1 else alike[0]
