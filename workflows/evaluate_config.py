"""What can be configured of evaluate.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from workflows.batch_config import BatchClusterConfig, BatchRegistryConfig, EncodeDataConfig
from workflows.checks import check_folder, require
from workflows.drift_config import DriftConfig


@dataclass(frozen=True)
class EvaluateDataConfig(EncodeDataConfig):
    """The table."""

    split: Literal["train", "validation", "test", "all"] | None = None
    """Rows that are scored, on the side where the model's training had them, by the hash of the key (or of the place); default: test
    where the model has such rows, else validation. all: every row, for a table that the training did not read."""


@dataclass(frozen=True)
class EvaluateOutputConfig:
    """The scores."""

    path: str
    """Folder for OUTPUT/split=SPLIT/model_version=N/*.parquet, one line for each row, and the report beside them."""
    prune: bool = False
    """Delete the scores of input files that are gone; otherwise they are reported and stay. They count in no mean."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What else is known of the rows."""

    label: str | None = None
    """A column that is kept beside the scores as `label`, and that the embedding is tried on: predicted from it by a linear probe and by
    nearest neighbours; of booleans also found as anomalies. It may be one that the model does not have."""
    num_generated_rows: int = 10_000
    """Rows that are generated and compared with the scored ones; 0: none."""

    def check(self) -> None:
        require(self.num_generated_rows >= 0, "evaluate.num_generated_rows", self.num_generated_rows, "at least 0")


@dataclass(frozen=True)
class AuditConfig:
    """How far the encoder falls short of log p(x), and why."""

    num_rows: int = 200
    """Scored rows, chosen by hash, whose inference gap is measured: by the best posterior of each row by itself, importance sampling and
    annealed importance sampling. 0: none."""
    num_importance_samples: int = 5000
    """Importance samples for each of them."""

    def check(self) -> None:
        require(self.num_rows >= 0, "audit.num_rows", self.num_rows, "at least 0")
        require(self.num_importance_samples >= 25, "audit.num_importance_samples", self.num_importance_samples, "at least 25")


@dataclass(frozen=True)
class BaselinesConfig:
    """The densities that the model is compared with."""

    max_rows: int = 20_000
    """Training rows that they are fitted to, and scored rows that are compared, at most; chosen by hash. 0: no comparison."""

    def check(self) -> None:
        require(self.max_rows >= 0, "baselines.max_rows", self.max_rows, "at least 0")


@dataclass(frozen=True)
class GatesConfig:
    """What a version must pass to become champion."""

    max_loss_nats_per_row: float = 0.0
    """A candidate is refused where the 95 % interval of its log-evidence bound minus the champion's, row by row, lies below minus this
    number: where it is worse by more, beyond doubt."""
    min_rows: int = 100
    """Rows that candidate and champion are compared on, at least: rows that neither was trained on."""
    min_kl_nats_per_row: float = 0.01
    """KL of a model whose latent says something, at least."""
    min_active_units: int = 1
    """Latent dimensions whose posterior mean varies over rows by more than 0.01, at least."""
    max_approximation_gap_nats_per_row: float | None = None
    """A candidate is refused where the audit's gap is larger beyond doubt (95 %); null: no limit. So with the others."""
    max_amortisation_gap_nats_per_row: float | None = None
    """Of the gap that a better encoder would close."""
    max_total_gap_nats_per_row: float | None = None
    """Of both together."""
    fail: bool = False
    """Exit with 3 where the promotion is refused; otherwise the JSON line alone says so."""

    @property
    def limits(self) -> dict[str, float | None]:
        """The limits by the gaps' names."""
        return {
            "total_gap_nats_per_row": self.max_total_gap_nats_per_row,
            "approximation_gap_nats_per_row": self.max_approximation_gap_nats_per_row,
            "amortisation_gap_nats_per_row": self.max_amortisation_gap_nats_per_row,
        }

    def check(self) -> None:
        for name, limit in self.limits.items():
            require(limit is None or limit >= 0, f"gates.max_{name}", limit, "at least 0, or null")
        loss = self.max_loss_nats_per_row
        require(math.isfinite(loss) and loss >= 0, "gates.max_loss_nats_per_row", loss, "a number of at least 0")
        require(self.min_rows >= 2, "gates.min_rows", self.min_rows, "at least 2")
        require(self.min_kl_nats_per_row >= 0, "gates.min_kl_nats_per_row", self.min_kl_nats_per_row, "at least 0")
        require(self.min_active_units >= 0, "gates.min_active_units", self.min_active_units, "at least 0")


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a registered model on rows that it was not trained on; on request make it champion if it is no worse than the one there is."""

    model: str
    """models:/NAME@alias, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle's folder or its URI."""
    data: EvaluateDataConfig
    output: EvaluateOutputConfig
    num_importance_samples: int = 100
    """Samples per row of the ELBO and of the log-evidence bound."""
    promote: bool = False
    """Make the version champion, and the champion previous, if it passes all gates; else say why not."""
    force: bool = False
    """Score again what was scored already."""
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    gates: GatesConfig = field(default_factory=GatesConfig)
    registry: BatchRegistryConfig = field(default_factory=BatchRegistryConfig)
    cluster: BatchClusterConfig = field(default_factory=BatchClusterConfig)

    def check(self) -> None:
        self.cluster.check()
        self.data.check()
        check_folder("output.path", self.output.path)
        self.baselines.check()
        self.evaluate.check()
        self.audit.check()
        self.drift.check()
        self.gates.check()
        require(self.num_importance_samples >= 1, "num_importance_samples", self.num_importance_samples, "at least 1")
        promotable = self.model.startswith(("models:/", "runs:/"))
        limited = [name for name, limit in self.gates.limits.items() if limit is not None]
        require(self.audit.num_rows >= 2 or not limited, "audit.num_rows", self.audit.num_rows, "at least 2, where gates limit a gap")
        require(promotable or not self.promote, "model", self.model, "a registered model's version or alias, where --promote is true")
