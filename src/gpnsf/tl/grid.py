"""Many fits at once: models, likelihoods, numbers of factors, seeds and data sets side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, cpu_count, delayed, effective_n_jobs

from gpnsf.arguments import answering
from gpnsf.checks import Rule, problem
from gpnsf.core.progress import Progress
from gpnsf.settings import settings
from gpnsf.tl.own_process import in_own_process
from gpnsf.tl.plan import Run, read_plan
from gpnsf.tl.run_records import Records

__all__ = ["grid"]


@answering
def grid(
    spec: Mapping[str, object] | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    n_jobs: int | None = None,
    part: tuple[int, int] = (1, 1),
    retry: bool = False,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Fit all combinations of data, models and arguments, and put what they found into one table.

    Each fit is a run in a process of its own, and leaves a small record in the folder. Whatever ends the grid, Ctrl-C or a crash of
    the machine, the same call goes on with the runs that are missing. So it does with a longer list of arguments or data.

    Parameters
    ----------
    spec
        What to fit: the path of a TOML file, or the same as a mapping. Its parts are

        - ``data``: names, and for each the path of a ``.h5ad``, ``.h5mu`` or ``.zarr`` (relative to the TOML file), or the arguments of simulated
          data, ``{simulate = "ggblocks", seed = 1}``.
        - ``fit``: arguments of :func:`gpnsf.tl.fit`. A list holds values to be combined with all others, so a list of modalities
          is written in a list. The text "none" stands for None. ``model`` may also be "mefisto", :func:`gpnsf.tl.mefisto`, which gets those arguments that it has.
        - ``variant``: list of tables of arguments, for combinations that are no product. Each is combined with the arguments in ``fit``, which it may replace; then
          ``fit`` is not run without one of them.
        - ``split``: ``holdout``, the share of observations that is held out, the same ones for all models of a data set and seed.
        - ``keep_fits``: whether the fitted objects are kept in ``folder/fits`` under the ``key`` of the table. Default: no.
    folder
        Where records and table go; made if it is not there. It may hold the runs of several grids.
    n_jobs
        Runs at the same time. Default: 1, or as many as ``joblib.parallel_config`` says, whose backend, such as that of dask, is used as well. The
        processors are divided among the runs, unless ``OMP_NUM_THREADS`` says how many threads each may have.
    part
        ``(i, n)`` makes the i-th of n parts of the grid, say in the i-th task of a job array. Parts may share the folder.
    retry
        Whether runs that have failed are made again.
    progress
        Whether to show a progress bar over all runs. Default: ``gpnsf.settings.progress``.

    Returns
    -------
    A line for each modality of each run of the grid that has ended, of the other parts too: ``data``, ``model``, ``n_factors``, ``n_spatial`` and
    ``seed`` that were asked for, other arguments that differ; ``modality``, ``likelihood``; ``deviance`` and ``deviance_holdout``, mean Poisson
    deviances of training and held-out observations with the shares ``explained`` and ``explained_holdout`` and the root mean squared errors ``rmse`` and
    ``rmse_holdout``; ``sparsity`` of loadings; ``morans_i``, the mean over spatial factors (all these as in :func:`gpnsf.tl.evaluate`); ``n_kept`` and
    ``n_kept_spatial`` factors; ``n_steps``, ``converged``, ``n_repairs``; ``seconds`` and ``cpu_seconds`` of the fit; ``peak_memory`` of its process in bytes; when it ``finished``; ``error``, the message
    of a run that has failed; ``key``, the name of its record.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the grid names an unknown part, data set, model or argument, or an argument is out of its range, before anything is fitted. What only the data can
        tell is written down as the ``error`` of a run.
    FileNotFoundError, OSError
        If a file is not there, or the folder cannot be written to.

    Notes
    -----
    Writes ``folder/runs/KEY.json`` for each run, and the table to ``folder/table.csv``. The key is a hash of what the data hold, arguments and
    the version of gpnsf: a run is made again if any of them has changed. Of two processes with the same grid each run is made by one.

    The models "fa", "rsf" and "mefisto" have no likelihood of counts: ``likelihoods`` does not concern them. The first two are fitted to what
    :func:`gpnsf.pp.normalise` makes of the counts.

    Examples
    --------
    >>> import gpnsf
    >>> fit = {"model": ["nsf", "pnmf"], "n_factors": 3, "max_steps": 2, "modalities": ["rna"]}
    >>> data = {"blocks": {"simulate": "ggblocks", "n_side": 12, "n_genes": 40, "n_peaks": 36}}
    >>> table = gpnsf.tl.grid({"data": data, "fit": fit}, "grid", progress=False)
    >>> table[["data", "model", "n_kept"]].values.tolist()
    [['blocks', 'nsf', 3], ['blocks', 'pnmf', 3]]
    """
    Rule(int, 4, optional=True).check("n_jobs", n_jobs)
    Rule(bool, False).check("retry", retry)
    _check_part(part)
    runs, records = read_plan(spec), Records(Path(folder))
    own = {run.key: run for run in runs[part[0] - 1 :: part[1]]}
    missing = [run for run in own.values() if not records.ended(run, retry=retry)]
    threads = max(1, cpu_count() // effective_n_jobs(n_jobs))
    make = partial(_make, records.folder, threads=threads, retry=retry)
    shown = settings.shows(progress)
    try:
        with Progress("grid", len(own), shown=shown) as bar:
            bar.step(len(own) - len(missing))
            for wait in (False, True):  # those that another process makes are looked at again later
                done = Parallel(n_jobs, prefer="threads", return_as="generator")(
                    delayed(make)(run, wait=wait) for run in missing
                )
                left = []
                for run, ended in zip(missing, done, strict=True):
                    bar.step(ended)
                    left += [] if ended else [run]
                missing = left
    finally:
        table = records.table(runs)
    return table


def _make(folder: Path, run: Run, *, threads: int, retry: bool, wait: bool) -> bool:
    """Make a run, here or where joblib sends it."""
    work = partial(in_own_process, folder=folder, threads=threads)
    return Records(folder).make(run, work, retry=retry, wait=wait)


def _check_part(part: Any) -> None:
    """Check that a part is one of some."""
    whole = isinstance(part, tuple | list) and len(part) == 2
    if not whole or not all(isinstance(n, int) for n in part) or not 1 <= part[0] <= part[1]:
        rule, remedy = "`part` to be (i, n) with 1 <= i <= n", "Pass for example part=(1, 10)"
        raise ValueError(problem(rule, repr(part), remedy))
