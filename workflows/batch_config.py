"""What can be configured of the jobs that take a registered model: encode, reconstruct, generate and promote."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from workflows.checks import check_batch_bytes, check_folder, require


@dataclass(frozen=True)
class BatchClusterConfig:
    """Where the job runs."""

    address: str | None = None
    """A running Ray cluster ("auto" or host:port); without it Ray starts in this process, unless RAY_ADDRESS or the job says otherwise."""
    num_actors: int | None = None
    """Actors that work at once; default: as many as the cluster has CPUs, less one, or as it has GPUs."""
    use_gpu: bool | Literal["auto"] = "auto"
    """One GPU per actor; auto: when the cluster has, or can start, one."""
    start_timeout_s: float = 900.0
    """Seconds that the job waits for nodes that the cluster can start, or for what other jobs hold."""

    def check(self) -> None:
        require(self.num_actors is None or self.num_actors >= 1, "cluster.num_actors", self.num_actors, "at least 1")


@dataclass(frozen=True)
class BatchDataConfig:
    """The table."""

    path: str | list[str]
    """Parquet file, folder, glob, list of these, or URI (local, s3://, gs://)."""
    partition: str | None = None
    """Only these files below data.path: a folder's or file's name, or its value (2026-11-22 also means date=2026-11-22), a relative path,
    or a glob of these."""
    on_bad_file: Literal["error", "quarantine"] = "error"
    """What a file that cannot be read, or does not fit the model, does: error: end the job; quarantine: the others are done, the manifest
    lists it, and the job exits with 65 at the end."""
    max_unit_rows: int = 1_000_000
    """Rows that an actor does at once; files with more are cut between row groups and joined."""
    max_batch_bytes: int = 268_435_456
    """Bytes that rows may take when decoded at once; larger row groups are read in slices, and what cannot be sliced is refused."""

    def check(self) -> None:
        check_batch_bytes(self.max_batch_bytes)
        require(self.max_unit_rows >= 1, "data.max_unit_rows", self.max_unit_rows, "at least 1")


@dataclass(frozen=True)
class EncodeDataConfig(BatchDataConfig):
    """The table."""

    key: str | None = None
    """The column that identifies a row in the output; default: the model's key column, or source_file and source_row without one."""


@dataclass(frozen=True)
class BatchRegistryConfig:
    """Where the model is found."""

    tracking_uri: str | None = None
    """MLflow store that holds the model; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current folder."""
    experiment: str = "vae"
    """MLflow experiment of the job's own run, which says what it did with which model version; a folder's model gets none, nor does
    promote.py make one: tags of the version say what it did."""


@dataclass(frozen=True)
class EncodeOutputConfig:
    """The embeddings."""

    path: str
    """Folder for OUTPUT/model_version=N/*.parquet."""
    columns: list[Literal["mean", "scale", "elbo", "log_evidence_bound", "reconstruction", "anomaly"]] = field(
        default_factory=lambda: ["mean", "scale"]
    )
    """mean: z_mean, scale: z_scale, both fixed_size_list<float>[latent_dim]; elbo: elbo_nats_per_row; log_evidence_bound: the
    importance-weighted bound, log_evidence_bound_nats_per_row; reconstruction: the decoder's expected columns at z_mean, as a struct;
    anomaly: anomaly_score_nats (-ELBO), and the three columns that exceed most what is to be expected of them, with by how much
    (anomaly_columns, anomaly_excess_nats)."""
    prune: bool = False
    """Delete the output of input files that are gone; otherwise they are reported and their rows stay."""


@dataclass(frozen=True)
class ReconstructOutputConfig:
    """The filled rows."""

    path: str
    """Folder for OUTPUT/model_version=N/*.parquet."""
    standard_deviations: bool = False
    """Adds NAME_standard_deviation, behind the table's columns, for every column of numbers (not of points in time): the posterior's, in
    data units, for cells that were filled."""
    prune: bool = False
    """Delete the output of input files that are gone; otherwise they are reported and their rows stay."""


@dataclass(frozen=True)
class GenerateOutputConfig:
    """The generated rows."""

    path: str
    """Folder for the generated Parquet files."""
    rows_per_file: int = 65_536
    """Rows of one output file."""


@dataclass(frozen=True)
class EncodeConfig:
    """Embed every row of a Parquet table with a registered model."""

    model: str
    """models:/NAME@alias, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle's folder or its URI."""
    data: EncodeDataConfig
    output: EncodeOutputConfig
    num_importance_samples: int = 100
    """Samples per row of log_evidence_bound."""
    registry: BatchRegistryConfig = field(default_factory=BatchRegistryConfig)
    cluster: BatchClusterConfig = field(default_factory=BatchClusterConfig)

    def check(self) -> None:
        self.cluster.check()
        self.data.check()
        check_folder("output.path", self.output.path)
        require(len(self.output.columns) > 0, "output.columns", self.output.columns, "one or more columns")
        require(len(set(self.output.columns)) == len(self.output.columns), "output.columns", self.output.columns, "without a column twice")
        require(self.num_importance_samples >= 1, "num_importance_samples", self.num_importance_samples, "at least 1")


@dataclass(frozen=True)
class ReconstructConfig:
    """Fill the nulls of a Parquet table from a registered model."""

    model: str
    """models:/NAME@alias, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle's folder or its URI."""
    data: BatchDataConfig
    output: ReconstructOutputConfig
    registry: BatchRegistryConfig = field(default_factory=BatchRegistryConfig)
    cluster: BatchClusterConfig = field(default_factory=BatchClusterConfig)

    def check(self) -> None:
        self.cluster.check()
        self.data.check()
        check_folder("output.path", self.output.path)


@dataclass(frozen=True)
class GenerateDataConfig:
    """The training table, if the report is to count the generated rows that are copies of its rows."""

    path: str | list[str] | None = None
    """Parquet file, folder, glob, list of these, or URI; without it copies are not counted."""
    max_batch_bytes: int = 268_435_456
    """Bytes that rows may take when decoded at once; larger row groups are read in slices, and what cannot be sliced is refused."""

    def check(self) -> None:
        check_batch_bytes(self.max_batch_bytes)


@dataclass(frozen=True)
class GenerateConfig:
    """Generate rows from a registered model."""

    model: str
    """models:/NAME@alias, models:/NAME/VERSION, runs:/RUN_ID/model, or a bundle's folder or its URI."""
    num_rows: int
    """Rows to generate."""
    output: GenerateOutputConfig
    seed: int = 0
    """The same model, seed, condition and count give the same rows on any cluster."""
    # No Any: jsonargparse reads its text once more, and "01067" is a number then.
    condition: dict[str, str | bool | int | float | list[Any] | None] | None = None
    """Values of all condition columns of a conditional model, for all rows, e.g. '{"label": 3, "day": "2024-12-31", "sex": null}'. Without
    it each row's are drawn from what the training rows' columns hold, independently of each other; vectors have to be given."""
    data: GenerateDataConfig = field(default_factory=GenerateDataConfig)
    registry: BatchRegistryConfig = field(default_factory=BatchRegistryConfig)
    cluster: BatchClusterConfig = field(default_factory=BatchClusterConfig)

    def check(self) -> None:
        self.cluster.check()
        self.data.check()
        check_folder("output.path", self.output.path)
        require(self.num_rows >= 1, "num_rows", self.num_rows, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.output.rows_per_file >= 1, "output.rows_per_file", self.output.rows_per_file, "at least 1")


@dataclass(frozen=True)
class PromoteConfig:
    """Make a version of a registered model its champion, or go back to the champion before."""

    model: str
    """Name of the registered model."""
    version: int | None = None
    """Version that becomes champion; the one that was becomes previous."""
    rollback: bool = False
    """Swap champion and previous; doing so twice undoes it."""
    why: str = ""
    """The reason, kept with the version; up to 2,000 characters."""
    by: str | None = None
    """Who does it; default: user@host."""
    registry: BatchRegistryConfig = field(default_factory=BatchRegistryConfig)

    def check(self) -> None:
        chosen = (self.version is None) == self.rollback
        require(chosen, "version", self.version, "a number, or null with --rollback: give one of the two")
        is_name = self.model.strip() and not re.search("[/:@']", self.model)
        require(bool(is_name), "model", self.model, "a registered model's name, without models:/, version or alias")
        require(len(self.why) <= 2000, "why", f"{len(self.why)} characters long", "up to 2,000 characters")
