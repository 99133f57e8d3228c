"""Runs of peers: an environment for each, one process a run, a time limit, and what has run is not run again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from race_data import SECTIONS, judge, written

PEERS = Path(__file__).parent / "peers"
INSTALL_LIMIT = 1800.0  # seconds of wall time
PATIENCE = 20.0  # seconds of wall time for each CPU second of the limit: nothing waits for ever
KILLED = "killed after"
NOT_RUN = "not run"
MESSAGE = 160  # characters of a failure that are kept


@dataclass(frozen=True)
class Environment:
    """Packages of one peer."""

    requirements: list[str] = field(default_factory=list)  # none: the environment of gpnsf
    without_dependencies: list[str] = field(default_factory=list)  # installed after the others
    python: str = ""  # command of another Python than the one that runs this


@dataclass(frozen=True)
class Method:
    """One peer with its settings."""

    title: str
    script: str
    environment: str
    options: dict[str, Any] = field(default_factory=dict)
    sections: list[str] = field(default_factory=lambda: list(SECTIONS))
    n_factors: int | None = (
        None  # its own default, where regions are sought; else that of the section
    )
    prepared: str = ""  # what is done to the counts, in words
    settings: str = ""
    loadings: bool = False
    intervals: bool = False
    interpolation: bool = False


def read(path: Path = PEERS / "peers.toml") -> tuple[dict[str, Environment], dict[str, Method]]:
    """Environments and methods of a file."""
    content = tomllib.loads(path.read_text())
    environments = {n: Environment(**values) for n, values in content["environments"].items()}
    return environments, {n: Method(**values) for n, values in content["methods"].items()}


def run(
    method: Method,
    environment: Environment,
    section: str,
    *,
    cache: Path,
    limit: float,
    again: bool = False,
) -> dict[str, Any]:
    """Scores and costs of a method on a section, or how it failed: from the cache, or now.

    What a shorter limit has ended runs again, and with ``again`` everything that has failed.
    """
    result = cache / "results" / f"{_key(method, environment, section)}.json"
    if not stands(result, limit, again):
        result.parent.mkdir(parents=True, exist_ok=True)
        found = _run(method, environment, section, result.with_suffix(".npz"), cache, limit)
        unfinished = result.with_suffix(".part")
        unfinished.write_text(json.dumps(found | {"limit": limit}))
        unfinished.rename(result)  # a result is there as a whole or not at all
    return json.loads(result.read_text())


def known(method: Method, environment: Environment, section: str, cache: Path) -> dict[str, Any]:
    """What a run of before has found; a failure that says so where there was none."""
    result = cache / "results" / f"{_key(method, environment, section)}.json"
    return json.loads(result.read_text()) if result.exists() else {"failed": NOT_RUN}


def stands(result: Path, limit: float, again: bool) -> bool:
    """Whether there is a result that another run would not change."""
    if not result.exists():
        return False
    found = json.loads(result.read_text())
    ended = found.get("cut") or found.get("failed", "").startswith(KILLED)
    return not (ended and found["limit"] < limit) and not (again and "failed" in found)


def _key(method: Method, environment: Environment, section: str) -> str:
    """Name of a result: anything that could change it is in it, words about it are not."""
    data = SECTIONS[section]
    settings = [method.script, method.options, method.n_factors, asdict(environment), section]
    settings += [data.n_factors, data.size_factors, data.seed]
    scripts = [(PEERS / name).read_text() for name in (method.script, "contract.py")]
    digest = hashlib.sha256(json.dumps([settings, scripts]).encode()).hexdigest()[:12]
    return f"{Path(method.script).stem}_{section}_{digest}"


def _run(
    method: Method,
    environment: Environment,
    section: str,
    found: Path,
    cache: Path,
    limit: float,
) -> dict[str, Any]:
    """One run, never an exception for what the peer does."""
    python, failure = installed(environment, cache / "environments")
    if failure:
        return {"failed": f"not installed: {failure}"}
    data = SECTIONS[section]
    path, aside = written(section, cache / "sections")
    own = method.n_factors if data.score == "regions" else None
    settings = {
        "n_factors": own or data.n_factors,
        "size_factors": data.size_factors,
        "seed": data.seed,
        "limit": limit,
        "options": method.options,
    }
    script = str(PEERS / method.script)
    command = [python, "-W", "ignore", script, str(path), str(found), json.dumps(settings)]
    failure = ended(command, PATIENCE * limit, cpu_limit=limit)
    if failure:
        return {"failed": failure}
    took = json.loads(found.with_suffix(".took.json").read_text())
    with np.load(found) as arrays, np.load(aside, allow_pickle=True) as kept:
        return took | judge(section, dict(arrays), dict(kept))


def installed(environment: Environment, folder: Path) -> tuple[str, str]:
    """Python of the environment, made unless it is there, and what went wrong."""
    if not environment.requirements:
        return sys.executable, ""
    name = hashlib.sha256(json.dumps(asdict(environment)).encode()).hexdigest()[:12]
    target, note = folder / name, folder / f"{name}.json"
    python = str(target / "bin" / "python")
    if not note.exists():
        failure = _install(environment, target, python)
        note.write_text(json.dumps(asdict(environment) | {"failed": failure}))
    return python, json.loads(note.read_text())["failed"]


def _install(environment: Environment, target: Path, python: str) -> str:
    """Make a virtual environment; returns why not, or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [
        [environment.python or sys.executable, "-m", "venv", "--clear", str(target)],
        [*pip, *environment.requirements],
    ]
    if environment.without_dependencies:
        steps.append([*pip, "--no-deps", *environment.without_dependencies])
    failures = (ended(step, INSTALL_LIMIT) for step in steps)
    return next(filter(None, failures), "")


def ended(command: list[str], limit: float, *, cpu_limit: float | None = None) -> str:
    """Run a command on one thread, killed with all its children at a limit; what went wrong, or nothing.

    ``limit`` is of wall time. CPU seconds are what a busy machine does not take from anybody.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # no module of the environment of gpnsf may be found by a peer
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if command[0] == sys.executable:
        kept = dict(os.environ)
    # a file, not a pipe: children that outlive a process would keep a pipe open
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=kept | threads | {"CUDA_VISIBLE_DEVICES": "", "NUMBA_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=partial(_limit_cpu, cpu_limit) if cpu_limit else None,
            )
        except OSError as error:
            return str(error)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"{KILLED} {limit:g} s of wall time"
        finally:
            _kill(process)
        if process.returncode == -signal.SIGXCPU:
            return f"{KILLED} {cpu_limit:g} CPU s"
        errors.seek(0)
        said = _last_line(errors.read().decode(errors="replace"))
    return (said or f"exit status {process.returncode}") if process.returncode else ""


def _limit_cpu(seconds: float) -> None:
    """The system ends the process, and each of its children, at this time."""
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))


def _kill(process: subprocess.Popen) -> None:
    """End the process and whatever it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _last_line(errors: str) -> str:
    """The last line of a traceback or of pip, which says what was wrong."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith("ERROR")] or lines
    return wrong[-1][:MESSAGE] if wrong else ""
