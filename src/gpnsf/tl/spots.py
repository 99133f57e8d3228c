"""Where spots lie, what divides them into regions, and what types cost in these."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
from anndata import AnnData

from gpnsf import checks
from gpnsf.arguments import Deconvolution
from gpnsf.checks import problem
from gpnsf.core.companions.pseudospots import Places
from gpnsf.io.objects import open_data, read_coords, read_labels, spot_distance
from gpnsf.io.suspicions import suspicions

__all__ = ["costs_of", "places_of"]

_logger = logging.getLogger("gpnsf")


def places_of(adata: AnnData, totals: np.ndarray, asked: Deconvolution) -> Places:
    """Coordinates, slices and regions of the spots; the unit of distance is the bandwidth, or the distance of neighbours."""
    opened = open_data(adata)
    coords = read_coords(opened, asked.spatial_key)
    slices = read_labels(opened, asked.library_key)
    library, names = pd.factorize(slices, sort=True)
    nowhere = np.zeros(len(coords), dtype=bool)
    for text in suspicions(opened, coords, library, tuple(map(str, names)), nowhere):
        _logger.warning(text)
    unit = (
        asked.bandwidth
        or spot_distance(coords[slices == name] for name in dict.fromkeys(slices))
        or 1.0
    )
    key = asked.region_key
    labels = None if key is None else _labels(adata, key)
    regions = (
        None if key is None else _features(adata, key) if labels is None else _indicators(labels)
    )
    return Places(coords, slices, totals, unit, asked.n_neighbors, regions, labels)


def costs_of(
    adata: AnnData, table: pd.DataFrame | None, names: list[str], weight: float, key: str | None
) -> np.ndarray:
    """Costs [N, C] of the types in the region of each spot, over their sum."""
    if (table is None) is not (weight == 0):
        found = f"group_weight={weight:g} with group_costs={'None' if table is None else 'a table'}"
        remedy = "Pass a table of regions by types and a weight above 0, or neither"
        raise ValueError(problem("`group_weight` and `group_costs` together", found, remedy))
    if table is None:
        return np.zeros((adata.n_obs, len(names)))
    labels = None if key is None else _labels(adata, key)
    if labels is None:
        remedy = "Name the obs column whose values are the rows of `group_costs`"
        raise ValueError(
            problem("regions in `region_key` for `group_costs`", f"region_key={key!r}", remedy)
        )
    if not isinstance(table, pd.DataFrame):
        remedy = "Pass pd.DataFrame(costs, index=regions, columns=types)"
        raise TypeError(
            problem(
                "`group_costs` to be a DataFrame of regions by types", type(table).__name__, remedy
            )
        )
    table = table.set_axis(table.index.astype(str), axis=0).set_axis(
        table.columns.astype(str), axis=1
    )
    checks.choices(
        dict.fromkeys(labels), table.index, what="a row for each region", where="`group_costs`"
    )
    checks.choices(names, table.columns, what="a column for each type", where="`group_costs`")
    if not (table.index.is_unique and table.columns.is_unique):
        raise ValueError(
            problem(
                "unique rows and columns of `group_costs`", "repeated names", "Remove all but one"
            )
        )
    costs = table.loc[labels, names].to_numpy(dtype=np.float64)
    if not (np.isfinite(costs) & (costs >= 0)).all():
        raise ValueError(
            problem(
                "finite, nonnegative `group_costs`",
                "negative, missing or infinite ones",
                "Correct the table",
            )
        )
    total = costs.sum(axis=1, keepdims=True)
    return np.divide(costs, total, out=np.zeros_like(costs), where=total > 0)


def _labels(adata: AnnData, key: str) -> np.ndarray | None:
    """Names [N] of regions; None where the key holds real numbers."""
    checks.choices([key], [*adata.obs, *adata.obsm], what="`region_key`", where="obs or obsm")
    if key not in adata.obs:
        return None
    values = checks.column(adata.obs, key, where="obs")
    return (
        None if pd.api.types.is_float_dtype(values) else checks.labels(values, name=key).astype(str)
    )


def _indicators(labels: np.ndarray) -> np.ndarray:
    """Indicators [N, R] of the regions: two of them differ by 2."""
    names, code = np.unique(labels, return_inverse=True)
    return np.eye(len(names))[code]


def _features(adata: AnnData, key: str) -> np.ndarray:
    """Numbers [N, R] in their standard deviations."""
    features = (
        np.asarray(adata.obs[key])[:, None] if key in adata.obs else np.asarray(adata.obsm[key])
    )
    if features.dtype.kind not in "biuf" or features.ndim != 2:
        found = f"dtype {features.dtype}, shape {features.shape}"
        remedy = "Store numbers there as an [n_obs, R] array"
        raise TypeError(problem(f"an array of numbers under {key!r}", found, remedy))
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        found = f"{int((~np.isfinite(features)).any(axis=1).sum())} spot(s) with missing or infinite ones"
        raise ValueError(
            problem(f"finite numbers under {key!r}", found, "Fill them in or remove these spots")
        )
    sd = features.std(axis=0)
    return np.divide(features, sd, out=np.zeros_like(features), where=sd > 0)
