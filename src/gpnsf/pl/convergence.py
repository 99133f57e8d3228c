"""How the optimisation went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gpnsf.checks import problem
from gpnsf.io import course, fits
from gpnsf.io.tables import takes_tables
from gpnsf.pl import canvas
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

    from gpnsf.io.fits import Fit

__all__ = ["convergence"]

PHASE_COLORS = {"pick": "#E69F00", "main": "#0072B2", "tail": "#009E73", "polish": "#CC79A7"}
PANELS = ("trace", "end", "starts")


@explained
@takes_tables
def convergence(
    data: AnnData | MuData,
    *,
    panel: str | None = None,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the evidence lower bound (ELBO) over the steps, and at the end of each start.

    Phases have colours: "pick" among starts, "main", the cooling "tail", and "polish". The last one
    optimises another objective, so its line is not joined to the others. The second panel enlarges
    the last half of the steps: there each objective is drawn minus its own end, and a fit that has
    converged is flat. All values are per observation.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    panel
        A single panel: "trace", "end" or "starts"; None for all, without "starts" if there was only
        one.
    key
        Prefix of the slots, ``key_added`` of the fit.
    {shown}

    Returns
    -------
    The axes (a list if there are several), or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object has no such fit.
    ValueError
        If ``panel`` is unknown, or ``ax`` is given for more than one panel.

    Notes
    -----
    Reads ``history``, ``starts``, ``converged``, ``repairs`` and ``seconds`` of ``uns["gpnsf"]``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> ax = gpnsf.pl.convergence(mdata, panel="trace", show=False)
    >>> ax.get_xlabel()
    'step'
    """
    fit = fits.find(data, key)
    if panel is not None and panel not in PANELS:
        raise ValueError(
            problem(
                f"`panel` to be one of {PANELS}", repr(panel), "Pass one of these, or None for all"
            )
        )
    names, ends, kept = _starts(fit)
    chosen = [panel] if panel else [name for name in PANELS if name != "starts" or len(names) > 1]
    with canvas.style():
        width = canvas.PAGE / 3
        figure, axes = canvas.grid(len(chosen), width=width, height=1.9, ncols=len(chosen), ax=ax)
        for name, place in zip(chosen, axes, strict=True):
            if name == "trace":
                _trace(place, fit)
            elif name == "end":
                _end(place, fit)
            else:
                _compare_starts(place, names, ends, kept=kept)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


def _starts(fit: Fit) -> tuple[np.ndarray, np.ndarray, str]:
    """Names of the starts, best first, their ELBO per observation, and the one that was kept."""
    values, kept = course.starts(fit)
    order = sorted(values, key=values.__getitem__, reverse=True)
    return (
        np.array(order, dtype=object),
        np.array([values[name] for name in order]) / fit.data.n_obs,
        kept,
    )


def _history(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """ELBO per observation and name of the phase, for each step."""
    elbo, phase = course.trace(fit)
    return elbo / fit.data.n_obs, phase


def _segments(phase: np.ndarray) -> Iterator[tuple[str, slice]]:
    """Runs of one phase, from the last step before it with the same objective."""
    starts = np.flatnonzero(np.r_[True, phase[1:] != phase[:-1]])
    for start, stop in zip(starts, np.r_[starts[1:], phase.size], strict=True):
        joined = start > 0 and phase[start] != "polish"
        yield str(phase[start]), slice(int(start) - joined, int(stop))


def _draw(ax: Axes, steps: np.ndarray, elbo: np.ndarray, phase: np.ndarray) -> None:
    """The line in the colours of its phases."""
    for name, part in _segments(phase):
        marker = "." if part.stop - part.start < 3 else None
        color = PHASE_COLORS.get(name, "black")
        ax.plot(
            steps[part],
            elbo[part],
            color=color,
            linewidth=1.2,
            marker=marker,
            markersize=3,
            label=name,
        )
        ax.axvspan(steps[part.start], steps[part.stop - 1], color=color, alpha=0.12, linewidth=0)
    ax.set(xlabel="step", xlim=(steps[0] - 0.5, steps[-1] + 0.5))
    canvas.plain(ax)


def _trace(ax: Axes, fit: Fit) -> None:
    """All steps; a first step far below the others runs out of the frame."""
    elbo, phase = _history(fit)
    _draw(ax, np.arange(1, elbo.size + 1), elbo, phase)
    low, high = np.quantile(elbo, 0.02), elbo.max()
    margin = 0.05 * max(high - low, 1e-9)
    ax.set(ylim=(low - margin, high + margin), ylabel="ELBO per observation")
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(
        handles.values(),
        handles.keys(),
        loc="best",
        handlelength=1.2,
        borderaxespad=0.2,
        labelspacing=0.3,
    )
    converged, repairs, seconds = course.outcome(fit)
    note = f"{'converged' if converged else 'not converged'}, {elbo.size} steps, {seconds:.3g} s"
    canvas.title(
        ax, "optimisation", note + f", {repairs} repair{'s' * (repairs > 1)}" * (repairs > 0)
    )


def _end(ax: Axes, fit: Fit) -> None:
    """The last half of the steps, relative to where each objective ends."""
    elbo, phase = _history(fit)
    polish = phase == "polish"
    relative = elbo.copy()
    for same in (polish, ~polish):
        if same.any():
            relative[same] -= elbo[same][-1]
    half = slice(elbo.size // 2, None)
    _draw(ax, np.arange(1, elbo.size + 1)[half], relative[half], phase[half])
    ax.set(ylabel="ELBO minus its end")
    canvas.title(ax, "last half", "enlarged")


def _compare_starts(ax: Axes, names: np.ndarray, ends: np.ndarray, *, kept: str) -> None:
    """How far each start stays behind the best one."""
    lines = np.arange(names.size)
    behind = ends.max() - ends
    color = [PHASE_COLORS["main"] if name == kept else "0.6" for name in names]
    ax.hlines(lines, 0, behind, colors=color, linewidth=1.2)
    ax.scatter(behind, lines, c=color, s=14, linewidths=0, clip_on=False, zorder=3)
    ax.set_yticks(lines, names)
    ax.set(xlim=(0, None), ylim=(names.size - 0.5, -0.5), xlabel="ELBO behind the best")
    canvas.plain(ax)
    ax.tick_params(axis="y", length=0, pad=6)
    canvas.title(ax, "starts", f"kept: {kept}")
