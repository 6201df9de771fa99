"""What a column of the covariate matrix is; a module of its own, so that readers of sample sheets start fast."""

from __future__ import annotations

from typing import NamedTuple


class Covariate(NamedTuple):
    """What a column of the covariate matrix says of the samples: (value - mean) / scale of a number, or whether a
    category has this level and not the reference level, less the mean."""

    column: str  # of the sample sheet
    level: str | None = None  # None for a number
    reference: str | None = None
    scale: float = 1.0  # of a number, units of the sheet

    @property
    def name(self) -> str:
        return self.column if self.level is None else f"{self.column}[{self.level}]"
