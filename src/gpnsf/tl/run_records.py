"""The folder of a grid: one small record for each run that has ended, and fits that are kept.

A record is written whole or not at all, by one process at a time, under a key that says what was
fitted, how, and by which version.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import pandas as pd
from filelock import FileLock, Timeout

from gpnsf.checks import problem
from gpnsf.io.kinds import replacing
from gpnsf.tl.plan import Run

__all__ = ["Course", "Found", "Line", "Records"]

Line: TypeAlias = dict[str, str | float]  # how good a fit is in one modality, some of LINES
LINES = (
    *("modality", "likelihood", "deviance", "deviance_holdout", "explained", "explained_holdout"),
    *("rmse", "rmse_holdout", "sparsity", "morans_i"),
)


class Course(TypedDict, total=False):
    """How a fit went, and what it took."""

    n_kept: int
    n_kept_spatial: int
    n_steps: int
    converged: bool
    n_repairs: int
    seconds: float
    cpu_seconds: float
    peak_memory: float


class Found(Course):
    """What a run has found; one that has failed has an error alone."""

    error: str | None
    lines: list[Line]


class Record(Found):
    """What is written down of a run, beside what was asked for."""

    finished: str


COURSE = (*Course.__annotations__, "finished", "error")  # what a line has of its run


class Records:
    """What the runs in a folder have found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for name in ("runs", "locks"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            found, remedy = (
                f"{folder} ({error.strerror})",
                "Name one that can be made or written to",
            )
            raise type(error)(problem("a folder for the results", found, remedy)) from error

    def read(self, run: Run) -> Record | None:
        """The record of a run; None if it has not ended, or if a fit that is to be kept is not there."""
        try:
            record: Record = json.loads(self._path(run).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            remedy = "Delete it: the run is then made again"
            found = f"{self._path(run)}: {error}"
            raise ValueError(problem("a record of gpnsf.tl.grid", found, remedy)) from error
        missing = run.keep_fit and not record["error"] and self.fit(run) is None
        return None if missing else record

    def ended(self, run: Run, *, retry: bool) -> bool:
        """Whether a run need not be made."""
        record = self.read(run)
        return record is not None and not (retry and record["error"])

    def fit(self, run: Run) -> Path | None:
        """Where the fitted object of a run is kept, if it is."""
        return next(iter((self.folder / "fits").glob(f"{run.key}.h5*")), None)

    def make(self, run: Run, work: Callable[[Run], Found], *, retry: bool, wait: bool) -> bool:
        """Make a run unless it has ended, and write down what it found.

        Tells whether it has ended then; without ``wait`` it has not where another process makes it.
        """
        try:
            with FileLock(self.folder / "locks" / run.key, timeout=-1 if wait else 0):
                if not self.ended(run, retry=retry):
                    self._write(run, work(run))
                return True
        except Timeout:
            return False

    def table(self, runs: Iterable[Run]) -> pd.DataFrame:
        """A line for each modality of each run that has ended, kept as ``table.csv`` too."""
        ended = [(run, record) for run in runs if (record := self.read(run)) is not None]
        varied = _varied([run for run, _ in ended])
        columns = ["data", "model", *varied, *LINES, *COURSE, "key"]
        lines = [
            {"data": run.data, "model": run.model, **_asked(run, varied), **record, **line}
            for run, record in ended
            for line in record["lines"] or [{}]
        ]
        table = pd.DataFrame(lines, columns=columns).infer_objects()
        with FileLock(self.folder / "locks" / "table"):
            with replacing(self.folder / "table.csv") as partial:
                table.to_csv(partial, index=False)
        return table

    def _path(self, run: Run) -> Path:
        return self.folder / "runs" / f"{run.key}.json"

    def _write(self, run: Run, found: Found) -> None:
        record = {
            "key": run.key,
            "source": run.source,
            "model": run.model,
            "arguments": run.arguments,
            "holdout": run.holdout,
            **found,
            "version": version("gpnsf"),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        with replacing(self._path(run)) as partial:
            partial.write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")


def _varied(runs: list[Run]) -> list[str]:
    """Arguments that a table shows: those that runs are told apart by, and those that a reader expects."""
    always = ["n_factors", "n_spatial", "seed"]
    names = dict.fromkeys(name for run in runs for name in run.arguments)
    differ = [name for name in names if len({_text(run.arguments.get(name)) for run in runs}) > 1]
    return [*always, *(name for name in differ if name not in always)]


def _asked(run: Run, names: Iterable[str]) -> dict[str, object]:
    """Values of some arguments in a table, dictionaries and lists as text."""
    values = {name: run.arguments.get(name) for name in names}
    return {
        name: _text(value) if isinstance(value, Mapping | list | tuple) else value
        for name, value in values.items()
    }


def _text(value: Any) -> str:
    """A value on one line: rna=nb,atac=bernoulli."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={one}" for name, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
