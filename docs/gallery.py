"""Draw the pictures of gallery.md: each by the code block that follows it there.

GPNSF_DATA_DIR=... python docs/gallery.py [--fit FILE.h5mu] [NAME ...]

The fit is kept in the file, if one is named, and read from there the next time.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import mudata
import pandas as pd
from matplotlib import pyplot as plt
from PIL import Image

import gpnsf
from gpnsf.datasets.files import load

HERE = Path(__file__).parent
PAGE, FOLDER = HERE / "gallery.md", HERE / "_static" / "gallery"
ENTRY = re.compile(r"!\[.+?\]\(_static/gallery/(\w+)\.png\)\n+```python\n(.*?)```", re.DOTALL)
DPI = 110
LARGE = (
    150_000  # bytes of a picture beyond which it gets a palette, which makes it a third as large
)


def entries() -> dict[str, str]:
    """Name of each picture and the code that draws it."""
    return dict(ENTRY.findall(PAGE.read_text(encoding="utf-8")))


def fitted(path: Path | None) -> mudata.MuData:
    """The section of the pictures with its fit."""
    if path is not None and path.exists():
        return mudata.read_h5mu(path)
    mdata = load("semi_cortex_spots.h5mu")
    gpnsf.tl.fit(mdata, n_factors=12, n_spatial=8, seed=0, progress=False)
    if path is not None:
        mdata.write(path)
    return mdata


def tumour() -> dict[str, object]:
    """The section of the deconvolution, and the profiles that come with it."""
    spots = load("pdac_a")
    names = {
        "index": spots.uns["reference_mean_genes"],
        "columns": spots.uns["reference_mean_types"],
    }
    return {"spots": spots, "profiles": pd.DataFrame(spots.uns["reference_mean"], **names)}


def draw(code: str, mdata: mudata.MuData | None) -> plt.Figure:
    """Run a block, and return the last figure that it has drawn."""
    plt.close("all")
    exec(code, {"gpnsf": gpnsf, "mdata": mdata, **(tumour() if "spots" in code else {})})
    return plt.gcf()


def main() -> None:
    """All pictures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", choices=[[], *entries()], help="pictures; all by default"
    )
    parser.add_argument("--fit", type=Path, help="where the fit is kept")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    chosen = {
        name: code
        for name, code in entries().items()
        if not arguments.names or name in arguments.names
    }
    mdata = fitted(arguments.fit) if any("mdata" in code for code in chosen.values()) else None
    for name, code in chosen.items():
        path = FOLDER / f"{name}.png"
        draw(code, mdata).savefig(path, dpi=DPI, bbox_inches="tight")
        if path.stat().st_size > LARGE:
            Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
        print(f"{path.relative_to(HERE)}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
