"""How far estimated proportions are from true ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import norm

from gpnsf.checks import choices, problem
from gpnsf.core.companions.spread import LEVEL
from gpnsf.core.scores import agreement
from gpnsf.io import deconvolved
from gpnsf.io.objects import holders, open_data
from gpnsf.io.tables import takes_tables

if TYPE_CHECKING:
    from anndata import AnnData

    from gpnsf.io.deconvolved import Deconvolved

__all__ = ["evaluate_deconvolution", "true_amounts"]


@takes_tables
def evaluate_deconvolution(
    adata: AnnData,
    truth: str | pd.DataFrame | np.ndarray,
    *,
    key: str | Sequence[str] = "proportions",
) -> pd.DataFrame:
    """Compare proportions with true ones.

    Parameters
    ----------
    adata
        Object that :func:`gpnsf.tl.deconvolve` annotated.
    truth
        True proportions or numbers of cells, spots by types: an array whose columns are the types in their order, a table
        with the types as columns, which may also hold types that the reference lacks, or the name of either in ``obsm``. Rows are divided by their sums; spots whose sum is zero, or whose proportions are missing, do not count.
    key
        ``key_added`` of one deconvolution, or of several that are to be compared.

    Returns
    -------
    Table with one line for each key: ``key``, ``method``; ``relative_error`` (Frobenius norm of the difference over that of
    the truth), ``rmse``, ``jsd`` (root of the Jensen-Shannon divergence in nats, mean over spots), ``pcc`` (Pearson correlation over spots
    and types), ``coverage`` (share of the true proportions within 1.645 standard deviations of the estimates; NaN without
    ``uncertainty=True``), ``ssim`` (structural similarity in windows of 7 x 7, mean over types; NaN where spots do not lie on a square lattice or come from several slices), ``n_obs``.

    Raises
    ------
    KeyError
        If there is no such deconvolution or truth, or the truth lacks a type.
    ValueError, TypeError
        If the truth has another shape, or values that are not finite or negative.

    Notes
    -----
    Reads ``obsm["X_proportions"]``, ``obsm["X_proportions_std"]``, ``uns["proportions"]`` and the coordinates.

    Examples
    --------
    >>> import gpnsf
    >>> spots, cells = gpnsf.datasets.mixture(n_obs=100, n_genes=80, seed=0)
    >>> for method in ("nnls", "graph"):
    ...     gpnsf.tl.deconvolve(
    ...         spots, cells, label_key="cell_type", method=method, key_added=method
    ...     )
    >>> gpnsf.tl.evaluate_deconvolution(spots, "true_proportions", key=["nnls", "graph"])[
    ...     "method"
    ... ].tolist()
    ['nnls', 'graph']
    """
    keys = [key] if isinstance(key, str) else list(key)
    if not keys:
        raise ValueError(
            problem("`key` to name at least one deconvolution", "none", "Pass key='proportions'")
        )
    return pd.DataFrame([_line(deconvolved.find(adata, name), truth) for name in keys])


def _line(found: Deconvolved, truth: str | pd.DataFrame | np.ndarray) -> dict[str, object]:
    """All measures of one deconvolution."""
    values, names = true_amounts(found.data, list(found.names), truth)
    known = ~np.isnan(found.proportions).any(axis=1)
    counted = np.flatnonzero(known & (values.sum(axis=1) > 0))
    if not len(counted):
        raise ValueError(
            problem(
                "spots with proportions and a truth whose sum is above 0",
                "none",
                "Check that the truth belongs to these spots",
            )
        )
    values = values[counted] / values[counted].sum(axis=1, keepdims=True)
    estimate = np.zeros_like(values)
    estimate[:, [names.index(name) for name in found.names]] = found.proportions[counted]
    cells = _cells(found, counted)
    similar = (
        [agreement.ssim(one, other, cells) for one, other in zip(estimate.T, values.T, strict=True)]
        if cells is not None
        else [np.nan]
    )
    return {
        "key": found.keys.key,
        "method": found.params["method"],
        "relative_error": agreement.relative_error(estimate, values),
        "rmse": agreement.rmse(estimate, values),
        "jsd": agreement.divergence(estimate, values),
        "pcc": agreement.correlation(estimate, values),
        "ssim": float(np.mean(similar)),
        "coverage": _coverage(found, counted, estimate, values, names),
        "n_obs": len(counted),
    }


def _coverage(
    found: Deconvolved, rows: np.ndarray, estimate: np.ndarray, truth: np.ndarray, names: list[str]
) -> float:
    """Share of the true proportions of the types of the reference within their intervals."""
    if found.std is None:
        return np.nan
    ours = [names.index(name) for name in found.names]
    error = np.abs(estimate[:, ours] - truth[:, ours])
    return float(np.mean(error <= norm.ppf((1 + LEVEL) / 2) * found.std[rows]))


def true_amounts(
    adata: AnnData, types: list[str], truth: str | pd.DataFrame | np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """True amounts [N, C'] and the types of their columns."""
    if isinstance(truth, str):
        choices([truth], adata.obsm, what="`truth`", where="obsm")
        truth = adata.obsm[truth]
    names = [str(name) for name in (truth.columns if isinstance(truth, pd.DataFrame) else types)]
    choices(types, names, what="a column for each type", where="`truth`")
    values = np.asarray(truth)
    if values.dtype.kind not in "biuf":
        raise TypeError(
            problem("numbers in `truth`", f"dtype {values.dtype}", "Convert it with .astype(float)")
        )
    if values.shape != (adata.n_obs, len(names)) or len(set(names)) < len(names):
        rule = f"`truth` of shape {(adata.n_obs, len(names))}, with a column for each type"
        raise ValueError(
            problem(rule, str(values.shape), "Pass a DataFrame with the types as columns")
        )
    values = values.astype(np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            problem(
                "finite, nonnegative values in `truth`",
                "negative, missing or infinite ones",
                "Correct them",
            )
        )
    return values, names


def _cells(found: Deconvolved, rows: np.ndarray) -> np.ndarray | None:
    """Cells of a lattice [n, 2], where the spots lie on one."""
    key = found.params.get("spatial_key") or ""
    if found.params.get("library_key") is not None or not holders(
        open_data(found.data), "obsm", key
    ):
        return None
    return agreement.lattice(found.coords[rows])
