"""What can be configured of the jobs that take a registered model: encode and generate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from workflows.config import check_batch_bytes, require


@dataclass(frozen=True)
class BatchClusterConfig:
    """Where the job runs."""

    address: str | None = None
    """A running Ray cluster ("auto" or host:port); without it Ray starts in this process, unless RAY_ADDRESS or the job says otherwise."""
    num_actors: int | None = None
    """Actors that work at once; default: as many as the cluster has CPUs, less one."""
    start_timeout_s: float = 900.0
    """Seconds that the job waits for nodes that the cluster can start."""

    def check(self) -> None:
        require(self.num_actors is None or self.num_actors >= 1, "cluster.num_actors", self.num_actors, "at least 1")


@dataclass(frozen=True)
class BatchDataConfig:
    """The table."""

    path: str | list[str]
    """Parquet file, folder, glob, list of these, or URI (local, s3://, gs://)."""
    key: str | None = None
    """The column that identifies a row in the output; default: the model's key column, or source_file and source_row without one."""
    max_batch_bytes: int = 268_435_456
    """Bytes that rows may take when decoded at once; larger row groups are read in slices, and what cannot be sliced is refused."""

    def check(self) -> None:
        check_batch_bytes(self.max_batch_bytes)


@dataclass(frozen=True)
class BatchRegistryConfig:
    """Where the model is found."""

    tracking_uri: str | None = None
    """MLflow store that holds the model; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current folder."""


@dataclass(frozen=True)
class EncodeOutputConfig:
    """The embeddings."""

    path: str
    """Folder for OUTPUT/model_version=N/*.parquet."""
    columns: list[Literal["mean", "scale", "elbo"]] = field(default_factory=lambda: ["mean", "scale"])
    """mean: z_mean, scale: z_scale, both fixed_size_list<float>[latent_dim]; elbo: nats per row."""


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
    """models:/NAME@alias, models:/NAME/VERSION, or a bundle's folder."""
    data: BatchDataConfig
    output: EncodeOutputConfig
    registry: BatchRegistryConfig = field(default_factory=BatchRegistryConfig)
    cluster: BatchClusterConfig = field(default_factory=BatchClusterConfig)

    def check(self) -> None:
        self.cluster.check()
        self.data.check()
        require(len(self.output.columns) > 0, "output.columns", self.output.columns, "one or more of mean, scale, elbo")


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
    """models:/NAME@alias, models:/NAME/VERSION, or a bundle's folder."""
    num_rows: int
    """Rows to generate."""
    output: GenerateOutputConfig
    seed: int = 0
    """The same model, seed, condition and count give the same rows on any cluster."""
    condition: dict[str, Any] | None = None
    """Values of all condition columns of a conditional model, for all rows, e.g. '{"label": 3, "day": "2024-12-31", "sex": null}'. Without
    it each row's are drawn from what the training rows' columns hold, independently of each other; vectors have to be given."""
    data: GenerateDataConfig = field(default_factory=GenerateDataConfig)
    registry: BatchRegistryConfig = field(default_factory=BatchRegistryConfig)
    cluster: BatchClusterConfig = field(default_factory=BatchClusterConfig)

    def check(self) -> None:
        self.cluster.check()
        self.data.check()
        require(self.num_rows >= 1, "num_rows", self.num_rows, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.output.rows_per_file >= 1, "output.rows_per_file", self.output.rows_per_file, "at least 1")
