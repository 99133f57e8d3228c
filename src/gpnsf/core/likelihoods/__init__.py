"""Likelihoods of counts given rates, in torch: bound, curvature, information.

What needs no gradient is in :mod:`gpnsf.core.families`, which each of them has as its ``family``.
"""

from __future__ import annotations

from gpnsf.core.likelihoods.base import AbstractLikelihood
from gpnsf.core.likelihoods.bernoulli import Bernoulli, ClippedBernoulli
from gpnsf.core.likelihoods.gaussian import Gaussian
from gpnsf.core.likelihoods.negative_binomial import NegativeBinomial
from gpnsf.core.likelihoods.poisson import Poisson

__all__ = [
    "LIKELIHOODS",
    "AbstractLikelihood",
    "Bernoulli",
    "ClippedBernoulli",
    "Gaussian",
    "NegativeBinomial",
    "Poisson",
]

LIKELIHOODS: dict[str, type[AbstractLikelihood]] = {
    "poisson": Poisson,
    "nb": NegativeBinomial,
    "bernoulli": Bernoulli,
    "bernoulli_clipped": ClippedBernoulli,
    "gaussian": Gaussian,
}
