"""The members of the family, as data; what puts a model together is in :mod:`gpnsf.core.model.build`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """A member of the family, as data."""

    spatial: float  # share of the factors that are spatial by default
    nonnegative: bool  # exp(h) and W >= 0, or h and W as they are
    background: bool  # whether a constant part per feature is fitted
    likelihood: str | None = None  # the default for every modality, if there is one

    @property
    def is_hybrid(self) -> bool:
        """Whether it has both kinds of factors, and so a choice of how many are spatial."""
        return 0.0 < self.spatial < 1.0


PRESETS: dict[str, Preset] = {
    "fa": Preset(spatial=0.0, nonnegative=False, background=True, likelihood="gaussian"),
    "rsf": Preset(spatial=1.0, nonnegative=False, background=True, likelihood="gaussian"),
    "pnmf": Preset(spatial=0.0, nonnegative=True, background=False),
    "nsf": Preset(spatial=1.0, nonnegative=True, background=False),
    "nsfh": Preset(spatial=0.5, nonnegative=True, background=False),
    "gpnsf": Preset(spatial=0.5, nonnegative=True, background=True),
}
