"""FlashDeconv: least squares with a graph of spots, on log or Pearson values."""

from __future__ import annotations

import numpy as np
from flashdeconv import FlashDeconv
from mixtures import Job, main


def fit(job: Job) -> np.ndarray:
    return FlashDeconv(**job.options).fit_transform(job.counts, job.profiles.T, job.coords)


if __name__ == "__main__":
    main(fit)
