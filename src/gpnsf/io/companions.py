"""Records of methods that leave factors and loadings alone, without a field and a posterior: written and read in one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np

from gpnsf.checks import problem
from gpnsf.core import stored

__all__ = [
    "DECONVOLVE",
    "FACTVAE",
    "MEFISTO",
    "METHODS",
    "SCAI",
    "code_loadings",
    "complete",
    "is_record",
    "made_by",
    "record_of",
    "refuse",
]

SCAI, FACTVAE, DECONVOLVE = METHODS = ("scai", "factvae", "deconvolve")  # tools in gpnsf.tl
MEFISTO = "mefisto"  # which has a posterior


def is_record(value: object) -> TypeGuard[Mapping[str, object]]:
    """Whether an entry of ``uns`` is the record of a fit."""
    return isinstance(value, Mapping) and "factor_names" in value


def record_of(method: str, names: Sequence[str], modalities: Sequence[str]) -> dict[str, object]:
    """The part of a record in ``uns`` by which every tool reads what a method has left."""
    return {
        "method": method,
        "factor_names": list(names),
        "is_spatial": np.zeros(len(names), dtype=bool),
        "modalities": list(modalities),
        "likelihoods": dict.fromkeys(modalities, "gaussian"),  # nothing is said of counts
    }


def made_by(record: Mapping[str, object]) -> str | None:
    """Name of the tool in ``gpnsf.tl`` that has left a record, if it is another than ``fit``."""
    method = str(record.get("method"))
    return method if method in (*METHODS, MEFISTO) else None


def refuse(record: Mapping[str, object], key: str, what: str) -> None:
    """Say that a tool other than ``tl.fit`` leaves no ``what``."""
    method = made_by(record)
    if method is not None:
        found = f"{key!r} by gpnsf.tl.{method}, which has none"
        remedy = "Pass the `key` of a fit by gpnsf.tl.fit, or run it"
        raise KeyError(problem(f"a fit with {what}", found, remedy))


def complete(values: np.ndarray, slot: str) -> np.ndarray:
    """The values [N, K] of a slot; spots that `tl.deconvolve` has left out are an error."""
    missing = int(np.isnan(values).any(axis=1).sum())
    if missing:
        found = f"{missing} of {len(values)} without, since they had too few counts"
        remedy = f"Go on without them: adata = adata[~np.isnan(adata.obsm[{slot!r}][:, 0])].copy()"
        raise ValueError(problem(f"values of all spots in obsm[{slot!r}]", found, remedy))
    return values


def code_loadings(record: Mapping[str, object], values: np.ndarray, modality: str) -> np.ndarray:
    """Loadings [P, 2d] on the codes of FactVAE, from what is in ``varm`` [P, r]; those of ATAC come first.

    Only the codes of a feature's own modality tell of it. In ``varm`` are its coordinates ``B phi`` (46), and ``phi`` is looked
    for; as published, it is ``phi`` itself.
    """
    n_codes = len(stored.names(record, "factor_names"))
    is_rna = modality == stored.names(record, "modalities")[0]
    own = slice(n_codes // 2, None) if is_rna else slice(None, n_codes // 2)
    if "axes" in record:
        axes = stored.array(record, "axes", (values.shape[1], n_codes))  # [r, 2d]
        values = values @ np.linalg.pinv(axes[:, own].astype(np.float64)).T
    if values.shape[1] != n_codes // 2:
        rule = f"loadings of {modality!r} on {n_codes // 2} codes"
        raise ValueError(stored.problem(rule, str(values.shape[1])))
    loadings = np.zeros((len(values), n_codes), dtype=np.float32)
    loadings[:, own] = values
    return loadings
