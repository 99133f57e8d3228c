"""A fit on one page."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpnsf import genome, pl
from gpnsf.checks import Rule, problem, text_of
from gpnsf.io import course, fits, names
from gpnsf.io.companions import made_by
from gpnsf.io.kinds import check_output
from gpnsf.io.measured import counts_of, used
from gpnsf.io.ranked import ranked
from gpnsf.io.tables import takes_tables
from gpnsf.keys import DOMAIN
from gpnsf.pl import html
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from gpnsf.io.fits import Fit

__all__ = ["report"]

NAMED = 8  # features of a factor and modality in the table
N_LINKS = 30  # of the table

_log = logging.getLogger("gpnsf")


@explained
@takes_tables
def report(
    data: AnnData | MuData,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    key: str = "gpnsf",
) -> None:
    """Write a fit to one HTML page.

    Whether to believe it, with all warnings; maps, features and importance of the factors; then the
    data, convergence, and how the fit was run.

    The page holds its figures and needs nothing else, neither other files nor the network, and it
    runs no scripts. Where the counts are no longer in the object, sections that need them are left
    out, and the summary says why; another section that cannot be made says so itself.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    path
        File to write, in a folder that exists. A page of an earlier report is replaced, any other file is not.
    title
        Title of the page; None for one that names the fit.
    key
        Prefix of the slots, ``key_added`` of the fit.

    Raises
    ------
    KeyError
        If the object has no such fit.
    OSError
        If the file cannot be written.

    Notes
    -----
    Reads every slot of the fit and the counts that it has read.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> gpnsf.pl.report(mdata, "fit.html")
    """
    fit = fits.find(data, key)
    Rule(os.PathLike, "report.html").check("path", path)
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(
            problem("a file to write to", f"the folder {target}", "Add a name such as fit.html")
        )
    check_output(target, None)
    told, left_out = _left_out(fit)
    sections = [
        (section.title, _body(section, fit) + told * (section is SECTIONS[0]))
        for section in SECTIONS
        if section.needed(fit) and section not in left_out
    ]
    shapes = ", ".join(
        f"{name} {mod.n_obs:,} x {mod.n_vars:,}" for name, mod in fit.modalities.items()
    )
    kinds = f"{fit.names.size} factors, {int(fit.is_spatial.sum())} of them spatial"
    lead = f"{data.n_obs:,} observations ({shapes}); model {fit.params.get('model', '')}, {kinds}."
    footer = f"Written by gpnsf {version('gpnsf')}."
    text = html.page(title or f"Fit {key!r}", lead, sections, footer=footer)
    target.write_bytes(text.encode("utf-8", "backslashreplace"))


@dataclass(frozen=True)
class _Section:
    """A heading, what makes the text below it, and whether there is anything to say."""

    title: str
    body: Callable[[Fit], Iterator[str]]
    needed: Callable[[Fit], bool] = lambda fit: True
    counts: bool = False  # whether it needs them


def _left_out(fit: Fit) -> tuple[str, list[_Section]]:
    """Sections for which the counts are missing, and a sentence about them."""
    chosen = [section for section in SECTIONS if section.counts and section.needed(fit)]
    try:
        for name in fit.modalities:
            counts_of(fit, name, used(fit, name))
    except (KeyError, TypeError, ValueError) as error:
        titles = " and ".join(f"{section.title!r}" for section in chosen)
        text = f"Left out of this page, as the counts are not in the object: {titles}. {text_of(error)}"
        _log.warning(text)
        return html.note(text), chosen
    return "", []


def _body(section: _Section, fit: Fit) -> str:
    """The parts of a section; what cannot be made says why."""
    parts = []
    try:
        for part in section.body(fit):
            parts.append(part)
    except (KeyError, TypeError, ValueError) as error:
        message = text_of(error)
        _log.warning("section %r of the report is not complete: %s", section.title, message)
        parts.append(html.note(f"Not complete: {message}"))
    return "\n".join(parts)


def _picture(fit: Fit, name: str, alt: str, caption: str, **options: Any) -> str:
    """A figure of ``gpnsf.pl``."""
    figure = getattr(pl, name)(fit.data, key=fit.keys.key, show=False, return_fig=True, **options)
    return html.picture(figure, alt, caption)


def _data(fit: Fit) -> Iterator[str]:
    """Shapes and counts."""
    lines = []
    for name, mod in fit.modalities.items():
        use = used(fit, name)
        counts = counts_of(fit, name, use)
        line = {"modality": name, "likelihood": fit.likelihoods[name], "observations": mod.n_obs}
        line |= {
            "features": mod.n_vars,
            "with signal": int(use.sum()),
            "nonzero entries": counts.nnz,
        }
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        line |= {
            "% nonzero": 100 * counts.nnz / max(np.prod(counts.shape), 1),
            "median total": float(np.median(totals)),
        }
        lines.append(line | {"median detected": float(np.median(counts.getnnz(axis=1)))})
    yield html.table(
        pd.DataFrame(lines), "Modalities; totals and detected features of an observation."
    )
    where = (
        f"Coordinates: {fit.coords.shape[1]}, from {fit.param('spatial_key') or 'spatial'}."
        if fit.has_coords
        else ""
    )
    if fit.library is not None:
        sizes = fit.library.value_counts()
        where += (
            f" {len(sizes)} sections by {fit.param('library_key')}: {html.shown(sizes.to_dict())}."
        )
    yield html.paragraph(where or "No coordinates.")


def _run(fit: Fit) -> Iterator[str]:
    """Arguments, versions and cost."""
    memory = fit.uns.get("peak_memory")
    cost = {
        "seconds": fit.uns.get("seconds"),
        "peak memory, MB": None if memory is None else float(memory) / 1e6,
    }
    cost |= {
        name: fit.uns[name]
        for name in ("backend", "threads", "processes", "seed")
        if name in fit.uns
    }
    yield html.pairs(cost, "Cost.")
    given = {name: value for name, value in fit.params.items() if value is not None}
    yield html.pairs(given, "Arguments of gpnsf.tl.fit.")
    yield html.paragraph(
        f"None was passed for: {html.shown([name for name in fit.params if name not in given])}."
    )
    yield html.pairs(fit.uns.get("versions", {}), "Versions.")


def _summary(fit: Fit) -> Iterator[str]:
    """Signs of whether to believe the fit."""
    converged, _, seconds = course.outcome(fit)
    summary = f"{len(course.trace(fit)[0])} steps, {seconds:.1f} seconds."
    yield (
        html.paragraph("Converged: " + summary)
        if converged
        else html.note("Not converged: " + summary)
    )
    for name, none in {"warnings": "No warnings.", "repairs": "No repairs."}.items():
        texts = [str(text) for text in np.atleast_1d(fit.uns.get(name, ()))]
        yield html.bullets(texts) if texts else html.paragraph(none)


def _convergence(fit: Fit) -> Iterator[str]:
    """The curves."""
    alt = "Curves of the evidence lower bound over the steps"
    yield _picture(fit, "convergence", alt, "The bound over the steps.")


def _spatial_test(fit: Fit) -> Iterator[str]:
    """Z and p of each factor."""
    test = fit.uns["spatial_test"]
    columns = {
        name: _per_factor(fit, test.get(name), f"spatial_test[{name!r}]") for name in ("z", "p")
    }
    frame = pd.DataFrame({"factor": fit.names, "kind": _kinds(fit), **columns})
    yield html.table(
        frame,
        "Bivariate Moran's I between halves of the counts, one-sided: spatial factors with z below 3 become nonspatial.",
    )


def _factors(fit: Fit) -> Iterator[str]:
    """Tables and maps of the factors."""
    frame = pd.DataFrame(
        {
            "factor": fit.names,
            "kind": _kinds(fit),
            "length scale": fit.lengthscale,
            "% of the signal": 100 * fit.shares,
        }
    )
    yield html.table(
        frame,
        "Length scales are in the units of the coordinates; shares are of the expected signal.",
    )
    if fit.has_coords:
        alt = f"Maps of {fit.names.size} factors, each beside its standard deviation"
        caption = "Posterior mean and, beside it, standard deviation of each factor, on scales of their own."
        yield _picture(fit, "spatial_factors", alt, caption, moment=("mean", "std"))
    if fit.names.size > 1:
        yield _picture(
            fit,
            "factor_correlation",
            "Heatmap of the correlations of factors",
            "Correlations over the observations.",
        )


def _features(fit: Fit) -> Iterator[str]:
    """Features that the factors stand for."""
    lines: list[list[str]] = []
    for k, factor in enumerate(fit.names):
        tables = [ranked(fit, name, k, n_features=NAMED) for name in fit.modalities]
        lines.append([factor, *(", ".join(table["feature"]) for table in tables)])
    frame = pd.DataFrame(lines, columns=["factor", *fit.modalities])
    yield html.table(frame, f"The {NAMED} best features of each factor, best first.")
    yield _picture(
        fit,
        "top_features",
        "Best features of each factor with their scores",
        "Best features of each factor.",
    )
    alt = "Heatmap of the shares of the factors in the best features"
    yield _picture(fit, "loadings", alt, "How the signal of these features divides into factors.")


def _observed(fit: Fit) -> Iterator[str]:
    """Counts in space, and whether the fit describes them."""
    n_features = max(4, len(fit.modalities))
    alt = "Maps of each factor beside its best features"
    caption = "Each factor beside its best features as they were observed: counts per size factor, open chromatin as 0 or 1."
    yield _picture(fit, "feature_maps", alt, caption, n_features=n_features)
    alt = "Maps of observed and expected values of single features, with their calibration"
    caption = "The best feature of each factor in the first modality, observed and expected. The fit has seen these values."
    yield _picture(fit, "observed_expected", alt, caption)


def _importance(fit: Fit) -> Iterator[str]:
    """How spatial everything is."""
    alt = "Histograms of the spatial importance of features and observations"
    yield _picture(
        fit, "importance", alt, "Share of the expected signal that comes from spatial factors."
    )


def _variance_explained(fit: Fit) -> Iterator[str]:
    """Modality by factor."""
    columns = [
        pd.Series(100 * row, name=name)
        for name, row in zip(fit.modalities, course.explained(fit), strict=True)
    ]
    frame = pd.concat([pd.Series(fit.names, name="factor"), *columns], axis=1)
    yield html.table(frame, "Variance explained by each factor in each modality, in %.")


def _links(fit: Fit) -> Iterator[str]:
    """The best pairs, and the gene that has the best one."""
    table = fit.data.uns[fit.keys.links]
    yield html.table(
        table.head(N_LINKS), f"The best {min(N_LINKS, len(table))} of {len(table):,} pairs."
    )
    gene = str(table["gene"].iloc[0])
    if _has_place(fit, gene):
        yield _picture(
            fit,
            "links",
            "Arcs from the start of a gene to its peaks",
            "The gene of the best pair.",
            gene=gene,
        )


def _has_place(fit: Fit, gene: str) -> bool:
    """Whether ``var`` says where a gene is, which links do not need.

    They may come from an annotation or other modalities.
    """
    there = list(fit.modalities)
    rna, atac = names.named("rna", there), names.named("atac", there)
    if not {rna, atac} <= set(there):
        return False
    try:
        return gene in genome.genes_of(None, fit.modalities[rna].var, where=f"var of {rna!r}").index
    except (KeyError, ValueError):
        return False


def _domains(fit: Fit) -> Iterator[str]:
    """The map."""
    yield _picture(
        fit, "domains", "Map of the domains", f"Domains in obs[{DOMAIN!r}].", key_added=DOMAIN
    )


def _kinds(fit: Fit) -> list[str]:
    return ["spatial" if spatial else "nonspatial" for spatial in fit.is_spatial]


def _per_factor(fit: Fit, values: Any, what: str) -> np.ndarray:
    """Numbers [K] from the record."""
    found = np.asarray(values)
    if found.shape != fit.names.shape or found.dtype.kind not in "fiu":
        rule = f"a number for each of {fit.names.size} factors in {what}"
        raise ValueError(
            problem(rule, f"shape {found.shape}, {found.dtype}", "Run `gpnsf.tl.fit` again")
        )
    return found


SECTIONS = (
    # whether to believe it
    _Section("Summary", _summary),
    # what was found
    _Section("Factors", _factors),
    _Section("Domains", _domains, lambda fit: DOMAIN in fit.data.obs and fit.has_coords),
    _Section("Top features", _features),
    _Section("Observed features", _observed, lambda fit: fit.has_coords, counts=True),
    _Section("Spatial importance", _importance, lambda fit: fit.std is not None),
    _Section(
        "Variance explained",
        _variance_explained,
        lambda fit: bool(fit.uns.get("variance_explained")),
    ),
    _Section("Gene-peak links", _links, lambda fit: len(fit.data.uns.get(fit.keys.links, ())) > 0),
    # how it was made
    _Section("Data", _data, counts=True),
    _Section("Spatial test", _spatial_test, lambda fit: bool(fit.uns.get("spatial_test"))),
    _Section("Convergence", _convergence, lambda fit: made_by(fit.uns) is None),
    _Section("How it was run", _run),
)
