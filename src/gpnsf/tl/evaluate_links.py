"""How well links rank pairs that are known to belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gpnsf.checks import Rule, choices, problem
from gpnsf.core.scores.links import matched_ranking
from gpnsf.io.tables import takes_tables
from gpnsf.keys import Keys
from gpnsf.tl.link_peaks import DISTANCES, bins_of, pair_table

if TYPE_CHECKING:
    from mudata import MuData

__all__ = ["evaluate_links"]

INTERVAL = (0.025, 0.975)


@takes_tables
def evaluate_links(
    data: MuData,
    truth: pd.DataFrame,
    *,
    score: str = "score",
    distances: Sequence[float] | None = DISTANCES,
    n_bootstrap: int = 500,
    seed: int = 0,
    key: str = "gpnsf",
) -> pd.DataFrame:
    """Compare the ranking of gene-peak pairs with known links, at equal distance from the gene.

    Close pairs are more often true than far ones, so that distance alone ranks well. Here a link is compared with other
    pairs of the same bin of distances only: a score that says no more than the distance gets an AUROC of .5 and an
    average precision close to the base rate.

    Parameters
    ----------
    data
        MuData with the table of :func:`gpnsf.tl.link_peaks`.
    truth
        Table with columns ``gene`` and ``peak``, the known links. Those that are not among the pairs are not counted.
    score
        Column of the table of links to rank by, larger is better; a score of your own may be added to the table.
    distances
        Ends of the bins in bases; None for a single bin.
    n_bootstrap
        Draws of the genes, with replacement, for the intervals.
    seed
        Seed of these draws.
    key
        Prefix of the slots, ``key_added`` of the fit.

    Returns
    -------
    Table with one line for ``metric`` "auroc" and one for "average_precision": ``estimate``, ``low`` and ``high`` (95 %
    interval over genes), ``base`` (what chance gives), ``n_links``, ``n_pairs`` and ``n_genes``.

    Raises
    ------
    KeyError
        If there are no links, or a column is missing.
    TypeError
        If the score is no column of numbers.
    ValueError
        If no bin has both links and other pairs, or the score has missing values.

    Notes
    -----
    Reads ``uns["gpnsf_links"]``. AUROC is the share of comparisons of a link and another pair in the same bin that are in
    order, ties counting half; average precision is that within bins, averaged by links.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> gpnsf.tl.link_peaks(mdata)
    >>> gpnsf.tl.evaluate_links(mdata, mdata.uns["true_links"], n_bootstrap=20)["metric"].tolist()
    ['auroc', 'average_precision']
    """
    Rule(int, 500, low=20).check("n_bootstrap", n_bootstrap)
    Rule(int, 0, low=0).check("seed", seed)
    found = Keys(key).links
    choices([found], data.uns, what="links", where="uns", remedy="Run `gpnsf.tl.link_peaks` first")
    table = data.uns[found]
    choices([score], table.columns, what="`score`", where=f"uns[{found!r}]")
    if not pd.api.types.is_numeric_dtype(table[score]):
        remedy = "Name a column of numbers, such as 'score'"
        raise TypeError(
            problem(f"numbers in column {score!r} of the links", str(table[score].dtype), remedy)
        )
    values = table[score].to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(values).any():
        lost = f"{np.isnan(values).sum()} of {len(values)} missing"
        raise ValueError(
            problem(f"a score for every pair in {score!r}", lost, "Fill them in with .fillna")
        )
    known = pd.MultiIndex.from_frame(pair_table(truth, argument="truth"))
    is_link = pd.MultiIndex.from_frame(table[["gene", "peak"]].astype(object)).isin(known)
    bins, (gene, names) = bins_of(table["distance"], distances), pd.factorize(table["gene"])
    auroc, precision, base = matched_ranking(values, is_link, bins, np.ones(len(table)))
    if np.isnan(auroc):
        counted = f"{is_link.sum()} of the {len(known)} known links among {len(table)} pairs"
        remedy = "Check the names of genes and peaks, or pass fewer bins as `distances`"
        raise ValueError(
            problem("links and other pairs in the same bin of distances", counted, remedy)
        )
    rng = np.random.default_rng(seed)
    weights = (
        np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        for _ in range(n_bootstrap)
    )
    draws = np.array(
        [matched_ranking(values, is_link, bins, weight[gene])[:2] for weight in weights]
    )
    low, high = np.nanquantile(draws, INTERVAL, axis=0)
    return pd.DataFrame(
        {
            "metric": ["auroc", "average_precision"],
            "estimate": [auroc, precision],
            "low": low,
            "high": high,
            "base": [0.5, base],
            "n_links": int(is_link.sum()),
            "n_pairs": len(table),
            "n_genes": len(names),
        }
    )
