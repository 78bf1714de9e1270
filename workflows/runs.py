"""A run's folder: what it was asked, its MLflow run, its checkpoints, and its result, so that the same name continues the same run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pyarrow import fs

from data.listing import open_filesystem
from data.output import OutputError
from data.stores import address, refuse_silence, replace
from workflows.checkpoint import Checkpoints, read
from workflows.checks import ConfigError
from workflows.errors import ServiceError
from workflows.lease import Claims

RECORD, TABLE, CHECKPOINTS = "run.json", "table.json", "checkpoints"


@dataclass
class Run:
    """What a named run is. folder: where it lives; identity: everything that decides its numbers; key: what marks its MLflow run;
    result: the JSON line once it is registered.
    """

    name: str
    folder: str
    filesystem: fs.FileSystem
    identity: dict[str, Any]
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    mlflow_run_id: str | None = None
    result: dict[str, Any] | None = None

    @staticmethod
    def open(storage_path: str, name: str | None, identity: Mapping[str, Any]) -> Run:
        """Returns the run of that name, new or as it stands. Raises ConfigError listing how it differs from what is asked."""
        filesystem, root = open_filesystem(storage_path)
        name = name or f"run-{uuid.uuid4().hex[:12]}"
        run = Run(name, f"{root}/{name}", filesystem, dict(identity))
        run.refresh()
        return run

    def refresh(self) -> None:
        """Takes over what the folder says. Raises ConfigError as open does, OutputError where the folder's record is none, or gone,
        ServiceError where the folder cannot be looked into.
        """
        try:
            record_info, checkpoints_info = self.filesystem.get_file_info([f"{self.folder}/{RECORD}", f"{self.folder}/{CHECKPOINTS}"])
        except OSError as error:
            refuse_silence(error)
            raise ServiceError(f"run.storage_path: {address(self.filesystem, self.folder)} cannot be read: {error}") from error
        if record_info.type != fs.FileType.File:
            if checkpoints_info.type != fs.FileType.NotFound:
                raise OutputError(
                    f"{address(self.filesystem, self.folder)} has {CHECKPOINTS}, and no {RECORD} that says what of; restore it, or choose "
                    "a new run.name"
                )
            return
        record = record_of(read(self.filesystem, f"{self.folder}/{RECORD}"))
        if record is None:
            raise OutputError(
                f"{address(self.filesystem, self.folder)}/{RECORD} is not the record of a run; restore it, or choose a new run.name"
            )
        differences = [
            f"{key}: the run has {record['identity'].get(key)!r}, asked is {self.identity.get(key)!r}"
            for key in sorted({*record["identity"], *self.identity})
            if record["identity"].get(key) != json.loads(json.dumps(self.identity.get(key)))
        ]
        if differences:
            raise ConfigError(
                f"run.name is {self.name!r}, which is another run; choose a new name, or ask for the same:\n  " + "\n  ".join(differences)
            )
        self.key, self.mlflow_run_id, self.result = record["key"], record["mlflow_run_id"], record["result"]

    def save(self) -> None:
        """Writes the record. Raises ServiceError where the storage cannot be written."""
        record = {"identity": self.identity, "key": self.key, "mlflow_run_id": self.mlflow_run_id, "result": self.result}
        self.write(RECORD, json.dumps(record, indent=1).encode())

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the run, whole or not at all. Raises ServiceError where the storage cannot be written."""
        path = f"{self.folder}/{name}"
        try:
            self.filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
            replace(self.filesystem, path, content)
        except OSError as error:
            refuse_silence(error)
            raise ServiceError(f"run.storage_path: {address(self.filesystem, path)} cannot be written: {error}") from error

    def table_record(self) -> dict[str, Any]:
        """Returns what the bundle says of the table, as it was saved before training. Raises OutputError where it is not that any more."""
        path = f"{self.folder}/{TABLE}"
        is_there = self.filesystem.get_file_info(path).type == fs.FileType.File
        record = object_of(read(self.filesystem, path)) if is_there else None
        if record is None:
            raise OutputError(
                f"{address(self.filesystem, path)} is not what was saved there; restore it from the artifacts of MLflow run "
                f"{self.mlflow_run_id}, or choose a new run.name"
            )
        return record

    @contextmanager
    def held(self) -> Iterator[Checkpoints]:
        """Gives the run's checkpoints to one job at a time, whose record is fresh. Raises TryAgain where another has them."""
        claims = Claims(self.filesystem, f"{self.folder}/attempts")
        with claims.held(f"run {self.name}") as attempt:
            self.refresh()
            yield Checkpoints(self.filesystem, f"{self.folder}/{CHECKPOINTS}", attempt, partial(claims.is_current, attempt))


def record_of(content: bytes) -> dict[str, Any] | None:
    """Returns what Run.save wrote, or None where it is not that."""
    record = object_of(content) or {}
    keys = {"identity", "key", "mlflow_run_id", "result"}
    return record if keys <= record.keys() and isinstance(record["identity"], dict) else None


def object_of(content: bytes) -> dict[str, Any] | None:
    """Returns the JSON object that a file holds, or None where it is not one, as when a disk lost a part of it."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
