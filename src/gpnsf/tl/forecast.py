"""How much memory and time a fit will take."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from anndata import AnnData
from mudata import MuData

from gpnsf.arguments import Arguments, check_names
from gpnsf.core.inference.forecast import Forecast
from gpnsf.io import files
from gpnsf.io.tables import takes_tables
from gpnsf.tl.asked import number_spatial, read_for
from gpnsf.tl.memory import expected

__all__ = ["forecast"]


@takes_tables
def forecast(
    data: MuData | AnnData | str | os.PathLike[str], model: str = "gpnsf", **options: Any
) -> Forecast:
    """Estimate what :func:`gpnsf.tl.fit` would take with the same arguments, without fitting.

    Parameters
    ----------
    data
        Object, or path of a ``.h5ad``, ``.h5mu`` or ``.zarr``, as for the fit. It is read and checked, and not changed.
    model
        Model of the fit.
    **options
        Any other argument of :func:`gpnsf.tl.fit`; those that do not matter to memory and time may be among them.

    Returns
    -------
    Numbers that print as a table:

    - ``memory``: bytes at the peak, counts included; ``held`` of them are there already, in the object
    - ``parts``: name to bytes. Not all parts are there at a time: ``memory`` is the largest sum that is
    - ``seconds``: about, on one thread of a processor of 2024
    - ``stages``: name to seconds

    Raises
    ------
    KeyError, TypeError, ValueError, OSError
        As the fit would.

    Notes
    -----
    Reads what the fit would read, and writes nothing. Python and its libraries take some 500 MB of their own, which are not
    counted, nor is what ``copy=True`` and checkpoints take. How many steps a fit takes until it converges depends on the data: half and
    twice the time are nothing unusual. The forecast is that of a fit on the CPU.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.ggblocks(n_side=12, n_genes=60, n_peaks=36, seed=0)
    >>> found = gpnsf.tl.forecast(mdata, n_factors=4)
    >>> found.memory < 1e9, list(found.stages)
    (True, ['starts', 'optimisation', 'dispersion', 'loadings', 'local stage', 'test', 'summary'])
    """
    check_names(options, "gpnsf.tl.forecast")
    asked = Arguments.of({"model": model, **options})
    n_spatial = number_spatial(asked.model)
    with ExitStack() as stack:
        if isinstance(data, str | os.PathLike):
            key, table = asked.reading.spatial_key, asked.call.table
            opened = files.opened_tables(Path(data), table, spatial_key=key, writable=False)
            data, _ = stack.enter_context(opened)
        dataset, layout = read_for(data, asked, n_spatial, tell=False)
        return expected(dataset, asked, n_spatial, layout.scale)
