"""How time and memory grow with the data: simulated counts of stated shapes.

gpnsf benchmark scale
gpnsf benchmark scale --only kernel
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from report import machine, parser, write_table

from gpnsf.core.backends import Pattern, Simd, Torch

# name: observations, features, median nonzeros of an observation, link
SHAPES = {
    "Slide-seq-like 36,000 x 2,000": (36_000, 2_000, 60, "log"),
    "ATAC-like 9,200 x 120,000": (9_200, 120_000, 5_600, "cloglog"),
}
C_SOURCE = """
#include <math.h>
double terms(long n, const long *pointers, const int *indices, const float *values, const float *G, const float *W,
             float *dG, float *dW) {
  double total = 0;
  for (long i = 0; i < n; i++) {
    const float *a = G + i * K;
    float *da = dG + i * K;
    for (long q = pointers[i]; q < pointers[i + 1]; q++) {
      const float *b = W + (long)indices[q] * K;
      float *db = dW + (long)indices[q] * K, r = 1e-20f;
      for (int k = 0; k < K; k++) r += a[k] * b[k];
#if BINARY
      float c = -1 / expm1f(-r);
      total += r - logf(c);
#else
      float c = values[q] / r;
      total += values[q] * logf(r);
#endif
      for (int k = 0; k < K; k++) { da[k] += c * b[k]; db[k] += c * a[k]; }
    }
  }
  return total;
}
"""


def counts(n_obs: int, n_features: int, per_row: int, link: str) -> sp.csr_matrix:
    """Counts whose features and observations differ in depth by gamma variables."""
    rng = np.random.default_rng(0)
    popularity = np.cumsum(rng.gamma(0.7, size=n_features))
    sizes = rng.poisson(1.07 * per_row * rng.gamma(4, 0.25, n_obs))  # some features are drawn twice
    rows = [np.unique(np.searchsorted(popularity, popularity[-1] * rng.random(size))) for size in sizes]
    pointers = np.cumsum([0, *map(len, rows)])
    indices = np.concatenate(rows).astype(np.int32)
    values = np.ones(len(indices)) if link == "cloglog" else 1 + rng.poisson(0.5, len(indices))
    return sp.csr_matrix((values.astype(np.float32), indices, pointers), shape=(n_obs, n_features))


def kernel() -> Iterator[dict[str, str]]:
    """Quickest of five passes, K = 20; ns per nonzero count. "C": the same loop compiled by gcc, K a constant, one thread."""
    for name, shape in SHAPES.items():
        yield from passes(name, *shape)


def passes(name: str, n_obs: int, n_features: int, per_row: int, link: str, K: int = 20) -> Iterator[dict[str, str]]:
    """One row for everything that is asked of counts."""
    matrix = counts(n_obs, n_features, per_row, link)
    G, W = (0.1 + torch.rand(n, K, generator=torch.Generator().manual_seed(n)) for n in matrix.shape)
    W = W * (0.02 if link == "cloglog" else 1.0)
    by_rows = Pattern.read(matrix, "cpu")
    by_columns, information = by_rows.transposed(), torch.zeros(n_obs, K, K)
    ours, theirs = Simd(by_rows), Torch(by_rows, lambda: by_columns)
    asked: dict[str, Callable[[Simd | Torch], object]] = {
        "value and gradients": lambda backend: backend.terms(G, W, link, "GW"),
        "gradient in G": lambda backend: backend.terms(G, W, link, "G"),
        "gradient in W": lambda backend: backend.terms(G, W, link, "W"),
        "rates": lambda backend: backend.rates(G, W),
        "information": lambda backend: backend.information(by_rows.values, W, information),
    }
    for what, run in asked.items():
        torch.set_num_threads(1)
        reference, alone = best(partial(run, theirs), 2), best(partial(run, ours))
        torch.set_num_threads(2)
        two = best(partial(run, ours))
        c = compiled_c(matrix, G, W, link) if what == "value and gradients" else None
        yield {
            "simulated counts": f"{name}, {matrix.nnz / 1e6:.1f} M nonzeros",
            "what": what,
            "torch ms": f"{1e3 * reference:.1f}",
            "ms": f"{1e3 * alone:.1f}",
            "times faster": f"{reference / alone:.1f}",
            "ns": f"{1e9 * alone / matrix.nnz:.2f}",
            "C ns": "" if c is None else f"{1e9 * c / matrix.nnz:.2f}",
            "two threads ms": f"{1e3 * two:.1f}",
            "times faster than one": f"{alone / two:.2f}",
        }


def best(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the quickest call, after one that warms up."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def compiled_c(matrix: sp.csr_matrix, G: torch.Tensor, W: torch.Tensor, link: str) -> float | None:
    """Seconds of the loop in C; None without gcc."""
    if shutil.which("gcc") is None:
        return None
    flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", f"-DK={W.shape[1]}"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "terms.c", Path(folder) / "terms.so"
        source.write_text(C_SOURCE)
        binary = f"-DBINARY={int(link == 'cloglog')}"
        subprocess.run(["gcc", *flags, binary, str(source), "-o", str(library), "-lm"], check=True)
        terms = ctypes.CDLL(str(library)).terms
    terms.restype = ctypes.c_double
    inputs = matrix.indptr.astype(np.int64), matrix.indices, matrix.data, G.numpy(), W.numpy()

    def run() -> None:
        outputs = np.zeros_like(inputs[3]), np.zeros_like(inputs[4])
        terms(ctypes.c_long(matrix.shape[0]), *(array.ctypes.data_as(ctypes.c_void_p) for array in (*inputs, *outputs)))

    return best(run)


SECTIONS = {run.__name__: run for run in (kernel,)}


def main() -> None:
    """Every section, each with a table of its own."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    for name in arguments.parse_args().only:
        rows = []
        for row in SECTIONS[name]():
            rows.append(row)
            print(row, flush=True)
        note = f"Simulated data. {SECTIONS[name].__doc__} {machine()}, load {os.getloadavg()[0]:.1f}."
        write_table(f"scale_{name}", pd.DataFrame(rows), note)


if __name__ == "__main__":
    main()
