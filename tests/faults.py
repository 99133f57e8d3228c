"""Faults that the quick tests should notice: one is put into a copy of the package at a time.

Each is a slip of one line after which the package still runs and says something wrong. The tests
named beside it should fail; without any fault they pass. `python tests/faults.py` tries all of
them, `python tests/faults.py moves` those whose file or text has the word in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

__all__ = ["FAULTS", "Fault", "caught_by", "main"]

ROOT = Path(__file__).parents[1]
COPIED = ("src", "tests", "pyproject.toml")
OPTIONS = ("-x", "-q", "-n0", "-m", "not slow", "-p", "no:cacheprovider")


class Fault(NamedTuple):
    """A slip, and the tests that should fail for it."""

    path: str  # below src/gpnsf
    old: str  # text that is there exactly once
    new: str
    tests: tuple[str, ...]  # files or folders below tests


FAULTS = (
    # ---- core ------------------------------------------------------------------------------------
    Fault(  # open peaks are taken for counts that add up
        "core/model/build.py",
        "all(view.by_total for view in views) and not all(",
        "all(view.by_total for view in views) or not all(",
        ("core/test_relative.py",),
    ),
    Fault(  # a spot's factors are divided by what they are without their uncertainty
        "core/model/relative.py",
        "(m if v is None else m + 0.5 * v)",
        "m",
        ("core/test_relative.py",),
    ),
    Fault(  # changes of factors that are relative change what is expected of a spot twice
        "core/model/relative.py",
        "view.loadings.raw.data[:, :-1] += shift",
        "view.loadings.raw.data[:, :-1] -= shift",
        ("core/test_relative.py",),
    ),
    Fault(  # relative factors are joined for what all spots have in common
        "core/inference/standing.py",
        "centred=m is not None and model.by_total",
        "centred=False",
        ("core/test_relative.py",),
    ),
    Fault(  # loadings are charged as if every modality had weight 1
        "core/model/objective.py",
        "share = view.weight * block.share",
        "share = block.share",
        ("test_pyro.py", "core/test_loadings.py", "core/test_factorization.py"),
    ),
    Fault(  # the variance beside the tissue comes back too soon
        "core/fields/hilbert.py",
        "prior * (1 - correlation**2)",
        "prior * (1 - correlation)",
        ("core/test_fields.py",),
    ),
    Fault(  # fine basis functions know nothing of the counts
        "core/fields/resolution.py",
        "sums = outer / (1 + outer * (share * top).reshape(-1, *[1] * outer.dim()))",
        "sums = outer / (1 + 0 * outer * (share * top).reshape(-1, *[1] * outer.dim()))",
        ("core/test_fields.py",),
    ),
    Fault(  # a factor loses its field however smooth it is
        "core/inference/run.py",
        "<= TRAINED",
        "<= 2.0",
        ("core/test_fitting.py",),
    ),
    Fault(  # noise of counts makes fields finer
        "core/inference/run.py",
        "before, exact_elbo, least=least",
        "before, elbo, least=least",
        ("core/test_fitting.py",),
    ),
    Fault(  # Poisson noise counts as overdispersion
        "core/likelihoods/negative_binomial.py",
        "own = squares - W @ moments.mean.sum(0)",
        "own = squares",
        ("core/test_likelihoods.py",),
    ),
    Fault(  # the slope of the divergence in the shape of the prior lacks a term
        "core/model/gammas.py",
        "slope += log_ratio - digamma - one + of_prior * inverse_alpha",
        "slope += log_ratio - digamma + of_prior * inverse_alpha",
        ("core/test_gammas.py",),
    ),
    Fault(  # a term of all rows is counted for one
        "core/model/factors.py",
        "+ len(loc) * self.log_sigma",
        "+ self.log_sigma",
        ("core/test_factorization.py",),
    ),
    Fault(  # the nugget of a joined factor gets the share of its field
        "core/inference/moves.py",
        "Adopted(joint - joint.mean(), (1 - share) * float(joint.var()))",
        "Adopted(joint - joint.mean(), share * float(joint.var()))",
        ("core/test_moves.py",),
    ),
    Fault(  # of equal nonspatial factors that of least order takes over
        "core/inference/moves.py",
        "0.0 if k < T else order[k]",
        "0.0 if k < T else -order[k]",
        ("core/test_moves.py",),
    ),
    Fault(  # a pattern gets the place of the factor that is dearest
        "core/inference/run.py",
        "cost[:-1, :-1].argmin()",
        "cost[:-1, :-1].argmax()",
        ("core/test_fitting.py",),
    ),
    Fault(  # half of the order that differences have by chance is taken off
        "core/inference/order.py",
        "return z - CHANCE * max(",
        "return z - max(",
        ("core/test_order.py",),
    ),
    Fault(  # what neighbours tell counts as what they do not
        "core/inference/order.py",
        "left = own - told @",
        "left = own - 0 * told @",
        ("core/test_order.py",),
    ),
    Fault(  # halves of the counts are scored at the rates of all
        "core/inference/spatial_test.py",
        "raw += math.log(share)",
        "raw += 0 * math.log(share)",
        ("core/test_spatial_test.py",),
    ),
    Fault(  # a count tells of its own loading
        "core/inference/loading_stage.py",
        "(FIRST_SHAPE + expected - own)",
        "(FIRST_SHAPE + expected)",
        ("core/test_loading_stage.py",),
    ),
    Fault(  # a shrinkage that is not squared in a variance
        "core/inference/local_stage.py",
        "shrink**2 * field_v",
        "shrink * field_v",
        ("core/test_local_stage.py", "core/test_posterior.py"),
    ),
    Fault(  # the derivative of a share without that of its denominator
        "core/scores/simplex.py",
        "gradient = (is_spatial[None, :] - share[:, None])",
        "gradient = is_spatial[None, :]",
        ("core/test_simplex.py",),
    ),
    Fault(  # rows that were held out count as rows with closed peaks
        "core/families/base.py",
        "n_rows=int(observed.sum()))",
        "n_rows=len(observed))",
        ("core/test_families.py", "core/test_spatial_test.py"),
    ),
    Fault(  # a checkpoint is taken for one of the same places in other slices
        "core/inference/checkpoint.py",
        "digest(dataset.coords, dataset.library)",
        "digest(dataset.coords)",
        ("core/test_checkpoint.py",),
    ),
    # ---- io --------------------------------------------------------------------------------------
    Fault(  # size factors of the cells of a modality go to the first rows of the object
        "io/sizes.py",
        "column.index = opened.rows[name]",
        "column.index = pd.RangeIndex(len(column))",
        ("io/test_read.py",),
    ),
    Fault(  # rows go batch after batch, their size factors stay behind
        "io/read.py",
        "size=view.size[order],",
        "size=view.size,",
        ("io/test_read.py", "tl/test_batches.py"),
    ),
    Fault(  # held-out cells have a say in the unit of size factors
        "io/measured.py",
        "unit * known / values[train].mean()",
        "unit * known / np.nanmean(values)",
        ("io/test_measured.py", "tl/test_evaluate.py", "tl/test_denoise.py"),
    ),
    Fault(  # a write that fails leaves loadings behind
        "io/write.py",
        'common = ("obs", "var", "obsm", "varm", "uns")',
        'common = ("obs", "var", "obsm", "uns")',
        ("io/test_write.py",),
    ),
    Fault(  # features come in the order of the object, not in the one asked for
        "io/chosen.py",
        "return np.flatnonzero(found)[names[found].get_indexer(wanted)]",
        "return np.flatnonzero(found)",
        ("io/test_fits.py", "tl/test_denoise.py", "tl/test_predict.py"),
    ),
    Fault(  # columns that were pulled from modalities stay in the file, of another fit
        "io/files.py",
        '_clear(group, keys, ["", *pulled])',
        '_clear(group, keys, [""])',
        ("io/test_files.py", "tl/test_streaming.py"),
    ),
    # ---- tl --------------------------------------------------------------------------------------
    Fault(  # the largest number of domains is never tried
        "tl/domains.py",
        "np.arange(2, max_domains + 1)",
        "np.arange(2, max_domains)",
        ("tl/test_domains.py",),
    ),
    Fault(  # pairs are compared whatever their genes are like
        "tl/link_peaks.py",
        "DISTANCES), lengths[1][j], lengths[0][i])",
        "DISTANCES), lengths[1][j])",
        ("tl/test_link_peaks.py",),
    ),
    Fault(  # the null model sees held-out counts
        "tl/evaluate.py",
        'null_rates(own.counts, own.size, rows=own.select("train"))',
        "null_rates(own.counts, own.size)",
        ("tl/test_evaluate.py",),
    ),
    Fault(  # cells of a modality get the factors of the first rows of the object
        "tl/denoise.py",
        "factors = fit.mean[fit.rows[name][cells]]",
        "factors = fit.mean[np.flatnonzero(cells)]",
        ("tl/test_denoise.py",),
    ),
    Fault(  # a factor without a field is told without its own uncertainty
        "tl/predict.py",
        "fit.mean.var(0) + (fit.std**2).mean(0)",
        "fit.mean.var(0)",
        ("tl/test_predict.py",),
    ),
    Fault(  # the part that judges has the dispersion of the one that was fitted
        "tl/search.py",
        "part_dispersion(values, 1 - FITTED)",
        "part_dispersion(values, FITTED)",
        ("tl/test_select.py",),
    ),
)


def caught_by(fault: Fault, folder: Path) -> str:
    """The first test that fails with the fault in a copy of the repository; "" where none does."""
    place = folder / "src" / "gpnsf" / fault.path
    text = place.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise ValueError(
            f"Expected {fault.old!r} once in {fault.path}; got {text.count(fault.old)}"
        )
    place.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *OPTIONS, *(f"tests/{name}" for name in fault.tests)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        place.write_text(text, encoding="utf-8")
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    failed = [line.removeprefix("FAILED ").partition(" - ")[0] for line in lines]
    if done.returncode > 1 or len(failed) != done.returncode:
        raise RuntimeError(f"The tests for {fault.path} could not be run:\n{done.stdout[-2000:]}")
    return failed[0] if failed else ""


def main(word: str = "") -> int:
    """Try the faults that have the word in them, and print a table; the number of survivors."""
    survivors = 0
    with TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            if (ROOT / part).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, folder / part, ignore=ignored)
            else:
                shutil.copy(ROOT / part, folder / part)
        for fault in FAULTS:
            if any(word in text for text in (fault.path, fault.old, fault.new)):
                test = caught_by(fault, folder)
                survivors += not test
                slip = f"{fault.path}: {fault.old} -> {fault.new}"
                sys.stdout.write(f"{slip}\n    {test or 'SURVIVED'}\n")
                sys.stdout.flush()
    return survivors


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
