"""A run of a grid in a process of its own: whatever happens to it, the grid goes on.

The process ends when its standard input is closed, which is when the process that has started it
ends, however that may be. So no run outlives its grid.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, cast

from gpnsf.checks import text_of
from gpnsf.tl.plan import Run
from gpnsf.tl.run_records import Found

__all__ = ["answer", "in_own_process", "main"]

FAILURES = (ValueError, TypeError, KeyError, OSError, MemoryError, ArithmeticError, ImportError)
START = "from gpnsf.tl.own_process import main; main()"
TAIL = 500  # characters of what a process said before it died


def in_own_process(run: Run, folder: Path, *, threads: int) -> Found:
    """What a run has found, or the message of what it failed by."""
    told = [json.dumps(asdict(run), default=str)]
    told += [str(folder / "fits" / run.key)] if run.keep_fit else []
    environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", **os.environ}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        with subprocess.Popen(
            [sys.executable, "-c", START, *told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the grid; its runs end with it
        ) as process:
            found = cast("IO[str]", process.stdout).read()
            code = process.wait()  # until here its standard input is open
        if code == 0:
            return cast("Found", json.loads(found.strip().rpartition("\n")[2]))
        said.seek(0)
        return _failure(f"the process ended with code {code}: {said.read().strip()[-TAIL:]}")


def main() -> None:
    """Make the run that the first argument is, and write what it found to the standard output."""
    threading.Thread(target=_end_with_the_grid, daemon=True).start()
    run, keep = Run(**json.loads(sys.argv[1])), [Path(path) for path in sys.argv[2:]]
    sys.stdout.write(f"\n{json.dumps(answer(run, *keep))}\n")
    sys.stdout.flush()
    os._exit(0)  # without waiting for the thread that reads


def answer(run: Run, keep: Path | None = None) -> Found:
    """What a run finds, or the message of what it fails by."""
    try:
        from gpnsf.tl.one_run import work

        return work(run, keep)
    except FAILURES as error:
        return _failure(f"{type(error).__name__}: {text_of(error)}")


def _end_with_the_grid() -> None:
    """End the process once nobody can write to its standard input any more."""
    sys.stdin.read()
    os._exit(1)


def _failure(message: str) -> Found:
    return {"error": message, "lines": []}
