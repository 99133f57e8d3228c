"""How time and memory grow with the data and fall with the cores: simulated counts of stated shapes.

gpnsf benchmark scale
gpnsf benchmark scale --only kernel growth [--folder DIR]
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from fits import fit, section
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator
from passes import SHAPES, VALUE_AND_GRADIENTS, Work, best, compiled_c
from report import FIGURES, in_fresh_process, machine, parser, write_table

THREADS = [2**i for i in range((os.cpu_count() or 1).bit_length())]
# what growth varies: everything else stays at the middle
MIDDLE = {"n_obs": 20_000, "depth": 165.0, "n_genes": 2_000, "K": 10}
SWEEPS = {
    "observations": ("n_obs", (2_000, 6_300, 20_000, 63_000, 200_000)),
    "nonzero counts, by depth": ("depth", (15.0, 50.0, 165.0, 600.0, 2_500.0)),
    "features": ("n_genes", (500, 2_000, 8_000, 32_000, 128_000)),
    "factors": ("K", (5, 10, 20, 40)),
}
BAR = 0.15  # distance from a line that is still called straight
STREAMED = {
    "1,000,000 spots, h5ad": (1_000_000, {"in_memory": False}),
    "1,000,000 spots, h5ad, nothing kept": (1_000_000, {"in_memory": False, "memory_budget": 0}),
    "200,000 spots, h5ad, nothing kept": (200_000, {"in_memory": False, "memory_budget": 0}),
    "200,000 spots, in memory": (200_000, {}),
    "200,000 spots, in memory, nb": (200_000, {"likelihoods": "nb"}),
}
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "0.45"

Rows = Iterator[dict[str, Any]]
Section = tuple[pd.DataFrame, str]  # a table and what is to be said about it


def kernel(folder: Path) -> Section:
    """Passes over the nonzero counts, one thread."""
    rows = told(
        {
            "simulated counts": f"{name}, {work.matrix.nnz / 1e6:.1f} M nonzeros",
            "what": what,
            "torch ms": f"{1e3 * theirs:.1f}",
            "ms": f"{1e3 * ours:.1f}",
            "times faster": f"{theirs / ours:.1f}",
            "ns": f"{1e9 * ours / work.matrix.nnz:.2f}",
            "C ns": f"{1e9 * c / work.matrix.nnz:.2f}" if c else "",
        }
        for name, work, what, ours, theirs, c in compared()
    )
    note = """Quickest of five passes, K = 20, one thread. "ms" and "ns" (per nonzero count): ours, compiled by numba; "C": the same loop compiled by gcc, K a constant."""
    return rows, note


def compared() -> Iterator[tuple[str, Work, str, float, float, float | None]]:
    """Seconds of every pass: ours, torch's, those of C."""
    torch.set_num_threads(1)
    for name, shape in SHAPES.items():
        work = Work(*shape)
        for what, run in work.asked().items():
            c = compiled_c(work) if what == VALUE_AND_GRADIENTS else None
            yield (
                name,
                work,
                what,
                best(partial(run, work.ours)),
                best(partial(run, work.theirs), 2),
                c,
            )


def growth(folder: Path) -> Section:
    """Whole fits, one thing varied at a time, one thread."""
    seen = told(sweep(folder))
    first = seen[seen["varied"] == "observations"]
    intercept, slope = line(first["nnz"], first["step"])
    ratio = first["step"] / (intercept + slope * first["nnz"])
    missed = max(ratio.max() - 1, 1 - ratio.min()) > BAR
    draw(seen, intercept, slope)
    rows = pd.DataFrame(
        {
            "varied": seen["varied"],
            "N": seen["n_obs"].map("{:,}".format),
            "P": seen["n_genes"].map("{:,}".format),
            "K": seen["K"],
            "M nonzeros": (seen["nnz"] / 1e6).map("{:.2f}".format),
            **measures(seen),
            "ms a step": (1e3 * seen["step"]).map("{:.1f}".format),
            "ns a step and nonzero": (1e9 * seen["step"] / seen["nnz"]).map("{:.1f}".format),
        }
    )
    note = f"""N observations, P features, K factors, 80 % of them spatial, M nonzeros: millions of nonzero counts. Poisson, in memory,
`split="assumed"`, one thread; a step: median of the last 40. Where N varies, a step takes {1e3 * intercept:.1f} ms + {1e9 * slope:.1f} ns for each nonzero count (least squares of relative errors): over a
{first["nnz"].max() / first["nnz"].min():.0f}-fold range of counts, steps take {ratio.min():.2f} to {ratio.max():.2f} of what this line says (bar:
within {BAR:.0%}; {"missed" if missed else "met"})."""
    return rows, note


def sweep(folder: Path) -> Rows:
    """Every fit; what the sweeps share is fitted once."""
    done: dict[tuple, dict[str, float]] = {}
    for varied, (name, values) in SWEEPS.items():
        for value in values:
            setting = MIDDLE | {name: value}
            key = tuple(setting.values())
            done[key] = done.get(key) or grown(folder, **setting)
            yield {"varied": varied, **setting, **done[key]}


def grown(folder: Path, n_obs: int, depth: float, n_genes: int, K: int) -> dict[str, float]:
    """One fit of simulated counts that have as many factors as the model."""
    split = {"n_spatial": K * 4 // 5, "n_nonspatial": K - K * 4 // 5}
    path = section(
        folder / f"{n_obs}_{depth}_{n_genes}_{K}.h5ad", n_obs, n_genes=n_genes, depth=depth, **split
    )
    with h5py.File(path) as file:
        nnz = len(file["X/data"])
    seen = fit(path, threads=1, likelihoods="poisson", n_factors=K, n_spatial=split["n_spatial"])
    path.unlink()
    return {**seen, "nnz": nnz}


def line(x: pd.Series, y: pd.Series) -> tuple[float, float]:
    """Intercept and slope with the least squares of relative errors."""
    return tuple(np.linalg.lstsq(np.column_stack([1 / y, x / y]), np.ones(len(y)), rcond=None)[0])


def draw(seen: pd.DataFrame, intercept: float, slope: float) -> None:
    """The figure of the docs: what is measured in rows, what is varied in columns, and dotted a guide of slope one."""
    axes = {
        "observations": "n_obs",
        "nonzero counts, by depth": "nnz",
        "features": "n_genes",
        "factors": "K",
    }
    measured = {"step": "seconds a step", "wall": "wall seconds a fit", "memory": "peak memory, GB"}
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panels = plt.subplots(
            3, 4, figsize=(9, 6.4), sharex="col", sharey="row", layout="constrained"
        )
        for column, (varied, x) in zip(panels.T, axes.items(), strict=True):
            rows = seen[seen["varied"] == varied]
            for ax, y in zip(column, measured, strict=True):
                curve(ax, rows[x].to_numpy(float), rows[y].to_numpy())
            column[-1].set_xlabel(varied)
        rows = seen[seen["varied"] == "observations"]
        panels[0, 0].plot(
            rows["n_obs"], intercept + slope * rows["nnz"], color=ORANGE, lw=1.2, zorder=1
        )
        for ax, label in zip(panels[:, 0], measured.values(), strict=True):
            ax.set_ylabel(label)
        for ax in panels[-1]:
            ax.yaxis.set_major_locator(LogLocator(subs=range(1, 10)))
        for ax in panels.flat:
            ax.autoscale_view()
            ax.autoscale(enable=False)
        for ax in panels.flat:
            guide(ax, "slope 1" if ax is panels[0, 2] else "")
        panels[-1, -1].set_xticks(SWEEPS["factors"][1])
        figure.savefig(FIGURES / "scale_growth.png", dpi=150)
    plt.close(figure)


def curve(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Measurements on logarithmic axes, the last one in numbers."""
    ax.set(xscale="log", yscale="log", ymargin=0.12)
    ax.plot(x, y, "o-", color=BLUE, ms=4, lw=1.2)
    ax.annotate(
        f"{y[-1]:.2g}", (x[-1], y[-1]), (0, 5), textcoords="offset points", ha="right", color=BLUE
    )
    for axis, subs, text in (
        (ax.xaxis, (1, 3), EngFormatter(sep="")),
        (ax.yaxis, (1, 2, 5), FuncFormatter(lambda value, _: f"{value:g}")),
    ):
        axis.set(
            major_locator=LogLocator(subs=subs), major_formatter=text, minor_locator=NullLocator()
        )


def guide(ax: Axes, label: str) -> None:
    """A line through the middle measurement, along which twice as much costs twice as much."""
    x, y = (values[len(values) // 2] for values in ax.lines[0].get_data())
    ax.axline((x, y), (10 * x, 10 * y), color=GREY, lw=0.8, ls=":")
    top = ax.get_ylim()[1]
    ax.annotate(
        label, (x * top / y, top), (-6, -6), textcoords="offset points", ha="right", color=GREY
    )


def cores(folder: Path) -> Section:
    """Threads."""
    rows = told(
        {
            "what": what,
            **{f"{n} thread{'s' * (n > 1)}": duration(seconds[n]) for n in THREADS},
            "times faster": ", ".join(f"{seconds[1] / seconds[n]:.2f}" for n in THREADS[1:]),
        }
        for what, seconds in by_threads(folder)
    )
    note = """Passes over the nonzero counts as under "Kernel"; whole fits of simulated sections of 2,000 genes, Poisson, K = 8 + 2,
`split="assumed"`, wall seconds."""
    return rows, note


def by_threads(folder: Path) -> Iterator[tuple[str, dict[int, float]]]:
    """Seconds of passes and whole fits by number of threads."""
    for name, shape in SHAPES.items():
        work = Work(*shape)
        for what, run in work.asked().items():
            yield f"{what}, {name}", {n: on_threads(n, partial(run, work.ours)) for n in THREADS}
    for n_obs in (36_000, 200_000):
        path = section(folder / f"section_{n_obs}.h5ad", n_obs)
        fits = {n: fit(path, threads=n, likelihoods="poisson", n_factors=10) for n in THREADS}
        yield f"whole fit of {n_obs:,} spots", {n: seen["wall"] for n, seen in fits.items()}


def duration(seconds: float) -> str:
    """In the unit that suits."""
    return f"{seconds:.1f} s" if seconds > 1 else f"{1e3 * seconds:.1f} ms"


def on_threads(n: int, run: Callable[[], object]) -> float:
    """Seconds of the quickest call with n threads."""
    torch.set_num_threads(n)
    return best(run)


def multiome(folder: Path) -> Section:
    """A whole multiome section."""
    import gpnsf

    path = folder / "tissue.h5mu"
    if not path.exists():
        sizes = {
            "n_obs": 9_200,
            "n_genes": 20_000,
            "n_peaks": 120_000,
            "rna_depth": 2_400.0,
            "atac_depth": 5_600.0,
        }
        gpnsf.datasets.tissue(**sizes, n_spatial=12, n_nonspatial=8, seed=1).write(path)
    model = {"n_factors": 20, "n_spatial": 12, "threads": THREADS[-1]}
    rows = told(
        {
            "RNA": rna,
            "ATAC": "bernoulli",
            **measures(fit(path, likelihoods={"rna": rna, "atac": "bernoulli"}, **model)),
        }
        for rna in ("nb", "poisson")
    )
    note = f"""9,200 spots x (20,000 genes + 120,000 peaks), `datasets.tissue` with negative binomial counts, K = 12 + 8,
`split="assumed"`, in memory, {THREADS[-1]} threads; peak memory of the process, data and imports included. Bars: 75 s, 2.5 GB, spatial
r .95."""
    return rows, note


def processes(folder: Path) -> Section:
    """Several processes."""
    path = section(folder / "section_200000.h5ad", 200_000)
    rows = told(distributed(path, folder))
    note = """`gpnsf fit`, from two processes on under `torchrun`, on a simulated section of 200,000 x 2,000 in an h5ad: Poisson, K = 8
+ 2, `split="assumed"`, blocks of 25,000 rows, one thread each. "command": with imports, reading and writing. Difference of the factors from those of one
process: the largest over the maximum of the factor (bar: 1e-4)."""
    return rows, note


def distributed(path: Path, folder: Path) -> Rows:
    """The same fit by ever more processes."""
    asked = [
        "--likelihoods=poisson",
        "--split=assumed",
        "--n-factors=10",
        "--n-spatial=8",
        "--block-size=25000",
    ]
    asked.append("--no-progress")
    factors = {}
    for n in THREADS:
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={n}"] if n > 1 else []
        target, began = folder / f"fitted_by_{n}.h5ad", time.perf_counter()
        in_fresh_process(*launcher, "-m", "gpnsf", "fit", str(path), str(target), *asked, threads=1)
        wall, fitted = time.perf_counter() - began, anndata.read_h5ad(target)
        target.unlink()
        factors[n] = fitted.obsm["X_gpnsf"]
        yield {
            "processes": n,
            "steps": len(fitted.uns["gpnsf"]["history"]["elbo"]),
            "fit, wall s": f"{fitted.uns['gpnsf']['seconds']:.0f}",
            "command, wall s": f"{wall:.0f}",
            "difference": f"{(np.abs(factors[n] - factors[1]).max(0) / factors[1].max(0)).max():.1e}"
            if n > 1
            else "",
        }


def streaming(folder: Path) -> Section:
    """Counts that stay in a file."""
    rows = told(
        {"simulated section, 2,000 genes, 2.3 %": case, **measures(streamed(folder, *settings))}
        for case, settings in STREAMED.items()
    )
    note = f"""Poisson where nothing else is said, K = 8 + 2, `split="assumed"`, uncompressed h5ad, {THREADS[-1]} threads; peak memory of
the process, imports included."""
    return rows, note


def streamed(folder: Path, n_obs: int, options: dict[str, Any]) -> dict[str, float]:
    """One fit of a copy of the section, since the file takes the slots."""
    path = section(folder / f"section_{n_obs}.h5ad", n_obs)
    copy = shutil.copyfile(path, path.with_stem("copy"))
    seen = fit(copy, threads=THREADS[-1], **{"likelihoods": "poisson", "n_factors": 10, **options})
    copy.unlink()
    return seen


def measures(seen: Any) -> dict[str, Any]:
    """Columns that all whole fits have, of one or of a table of them."""
    columns = {
        "steps": ("steps", "{:.0f}"),
        "wall s": ("wall", "{:.1f}"),
        "CPU s": ("cpu", "{:.1f}"),
        "peak GB": ("memory", "{:.2f}"),
        "spatial r": ("spatial", "{:.3f}"),
        "nonspatial r": ("nonspatial", "{:.3f}"),
    }
    frame = seen if isinstance(seen, pd.DataFrame) else pd.DataFrame([seen])
    texts = {title: frame[name].map(form.format) for title, (name, form) in columns.items()}
    return texts if frame is seen else {title: text[0] for title, text in texts.items()}


def told(rows: Rows) -> pd.DataFrame:
    """A table of rows, each printed when it is there."""
    seen = []
    for row in rows:
        seen.append(row)
        print(row, flush=True)
    return pd.DataFrame(seen)


SECTIONS = {run.__name__: run for run in (kernel, cores, growth, multiome, streaming, processes)}


def main() -> None:
    """Every section, each with a table of its own."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION"
    )
    arguments.add_argument(
        "--folder", type=Path, help="where large simulated data are kept; default: nowhere"
    )
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as nowhere:
        folder = chosen.folder or Path(nowhere)
        folder.mkdir(parents=True, exist_ok=True)
        for name in chosen.only:
            load = os.getloadavg()[0]
            rows, note = SECTIONS[name](folder)
            note = f"Simulated data. {note} {machine()}, {os.cpu_count()} cores, load {load:.1f} when it began."
            write_table(f"scale_{name}", rows, note)


if __name__ == "__main__":
    main()
