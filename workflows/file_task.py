"""What the actors of a job over files are told. No PyTorch, which the driver does without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import fs

from data.output import OutputFolder
from workflows.lease import Fence


@dataclass(frozen=True)
class FileTask:
    """What every actor of such a job is told. made_by: what decides the output besides the input, hashed; what: the job's own part of it.

    quarantine: data that cannot be used is no failure.
    """

    output: OutputFolder
    fence: Fence
    made_by: str
    quarantine: bool
    max_batch_bytes: int
    use_gpu: bool
    what: Any


class What(Protocol):
    """What a job tells its actors. reads: the columns that are read, with their types."""

    @property
    def filesystem(self) -> fs.FileSystem: ...

    @property
    def reads(self) -> pa.Schema: ...
