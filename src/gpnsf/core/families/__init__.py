"""Likelihoods of counts given rates, in numpy: everything that needs no gradient.

Everybody who has the name of a likelihood looks it up in `FAMILIES` and asks; nobody compares
names.
"""

from __future__ import annotations

from gpnsf.core.families.base import Family
from gpnsf.core.families.bernoulli import Bernoulli, ClippedBernoulli
from gpnsf.core.families.gaussian import Gaussian
from gpnsf.core.families.negative_binomial import NegativeBinomial
from gpnsf.core.families.poisson import Poisson

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {
    "poisson": Poisson(),
    "nb": NegativeBinomial(),
    "bernoulli": Bernoulli(),
    "bernoulli_clipped": ClippedBernoulli(),
    "gaussian": Gaussian(),
}
