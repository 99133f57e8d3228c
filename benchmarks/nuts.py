"""Posteriors of a small section beside those of Hamiltonian Monte Carlo: the same Pyro model, drawn from by NUTS.

gpnsf benchmark nuts [--draws 300]

A simulated tissue of 150 spots and 60 genes, Poisson counts and three spatial factors. Length scales, amplitudes, the spread of spots
around the fields and the prior of the loadings are held at what the fit has estimated, and NUTS (`pyro.infer`) draws the fields, the
spots and the loadings, all together; its draws begin at the fit. It takes four minutes.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pyro
import torch
from matplotlib import pyplot as plt
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from report import FIGURES, machine, measured, parser, write_table

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.core.inference import loading_stage, local_stage, posterior, training
from gpnsf.core.inference.scaled import VARIANCE_CAP
from gpnsf.core.model.build import build
from gpnsf.core.scores.calibration import log_moments
from gpnsf.core.scores.metrics import coverage, match_factors
from gpnsf.io.read import read

T = 3
N_SPOTS, N_GENES, COUNTS = 150, 60, 400.0
WARMUP, TREE_DEPTH = 300, 7


def fitted(adata, seed: int):
    """A fit with its parts at hand: model, its one block, log factors, and what is reported."""
    wanted = Reading(likelihoods="poisson", size_factors="true_size")
    dataset, _ = read(adata, wanted)
    model = build("gpnsf", dataset, n_factors=T, n_spatial=T)
    blocks = model.blocks(dataset)
    training.fit(model, dataset, blocks=blocks, seed=seed)
    loading_stage.settle(model, blocks)
    log_factors = local_stage.local(model, blocks)
    return model, blocks[0], log_factors, posterior.summarise(model, dataset, blocks, log_factors)


def drawn(model, block, log_factors, n_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of log factors of mean one [S, N, T], and of the loadings that go with them [S, P, T]."""
    (view,) = model.views
    model.requires_grad_(False)
    view.loadings.charge.fill_(1.0)
    view.loadings.log_shape.fill_(np.log(loading_stage.FIRST_SHAPE))
    model.spatial.nugget = log_factors.gamma[:T]
    begin = {
        "u": model.spatial.field.posterior().mean,
        "e": log_factors.m - log_factors.field_m,
        "rna_loadings": view.loadings.mean,
    }
    kernel = NUTS(model.model, max_tree_depth=TREE_DEPTH, init_strategy=init_to_value(values=begin))
    sampler = MCMC(kernel, num_samples=n_draws, warmup_steps=WARMUP, disable_progbar=True)
    pyro.set_rng_seed(seed)
    sampler.run(block)
    own = sampler.get_samples()
    logs, loadings = [], []
    for u, e, W in zip(own["u"], own["e"], own["rna_loadings"], strict=True):
        h = model.spatial.field.conditional(u, block.located)[0] + e
        mean = h.exp().mean(0)
        logs.append(h - mean.log())
        loadings.append(W[:, :T] * mean)
    return torch.stack(logs).numpy(), torch.stack(loadings).numpy()


def compared(name: str, truth: np.ndarray, ours: tuple, exact: tuple) -> dict[str, str]:
    """One row: means and standard deviations [.., T] beside those of the draws, and coverage of the truth."""
    (mean, sd), (true_mean, true_sd) = ours, exact
    return {
        "quantity": name,
        "correlation of means": f"{np.corrcoef(mean.ravel(), true_mean.ravel())[0, 1]:.3f}",
        "difference of means, in sd of NUTS": f"{np.abs((mean - true_mean) / true_sd).mean():.2f}",
        "sd over that of NUTS, median": f"{np.median(sd / true_sd):.2f}",
        "90 % intervals that hold the truth": f"{coverage(truth, mean, sd):.3f}",
        "NUTS": f"{coverage(truth, true_mean, true_sd):.3f}",
    }


def drawing(ours: dict, exact: dict) -> None:
    """Means above, standard deviations below."""
    figure, axes = plt.subplots(2, 2, figsize=(8, 7.5), layout="constrained")
    for column, name in enumerate(ours):
        for row, what in enumerate(("mean", "standard deviation")):
            axis, x, y = axes[row, column], exact[name][row], ours[name][row]
            for k in range(T):
                axis.plot(x[:, k], y[:, k], ".", alpha=0.5, label=f"factor {k}")
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            axis.plot(ends, ends, color="black", linewidth=0.8)
            axis.set(title=f"{name}: {what}", xlabel="NUTS", ylabel="tl.fit")
    axes[0, 0].legend(frameon=False)
    figure.savefig(FIGURES / "nuts.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Fit, draw, compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--draws", type=int, default=300)
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    warnings.simplefilter("ignore")
    mdata = gpnsf.datasets.tissue(
        n_obs=N_SPOTS,
        n_genes=N_GENES,
        n_peaks=10,
        n_spatial=T,
        n_nonspatial=0,
        rna_depth=COUNTS,
        dispersion=None,
        lengthscales=(0.2, 0.4),
        seed=asked.seed,
    )
    adata = mdata["rna"].copy()
    with measured() as fit:
        model, block, log_factors, result = fitted(adata, asked.seed)
    truth = adata.obsm["true_factors"]
    scale = truth.mean(0)
    order = match_factors(truth, result.mean)[0]
    with measured() as draws:
        logs, loadings = drawn(model, block, log_factors, asked.draws, asked.seed)
    logs, loadings = logs[:, :, result.order], loadings[:, :, result.order]
    ours = {
        "log factors": log_moments(result.mean, result.std, VARIANCE_CAP),
        "loadings": (result.loadings["rna"], result.loadings_std["rna"]),
    }
    exact = {
        "log factors": (logs.mean(0), logs.std(0)),
        "loadings": (loadings.mean(0), loadings.std(0)),
    }
    true = {
        "log factors": np.log(truth / scale)[:, np.argsort(order)],
        "loadings": (adata.varm["true_loadings"] * scale)[:, np.argsort(order)],
    }
    rows = [compared(name, true[name], ours[name], exact[name]) for name in ours]
    drawing(ours, exact)
    write_table(
        "nuts",
        pd.DataFrame(rows),
        f"Simulated data, one draw: {adata.n_obs} spots, {adata.n_vars} genes, {COUNTS:.0f} counts a spot, {T} spatial factors; {asked.draws} draws of NUTS "
        f"after {WARMUP} draws of warm-up. CPU s: {fit.cpu:.1f} for the fit, {draws.cpu:.0f} for the draws. {machine()}.",
    )


if __name__ == "__main__":
    main()
