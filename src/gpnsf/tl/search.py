"""The search over numbers of factors: fits of one part of the counts, deviances of the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from mudata import MuData

from gpnsf.arguments import Options
from gpnsf.core.families import FAMILIES
from gpnsf.core.inference.order import MIN_Z
from gpnsf.core.progress import Progress
from gpnsf.core.scores.metrics import match_factors
from gpnsf.io import fits
from gpnsf.io.measured import counts_of
from gpnsf.io.parcel import Parcel, pack
from gpnsf.keys import SPATIAL
from gpnsf.settings import settings
from gpnsf.tl.alone import one_at_a_time
from gpnsf.tl.evaluate import grouped_deviance
from gpnsf.tl.finished import Finished, facts_of
from gpnsf.tl.fit import fit

__all__ = ["Run", "Search", "Tasks", "n_ordered", "prepare"]

PILOT_STEPS = 40
FITTED = 0.8  # share of the counts that is fitted; the rest judges
ENOUGH_COUNTS = 30.0  # median counts of an observation below which parts of them decide nothing
MIN_SHARE = 0.005  # of what all factors explain: one that adds less is not worth having
LEAKAGE = 0.5  # of the highest z: nonspatial factors inherit up to .4 of it from spatial ones with the same features
N_GROUPS = 25  # of observations, over which the standard error is taken
KEPT = "gpnsf_kept"  # layer of the part that is not fitted

Candidate = tuple[int, int | None]  # K and T, None where the test decides


@dataclass(frozen=True)
class Run:
    """What is kept of a fit of one part: N observations, K factors."""

    deviance: np.ndarray  # [G] of the other part, by group
    null: np.ndarray  # [G]
    factors: np.ndarray  # [N, K]
    is_spatial: np.ndarray  # [K]
    order: int  # factors with spatial order of their own
    objective: float  # where the fit ended
    seconds: float

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Run:
        """A run as it was kept."""
        return cls(
            deviance=arrays["deviance"],
            null=arrays["null"],
            factors=arrays["factors"],
            is_spatial=arrays["is_spatial"],
            order=int(arrays["order"]),
            objective=float(arrays["objective"]),
            seconds=float(arrays["seconds"]),
        )


@dataclass(frozen=True)
class Tasks:
    """Fits that run side by side, each with a name under which its result is kept."""

    n_jobs: int
    progress: Progress
    finished: Finished

    def __call__(
        self, function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]]
    ) -> list[dict[str, np.ndarray]]:
        """Results of the calls, in order; each process has one thread, so that fits do not wait for each other."""
        missing = {name: call for name, call in calls.items() if name not in self.finished.found}
        self.progress.step(len(calls) - len(missing))
        if missing:
            n_jobs = min(effective_n_jobs(self.n_jobs), len(missing))
            with parallel_config(backend="loky", inner_max_num_threads=1):
                done = Parallel(n_jobs=n_jobs, return_as="generator")(
                    delayed(function)(*call) for call in missing.values()
                )
                try:
                    for name, result in zip(missing, done, strict=True):
                        self.finished.keep(name, result)
                        self.progress.step()
                except KeyboardInterrupt:
                    self.finished.tell()
                    raise
        return [self.finished.found[name] for name in calls]


@dataclass(frozen=True)
class Search:
    """Parts of the counts, and the runs of each candidate on them."""

    whole: Parcel
    # one for each seed: one part in place of the counts, the other in a layer
    thinned: list[Parcel]
    dispersion: dict[str, np.ndarray]  # modality -> [P] of the part that is kept
    depth: float  # median counts of an observation
    arguments: Options
    seeds: list[int]
    tasks: Tasks
    groups: np.ndarray  # [N]
    runs: dict[Candidate, list[Run]]

    def run(self, candidates: list[Candidate]) -> None:
        """Fit each candidate to one part of the counts for each seed, and judge it by the other."""
        calls = {
            f"K={K} T={T} seed={seed}": (
                thinned,
                K,
                T,
                {**self.arguments, "seed": seed},
                self.dispersion,
                self.groups,
            )
            for K, T in candidates
            for thinned, seed in zip(self.thinned, self.seeds, strict=True)
        }
        listed = ", ".join(dict.fromkeys(str(K) for K, _ in candidates))
        self.tasks.progress.stage(f"fits of {listed} factors")
        done = iter(self.tasks(_judged, calls))
        for candidate in candidates:
            self.runs[candidate] = [Run.of(next(done)) for _ in self.seeds]

    def deviance(self, candidate: Candidate) -> np.ndarray:
        """Mean over seeds [G] of the deviance of the kept part."""
        return np.mean([run.deviance for run in self.runs[candidate]], axis=0)

    @property
    def lowest(self) -> Candidate:
        """The candidate with the lowest deviance."""
        return min(self.runs, key=lambda candidate: self.deviance(candidate).sum())

    def objective(self, candidate: Candidate) -> float:
        """Mean over seeds of the objective that the fits have reached."""
        return float(np.mean([run.objective for run in self.runs[candidate]]))

    def excess(self, candidate: Candidate) -> tuple[float, float]:
        """Deviance above the lowest one and its standard error over groups of observations."""
        difference = self.deviance(candidate) - self.deviance(self.lowest)
        return float(difference.sum()), float(np.sqrt(len(difference) * difference.var(ddof=1)))

    @property
    def tolerance(self) -> float:
        """Deviance that all factors of the best candidate save, times the share that one of them must add."""
        null = np.mean([run.null.sum() for run in self.runs[self.lowest]])
        return float(MIN_SHARE * max(null - self.deviance(self.lowest).sum(), 0.0))

    @property
    def chosen(self) -> Candidate:
        """The smallest number of factors that is not clearly worse than the best; of several T, the best."""
        close = [
            c for c in self.runs if self.excess(c)[0] <= max(self.excess(c)[1], self.tolerance)
        ]
        smallest = min(K for K, _ in close)
        return min((c for c in close if c[0] == smallest), key=lambda c: self.excess(c)[0])

    def table(self) -> pd.DataFrame:
        """A line for each candidate."""
        n_obs, chosen, lines = len(self.groups), self.chosen, []
        for candidate in sorted(self.runs, key=lambda c: (c[0], c[1] or 0)):
            runs, (K, T) = self.runs[candidate], candidate
            deviance, (excess, error) = self.deviance(candidate).sum(), self.excess(candidate)
            line: dict[str, float] = {
                "n_factors": K,
                "n_spatial": _median(run.order for run in runs) if T is None else T,
            }
            line |= {
                "deviance": deviance / n_obs,
                "explained": 1 - deviance / np.mean([run.null.sum() for run in runs]),
            }
            line |= {
                "excess": excess / n_obs,
                "excess_se": error / n_obs,
                "stability": _stability(runs),
            }
            line |= {
                "objective": self.objective(candidate) / n_obs,
                "n_kept": _median(len(r.is_spatial) for r in runs),
            }
            line |= {
                "seconds": float(np.mean([run.seconds for run in runs])),
                "recommended": candidate == chosen,
            }
            lines.append(line)
        table = pd.DataFrame(lines)
        table["recommended"] &= self.depth >= ENOUGH_COUNTS
        return table

    def verdict(self) -> dict[str, object]:
        """The recommendation and its reason."""
        K, T = self.chosen
        if self.depth < ENOUGH_COUNTS:
            reason = (
                f"These counts are too few to tell: the median observation has {self.depth:g}, and at least {ENOUGH_COUNTS:g} are needed. "
                f"The deviance of the held-out counts alone would recommend {K} factors."
            )
            return {"n_factors": None, "n_spatial": None, "reason": reason}
        excess, error = self.excess((K, T))
        best = self.lowest[0]
        named = f"{K} factors" if T is None else f"{K} factors, {T} of them spatial,"
        first = f"{named} predict the held-out counts best"
        if (K, T) != self.lowest:
            bound = (
                "one standard error"
                if excess <= error
                else f"{MIN_SHARE:.1%} of what all factors explain"
            )
            first = f"{named} predict the held-out counts as well as the best number, {best}, within {bound}"
        if T is not None:
            reason = f"{first}."
        else:
            T, z = self._spatial(K)
            listed = ", ".join(f"{value:.1f}" for value in z)
            reason = f"{first}; {T} of them have spatial order of their own (z of a fit of all counts: {listed})."
        return {"n_factors": K, "n_spatial": T, "reason": f"{reason} {self._check(K)}"}

    def _check(self, n_factors: int) -> str:
        """What the objective says of the numbers, and whether the choice lies at the edge of those tried."""
        highest = max(self.runs, key=self.objective)[0]
        words = f"The objective of the fits is highest with {highest} factors."
        tried = sorted({K for K, _ in self.runs})
        for edge, name, beyond in (
            (tried[-1], "largest", "larger"),
            (tried[0], "smallest", "smaller"),
        ):
            if n_factors == edge and len(tried) > 1:
                words += f" {n_factors} is the {name} number that was tried: a {beyond} one may do better."
        return words

    def _spatial(self, n_factors: int) -> tuple[int, np.ndarray]:
        """Number of spatial factors in fits of all counts, and z [K] of the first fit, highest first."""
        calls = {
            f"z of K={n_factors} seed={seed}": (
                self.whole,
                n_factors,
                {**self.arguments, "seed": seed},
            )
            for seed in self.seeds
        }
        self.tasks.progress.stage(f"fits of all counts with {n_factors} factors")
        found = [arrays["z"] for arrays in self.tasks(_order, calls)]
        return _median(n_ordered(z) for z in found), np.sort(found[0])[::-1]


def prepare(
    data: AnnData | MuData,
    arguments: Options,
    seeds: list[int],
    n_factors: int,
    n_jobs: int,
    progress: Progress,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Search:
    """Dispersions by a short fit of all counts, and the parts of the counts for each seed."""
    short = {**arguments, "max_steps": min(PILOT_STEPS, arguments["max_steps"]), "seed": seeds[0]}
    pilot = fits.find(_quiet_fit(data, n_factors=n_factors, split="assumed", refine=False, **short))
    arguments = {name: value for name, value in arguments.items() if name != "layers"}  # X has them
    families = {name: FAMILIES[kind] for name, kind in pilot.likelihoods.items()}
    dispersion, counts, total = {}, {}, np.zeros(data.n_obs)
    for name in pilot.modalities:
        counts[name] = counts_of(pilot, name)
        total[pilot.rows[name]] += counts[name] @ pilot.loadings[name].any(axis=1)
        if families[name].has_dispersion:
            dispersion[name] = pilot.var(name, pilot.keys.dispersion).astype(np.float64)
    spatial = arguments.get("spatial_key", SPATIAL)
    thinned = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])
        pairs = {
            name: families[name].split(matrix, dispersion.get(name), FITTED, rng)
            for name, matrix in counts.items()
        }
        fitted = {name: pair[0] for name, pair in pairs.items()}
        kept = {name: {KEPT: pair[1]} for name, pair in pairs.items()}
        thinned.append(pack(data, fitted, layers=kept, obsm=spatial))
    counted = not any(family.signed for family in families.values())
    whole = pack(data, counts, obsm=spatial)
    facts = facts_of(whole, arguments, first_seed=seeds[0], numbers=n_factors)
    return Search(
        whole=whole,
        thinned=thinned,
        dispersion={
            name: families[name].part_dispersion(values, 1 - FITTED)
            for name, values in dispersion.items()
        },
        depth=float(np.median(total)) if counted else np.inf,
        arguments=arguments,
        seeds=seeds,
        tasks=Tasks(n_jobs, progress, Finished(checkpoint, facts)),
        groups=np.random.default_rng(seeds[0]).permutation(data.n_obs) % min(N_GROUPS, data.n_obs),
        runs={},
    )


def _judged(
    thinned: Parcel,
    n_factors: int,
    n_spatial: int | None,
    arguments: Options,
    dispersion: dict[str, np.ndarray],
    groups: np.ndarray,
) -> dict[str, np.ndarray]:
    """Fit one part, and judge it by the other under the dispersions that all candidates share."""
    began = time.perf_counter()
    slots, split = (_half(n_factors), "tested") if n_spatial is None else (n_spatial, "assumed")
    done = _quiet_fit(
        thinned.unpacked(), n_factors=n_factors, n_spatial=slots, split=split, **arguments
    )
    seconds = time.perf_counter() - began
    found = fits.find(done)
    for name, values in dispersion.items():
        found.modalities[name].var[found.keys.dispersion] = values
    deviance, null = grouped_deviance(done, groups, layer=KEPT)
    order = slots if n_spatial is not None else n_ordered(found.uns["spatial_test"]["z"])
    objective = float(found.uns["history"]["elbo"][-1])
    run = Run(deviance, null, found.mean, found.is_spatial, order, objective, seconds)
    return {name: np.asarray(value) for name, value in vars(run).items()}


def _order(whole: Parcel, n_factors: int, arguments: Options) -> dict[str, np.ndarray]:
    """Z [K] of all factors of a fit of all counts."""
    done = _quiet_fit(
        whole.unpacked(),
        n_factors=n_factors,
        n_spatial=_half(n_factors),
        split="tested",
        **arguments,
    )
    return {"z": np.asarray(fits.find(done).uns["spatial_test"]["z"])}


@one_at_a_time
def _quiet_fit(data: AnnData | MuData, **arguments: Any) -> AnnData | MuData:
    """A fitted copy; what a single one of many fits has to say is no news."""
    with settings.override(verbosity="error"):
        return fit(data, copy=True, **arguments)


def _half(n_factors: int) -> int:
    """Spatial factors of a fit whose test decides: all factors are tested, also those that have no field."""
    return (n_factors + 1) // 2


def n_ordered(z: np.ndarray) -> int:
    """Number of factors [K] with spatial order of their own."""
    return int((z > max(MIN_Z, LEAKAGE * z.max())).sum())


def _median(values: Iterable[int]) -> int:
    """Median, the smaller one of two."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def _stability(runs: list[Run]) -> float:
    """Mean correlation of the spatial factors of one seed with the factors of another after matching, over pairs of seeds."""
    matched = [
        match_factors(one.factors[:, one.is_spatial], other.factors)[1].mean()
        for one in runs
        for other in runs
        if one is not other and one.is_spatial.any()
    ]
    return float(np.mean(matched)) if matched else np.nan
