"""Run the tutorials and keep what they show: `python tutorials/execute.py [NAME ...] [--out FOLDER]`.

Each `NAME.py` becomes `NAME.ipynb` with its outputs, warnings included; without names, every one of them. The copies
beside the scripts show measured sections, so they are only written where `GPNSF_DATA_DIR` has these.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
SCRIPTS = {path.stem: path for path in sorted(HERE.glob("*.py")) if path != Path(__file__)}
LONGEST = 300  # seconds that a cell may take
# Said of the machine, not of the data: where the cell or the package that warns is stored, and the colours of a terminal
MACHINE = re.compile(
    r"\S*/ipykernel_\d+/\d+\.py:\d+: |/\S*/(?:site-packages|src)/(?=\w)|\x1b\[[\d;]*m| +$",
    re.MULTILINE,
)
# Said to the developers of other packages: what will change there, widgets for progress bars, docstrings of squidpy
DEVELOPERS = (
    "ignore::FutureWarning,ignore:IProgress not found,ignore::SyntaxWarning:docrep.decorators"
)


def execute(name: str, out: Path) -> float:
    """Run a tutorial in an empty folder, write its notebook, and say how many seconds it took."""
    notebook, start = jupytext.read(SCRIPTS[name]), perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=LONGEST,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=40"],
            record_timing=False,
            coalesce_streams=True,
        ).execute()
    seconds = perf_counter() - start
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for output in cell.get("outputs", []):
            tidy(output)
    nbformat.write(notebook, out / f"{name}.ipynb")
    return seconds


def tidy(output: nbformat.NotebookNode) -> None:
    """Take the machine out of texts, and two thirds of the bytes out of pictures: 256 colours show the same."""
    if output["output_type"] == "stream":
        output["text"] = MACHINE.sub("", output["text"])
    elif picture := output.get("data", {}).get("image/png"):
        small = io.BytesIO()
        colours = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
        colours.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()


def main() -> None:
    """Run what is asked for, and say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the notebooks")
    parser.add_argument("--jobs", type=int, default=2, help="tutorials at the same time")
    options = parser.parse_args()
    names = options.names or list(SCRIPTS)
    if unknown := set(names) - set(SCRIPTS):
        parser.error(f"no tutorial is called {', '.join(unknown)}: take of {', '.join(SCRIPTS)}")
    if options.out == HERE and not os.environ.get("GPNSF_DATA_DIR"):
        parser.error(
            "the notebooks beside the scripts show measured sections, and GPNSF_DATA_DIR is not set: "
            "set it to the folder that holds them, or write elsewhere by --out"
        )
    os.environ.pop("MPLBACKEND", None)  # figures go into the notebook
    os.environ["PYTHONWARNINGS"] = DEVELOPERS
    options.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.jobs) as pool:
        runs = pool.map(partial(execute, out=options.out), names)
        for name, seconds in zip(names, runs, strict=True):
            print(f"{name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
