"""Where benchmarks leave their tables and figures, and how they measure a run."""

from __future__ import annotations

import argparse
import os
import platform
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


def write_table(name: str, frame: pd.DataFrame, note: str, *, above: str = "") -> None:
    """Print a table and leave it where docs/benchmarks.md includes it, with a sentence above it if there is one."""
    header = "| " + " | ".join(frame.columns) + " |\n|" + "---|" * frame.shape[1]
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False)]
    text = "\n".join([above, ""] * bool(above) + [header, *rows, "", note, ""])
    TABLES.mkdir(exist_ok=True)
    (TABLES / f"{name}.md").write_text(text)
    print(text)


def machine() -> str:
    """The machine in words."""
    return f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"


@contextmanager
def measured():
    """Wall and process-CPU seconds of the block; peak resident memory of the process in GB (Linux only)."""
    result = SimpleNamespace()
    wall, cpu = time.perf_counter(), time.process_time()
    yield result
    result.wall, result.cpu = time.perf_counter() - wall, time.process_time() - cpu
    # not getrusage, which begins at what the parent of the process held
    status = Path("/proc/self/status").read_text()
    result.memory = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def in_fresh_process(*arguments: str, threads: int) -> str:
    """Last line that Python prints when it is run with the arguments in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip().rpartition("\n")[2]


def parser(doc: str) -> argparse.ArgumentParser:
    """Arguments of a benchmark, described by its docstring."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
