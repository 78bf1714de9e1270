"""What may go wrong in a job besides its configuration and its data, and the log that says so. Exit codes are in job.py."""

from __future__ import annotations

import logging

logger = logging.getLogger("vae")


class ServiceError(RuntimeError):
    """A service or the resources asked for are not to be had."""


class TryAgain(RuntimeError):
    """Stopped after saving, or held by another job: the same command goes on later."""


class ComputationError(RuntimeError):
    """The computation itself failed."""
