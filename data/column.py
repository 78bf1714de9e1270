"""One column as the model takes it: what it is, and the numbers that encode it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from data.likelihood_names import CONTINUOUS, COUNTS, default_likelihood

# Integers with at most this many different values are codes more often than quantities.
MAX_INTEGER_CATEGORIES = 20


@dataclass(frozen=True)
class Column:
    """One column as the model takes it.

    mean: per element for a vector, else one number; with `scale` it standardises float64 cells: y = (x - mean) / scale.
    width: of a heavy-tailed column, whose cells are u = asinh((x - center) / width) before they are standardised.
    integer: the values are whole numbers by their type.
    resolution: the step of the grid that values lie on (of integers 1 or more), so that each is given the mass of its interval and not a
    density; None for numbers on no grid. origin: a number on the grid; 0 where values are multiples of the step. off_grid: the share of
    those that are not on it; each has the mass of the step around it.
    base: of integers beyond 2^53 that lie close together, a whole number which is subtracted before they become float64; the mean is then
    counted from it.
    lower and upper: the ends of their range, None for no end.
    likelihood: its name where one was named; the model knows what it means.
    log_mean, log_scale: mean and standard deviation of log(1 + k) of counts whose likelihood takes them as they are.
    binarize: pixels are drawn anew in every epoch, 255 with probability value / 255, else 0.
    atoms: of numbers on no grid, values that come so often that each has a probability of its own beside the others' density, and their
    shares.
    spike: the value on the grid that comes most often, and its share, where that is considerable.
    heap: a coarser step, a multiple of the grid's, that many of the values are rounded to, one of its multiples, and the share rounded.
    other: categories that are not listed have one code together, after all listed ones.
    determined_by: the column of categories that determines this one, determined_codes: by each of its codes, but for a probability slack.
    element_nulls: a vector's or image's elements may be missing one by one; element_null_fractions: how often, in lists that are there.
    condition: the model is told the column and does not model it.
    """

    name: str
    kind: str
    reason: str
    null_fraction: float = 0.0
    integer: bool = False
    shape: list[int] = field(default_factory=list)
    mean: list[float] = field(default_factory=lambda: [0.0])
    scale: float = 1.0
    center: float = 0.0
    width: float | None = None
    lower: float | None = None
    upper: float | None = None
    categories: list[Any] = field(default_factory=list)
    other: bool = False
    element_nulls: bool = False
    element_null_fractions: list[float] = field(default_factory=list)
    constant: Any = None
    condition: bool = False
    resolution: float | None = None
    origin: float = 0.0
    off_grid: float = 0.0
    likelihood: str | None = None
    log_mean: float = 0.0
    log_scale: float = 1.0
    binarize: bool = False
    spike: list[float] | None = None
    heap: list[float] | None = None
    atoms: list[list[float]] = field(default_factory=list)
    base: int = 0
    determined_by: str | None = None
    determined_codes: list[int] = field(default_factory=list)
    slack: float = 0.0

    def __post_init__(self) -> None:
        if self.integer and self.resolution is None:
            object.__setattr__(self, "resolution", 1.0)

    @property
    def field_kind(self) -> str:
        """How the cells are stored, and which default the likelihood has; for numbers: numeric, spiked, integer, warped or count."""
        if self.kind not in ("numeric", "count", "timestamp"):
            return self.kind
        if self.likelihood in COUNTS:
            return "count"
        if self.resolution is None or self.likelihood in CONTINUOUS:
            return "spiked" if self.atoms else "numeric"
        return "integer" if self.width is None else "warped"

    @property
    def field_likelihood(self) -> str | None:
        """The likelihood's name where it is not the default of such fields."""
        return None if self.likelihood == default_likelihood(self.field_kind, self.integer, self.size) else self.likelihood

    @property
    def size(self) -> int:
        """Cells per row."""
        return math.prod(self.shape)

    @property
    def valid_size(self) -> int:
        """Validity flags per row."""
        return self.size if self.element_nulls else 1

    @property
    def num_codes(self) -> int:
        """Codes of a categorical column."""
        return len(self.categories) + self.other
