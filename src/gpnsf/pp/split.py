"""Observations that a fit may not see."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import answering
from gpnsf.checks import Rule, problem
from gpnsf.io.objects import editable, open_data
from gpnsf.io.write import check_free

__all__ = ["proportion", "split"]


@answering
def split(
    data: AnnData | MuData,
    *,
    fraction: float = 0.05,
    key_added: str = "holdout",
    by: str | None = None,
    seed: int = 0,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Mark randomly chosen observations as held out.

    Parameters
    ----------
    data
        AnnData, or MuData whose global ``obs`` is annotated.
    fraction
        Share of the observations that is held out, between 0 and 1. Their number is exact up to
        rounding, in each group of ``by`` too.
    key_added
        Name of the boolean column, for ``gpnsf.tl.fit(..., holdout_key=key_added)``.
    by
        Column of ``data.obs``, such as a slice or a region: every group loses the same share.
        Missing values form a group.
    seed
        Seed of the choice.
    copy
        Return an annotated copy, and leave ``data`` as it is.

    Returns
    -------
    None, or the annotated copy.

    Raises
    ------
    ValueError, TypeError, KeyError
        If an argument is out of its range, of the wrong type or names no column; if no observation,
        or every one, would be held out.

    Notes
    -----
    Writes ``obs[key_added]``, bool: true for observations that are held out.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.ggblocks(n_side=12, n_genes=40, n_peaks=60)
    >>> gpnsf.pp.split(mdata, fraction=0.125)
    >>> int(mdata.obs["holdout"].sum())
    18
    """
    open_data(data, writes=not copy)
    proportion("fraction", fraction)
    Rule(str, "holdout").check("key_added", key_added)
    check_free(data, key_added, example="holdout")
    Rule(str, "region", optional=True).check("by", by)
    Rule(int, 0, low=0).check("seed", seed)
    checks.choices(
        [] if by is None else [by], data.obs, what="the column of `by`", where="obs of the data"
    )
    groups = np.zeros(data.n_obs, dtype=np.int64) if by is None else pd.factorize(data.obs[by])[0]
    held = _systematic(groups, fraction, np.random.default_rng(seed))
    if held.all() or not held.any():
        rule = "at least one observation on either side of the split"
        found = f"{held.sum()} of {held.size} held out with fraction={fraction!r}"
        raise ValueError(
            problem(rule, found, "Choose a fraction nearer to 0.5, or pass more observations")
        )
    data = editable(data, copy=copy)
    data.obs[key_added] = held
    return data if copy else None


def _systematic(groups: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Walk over the observations in random order, group after group.

    One is taken whenever the fractions add up to one.

    A random start gives every observation the same probability, and no group is off by more than
    one.
    """
    shuffled = rng.permutation(len(groups))
    group_order = rng.permutation(groups.max() + 2)  # missing values have code -1
    order = shuffled[np.argsort(group_order[groups[shuffled] + 1], kind="stable")]
    passed = np.floor(np.arange(len(groups) + 1) * fraction + rng.random())
    held = np.zeros(len(groups), dtype=bool)
    held[order] = np.diff(passed) > 0
    return held


def proportion(name: str, value: float) -> None:
    """Check a number strictly between 0 and 1."""
    Rule(float, 0.5, low=0, above=True).check(name, value)
    if value >= 1:
        raise ValueError(problem(f"`{name}` below 1", repr(value), f"Pass for example {name}=0.5"))
