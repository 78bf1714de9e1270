"""MLflow's store where it is a SQLite file: found in time to be unusable, and made by one job at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

from workflows.errors import ServiceError


def sqlite_file(tracking_uri: str) -> Path | None:
    """Returns the absolute path of a SQLite store's file; None where the store is none."""
    if not tracking_uri.startswith("sqlite"):
        return None
    file = make_url(tracking_uri).database
    return Path(file).absolute() if file else None


@contextmanager
def opening(file: Path | None) -> Iterator[None]:
    """While open, no other job of this machine's user opens the file: each would make the tables of a new one, and all but one fail.

    Raises ServiceError at once for a file that is no database or cannot be opened, which MLflow tries again for many minutes.
    """
    if file is None:
        yield
        return
    lock = Path(tempfile.gettempdir()) / f"mlflow-{os.getuid()}-{hashlib.sha256(bytes(file)).hexdigest()[:16]}.lock"
    try:
        with lock.open("w") as locked:
            fcntl.flock(locked, fcntl.LOCK_EX)
            file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA schema_version")
            yield
    except (OSError, sqlite3.Error) as error:
        raise ServiceError(f"MLflow's store {file} cannot be opened: {error}; see registry.tracking_uri") from error
