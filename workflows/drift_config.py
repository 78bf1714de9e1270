"""What can be configured of the comparison with a reference."""

from __future__ import annotations

from dataclasses import dataclass, field

from workflows.checks import require


@dataclass(frozen=True)
class DriftConfig:
    """Whether the table's rows are still drawn from where the reference's were."""

    reference: str | list[str] | None = None
    """Table that the rows are compared with (file, folder, glob, list of these, or URI); default: what the model's bundle keeps of its
    validation rows."""
    alpha: float = 0.05
    """Chance of an alarm where nothing changed; and of several findings, the share that is expected to be false."""
    min_effect: float = 0.0
    """Effect below which a finding is no drift, for tables so large that everything differs: total-variation distance of a column's
    bins, difference of its shares of nulls, maximum mean discrepancy of lists and latent means; 0.02 is little, 0.2 a lot."""
    ignore: list[str] = field(default_factory=list)
    """Columns that are not compared, such as dates, which always move on. ELBO and latent means see all that the model sees."""
    num_rows: int = 20_000
    """Rows of the reference table that are used, at most, chosen by hash."""
    fail: bool = False
    """Exit with 3 where there is drift, so that a schedule stops; otherwise it is only said."""

    def check(self) -> None:
        require(0 < self.alpha < 1, "drift.alpha", self.alpha, "above 0 and below 1")
        require(0 <= self.min_effect < 1, "drift.min_effect", self.min_effect, "at least 0 and below 1")
        require(self.num_rows >= 100, "drift.num_rows", self.num_rows, "at least 100")
