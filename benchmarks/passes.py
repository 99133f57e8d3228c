"""Passes over the nonzero counts: ours, torch's, and the same loop in C."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from gpnsf.core.counts.backends import Pattern, Simd, Torch

VALUE_AND_GRADIENTS = "value and gradients"
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
    rows = [
        np.unique(np.searchsorted(popularity, popularity[-1] * rng.random(size))) for size in sizes
    ]
    pointers = np.cumsum([0, *map(len, rows)])
    indices = np.concatenate(rows).astype(np.int32)
    values = np.ones(len(indices)) if link == "cloglog" else 1 + rng.poisson(0.5, len(indices))
    return sp.csr_matrix((values.astype(np.float32), indices, pointers), shape=(n_obs, n_features))


class Work:
    """Counts, factors, and what is asked of a backend that has both."""

    def __init__(self, n_obs: int, n_features: int, per_row: int, link: str, K: int = 20) -> None:
        self.link = link
        self.matrix = counts(n_obs, n_features, per_row, link)
        self.G, W = (
            0.1 + torch.rand(n, K, generator=torch.Generator().manual_seed(n))
            for n in self.matrix.shape
        )
        self.W = W * (0.02 if link == "cloglog" else 1.0)
        by_rows = Pattern.read(self.matrix, "cpu")
        by_columns, self._information = by_rows.transposed(), torch.zeros(n_obs, K, K)
        self.ours, self.theirs = Simd(by_rows), Torch(by_rows, lambda: by_columns)
        self._values = by_rows.values

    def asked(self) -> dict[str, Callable[[Simd | Torch], object]]:
        """Every pass over the counts that a fit makes."""
        G, W, link = self.G, self.W, self.link
        return {
            VALUE_AND_GRADIENTS: lambda backend: backend.terms(G, W, link, "GW"),
            "gradient in G": lambda backend: backend.terms(G, W, link, "G"),
            "gradient in W": lambda backend: backend.terms(G, W, link, "W"),
            "rates": lambda backend: backend.rates(G, W),
            "information": lambda backend: backend.information(self._values, W, self._information),
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


def compiled_c(work: Work) -> float | None:
    """Seconds of the value and both gradients in C; None without gcc."""
    matrix, G, W = work.matrix, work.G, work.W
    if shutil.which("gcc") is None:
        return None
    flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", f"-DK={W.shape[1]}"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "terms.c", Path(folder) / "terms.so"
        source.write_text(C_SOURCE)
        binary = f"-DBINARY={int(work.link == 'cloglog')}"
        subprocess.run(["gcc", *flags, binary, str(source), "-o", str(library), "-lm"], check=True)
        terms = ctypes.CDLL(str(library)).terms
    terms.restype = ctypes.c_double
    inputs = matrix.indptr.astype(np.int64), matrix.indices, matrix.data, G.numpy(), W.numpy()

    def run() -> None:
        outputs = np.zeros_like(inputs[3]), np.zeros_like(inputs[4])
        terms(
            ctypes.c_long(matrix.shape[0]),
            *(array.ctypes.data_as(ctypes.c_void_p) for array in (*inputs, *outputs)),
        )

    return best(run)
