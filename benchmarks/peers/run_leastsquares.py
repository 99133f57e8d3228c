"""Nonnegative least squares of each spot on the profiles as they are: no weights, no graph."""

from __future__ import annotations

import numpy as np
from mixtures import Job, main
from scipy.optimize import nnls


def fit(job: Job) -> np.ndarray:
    return np.array([nnls(job.profiles, spot)[0] for spot in job.counts])


if __name__ == "__main__":
    main(fit)
