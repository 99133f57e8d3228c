"""Other tools for the cell types of spots, each in an environment of its own, beside ours on sums of real cells."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from deconvolution_sections import Mixture, shares, silver
from race import PATIENCE, PEERS, Environment, Method, ended, installed, read, stands
from race_data import SECTIONS
from report import machine, write_table

import gpnsf

METHODS = ("nnls", "graph", "unrolled")
MEASURES = {"relative_error": "relative error", "rmse": "RMSE", "jsd": "JSD", "pcc": "PCC"}
OURS = "gpnsf, {}"
RECIPE = (
    "Sums of real cells whose types are known, as in Spotless. osmFISH: 33 genes, 31 types, cells summed over squares of their own positions, about 8 in each and 3 at least; reference: mean counts of "
    "the types, of the same cells (which flatters every method) or of a random half of the cells, with spots of the other half. seqFISH+: 72 squares of 1 to 17 cells, 9,684 genes, 13 types; profiles by "
    "least squares on the true numbers (flattering too); noisy: each value times a log-normal with sd .5. Low depth: binomial thinning. "
)
NOTE = RECIPE + (
    "Truth: shares of cells. JSD: Jensen-Shannon divergence; PCC: Pearson correlation. Coverage: share of the truth within 90 % intervals (`uncertainty=True`, whose CPU seconds are counted); the others give none. CPU s on a shared machine, one "
    "thread, imports not counted; the first run of FlashDeconv compiles. {settings}{machine}."
)
FIRST_NOTE = "By relative error and by JSD, among all methods of the table above that ran; in brackets the rank. Default: `method='graph'`. {failed}{machine}."


@dataclass(frozen=True)
class Rivals:
    """The methods of ``peers/rivals.toml``, and where they leave what they find."""

    cache: Path
    limit: float  # CPU seconds of one run
    again: bool = False

    def run(self, mixture: Mixture) -> dict[str, dict[str, Any]]:
        """By title, of the methods that are for all sections or for this one: proportions ``V`` and ``cpu``, or how it ``failed``."""
        environments, methods = read(PEERS / "rivals.toml")
        folder = self.cache / "rivals"
        folder.mkdir(parents=True, exist_ok=True)
        return {
            one.title: self._result(one, environments[one.environment], mixture, folder)
            for one in methods.values()
            if one.sections == list(SECTIONS) or mixture.reference in one.sections
        }

    def _result(
        self, method: Method, environment: Environment, mixture: Mixture, folder: Path
    ) -> dict[str, Any]:
        """What is in the cache, or a run."""
        section = _written(mixture, folder)
        result = folder / f"{_key(method, environment, section)}.json"
        found = result.with_suffix(".npz")
        if not stands(result, self.limit, self.again):
            python, failure = installed(environment, self.cache / "environments")
            script = [str(PEERS / method.script), str(section), str(found)]
            command = [python, "-W", "ignore", *script, json.dumps(method.options)]
            failure = (
                f"not installed: {failure}"
                if failure
                else ended(command, PATIENCE * self.limit, cpu_limit=self.limit)
            )
            took = found.with_suffix(".took.json")
            record = {"failed": failure} if failure else json.loads(took.read_text())
            result.write_text(json.dumps(record | {"limit": self.limit}))
        record = json.loads(result.read_text())
        if "failed" in record:
            return record
        with np.load(found) as arrays:
            return record | {"V": arrays["proportions"]}


def _written(mixture: Mixture, folder: Path) -> Path:
    """The section as a file, under a name that its contents decide."""
    counts = mixture.spots[:, mixture.profiles.index].X.toarray().astype(float)
    arrays = {
        "counts": counts,
        "profiles": mixture.profiles.to_numpy(dtype=float),
        "numbers": mixture.numbers.astype(float),
        "coords": mixture.spots.obsm["spatial"].astype(float),
    }
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
    path = folder / f"section_{digest.hexdigest()[:12]}.npz"
    if not path.exists():
        np.savez(path, **arrays)
    return path


def _key(method: Method, environment: Environment, section: Path) -> str:
    """Name of a result: anything that could change it is in it."""
    scripts = [(PEERS / name).read_text() for name in (method.script, "mixtures.py")]
    content = json.dumps([scripts, method.options, asdict(environment), section.stem])
    name = Path(method.script).stem
    return f"{name}_{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def table(rivals: Rivals | None) -> None:
    """Ours, and the rivals if they are asked for, on every sum of cells."""
    mixtures = silver()
    lines = [ours(mixture) for mixture in mixtures]
    if rivals:
        for mixture, some in zip(mixtures, lines, strict=True):
            some += judged(mixture, rivals.run(mixture))
    rows = []
    for mixture, some in zip(mixtures, lines, strict=True):
        section = {
            "section": mixture.section,
            "reference": mixture.reference,
            "counts of a spot": mixture.depth,
        }
        rows += [section | line for line in some]
    frame = pd.DataFrame(rows)
    failed = frame.reindex(columns=["method", "JSD", "failed"])
    failed = failed[failed["JSD"].isna()].drop_duplicates(["method", "failed"])
    said = "".join(f"{one.method} failed: `{one.failed}`. " for one in failed.itertuples())
    write_table(
        "deconvolution_silver",
        shown(frame),
        NOTE.format(settings=_settings(rivals), machine=machine()),
    )
    first_note = FIRST_NOTE.format(failed=said, machine=machine())
    write_table("deconvolution_silver_first", first(frame), first_note)


def _settings(rivals: Rivals | None) -> str:
    """How the rivals were called, in words."""
    if rivals is None:
        return ""
    methods = read(PEERS / "rivals.toml")[1].values()
    return "".join(f"{one.title}: {one.settings}. " for one in methods)


def ours(mixture: Mixture) -> list[dict[str, Any]]:
    """One line for each of our methods."""
    lines = []
    for method in METHODS:
        begin = time.process_time()
        shares(mixture.spots, mixture.profiles, method, method=method, uncertainty=True)
        cpu = time.process_time() - begin
        line = _scores(mixture, method) | {"cpu": cpu}
        lines.append({"method": OURS.format(method)} | line)
    print(mixture.section, mixture.depth, pd.DataFrame(lines).to_string(), flush=True)
    return lines


def judged(mixture: Mixture, found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each rival, by the same measures as ours."""
    lines = []
    for title, result in found.items():
        line = {"failed": result["failed"]} if "failed" in result else {"cpu": result["cpu"]}
        if "V" in result:
            shares(mixture.spots, mixture.profiles, "rival", method="nnls")
            mixture.spots.obsm["X_rival"] = result["V"].astype(np.float32)
            line |= _scores(mixture, "rival")
        print(title, line, flush=True)
        lines.append({"method": title} | line)
    return lines


def _scores(mixture: Mixture, key: str) -> dict[str, Any]:
    """Measures of ``tl.evaluate_deconvolution``."""
    line = gpnsf.tl.evaluate_deconvolution(mixture.spots, mixture.truth, key=key).iloc[0]
    return {title: line[name] for name, title in {**MEASURES, "coverage": "coverage"}.items()}


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers in three digits; a dash where there is none."""
    digits = {**dict.fromkeys([*MEASURES.values(), "coverage"], ".3f"), "cpu": ".1f"}
    columns = ["section", "reference", "counts of a spot", "method", *digits]
    text = frame[columns].copy()
    for name, form in digits.items():
        text[name] = ["-" if pd.isna(value) else format(value, form) for value in frame[name]]
    return text.rename(columns={"cpu": "CPU s"})


def first(frame: pd.DataFrame) -> pd.DataFrame:
    """Which method is first on each section, and where the best and the default of ours stand."""
    rows = []
    keys = ["section", "reference", "counts of a spot"]
    for names, lines in frame.groupby(keys, sort=False):
        row = dict(zip(keys, names, strict=True))
        for measure in ("relative error", "JSD"):
            order = lines.dropna(subset=[measure]).sort_values(measure).reset_index(drop=True)
            row[f"first by {measure}"] = f"{order.method[0]}, {order[measure][0]:.3f}"
            mine = order.index[order.method.str.startswith(OURS.format(""))][0]
            default = order.index[order.method == OURS.format("graph")][0]
            row |= {
                f"best of ours, {measure}": f"{order.method[mine]}, {order[measure][mine]:.3f} ({mine + 1} of {len(order)})",
                f"default, {measure}": f"{order[measure][default]:.3f} ({default + 1} of {len(order)})",
            }
        rows.append(row)
    return pd.DataFrame(rows)
