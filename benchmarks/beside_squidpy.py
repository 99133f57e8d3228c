"""Every map of gpnsf beside that of squidpy, on a simulated section with a simulated image.

python benchmarks/beside_squidpy.py FOLDER

One PNG for each function, ours on the left: orientation, image and size of spots are to agree.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import squidpy
from anndata import AnnData
from matplotlib import pyplot as plt
from PIL import Image
from scipy.ndimage import gaussian_filter

import gpnsf

SLICES = ("left", "right")
SIDE = 500  # pixels of an image
SPOT = 0.6  # diameter of a spot in distances of neighbours


def image(coords: np.ndarray, spacing: float, seed: int) -> dict:
    """An entry of ``uns["spatial"]`` that looks like a stained section with an arrow to the right."""
    scale = SIDE / (coords.max() + 2 * spacing)
    column, row = (coords * scale).astype(int).T
    shape = int((coords[:, 1].max() + 2 * spacing) * scale), SIDE
    tissue = np.zeros(shape)
    tissue[row, column] = 1
    tissue = gaussian_filter(tissue, 1.2 * spacing * scale)
    noise = gaussian_filter(np.random.default_rng(seed).random(shape), 3)
    noise = (noise - noise.min()) / np.ptp(noise)
    stain = np.stack([0.95 - 0.2 * noise, 0.75 - 0.35 * noise, 0.85 - 0.2 * noise], axis=2)
    pixels = np.where(tissue[..., None] > 0.2 * tissue.max(), stain, 0.96)
    pixels[:12, : SIDE // 3] = [0, 0.4, 0]  # a bar at the top left shows which way up it is
    factors = {"tissue_hires_scalef": scale, "spot_diameter_fullres": SPOT * spacing}
    return {"images": {"hires": pixels.astype(np.float32)}, "scalefactors": factors}


def section() -> AnnData:
    """Spots of two slices at the same places, with a fit, domains and proportions."""
    spots, cells = gpnsf.datasets.mixture(n_obs=400, n_genes=100, seed=0)
    coords = spots.obsm["spatial"]
    spacing = np.median(np.diff(np.unique(coords[:, 0])))
    spots.obsm["spatial"] = coords - coords.min(axis=0) + 2 * spacing
    spots.obs["slice"] = np.repeat(SLICES, spots.n_obs // 2)
    half = spots.obsm["spatial"][:, 1].max() / 2
    spots.obsm["spatial"][spots.obs["slice"] == "right", 1] -= half * 0.9
    options = {"n_spatial": 3, "split": "assumed", "max_steps": 100, "progress": False}
    gpnsf.tl.fit(spots, n_factors=4, library_key="slice", **options)
    gpnsf.tl.domains(spots, n_domains=4)
    gpnsf.tl.deconvolve(spots, cells, label_key="cell_type", library_key="slice")
    spots.obs["slice"] = spots.obs["slice"].astype("category")
    for k, name in enumerate(SLICES):
        own = spots.obsm["spatial"][spots.obs["slice"] == name]
        spots.uns.setdefault("spatial", {})[name] = image(own, spacing, k)
    spots.obs["factor"] = spots.obsm["X_gpnsf"][:, 0]
    spots.obs["type"] = spots.obsm["X_proportions"][:, 0]
    return spots


def pairs(gene: str) -> dict[str, tuple[Callable, dict, dict]]:
    """Our function and its arguments, and the arguments of squidpy's, for each map."""
    ours = gpnsf.pl
    colors = {"cmap": "magma"}
    return {
        "spatial_factors": (ours.spatial_factors, {"factors": 0}, {"color": "factor", **colors}),
        "spatial_map": (
            ours.spatial_map,
            {"factors": 0, "alpha": 0.7},
            {"color": "factor", **colors},
        ),
        "feature_maps": (ours.feature_maps, {"features": gene}, {"color": gene, **colors}),
        "observed_expected": (
            ours.observed_expected,
            {"features": gene, "panels": "observed"},
            {"color": gene, **colors},
        ),
        "importance": (
            ours.importance,
            {"panels": "map"},
            {"color": "gpnsf_spatial_importance"},
        ),
        "domains": (ours.domains, {}, {"color": "gpnsf_domain"}),
        "proportions": (ours.proportions, {"types": "type_1"}, {"color": "type", **colors}),
        "pies": (ours.proportions, {"kind": "pies"}, {"color": "type", **colors}),
    }


def pixels(figure: plt.Figure, dpi: int) -> Image.Image:
    """The figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    return Image.open(file).convert("RGB")


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    spots = section()
    for name, (draw, own, theirs) in pairs(spots.var_names[0]).items():
        left = pixels(draw(spots, return_fig=True, **own), 200)
        squidpy.pl.spatial_scatter(spots, library_key="slice", **theirs)
        right = pixels(plt.gcf(), 70)
        sheet = Image.new("RGB", (left.width + right.width + 20, max(left.height, right.height)))
        sheet.paste("white", (0, 0, *sheet.size))
        sheet.paste(left, (0, 0))
        sheet.paste(right, (left.width + 20, 0))
        sheet.save(folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
