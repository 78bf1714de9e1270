"""A run's folder: what it was asked, its MLflow run, and its result, so that the same name continues the same run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs

from data.listing import open_filesystem
from workflows.config import ConfigError
from workflows.job import ServiceError

RECORD = "run.json"


@dataclass
class Run:
    """What a named run is. identity: everything that decides its numbers; result: the JSON line once it is registered."""

    name: str
    storage_path: str
    filesystem: fs.FileSystem
    identity: dict[str, Any]
    mlflow_run_id: str | None = None
    result: dict[str, Any] | None = None
    path: str = field(default="")

    @staticmethod
    def open(storage_path: str, name: str | None, identity: Mapping[str, Any]) -> Run:
        """Returns the run of that name, new or as it stands. Raises ConfigError listing how it differs from what is asked."""
        filesystem, root = open_filesystem(storage_path)
        name = name or f"run-{uuid.uuid4().hex[:12]}"
        run = Run(name, storage_path if "://" in storage_path else root, filesystem, dict(identity), path=f"{root}/{name}/{RECORD}")
        if filesystem.get_file_info(run.path).type != fs.FileType.File:
            return run
        record = json.loads(filesystem.open_input_file(run.path).read())
        differences = [
            f"{key}: the run has {record['identity'].get(key)!r}, asked is {run.identity.get(key)!r}"
            for key in sorted({*record["identity"], *run.identity})
            if record["identity"].get(key) != json.loads(json.dumps(run.identity.get(key)))
        ]
        if differences:
            raise ConfigError(
                f"run.name is {name!r}, which is another run; choose a new name, or ask for the same:\n  " + "\n  ".join(differences)
            )
        run.mlflow_run_id, run.result = record["mlflow_run_id"], record["result"]
        return run

    def save(self) -> None:
        """Writes the record, whole or not at all. Raises ServiceError where the storage cannot be written."""
        record = {"identity": self.identity, "mlflow_run_id": self.mlflow_run_id, "result": self.result}
        try:
            self.filesystem.create_dir(self.path.rsplit("/", 1)[0], recursive=True)
            with self.filesystem.open_output_stream(f"{self.path}.new") as stream:
                stream.write(json.dumps(record, indent=1).encode())
            self.filesystem.move(f"{self.path}.new", self.path)
        except OSError as error:
            raise ServiceError(f"run.storage_path: {self.path} cannot be written: {error}") from error
