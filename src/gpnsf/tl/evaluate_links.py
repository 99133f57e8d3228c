"""How well links rank pairs that are known to belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from gpnsf.checks import Rule, choices, problem
from gpnsf.core.scores.link_rankings import bin_order, bin_rankings, contact, mean_ranking
from gpnsf.io.tables import takes_tables
from gpnsf.keys import Keys
from gpnsf.tl.link_peaks import DISTANCES, bins_of, pair_table

if TYPE_CHECKING:
    from mudata import MuData

__all__ = ["evaluate_links"]

INTERVAL = (0.025, 0.975)


def _check_ends(ends: Sequence[float] | None) -> None:
    """Check that the ends of bins are rising numbers."""
    numbers = np.asarray(() if ends is None else ends)
    is_rising = numbers.dtype.kind in "iuf" and numbers.ndim == 1 and len(numbers) > 1
    if ends is not None and not (is_rising and (np.diff(numbers) > 0).all()):
        remedy = "Pass for example distances=[0, 10_000, 50_000], or None for no bins"
        raise ValueError(problem("`distances` to be rising ends of bins", repr(ends), remedy))


class _Line(NamedTuple):
    """One measure of a ranking of some pairs, with the interval over draws of the genes."""

    ranking: str
    pairs: str
    metric: str
    estimate: float
    low: float
    high: float
    base: float  # of a ranking that knows nothing
    n_links: int
    n_pairs: int
    n_genes: int


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
    r"""Compare the ranking of gene-peak pairs with known links, beside what their distance alone would give.

    Close pairs are more often true than far ones, so that distance alone ranks well. Three rankings are judged: by the score, by
    the distance (closest first), and by the score times the contact that two places so many bases apart have,
    :math:`\max(\text{score}, 0) \cdot (\max(|d|, 5\,\text{kb}) / 5\,\text{kb})^{-1.024}`: the law and the constants of the Activity-by-Contact model
    :cite:p:`fulco2019abc`, which were found in Hi-C data and not in any known links. Each is judged among all pairs, and with a link compared with other
    pairs of the same bin of distances only: a score that says no more than the distance gets an AUROC of .5 there and an
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
    Table with columns

    * ``ranking``: "score", "distance" or "score x distance"; the last two only where all distances are known,
    * ``pairs``: "equal distance", "all", or, for the score, one bin such as "0 to 25 kb", where it has both links and other pairs,
    * ``metric``: "auroc" or "average_precision",
    * ``estimate``, ``low`` and ``high`` (95 % interval over genes), ``base`` (what chance gives), ``n_links``, ``n_pairs``, ``n_genes``.

    The first two lines are those of the score at equal distance.

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
    Reads ``uns["gpnsf_links"]``. AUROC is the share of comparisons of a link and another pair that are in order, ties counting
    half; at equal distance only those in the same bin are counted. Average precision (the area below the curve of precision and
    recall) at equal distance is that within bins, averaged by links. Intervals are percentiles over draws of genes, the same draws
    in every line. Score times distance is of use where links become rarer with distance as contacts do; a score that is as high for far
    links loses by it.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> gpnsf.tl.link_peaks(mdata)
    >>> table = gpnsf.tl.evaluate_links(mdata, mdata.uns["true_links"], n_bootstrap=20)
    >>> table.query("pairs == 'all' and metric == 'auroc'")["ranking"].tolist()
    ['score', 'distance', 'score x distance']
    """
    Rule(int, 500, low=20).check("n_bootstrap", n_bootstrap)
    Rule(int, 0, low=0).check("seed", seed)
    _check_ends(distances)
    table, values = _read(data, score, key)
    known = pd.MultiIndex.from_frame(pair_table(truth, argument="truth"))
    is_link = pd.MultiIndex.from_frame(table[["gene", "peak"]].astype(object)).isin(known)
    bins, (gene, names) = bins_of(table["distance"], distances), pd.factorize(table["gene"])
    both = [is_link[rows].any() and not is_link[rows].all() for rows, _ in bin_order(values, bins)]
    if not any(both):
        counted = f"{is_link.sum()} of the {len(known)} known links among {len(table)} pairs"
        remedy = "Check the names of genes and peaks, or pass fewer bins as `distances`"
        raise ValueError(
            problem("links and other pairs in the same bin of distances", counted, remedy)
        )
    n_genes = len(names)
    drawn = np.random.default_rng(seed).integers(n_genes, size=(n_bootstrap, n_genes))
    weights = np.array([np.bincount(some, minlength=n_genes) for some in drawn])
    one = np.zeros_like(bins)
    lines: list[_Line] = []
    for ranking, by in _rankings(values, table["distance"].to_numpy(dtype=np.float64)):
        for pairs, within in (("equal distance", bins), ("all", one)):
            lines += _judged(by, is_link, within, gene, weights, ranking=ranking, pairs=pairs)
    for code, name in _bin_names(bins, distances):
        rows = bins == code
        if 0 < is_link[rows].sum() < rows.sum():
            part = (values[rows], is_link[rows], one[rows], gene[rows])
            lines += _judged(*part, weights, ranking="score", pairs=name)
    return pd.DataFrame(lines)


def _read(data: MuData, score: str, key: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The table of links, and the score of each pair."""
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
    return table, values


def _rankings(score: np.ndarray, distance: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What pairs are ranked by, larger first."""
    yield "score", score
    if not np.isnan(distance).any():
        yield "distance", -np.abs(distance)
        yield "score x distance", np.maximum(score, 0) * contact(distance)


def _judged(
    values: np.ndarray,
    is_link: np.ndarray,
    bins: np.ndarray,
    gene: np.ndarray,
    weights: np.ndarray,
    *,
    ranking: str,
    pairs: str,
) -> list[_Line]:
    """Lines of the table for one ranking of some pairs, by draws of the genes with weights [draws, genes]."""
    order = bin_order(values, bins)
    auroc, precision, base = mean_ranking(bin_rankings(order, is_link, np.ones(len(values))))
    draws = [mean_ranking(bin_rankings(order, is_link, weight[gene]))[:2] for weight in weights]
    low, high = np.nanquantile(draws, INTERVAL, axis=0)
    counted = int(is_link.sum()), len(values), len(np.unique(gene))
    return [
        _Line(ranking, pairs, "auroc", auroc, low[0], high[0], 0.5, *counted),
        _Line(ranking, pairs, "average_precision", precision, low[1], high[1], base, *counted),
    ]


def _bin_names(bins: np.ndarray, ends: Sequence[float] | None) -> Iterator[tuple[int, str]]:
    """Code and name of each of several bins."""
    codes = np.unique(bins)
    if ends is None or len(codes) == 1:
        return
    kb = [f"{end / 1000:g}" for end in ends]
    for code in codes:
        if code < 0:
            yield code, "not known"
        elif code + 1 < len(kb):
            yield code, f"{kb[code]} to {kb[code + 1]} kb"
        else:
            yield code, f"above {kb[-1]} kb"
