"""Where benchmarks leave their tables and figures, and how they measure a run."""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

DOCS = Path(__file__).parents[1] / "docs"
TABLES = DOCS / "benchmark_tables"
FIGURES = DOCS / "_static"


def write_table(name: str, frame: pd.DataFrame, note: str) -> None:
    """Print a table and leave it where docs/benchmarks.md includes it."""
    header = "| " + " | ".join(frame.columns) + " |\n|" + "---|" * frame.shape[1]
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False)]
    text = "\n".join([header, *rows, "", note, ""])
    TABLES.mkdir(exist_ok=True)
    (TABLES / f"{name}.md").write_text(text)
    print(text)


def machine() -> str:
    """The machine in words."""
    return f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"


@contextmanager
def measured():
    """Wall and process-CPU seconds of the block; peak resident memory of the process in GB."""
    result = SimpleNamespace()
    wall, cpu = time.perf_counter(), time.process_time()
    yield result
    result.wall, result.cpu = time.perf_counter() - wall, time.process_time() - cpu
    result.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def in_fresh_process(script: str, *arguments: str) -> str:
    """Last line that a benchmark prints when it is run with the arguments in a process of its own."""
    command = [sys.executable, "-W", "ignore", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip().splitlines()[-1]


def parser(doc: str) -> argparse.ArgumentParser:
    """Arguments of a benchmark, described by its docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
