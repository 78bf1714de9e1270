"""What every configuration is checked with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
    """The configuration cannot be; the message names the key, what was found and what is needed."""


def require(condition: bool, key: str, value: object, needed: str) -> None:
    if not condition:
        raise ConfigError(f"{key} is {value!r}; it must be {needed}")


def check_finite(options: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ConfigError for a number that is infinite or none, which a comparison may let pass."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            check_finite(value, f"{prefix}{key}.")
        require(not isinstance(value, float) or math.isfinite(value), f"{prefix}{key}", value, "finite")


def check_batch_bytes(max_batch_bytes: int) -> None:
    require(max_batch_bytes >= 2**20, "data.max_batch_bytes", max_batch_bytes, "at least 1048576 (1 MiB)")


def check_folder(key: str, path: str) -> None:
    """Raises ConfigError for an empty path, such as a shell makes of a variable that is not set: it would be the current folder."""
    require(bool(path), key, path, "a folder or its URI")
