"""What every configuration is checked with."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration cannot be; the message names the key, what was found and what is needed."""


def require(condition: bool, key: str, value: object, needed: str) -> None:
    if not condition:
        raise ConfigError(f"{key} is {value!r}; it must be {needed}")


def check_batch_bytes(max_batch_bytes: int) -> None:
    require(max_batch_bytes >= 2**20, "data.max_batch_bytes", max_batch_bytes, "at least 1048576 (1 MiB)")
