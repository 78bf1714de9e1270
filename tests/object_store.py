"""A server of S3's protocol on this machine, with one bucket, for tests of what lies in object stores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from pyarrow import fs

from tests.running import free_port, wait_until

BUCKET = "bucket"


@dataclass(frozen=True)
class ObjectStore:
    """The server's port and process."""

    port: int
    process: psutil.Process

    @property
    def environment(self) -> dict[str, str]:
        """What tells pyarrow of the server, as a user would say it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": "password",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, path: str) -> str:
        """Returns a URI that says all of that by itself."""
        return f"s3://user:password@{BUCKET}/{path}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"

    def filesystem(self) -> fs.FileSystem:
        return fs.FileSystem.from_uri(self.uri("") + "&allow_bucket_creation=true")[0]


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server with an empty bucket, ended with the block."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        store = ObjectStore(port, psutil.Process(process.pid))
        try:
            wait_until(lambda: made_bucket(store))
            yield store
        finally:
            store.process.kill()


def made_bucket(store: ObjectStore) -> bool:
    try:
        store.filesystem().create_dir(BUCKET)
    except OSError:
        return False
    return True
