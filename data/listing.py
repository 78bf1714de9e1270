"""Which files a path means: a file, folder, glob or URI, or several, and the hive partition folders that they lie in."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

# What Hive and Spark write for a null.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


class DataError(ValueError):
    """The input data is unreadable or unsuitable; the message names file and column and says what to do."""


def find_files(paths: Sequence[str]) -> tuple[fs.FileSystem, list[tuple[str, str]]]:
    """Returns the filesystem and the (path, path below the input root) of every Parquet file, sorted by the latter."""
    if not paths:
        raise DataError("no path is given; name a Parquet file, a folder of them, or a glob")
    filesystem: fs.FileSystem | None = None
    found: dict[str, str] = {}
    for path in paths:
        this, root = open_filesystem(path)
        if filesystem is not None and this != filesystem:
            raise DataError(f"{path}: is on another filesystem than {paths[0]}; one table lies on one filesystem")
        filesystem = this
        try:
            found.update(list_root(this, root, path))
        except OSError as error:
            raise DataError(f"{path}: cannot be listed: {error}; give a path that can be read") from error
    assert filesystem is not None
    common = os.path.commonpath([os.path.dirname(p) for p in found]) if len(paths) > 1 else None
    pairs = [(p, os.path.relpath(p, common) if common is not None else below) for p, below in found.items()]
    return filesystem, sorted(pairs, key=lambda pair: pair[1])


def open_filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """Returns the filesystem of a path or URI and the path on it."""
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        return fs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened: {error}; give a path, file://, s3:// or gs:// URI") from error


def list_root(filesystem: fs.FileSystem, root: str, given: str) -> dict[str, str]:
    """Returns path -> path below the root of what a file, folder or glob names; hidden names (_x, .x) only where named in full."""
    named: dict[str, None] = {}
    if isinstance(filesystem, fs.LocalFileSystem) and glob.has_magic(root) and not os.path.exists(root):
        named = dict.fromkeys(glob.glob(root, recursive=True))
        if not named:
            raise DataError(f"{given}: no file matches")
        root = os.path.dirname(root[: min(root.index(c) for c in "*?[" if c in root)])
    info = filesystem.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise DataError(f"{given}: nothing is there; give a Parquet file, a folder of them, or a glob")
    if info.type == fs.FileType.File:
        return {root: PurePosixPath(root).name}
    files = {p: os.path.relpath(p, root) for top in named or [root] for p in files_below(filesystem, top)}
    visible = {p: below for p, below in files.items() if not any(part.startswith(("_", ".")) for part in PurePosixPath(below).parts)}
    parquet = {p: below for p, below in visible.items() if p in named or below.endswith((".parquet", ".parq", ".pq"))}
    if not parquet:
        raise DataError(f"{given}: the folder holds no .parquet file ({len(visible)} other files); is it the right one?")
    return parquet


def files_below(filesystem: fs.FileSystem, path: str) -> list[str]:
    """Returns all files of a folder and of its folders, or the one file that the path is."""
    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        return [path]
    listed = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    return [info.path for info in listed if info.type == fs.FileType.File]


def partition_values(relative_path: str) -> dict[str, str | None]:
    """Returns the columns that a file's folders spell out, as year=2024/month=03 does; None for Hive's null.

    Raises DataError where two folders of the path spell out one column.
    """
    values: dict[str, str | None] = {}
    for folder in PurePosixPath(relative_path).parts[:-1]:
        name, equals, value = folder.partition("=")
        if not (name and equals):
            continue
        if unquote(name) in values:
            raise DataError(f"{relative_path}: two of its folders say what column {unquote(name)!r} is; rename one")
        values[unquote(name)] = None if value == NULL_PARTITION else unquote(value)
    return values


def partition_type(values: set[str | None]) -> pa.DataType:
    """Returns int64 where every value is spelled as an integer is (007 is not), else string."""
    spelled = values - {None}
    return pa.int64() if spelled and all(INTEGER.fullmatch(str(value)) for value in spelled) else pa.string()


def spelled_scalar(value: str | None, kind: pa.DataType) -> pa.Scalar:
    """Returns what a folder spells out, as a column's type. Raises ValueError where it is no value of that type."""
    if value is None:
        return pa.scalar(None, kind)
    try:
        return pa.scalar(value).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    except pa.ArrowException as error:
        raise ValueError(f"{value!r} is no {kind}") from error
