"""Where output goes: whole files under final names, or nothing; a numbered manifest says what they are."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data.listing import open_filesystem
from data.types import is_list

SUCCESS = "_SUCCESS"
MANIFESTS = "_manifests"
STAGING = "_staging"
CLAIM = "_job.json"
# Filesystems allow 255 bytes; staging adds 9, and .parquet 8.
MAX_NAME_BYTES = 230


class OutputError(RuntimeError):
    """The output cannot be written, or holds something else than this job's output."""


@dataclass(frozen=True)
class OutputFolder:
    """A folder on some filesystem that receives whole Parquet files. Names with a leading _ are hidden from readers."""

    filesystem: fs.FileSystem
    path: str

    @staticmethod
    def open(path: str) -> OutputFolder:
        filesystem, below = open_filesystem(path)
        return OutputFolder(filesystem, below)

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
            raise OutputError(f"{self.path}: cannot be written: {error}") from error

    def claim(self, record: Mapping[str, Any]) -> None:
        """Marks the folder as this job's, or finds that it is. Raises OutputError where it holds something else."""
        path = f"{self.path}/{CLAIM}"
        if self.exists(CLAIM):
            found = json.loads(self.filesystem.open_input_file(path).read())
            if found != record:
                different = [
                    f"{key} is {found.get(key)!r}, asked is {record.get(key)!r}"
                    for key in found | dict(record)
                    if found.get(key) != record.get(key)
                ]
                raise OutputError(f"{self.path}: holds another job's output ({'; '.join(different)}); choose another output.path")
            return
        self.prepare()
        foreign = [info.base_name for info in self._list() if info.base_name.endswith(".parquet")]
        if foreign:
            raise OutputError(f"{self.path}: holds Parquet files that no job of ours wrote ({foreign[0]}); choose an empty output.path")
        try:
            put_if_absent(self.filesystem, path, json.dumps(record).encode())
        except FileExistsError:
            self.claim(record)  # another job was first: is it the same one?
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error}") from error

    def _list(self) -> list[fs.FileInfo]:
        return list(self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True)))

    @contextmanager
    def staged(self, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
        """Gives a Parquet writer; its file appears under its final name when the block ends well, and not at all otherwise.

        Float lists are not dictionary-encoded, which is slower and no smaller. Raises OutputError.
        """
        staged, final = f"{self.path}/{STAGING}/{name}.{uuid.uuid4().hex[:8]}", f"{self.path}/{name}"
        plain = [field.name for field in schema if not is_list(field.type)]
        try:
            self.filesystem.create_dir(f"{self.path}/{STAGING}", recursive=True)
            with (
                self.filesystem.open_output_stream(staged) as stream,
                pq.ParquetWriter(stream, schema, use_dictionary=plain, compression="zstd") as writer,
            ):
                yield writer
            self.filesystem.move(staged, final)
        except OSError as error:
            raise OutputError(f"{final}: cannot be written: {error}") from error

    def manifests(self) -> list[dict[str, Any]]:
        """Returns the manifests in the order in which they were put."""
        return [json.loads(self.filesystem.open_input_file(path).read()) for path in self._manifest_paths()]

    def _manifest_paths(self) -> list[str]:
        selector = fs.FileSelector(f"{self.path}/{MANIFESTS}", allow_not_found=True)
        return sorted(info.path for info in self.filesystem.get_file_info(selector) if info.base_name.endswith(".json"))

    def last_manifest(self) -> str | None:
        """Returns the newest manifest's path, None where there is none."""
        names = self._manifest_paths()
        return names[-1] if names else None

    def put_manifest(self, manifest: Mapping[str, Any], number: int) -> str:
        """Writes the manifest under its number and marks the folder complete; returns its path.

        Raises FileExistsError where another job put that number first, OutputError where it cannot be written.
        """
        path = f"{self.path}/{MANIFESTS}/{number:06d}.json"
        content = json.dumps(manifest).encode()
        try:
            self.filesystem.create_dir(f"{self.path}/{MANIFESTS}", recursive=True)
            put_if_absent(self.filesystem, path, content)
            with self.filesystem.open_output_stream(f"{self.path}/{SUCCESS}") as stream:
                stream.write(json.dumps({"manifest": os.path.basename(path)}).encode())
            if self.filesystem.get_file_info(f"{self.path}/{STAGING}").type == fs.FileType.Directory:
                self.filesystem.delete_dir(f"{self.path}/{STAGING}")
        except FileExistsError:
            raise
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error}") from error
        return path

    def names(self) -> set[str]:
        """Returns the names of the files that are there, by one listing."""
        return {info.base_name for info in self._list()}

    def exists(self, name: str) -> bool:
        return bool(self.filesystem.get_file_info(f"{self.path}/{name}").type == fs.FileType.File)


def put_if_absent(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Writes a file that is not there yet. Raises FileExistsError (an OSError) where another job put it first.

    Local filesystems decide by an exclusive link; object stores, whose puts are whole anyway, by a look just before.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        staged = f"{path}.{uuid.uuid4().hex[:8]}"
        with open(staged, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(staged, path)
        finally:
            os.unlink(staged)
        return
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        raise FileExistsError(f"{path}: another job put this manifest")
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)


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
