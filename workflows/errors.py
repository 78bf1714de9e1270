"""What may go wrong in a job besides its configuration and its data, and the log that says so. Exit codes are in job.py."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("vae")


class ServiceError(RuntimeError):
    """A service or the resources asked for are not to be had."""


class TryAgain(RuntimeError):
    """Stopped after saving, or held by another job: the same command goes on later."""


class ComputationError(RuntimeError):
    """The computation itself failed."""


class CheckFailed(RuntimeError):
    """A check that was asked to stop the job did."""


class Incomplete(RuntimeError):
    """The job did what it could and says so in its JSON line; `cause` is why it is not all, and decides the exit code."""

    def __init__(self, result: dict[str, Any], cause: BaseException) -> None:
        super().__init__(str(cause))
        self.result, self.cause = result, cause
