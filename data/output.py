"""Where output goes: whole files under final names, or nothing; a numbered manifest says what they are."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data.listing import DataError, open_filesystem
from data.stores import address, put_if_absent, refuse_silence
from data.writing import PartWriter, RowGroupWriter, read_part

SUCCESS = "_SUCCESS"
MANIFESTS = "_manifests"
STAGING = "_staging"
CLAIM = "_job.json"
PART = ".arrows"
# The line of an output file's footer that says what it was made from.
RECORD = "vae.input"
# Filesystems allow 255 bytes; staging adds 9, and .parquet 8.
MAX_NAME_BYTES = 230


class OutputError(RuntimeError):
    """The output cannot be written, or holds something else than this job's output."""


class LostError(RuntimeError):
    """Another job took the output over while this one worked."""


def always() -> bool:
    return True


@dataclass(frozen=True)
class OutputFolder:
    """A folder on some filesystem that receives whole Parquet files. Names with a leading _ are hidden from readers."""

    filesystem: fs.FileSystem
    path: str

    @staticmethod
    def open(path: str) -> OutputFolder:
        """Returns the folder at a path or URI. Raises OutputError where the URI is of no filesystem that is known."""
        try:
            filesystem, below = open_filesystem(path)
        except DataError as error:
            raise OutputError(str(error)) from error
        return OutputFolder(filesystem, below)

    @property
    def address(self) -> str:
        """What names the folder outside this process."""
        return address(self.filesystem, self.path)

    def below(self, name: str) -> OutputFolder:
        return OutputFolder(self.filesystem, f"{self.path}/{name}")

    def prepare(self) -> None:
        """Makes the folder and proves that it can be written. Raises OutputError."""
        try:
            self.filesystem.create_dir(f"{self.path}/{STAGING}", recursive=True)
            with self.filesystem.open_output_stream(f"{self.path}/{STAGING}/probe") as stream:
                stream.write(b"probe")
            self.filesystem.delete_dir(f"{self.path}/{STAGING}")
        except OSError as error:
            refuse_silence(error)
            raise OutputError(f"{self.address}: cannot be written: {error}") from error

    def claim(self, record: Mapping[str, Any]) -> None:
        """Marks the folder as this job's, or finds that it is. Raises OutputError where it holds something else."""
        path = f"{self.path}/{CLAIM}"
        if self.exists(CLAIM):
            found = self._object(path)
            different = [
                f"{key} is {found.get(key)!r}, asked is {record.get(key)!r}"
                for key in found | dict(record)
                if found.get(key) != record.get(key)
            ]
            if different:
                raise OutputError(f"{self.address}: holds another job's output ({'; '.join(different)}); choose another output.path")
            return
        self.prepare()
        foreign = [info.base_name for info in self._list() if info.base_name.endswith(".parquet")]
        if foreign:
            raise OutputError(f"{self.address}: holds Parquet files that no job of ours wrote ({foreign[0]}); choose an empty output.path")
        try:
            put_if_absent(self.filesystem, path, json.dumps(record).encode())
        except FileExistsError:
            self.claim(record)  # another job was first: is it the same one?
        except OSError as error:
            refuse_silence(error)
            raise OutputError(f"{address(self.filesystem, path)}: cannot be written: {error}") from error

    def _list(self) -> list[fs.FileInfo]:
        return list(self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True)))

    @contextmanager
    def staged(self, name: str, schema: pa.Schema, may_commit: Callable[[], bool] = always) -> Iterator[RowGroupWriter]:
        """Gives a Parquet writer; its file appears under its final name when the block ends well, and not at all otherwise.

        may_commit: asked last of all, whether the job still holds the folder. Raises OutputError, LostError where it does not.
        """
        with self._written(name, f"{self.path}/{name}", may_commit) as stream, RowGroupWriter(stream, schema) as writer:
            yield writer

    @contextmanager
    def staged_part(self, name: str, schema: pa.Schema) -> Iterator[PartWriter]:
        """Gives a writer of a part, which appears whole under its name among the staged files, or not at all. Raises OutputError."""
        with self._written(name, self.part(name), always) as stream, PartWriter(stream, schema) as writer:
            yield writer

    @contextmanager
    def _written(self, name: str, final: str, may_commit: Callable[[], bool]) -> Iterator[pa.NativeFile]:
        staged = f"{self.path}/{STAGING}/{name}.{uuid.uuid4().hex[:8]}"
        try:
            self.filesystem.create_dir(f"{self.path}/{STAGING}", recursive=True)
            with self.filesystem.open_output_stream(staged) as stream:
                yield stream
            flush_to_disk(self.filesystem, staged)
            if not may_commit():
                raise LostError(f"{address(self.filesystem, final)}: another job took over; this one leaves the file as it is")
            self.filesystem.move(staged, final)
        except OSError as error:
            refuse_silence(error)
            raise OutputError(f"{address(self.filesystem, final)}: cannot be written: {error}") from error

    def put_text(self, name: str, text: str) -> None:
        """Writes a text file, whole or not at all, in place of one that is there. Raises OutputError."""
        with self._written(name, f"{self.path}/{name}", always) as stream:
            stream.write(text.encode())

    def part(self, name: str) -> str:
        return f"{self.path}/{STAGING}/{name}{PART}"

    def parts(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yields the rows of staged parts, one part after the other."""
        for name in names:
            yield from read_part(self.filesystem, self.part(name))

    def footer_record(self, name: str) -> dict[str, Any] | None:
        """Returns what the job that wrote a file noted in its footer, None where it noted nothing or the file cannot be read."""
        try:
            with self.filesystem.open_input_file(f"{self.path}/{name}") as source:
                lines = pq.read_metadata(source).metadata or {}
            return dict(json.loads(lines[RECORD.encode()]))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            refuse_silence(error)
            return None

    def stat(self, name: str) -> dict[str, int]:
        """Returns what a listing says of a file: output_bytes and output_mtime_ns."""
        return as_listed(self.filesystem.get_file_info(f"{self.path}/{name}"))

    def remove(self, name: str) -> None:
        """Deletes a file. Raises OutputError."""
        try:
            self.filesystem.delete_file(f"{self.path}/{name}")
        except OSError as error:
            refuse_silence(error)
            raise OutputError(f"{self.address}/{name}: cannot be deleted: {error}") from error

    def newest_manifest(self) -> tuple[dict[str, Any], int]:
        """Returns the newest manifest and its number; an empty one and 0 where there is none."""
        path = self.last_manifest()
        if path is None:
            return {}, 0
        return self._object(path), int(os.path.basename(path).removesuffix(".json"))

    def _object(self, path: str) -> dict[str, Any]:
        """Returns the JSON object that a job put at a path. Raises OutputError where it is none, as when a disk lost a part of it."""
        try:
            with self.filesystem.open_input_file(path) as source:
                return dict(json.loads(source.read()))
        except (ValueError, TypeError) as error:
            found = address(self.filesystem, path)
            raise OutputError(f"{found} is not what a job wrote there; restore it, or choose another output.path") from error

    def _manifest_paths(self) -> list[str]:
        selector = fs.FileSelector(f"{self.path}/{MANIFESTS}", allow_not_found=True)
        return sorted(info.path for info in self.filesystem.get_file_info(selector) if info.base_name.endswith(".json"))

    def last_manifest(self) -> str | None:
        """Returns the newest manifest's path, None where there is none."""
        names = self._manifest_paths()
        return names[-1] if names else None

    def put_manifest(self, manifest: Mapping[str, Any], number: int, complete: bool = True) -> str:
        """Writes the manifest under its number, marks the folder complete where it is, and returns the manifest's path.

        Raises FileExistsError where another job put that number first, OutputError where it cannot be written.
        """
        path = f"{self.path}/{MANIFESTS}/{number:06d}.json"
        content = json.dumps(manifest).encode()
        try:
            self.filesystem.create_dir(f"{self.path}/{MANIFESTS}", recursive=True)
            put_if_absent(self.filesystem, path, content)
            if complete:
                with self.filesystem.open_output_stream(f"{self.path}/{SUCCESS}") as stream:
                    stream.write(json.dumps({"manifest": os.path.basename(path)}).encode())
            if self.filesystem.get_file_info(f"{self.path}/{STAGING}").type == fs.FileType.Directory:
                self.filesystem.delete_dir(f"{self.path}/{STAGING}")
        except FileExistsError:
            raise
        except OSError as error:
            refuse_silence(error)
            raise OutputError(f"{address(self.filesystem, path)}: cannot be written: {error}") from error
        return path

    def files(self) -> dict[str, dict[str, int]]:
        """Returns the files that are there, by one listing: name -> output_bytes and output_mtime_ns."""
        return {info.base_name: as_listed(info) for info in self._list() if info.type == fs.FileType.File}

    def exists(self, name: str) -> bool:
        """Whether the file is there. Raises OutputError where the folder cannot be looked into."""
        try:
            return bool(self.filesystem.get_file_info(f"{self.path}/{name}").type == fs.FileType.File)
        except OSError as error:
            refuse_silence(error)
            raise OutputError(f"{self.address}: cannot be read: {error}") from error


def as_listed(info: fs.FileInfo) -> dict[str, int]:
    return {"output_bytes": info.size or 0, "output_mtime_ns": info.mtime_ns or 0}


def flush_to_disk(filesystem: fs.FileSystem, path: str) -> None:
    """Returns when a local file's content would survive a loss of power, as its new name must not come before it."""
    if isinstance(filesystem, fs.LocalFileSystem):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def output_name(relative_path: str) -> str:
    """Returns the output file's name: a function of the input's path below its root and of nothing else.

    Different inputs have different ones, and none is hidden: a file that does not end in .parquet keeps its ending before %2E, which
    quoting never makes, and a leading _ or . is quoted. Names that are too long for a filesystem end in a hash.
    """
    stem, extension = os.path.splitext(relative_path)
    name = quote(stem, safe="=, +@()") if extension == ".parquet" else quote(relative_path, safe="=, +@()") + "%2E"
    if name[0] in "_.":
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name) > MAX_NAME_BYTES:
        name = name[: MAX_NAME_BYTES - 33] + "%" + hashlib.sha256(relative_path.encode()).hexdigest()[:32]
    return name + ".parquet"
