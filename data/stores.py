"""What object stores have of their own: addresses, answers that say nothing of a file, and putting a file that nobody else put.

And what disks have: files that outlive a power cut.
"""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from pathlib import PurePosixPath

from pyarrow import fs

SCHEMES = {"s3": "s3://", "gcs": "gs://", "abfs": "abfs://"}
# What pyarrow's clients put before a store's answer. These answers are about the file that was asked for; the others are not.
ANSWER = re.compile(r"AWS Error (?!NO_SUCH|RESOURCE_NOT_FOUND|ACCESS_DENIED)|google::cloud::Status\((?!NOT_FOUND|PERMISSION_DENIED)")
# A bid that is older by the store's clock than another is forgotten: its job was killed. Jobs withdraw theirs in half of that.
BID_EXPIRY_S = 60.0
LOOK_AGAIN_S = 0.2


class StoreError(RuntimeError):
    """A store does not answer, or not as it should; its files may be as good as ever."""


def silence(error: BaseException) -> StoreError | None:
    """Returns what an error, or what it quotes, means where it is a store's that says nothing of the file that was asked for."""
    if ANSWER.search(str(error)):
        return StoreError(f"the store does not answer: {error}; the same command goes on when it does")
    return None


def refuse_silence(error: BaseException) -> None:
    """Raises StoreError where an error is a store's that says nothing of the file that was asked for."""
    found = silence(error)
    if found is not None:
        raise found from error


def address(filesystem: fs.FileSystem, path: str) -> str:
    """Returns what names a path for whoever does not hold its filesystem."""
    return SCHEMES.get(filesystem.type_name, "") + path


def put_if_absent(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Writes a file that is not there yet, whole. Raises FileExistsError (an OSError) where another job put it first.

    Local filesystems decide by an exclusive link; object stores, whose clients have no such put, by bids.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        put_by_bid(filesystem, path, content)
        return
    staged = f"{path}.{uuid.uuid4().hex[:8]}"
    write_synced(staged, content)
    try:
        os.link(staged, path)
    finally:
        os.unlink(staged)


def replace(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Writes a file in place of the one that may be there, whole or not at all; on a local filesystem it then outlives a power cut."""
    staged = f"{path}.new"
    if isinstance(filesystem, fs.LocalFileSystem):
        write_synced(staged, content)
    else:
        write(filesystem, staged, content)
    filesystem.move(staged, path)
    sync_folder(filesystem, path.rpartition("/")[0])


def write_synced(path: str, content: bytes) -> None:
    """Writes a local file, which is on the disk when this returns; its name is after sync_folder."""
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Puts the names in a folder on the disk, where the filesystem is local and knows how to."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as some network filesystems answer for folders
            raise
    finally:
        os.close(folder)


def put_by_bid(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Puts a file that one job at most puts, in a store whose listings show every put that ended before.

    Each job puts a bid beside the file, then lists the bids. Of two jobs one at least sees the other's, or the file that it has put by
    then: the one with the lower name waits for the other to be gone, which withdraws or has put the file. Raises FileExistsError.
    """
    taken = FileExistsError(f"{path}: another job put it first")
    if exists(filesystem, path):
        raise taken
    bid = f"{path}.bid-{uuid.uuid4().hex}"
    began = time.monotonic()
    write(filesystem, bid, content)
    try:
        while (others := other_bids(filesystem, bid)) and bid < min(others) and time.monotonic() - began < BID_EXPIRY_S / 2:
            time.sleep(LOOK_AGAIN_S)
        if others or exists(filesystem, path) or time.monotonic() - began > BID_EXPIRY_S / 2:
            raise taken
        write(filesystem, path, content)
    finally:
        filesystem.delete_file(bid)


def other_bids(filesystem: fs.FileSystem, bid: str) -> list[str]:
    """Returns the bids of other jobs for the same file, but those that were left behind, by the store's clock."""
    stem = bid.rpartition("-")[0]
    listed = filesystem.get_file_info(fs.FileSelector(str(PurePosixPath(bid).parent)))
    bids = {info.path: info.mtime_ns or 0 for info in listed if info.path.startswith(stem)}
    return [path for path, put_ns in bids.items() if path != bid and put_ns > bids[bid] - BID_EXPIRY_S * 1e9]


def exists(filesystem: fs.FileSystem, path: str) -> bool:
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def write(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)
