"""What a user is told about the modalities of a fit before it begins."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from anndata import AnnData

from gpnsf import checks
from gpnsf.io import names
from gpnsf.io.names import FEATURE_TYPES
from gpnsf.io.objects import Opened

__all__ = ["check_types", "suspicions", "tell_of_names", "tell_of_peaks"]

_logger = logging.getLogger("gpnsf")

FEW = 0.1  # of the observations of the smaller of two modalities
MANY = 100  # names of features tell what they are
AFFIX = r"^.*#|[-_]\d+$"  # "sample#" of ArchR, "-1" of Cell Ranger


def suspicions(opened: Opened, *, chosen: bool) -> Iterator[str]:
    """Modalities that are left out for their names, and modalities that share few observations."""
    left_out = [] if chosen else [name for name in opened.mods if name not in opened.names]
    if left_out:
        yield (
            f"Modalities {left_out} are left out, because their names do not say that they are RNA or ATAC. Pass "
            f"modalities={[*opened.names, *left_out]} to fit them too."
        )
    for i, one in enumerate(opened.names):
        for other in opened.names[:i]:
            shared, fewest = _shared(opened, one, other)
            if shared < FEW * fewest:
                yield (
                    f"Modalities {other!r} and {one!r} share {shared} observations, of {len(opened.rows[other])} and "
                    f"{len(opened.rows[one])}.{_affixes(opened, other, one, fewest)}"
                )


def tell_of_names(unasked: Mapping[str, str]) -> None:
    """Say what modalities are taken for whose names hold, beside a name of the field, other words."""
    for name, likelihood in unasked.items():
        kind = names.kind(name)
        if kind and not names.kind_of_type(name):
            _logger.info(
                "Modality %r is taken for %s by its name, and fitted by %r unless `likelihoods` says otherwise.",
                name,
                kind if kind == "protein" else kind.upper(),
                likelihood,
            )


def _shared(opened: Opened, one: str, other: str) -> tuple[int, int]:
    """Observations that two modalities share, and those of the smaller one."""
    rows = opened.rows[one], opened.rows[other]
    return len(np.intersect1d(*rows)), min(map(len, rows))


def _affixes(opened: Opened, one: str, other: str, fewest: int) -> str:
    """What to do about it; barcodes that differ by a prefix or a suffix are the usual cause."""
    ours, theirs = (opened.mods[name].obs_names.astype(str) for name in (one, other))
    bare, others = (own.str.replace(AFFIX, "", regex=True) for own in (ours, theirs))
    number = max(
        len(a.intersection(b)) for a, b in ((bare, theirs), (ours, others), (bare, others))
    )
    shown = f" ({ours[0]!r} and {theirs[0]!r} are the first)"
    if number >= FEW * fewest:
        remedy = f"mod.obs_names = mod.obs_names.str.replace(r'{AFFIX}', '', regex=True)"
        return f" {number} names differ only by a prefix or suffix{shown}. Remove it in both by {remedy}, and build the MuData again."
    return f" Check that their names follow one scheme{shown}. If they come from different spots, only the coordinates connect them."


def tell_of_peaks(opened: Opened, unasked: Mapping[str, str], for_peaks: str) -> None:
    """Warn of features whose names say that they are peaks, in modalities that get another likelihood unasked."""
    for name, likelihood in unasked.items():
        first = opened.mods[name].var_names[:MANY].astype(str)
        if likelihood != for_peaks and names.are_places(first):
            _logger.warning(
                "Features of modality %r are named after places on the genome (%r is the first), and are fitted with the likelihood %r. "
                "If they are peaks, pass likelihoods={%r: %r}.",
                name,
                first[0],
                likelihood,
                "atac" if isinstance(opened.data, AnnData) else name,
                for_peaks,
            )


def check_types(var: pd.DataFrame, modality: str) -> None:
    """Refuse features of several kinds, and warn of controls, as readers of 10x files leave them in an AnnData."""
    if FEATURE_TYPES not in var:
        return
    types = var[FEATURE_TYPES].astype(str).value_counts()
    kinds = {name: names.kind_of_type(name) for name in types.index}
    found = ", ".join(f"{number} of {name!r}" for name, number in types.items())
    if len(set(kinds.values()) - {""}) > 1:
        remedy = (
            "Split it: mudata.MuData(adata) makes a modality of each type, "
            "or name the features to fit in `use_var`"
        )
        raise ValueError(
            checks.problem(f"features of one kind in modality {modality!r}", found, remedy)
        )
    known = [name for name, kind in kinds.items() if kind]
    if known and len(types) > len(known):
        _logger.warning(
            "Modality %r holds features of several types, and all of them are fitted: %s. If some are controls, fit "
            "adata[:, adata.var[%r] == %r].copy() instead.",
            modality,
            found,
            FEATURE_TYPES,
            known[0],
        )
