"""How many factors the counts hold, and how many of them are spatial."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from joblib import effective_n_jobs
from mudata import MuData

from gpnsf.arguments import Options, check_arguments, check_names
from gpnsf.checks import Rule, problem
from gpnsf.core.presets import PRESETS
from gpnsf.core.progress import Progress
from gpnsf.io.objects import in_memory, open_data
from gpnsf.io.tables import takes_tables
from gpnsf.io.write import check_free
from gpnsf.settings import settings
from gpnsf.tl.forecast import forecast
from gpnsf.tl.search import Search, prepare

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["select_n_factors"]

FIRST = (3, 5, 8, 12, 18)  # numbers of factors that are tried before those between and beyond
LARGEST = 60
OWN = {"copy", "split", "refine"}  # arguments of a fit that are set for each

_log = logging.getLogger("gpnsf")


@takes_tables
def select_n_factors(
    data: AnnData | MuData,
    *,
    n_factors: Sequence[int] | None = None,
    n_spatial: Sequence[int] | None = None,
    n_seeds: int = 2,
    max_steps: int = 60,
    n_jobs: int | None = None,
    key_added: str = "gpnsf_selection",
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **fit_arguments: Any,
) -> pd.DataFrame:
    r"""Choose the number of factors by counts that were not fitted, and the number of spatial ones by their order.

    The counts are divided into two parts that are independent given the rates. Each number K is fitted to the one with 80 % of them, and
    judged by the deviance of the other. The smallest K is recommended whose deviance exceeds the lowest one by no more than one standard error, or by
    .5 % of what the best fit explains. Fits of all counts with this K then say how many factors have spatial order of their own: a z
    (see ``split`` of :func:`gpnsf.tl.fit`) above 3, and above half of the highest.

    Parameters
    ----------
    data
        Object with raw counts and coordinates, as for :func:`gpnsf.tl.fit`.
    n_factors
        Numbers K to try. Default: 3, 5, 8, 12 and 18, then numbers between, and beyond up to 60, where the deviance is lowest.
    n_spatial
        Numbers T to try with each K that is not smaller: both are then chosen by deviance, without the test. Default: T by the test.
    n_seeds
        Divisions of the counts, each with a fit of its own for each candidate.
    max_steps
        Cap on the steps of each fit.
    n_jobs
        Processes that fit at the same time, one thread each. Default: as many as there are cores.
    key_added
        Where the result goes in ``uns``.
    seed
        Seed of divisions and fits.
    progress
        Whether to show a progress bar over all fits. Default: ``gpnsf.settings.progress``. About how long it will take is in the log
        before the first fit, with or without a bar.
    checkpoint
        Path of a file that keeps what each finished fit has found: deviances, factors, their order. If the search is interrupted, the same
        call goes on with the fits that are missing; other arguments or data are refused. Removed when the search is complete.
    fit_arguments
        Further arguments of :func:`gpnsf.tl.fit`, for example ``layers``, ``likelihoods``, ``size_factors``, ``library_key``.

    Returns
    -------
    Table with one line for each candidate: ``n_factors``; ``n_spatial`` (asked for, or median number that showed order in the part
    that was fitted); ``deviance`` of the other part per observation; ``explained``, the share of the deviance of one rate per
    feature; ``excess`` over the lowest deviance and its standard error ``excess_se``; ``stability``, the mean correlation of
    spatial factors of two seeds after matching; ``objective``, where the fits ended, per observation (a hint: in general it is no bound on
    the evidence, see :doc:`/model`); ``n_kept``, the median number of factors that the fits have kept; ``seconds`` per fit; ``recommended``. Its
    ``attrs`` hold ``n_factors``, ``n_spatial`` and ``reason``, which also says where the objective is highest and whether the choice is the
    smallest or largest number tried; both numbers are None where the counts cannot tell.

    Raises
    ------
    KeyError, TypeError, ValueError
        If an argument is of the wrong type or out of its range, or as :func:`gpnsf.tl.fit`.

    Notes
    -----
    Writes the same into ``uns["gpnsf_selection"]``: ``table``, ``reason``, and, if there is a recommendation, ``n_factors`` and
    ``n_spatial``. With a median below 30 counts an observation, all modalities together, there is none.

    Deviances of all candidates are under one dispersion per feature, that of a short fit to all counts. The same dispersion makes
    the parts of negative binomial counts independent; plain binomial ones share their gamma noise, and would reward factors that follow it.

    Examples
    --------
    >>> import gpnsf
    >>> adata = gpnsf.datasets.ggblocks(n_side=12, n_genes=60, n_peaks=36, seed=0)["rna"]
    >>> table = gpnsf.tl.select_n_factors(
    ...     adata, n_factors=[2, 3], n_seeds=1, max_steps=5, n_jobs=1, progress=False
    ... )
    >>> table.n_factors.tolist()
    [2, 3]
    """
    check_names(fit_arguments, "gpnsf.tl.select_n_factors")
    _check(n_factors, n_spatial, fit_arguments, n_seeds=n_seeds, n_jobs=n_jobs, key_added=key_added)
    asked = {"max_steps": max_steps, "seed": seed, "progress": progress, "checkpoint": checkpoint}
    check_arguments({**asked, **fit_arguments})
    open_data(
        data,
        modalities=fit_arguments.get("modalities"),
        likelihoods=fit_arguments.get("likelihoods"),
        writes=True,
    )
    in_memory(data, "a part for each fit")
    check_free(data, key_added, example="gpnsf_selection")
    arguments: Options = {"max_steps": max_steps, "progress": False, **fit_arguments}
    numbers = _first(data) if n_factors is None else sorted({int(K) for K in n_factors})
    candidates = [
        (K, T)
        for K in numbers
        for T in ([None] if n_spatial is None else sorted({int(T) for T in n_spatial}))
        if (T or 0) <= K
    ]
    if not candidates:
        found = f"n_spatial={list(n_spatial or ())} with n_factors={numbers}"
        raise ValueError(
            problem(
                "at least one `n_spatial` that is not above the largest `n_factors`",
                found,
                "Lower n_spatial or raise n_factors",
            )
        )
    n_jobs, seeds = -1 if n_jobs is None else n_jobs, [seed + i for i in range(n_seeds)]
    _announce(data, candidates, n_seeds, n_jobs, arguments)
    expected = 1 + n_seeds * (len(candidates) + (n_spatial is None))
    with Progress("select", expected, shown=settings.shows(progress)) as bar:
        bar.stage("a short fit for dispersions")
        middle = int(np.median(numbers))
        search = prepare(data, arguments, seeds, middle, n_jobs, bar, checkpoint)
        bar.step()
        search.run(candidates)
        while n_factors is None and n_spatial is None and (more := _between(search, data)):
            bar.expected += n_seeds * len(more)
            search.run([(K, None) for K in more])
        table = search.table()
        table.attrs = search.verdict()
    stored = {name: value for name, value in table.attrs.items() if value is not None}
    data.uns[key_added] = {"table": pd.DataFrame(table.to_dict("list")), **stored}
    search.tasks.finished.remove()
    _log.log(
        logging.INFO if table.attrs["n_factors"] else logging.WARNING, "%s", table.attrs["reason"]
    )
    return table


def _announce(
    data: AnnData | MuData,
    candidates: list[tuple[int, int | None]],
    n_seeds: int,
    n_jobs: int,
    arguments: Options,
) -> None:
    """Say how many fits there will be, and about how long they will take."""
    numbers = [K for K, _ in candidates]
    ends = sorted({min(numbers), max(numbers)})
    seconds = [forecast(data, n_factors=K, **arguments).seconds for K in ends]
    whole = n_seeds * (np.interp(numbers, ends, seconds).sum() + max(seconds))
    jobs = min(effective_n_jobs(n_jobs), n_seeds * len(candidates))
    _log.info(
        "%d fits of %d to %d factors, %d at a time: about %s.",
        n_seeds * (len(candidates) + 1),
        ends[0],
        ends[-1],
        jobs,
        _in_words(whole / jobs),
    )


def _in_words(seconds: float) -> str:
    """A time, as precise as a forecast can be."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds > 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _check(
    n_factors: Sequence[int] | None,
    n_spatial: Sequence[int] | None,
    fit_arguments: Options,
    **options: Any,
) -> None:
    """Check the arguments that are not those of a fit."""
    lists: list[tuple[str, object, int]] = [
        ("n_factors", n_factors, 1),
        ("n_spatial", n_spatial, 0),
    ]
    for name, values, low in lists:
        if values is None:
            continue
        if isinstance(values, str) or not isinstance(values, Iterable) or not list(values):
            found, remedy = repr(values), f"Pass for example {name}=[4, 6, 8], or leave it out"
            raise TypeError(problem(f"`{name}` to be a list of integers", found, remedy))
        for value in values:
            Rule(int, 6, low=low).check(name, value)
    Rule(int, 2, low=1).check("n_seeds", options["n_seeds"])
    Rule(int, 4, low=1, optional=True).check("n_jobs", options["n_jobs"])
    Rule(str, "gpnsf_selection").check("key_added", options["key_added"])
    hybrid = tuple(name for name, preset in PRESETS.items() if preset.is_hybrid)
    Rule(str, "gpnsf", options=hybrid).check("model", fit_arguments.get("model", "gpnsf"))
    own = sorted(OWN & fit_arguments.keys())
    if own:
        remedy = f"Leave {own[0]} out: it is set for each fit"
        raise TypeError(
            problem("arguments of a fit that are not part of the search", repr(own[0]), remedy)
        )


def _first(data: AnnData | MuData) -> list[int]:
    """Numbers to begin with, no larger than the data."""
    mods = data.mod.values() if isinstance(data, MuData) else [data]
    limit = min(data.n_obs, *(mod.n_vars for mod in mods))
    return [K for K in FIRST if K <= limit]


def _between(search: Search, data: AnnData | MuData) -> list[int]:
    """Numbers halfway to the neighbours of the one chosen, or beyond the last one."""
    tried, K = sorted(K for K, _ in search.runs), search.chosen[0]
    lower = max((k for k in tried if k < K), default=0)
    upper = min((k for k in tried if k > K), default=None)
    mods = data.mod.values() if isinstance(data, MuData) else [data]
    if upper is None:
        beyond = min(K + K // 2, LARGEST, data.n_obs, *(mod.n_vars for mod in mods))
        return [beyond] if beyond > K else []
    return [k for k in {(lower + K) // 2, (K + upper) // 2} if lower < k < upper and k != K]
