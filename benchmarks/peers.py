"""gpnsf and its peers on the same sections: each peer in a virtual environment of its own, on one thread, within the same CPU seconds.

GPNSF_DATA_DIR=... gpnsf benchmark peers [--cache DIR] [--limit 300]
GPNSF_DATA_DIR=... gpnsf benchmark peers --only mofa mefisto --sections blocks

What has run is not run again, nor is what failed; --again runs the failures again. Environments take some GB of the cache.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from race import NOT_RUN, Method, known, read, run
from race_data import SECTIONS
from report import machine, parser, write_table

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gpnsf" / "peers"
NUMBERS = {  # what a cell shows of each score
    "recovery": ("spatial", "nonspatial"),
    "prediction": ("explained",),
    "regions": ("kmeans", "gmm"),
}
MEANING = {
    "recovery": "r of spatial patterns",
    "prediction": "explained deviance",
    "regions": "adjusted Rand index",
}
OURS, TOLD = "gpnsf", "gpnsf_told"
SHORT = 30  # characters of a failure that a cell shows; the others stand in a table of their own
ZEROS = "cortex_rna"  # section whose loadings are counted


def main() -> None:
    """Every method on every section, then the tables."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--cache", type=Path, default=CACHE, help="folder of environments, sections and results"
    )
    arguments.add_argument("--limit", type=float, default=300.0, help="CPU seconds of one run")
    arguments.add_argument("--only", nargs="+", help="methods, as peers.toml names them")
    arguments.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    arguments.add_argument("--again", action="store_true", help="run again what failed")
    arguments.add_argument(
        "--tables", action="store_true", help="run nothing: the tables of what has run"
    )
    arguments.add_argument(
        "--package",
        nargs=2,
        action="append",
        default=[],
        metavar=("ENVIRONMENT", "FOLDER"),
        help="a clone to install where there is no release",
    )
    chosen = arguments.parse_args()
    logging.getLogger("gpnsf").setLevel("WARNING")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a run is ended with this
    environments, methods = read()
    for name, folder in chosen.package:
        environments[name] = replace(environments[name], without_dependencies=[folder])
    methods = {name: methods[name] for name in chosen.only or methods}
    cache = chosen.cache.expanduser().absolute()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name, method in methods.items():
        results[name] = {}
        for section in (part for part in chosen.sections if part in method.sections):
            peer = method, environments[method.environment], section
            results[name][section] = (
                known(*peer, cache)
                if chosen.tables
                else run(*peer, cache=cache, limit=chosen.limit, again=chosen.again)
            )
            print(name, section, shown(results[name][section], section), flush=True)
    if not chosen.only and chosen.sections == list(SECTIONS):
        tables(methods, results, chosen.limit)


def tables(methods: dict[str, Method], results: dict[str, Any], limit: float) -> None:
    """What the docs include."""
    write_table("peers", scores(methods, results), SCORES_NOTE.format(machine=machine()))
    write_table("peers_first", places(methods, results), PLACES_NOTE)
    note = COST_NOTE.format(limit=f"{limit:g}", machine=machine())
    write_table("peers_cost", costs(methods, results), note)
    write_table("peers_settings", settings(methods, results), SETTINGS_NOTE)
    write_table("peers_failed", failures(methods, results), "Last line of what the peer said.")


SCORES_NOTE = (
    "ggblocks and tissue: simulated; mean correlation with the true spatial / nonspatial patterns, matched. liver metastasis: real, 500 genes drawn at random; share of the Poisson deviance of 5 % of the spots, given "
    "their totals, that is explained (null model: the mean profile of the other spots). cortex: semi-synthetic; lymph node: real; adjusted Rand index of k-means / of a tied Gaussian mixture with the true "
    "number of regions. zeros: share of the loadings that are at most 1 % of the sum of their feature, on cortex, RNA. *: stopped shortly before the time limit, and judged as it was then. -: not something the "
    "method does. One seed of data and method. {machine}."
)
PLACES_NOTE = "By the first number of each cell of the table above: spatial patterns, deviance, k-means. gpnsf: the default call; the call that is told more than the other tools is left out."
COST_NOTE = (
    "CPU seconds of one run on one thread, imports not counted, and the highest of wall seconds and peak memory over the sections. *: stopped shortly before the limit of {limit} CPU s. Runs that took more than {limit} s are from an earlier call with a longer limit. "
    "The machine was shared, so compare CPU seconds, not wall seconds. {machine}."
)
SETTINGS_NOTE = (
    "`intervals`: the method gives the posterior spread of factors or loadings; `unseen positions`: the method itself gives factors where nothing was measured. For the other methods we predict an unseen spot of the "
    "liver metastasis by the mean profile of its 6 nearest spots. Counts are normalised by totals in all sections but ggblocks, whose totals carry signal."
)


def scores(methods: dict[str, Method], results: dict[str, Any]) -> pd.DataFrame:
    """One row a method, one column a section."""
    rows = []
    for name, method in methods.items():
        row = {"method": method.title}
        for section, data in SECTIONS.items():
            row[data.title] = shown(results[name].get(section), section)
        share = results[name].get(ZEROS, {}).get("zeros")
        rows.append(row | {"zeros": "-" if share is None or not method.loadings else number(share)})
    return pd.DataFrame(rows)


def places(methods: dict[str, Method], results: dict[str, Any]) -> pd.DataFrame:
    """Who is first on each section, and where gpnsf stands."""
    rows = []
    for section, data in SECTIONS.items():
        key = NUMBERS[data.score][0]
        reached = {
            methods[name].title: found[section][key]
            for name, found in results.items()
            if name != TOLD and key in found.get(section, {})
        }
        if methods[OURS].title not in reached:
            continue
        order = sorted(reached, key=lambda title: -reached[title])
        ours = methods[OURS].title
        rows.append(
            {
                "section": data.title,
                "score": MEANING[data.score],
                "first": f"{order[0]}, {number(reached[order[0]])}",
                "gpnsf": number(reached[ours]),
                "place": f"{order.index(ours) + 1} of {len(order)}",
            }
        )
    return pd.DataFrame(rows)


def shown(result: dict[str, Any] | None, section: str) -> str:
    """One cell: scores, or that there are none."""
    if result is None:
        return "-"
    if result.get("failed") == NOT_RUN:
        return NOT_RUN
    if "failed" in result:
        return f"failed: {result['failed']}" if len(result["failed"]) <= SHORT else "failed"
    values = [result.get(key) for key in NUMBERS[SECTIONS[section].score]]
    if None in values:
        return "-"
    return " / ".join(map(number, values)) + "*" * bool(result["cut"])


def number(value: float) -> str:
    """Three digits, no zero in front."""
    return f"{value:.3f}".replace("0.", ".", 1)


def costs(methods: dict[str, Method], results: dict[str, Any]) -> pd.DataFrame:
    """CPU seconds by section, and the most of wall time and memory."""
    rows = []
    for name, method in methods.items():
        row = {"method": method.title}
        for section, data in SECTIONS.items():
            result = results[name].get(section, {})
            row[data.title] = (
                f"{result['cpu']:.1f}" + "*" * result["cut"] if "cpu" in result else "-"
            )
        ran = [result for result in results[name].values() if "cpu" in result]
        most = {
            key: max((result[key] for result in ran), default=None) for key in ("wall", "memory")
        }
        row["wall s, most"] = "-" if most["wall"] is None else f"{most['wall']:.0f}"
        row["peak GB, most"] = "-" if most["memory"] is None else f"{most['memory']:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def settings(methods: dict[str, Method], results: dict[str, Any]) -> pd.DataFrame:
    """How each method was called, and what its interface gives."""
    environments = read()[0]
    words = {True: "yes", False: "no"}
    rows = []
    for method in methods.values():
        environment = environments[method.environment]
        pinned = environment.requirements + environment.without_dependencies
        rows.append(
            {
                "method": method.title,
                "pinned": ", ".join(pin for pin in pinned if not pin.startswith("mudata"))
                or "here",
                "counts": method.prepared,
                "settings": method.settings,
                "loadings": words[method.loadings],
                "intervals": words[method.intervals],
                "unseen positions": words[method.interpolation],
            }
        )
    return pd.DataFrame(rows)


def failures(methods: dict[str, Method], results: dict[str, Any]) -> pd.DataFrame:
    """One row for each way in which a method failed."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, method in methods.items():
        for section, result in results[name].items():
            if result.get("failed", NOT_RUN) != NOT_RUN:
                message = result["failed"].replace("|", "\\|")
                rows.setdefault((method.title, message), []).append(SECTIONS[section].title)
    columns = ["method", "section", "message"]
    listed = [[title, "; ".join(where), f"`{said}`"] for (title, said), where in rows.items()]
    return pd.DataFrame(listed, columns=columns)


if __name__ == "__main__":
    main()
