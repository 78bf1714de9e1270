"""What can be configured: typed, frozen sections. One name is the option, the field, the MLflow parameter and the README word."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from workflows.checks import ConfigError, check_batch_bytes, check_finite, check_folder, require
from workflows.model_config import ModelConfig, ObjectiveConfig, TrainingConfig


@dataclass(frozen=True)
class ClusterConfig:
    """Where training runs."""

    address: str | None = None
    """A running Ray cluster ("auto" or host:port); without it Ray starts in this process, unless RAY_ADDRESS or the job says otherwise."""
    num_workers: int = 2
    """Training workers."""
    min_workers: int | None = None
    """Training starts, and goes on, with as few workers as this when nodes are not there or leave, and takes more again, up to num_workers,
    when they come; default: always num_workers. The numbers are the same."""
    use_gpu: bool | Literal["auto"] = "auto"
    """One GPU per worker; auto: when the cluster has, or can start, as many."""
    resize_interval_s: float = 60.0
    """Seconds between looks for nodes while fewer than num_workers work; taking them in costs a start of all workers."""
    cpus_per_worker: int = 1
    """Logical CPUs, and PyTorch threads, per worker."""
    start_timeout_s: float = 900.0
    """Seconds that the job waits for nodes that the cluster can start, or for what other jobs hold."""
    collective_timeout_s: int = 300
    """Seconds that workers wait for each other; then the run ends, naming the one that was not heard of."""
    max_failures: int = 3
    """Times that training goes on from the last checkpoint by itself after a worker or its node was lost."""

    @property
    def fewest_workers(self) -> int:
        return self.num_workers if self.min_workers is None else self.min_workers

    def check(self) -> None:
        require(self.collective_timeout_s >= 1, "cluster.collective_timeout_s", self.collective_timeout_s, "at least 1")
        require(self.max_failures >= 0, "cluster.max_failures", self.max_failures, "at least 0")
        require(self.num_workers >= 1, "cluster.num_workers", self.num_workers, "at least 1")
        fewest = self.min_workers
        require(fewest is None or 1 <= fewest <= self.num_workers, "cluster.min_workers", fewest, "between 1 and cluster.num_workers")
        require(self.resize_interval_s > 0, "cluster.resize_interval_s", self.resize_interval_s, "above 0")
        require(self.cpus_per_worker >= 1, "cluster.cpus_per_worker", self.cpus_per_worker, "at least 1")


@dataclass(frozen=True)
class DataConfig:
    """The table."""

    path: str | list[str]
    """Parquet file, folder, glob, list of these, or URI (local, s3://, gs://)."""
    key: str | None = None
    """The column that identifies a row: it is not modelled, decides the split, and comes back with the embeddings."""
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Overrides by column, e.g. '{"pixels": {"kind": "image", "shape": [28, 28]}, "ssn": {"kind": "ignored"}}';
    kinds: numeric count boolean categorical timestamp vector image key ignored. "binarize": "per_epoch" of an image draws its pixels
    black or white anew in every epoch."""
    condition: list[str] = field(default_factory=list)
    """Columns that the model is conditioned on: encoder and decoder are told them, they are not modelled, and the bound is one on
    log p(other columns | these). encode needs them as it needs the others; generate sets or draws them."""
    validation_fraction: float = 0.1
    """Share of rows, chosen by hash, that only measure; 0 keeps the last epoch's weights."""
    test_fraction: float = 0.0
    """Share of rows, chosen by hash, that training never sees."""
    validation_path: str | list[str] | None = None
    """A validation table of its own, in place of validation_fraction."""
    num_logical_shards: int = 8
    """V: pieces into which the training rows are cut; results do not depend on how many workers share them."""
    shuffle_window_rows: int | None = None
    """Rows of a logical shard that are permuted together; default: those that take 32 MiB."""
    max_categories: int = 1000
    """Categories kept of a column, the most frequent ones; the rest become one category "other"."""
    min_category_count: int = 1
    """Training rows that a category needs to be kept, for privacy; rarer ones become "other"."""
    nonfinite: Literal["error", "null"] = "error"
    """What NaN and infinities are: an error that names column and file, or nulls, in training and whenever the model reads a table."""
    allow_missing_columns: bool = False
    """A column that some files lack is null there; otherwise that is an error."""
    max_unique_check_rows: int = 20_000_000
    """Rows up to which the keys are compared and one that comes twice is an error; larger tables are not checked, and that is said."""
    max_batch_bytes: int = 268_435_456
    """Bytes that rows may take when decoded at once; larger row groups are read in slices, and what cannot be sliced is refused."""

    def check(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            require(0 <= getattr(self, name) < 1, f"data.{name}", getattr(self, name), "at least 0 and below 1")
        total = self.validation_fraction + self.test_fraction
        require(total < 1, "data.validation_fraction + data.test_fraction", total, "below 1, so that training rows are left")
        require(self.num_logical_shards >= 1, "data.num_logical_shards", self.num_logical_shards, "at least 1")
        for name in ("max_categories", "min_category_count"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        rows = self.shuffle_window_rows
        require(rows is None or rows >= 1, "data.shuffle_window_rows", rows, "at least 1")
        require(self.max_unique_check_rows >= 0, "data.max_unique_check_rows", self.max_unique_check_rows, "at least 0")
        check_batch_bytes(self.max_batch_bytes)

    @property
    def fractions(self) -> tuple[float, float]:
        return (0.0 if self.validation_path else self.validation_fraction, self.test_fraction)


@dataclass(frozen=True)
class RunConfig:
    """The run and its checkpoints."""

    storage_path: str = "./runs"
    """Folder or URI for checkpoints; on several nodes all of them must reach it."""
    name: str | None = None
    """The same name continues the same run; without one a new name is made and printed."""
    checkpoint_interval_s: float = 300.0
    """Seconds between checkpoints within an epoch; every epoch ends with one anyway."""
    log_interval_steps: int = 100
    """Steps whose mean training ELBO is one point in MLflow."""
    shard_memory_bytes: int | None = None
    """Bytes of rows that a worker may hold; default: half of the cluster's memory, shared by the workers. What does not fit is read again
    every epoch; the numbers are the same."""

    def check(self) -> None:
        check_folder("run.storage_path", self.storage_path)
        is_one_name = self.name is None or (self.name.strip() not in ("", ".", "..") and not {"/", "\\"}.intersection(self.name))
        require(is_one_name, "run.name", self.name, "the name of one folder below run.storage_path")
        bytes_held = self.shard_memory_bytes
        require(bytes_held is None or bytes_held >= 1, "run.shard_memory_bytes", bytes_held, "at least 1")
        require(self.checkpoint_interval_s > 0, "run.checkpoint_interval_s", self.checkpoint_interval_s, "above 0")
        require(self.log_interval_steps >= 1, "run.log_interval_steps", self.log_interval_steps, "at least 1")


@dataclass(frozen=True)
class RegistryConfig:
    """Where the run and the model are recorded."""

    tracking_uri: str | None = None
    """MLflow tracking server or store; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current folder."""
    experiment: str = "vae"
    """MLflow experiment of the run."""
    model_name: str = "vae"
    """Registered model that gets the new version."""

    def check(self) -> None:
        is_name = bool(self.model_name.strip()) and not {"/", ":", "'", '"'}.intersection(self.model_name)
        require(is_name, "registry.model_name", self.model_name, "a name without / and : and quotes")
        require(bool(self.experiment.strip()), "registry.experiment", self.experiment, "a name")


@dataclass(frozen=True)
class TrainConfig:
    """Train a VAE on a Parquet table and register it."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def check(self) -> None:
        for section in (self.data, self.model, self.objective, self.training, self.run, self.registry, self.cluster):
            section.check()
        check_finite(asdict(self))
        if self.model.prior == "conditional" and not self.data.condition:
            raise ConfigError("model.prior is 'conditional', and data.condition names no columns that it could depend on")
        if self.cluster.num_workers > self.data.num_logical_shards:
            raise ConfigError(
                f"cluster.num_workers is {self.cluster.num_workers}, data.num_logical_shards is {self.data.num_logical_shards}: a worker "
                f"owns at least one logical shard; set --data.num_logical_shards {self.cluster.num_workers}, or use fewer workers"
            )
