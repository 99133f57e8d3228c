"""Where the CPU seconds of a fit go: by stage of the fit itself, and of the fits of the spatial test.

gpnsf benchmark stages

GPNSF_DATA_DIR must name the data folder for the cortex.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
from fits import loaded
from report import in_fresh_process, machine, parser, write_table

import gpnsf
from gpnsf.core.inference import (
    fitting,
    initial,
    loading_stage,
    local_stage,
    posterior,
    run,
    spatial_test,
    training,
)
from gpnsf.datasets.files import load

CASES = {
    "36,000 x 2,000, 3 %, K = 10": {"n_obs": 36_000, "rna_depth": 75.0, "layout": "random"},
    "2,500 x 2,000, 53 %, K = 20": {
        "n_obs": 2_500,
        "rna_depth": 4_000.0,
        "n_spatial": 12,
        "n_nonspatial": 8,
    },
    "cortex, RNA + ATAC, K = 12": {},
}
STEPS = {
    "pick": "choice among starts",
    "main": "finding factors",
    "move": "moves",
    "tail": "settling",
    "polish": "dispersions",
}
ORDER = ["starts", *STEPS.values(), "loadings", "local stage", "summary", "rest"]


class Clock:
    """CPU seconds of stages, each without those that it calls, inside and outside of the spatial test."""

    def __init__(self) -> None:
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.inner, self.part = [0.0], "fit"

    def watch(self, owner: Any, name: str, stage: str | Callable[..., str]) -> None:
        """Count what a function or method takes as a stage, which its arguments may name."""
        function = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            of = stage if isinstance(stage, str) else stage(*arguments)
            return self.count(of, lambda: function(*arguments, **options))

        setattr(owner, name, watched)

    def count(self, stage: str, call: Callable[[], Any]) -> Any:
        """The result of a call, whose seconds are those of a stage."""
        began = time.process_time()
        self.inner.append(0.0)
        try:
            return call()
        finally:
            taken = time.process_time() - began
            self.seconds[self.part, stage] += taken - self.inner.pop()
            self.inner[-1] += taken

    def test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The spatial test, whose stages are counted apart."""

        def tested(*arguments: Any, **options: Any) -> Any:
            self.part = "test"
            try:
                return self.count("rest", lambda: function(*arguments, **options))
            finally:
                self.part = "fit"

        return tested


def seconds_of(case: str) -> list[list]:
    """Part, stage and CPU seconds of one fit in this process."""
    fit, clock = loaded(), Clock()
    clock.watch(training.Stepper, "step", lambda _, phase, rate: STEPS[phase])
    for name in ("__init__", "smooth", "spot", "finish"):
        clock.watch(initial._Problem, name, "starts")
    clock.watch(training.Stepper, "begin", "starts")
    clock.watch(loading_stage, "settle", "loadings")
    clock.watch(local_stage, "local", "local stage")
    clock.watch(spatial_test, "_project", "local stage")
    clock.watch(posterior, "summarise", "summary")
    for owner, name in ((fitting, "spatial_test"), (run, "own_order")):
        setattr(owner, name, clock.test(getattr(owner, name)))
    settings = CASES[case]
    if settings:
        data = gpnsf.datasets.tissue(n_genes=2_000, n_peaks=10, seed=1, **settings)["rna"].copy()
    else:
        data = load("semi_cortex_spots.h5mu")
    n_factors = int(case.rpartition(" ")[2])
    clock.count("rest", lambda: fit(data, n_factors=n_factors, progress=False))
    return [[*key, seconds] for key, seconds in clock.seconds.items()]


def main() -> None:
    """Every case."""
    parser(__doc__).parse_args()
    columns = {}
    for case in CASES:
        code = f"import json, stages; print(json.dumps(stages.seconds_of({case!r})))"
        found = json.loads(in_fresh_process("-c", code, threads=1))
        seconds = {(part, stage): taken for part, stage, taken in found}
        for part in ("fit", "test"):
            own = {stage: seconds.get((part, stage), 0.0) for stage in ORDER}
            columns[f"{case}: {part}"] = {**own, "all": sum(own.values())}
    frame = pd.DataFrame(columns).map(lambda value: f"{value:.1f}").rename_axis("stage")
    note = (
        "CPU seconds of single fits with the default call, one thread each; test: the fits of both halves of the counts, the comparison of their factors, and the scores of the factors of the fit. Starts: the first guesses of the factors. Moves: trials of merging two factors, or of making one spatial. Settling: the last steps. "
        "Local stage: the factors of each single spot (in the test: of both halves, without fields). Summary: means and standard deviations. If a pattern is restored, or a factor becomes spatial or nonspatial, also on trial, the model is trained again, and these steps count "
        "under the same stages. Simulated tissues with negative binomial RNA, seed 1, and the semi-synthetic cortex. Imports, and the loading of compiled code, are not counted. "
        f"{machine()}."
    )
    write_table("stages", frame.reset_index(), note)


if __name__ == "__main__":
    main()
