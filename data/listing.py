"""Which files a path means: a file, folder, glob or URI, or several, and the hive partition folders that they lie in."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from data.stores import refuse_silence

# What Hive and Spark write for a null.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
GLOB = re.compile(r"[*?[]")
ANY_FOLDERS = "**"


class DataError(ValueError):
    """The input data is unreadable or unsuitable; the message names file and column and says what to do."""


class FoundFile(NamedTuple):
    """A file's path, its path below the input root, and when it was changed last, in nanoseconds since 1970 (0: not known)."""

    path: str
    relative_path: str
    mtime_ns: int


def find_files(paths: Sequence[str]) -> tuple[fs.FileSystem, list[FoundFile]]:
    """Returns the filesystem and every Parquet file, sorted by the path below the input root."""
    if not paths or not all(paths):
        raise DataError("no path is given; name a Parquet file, a folder of them, or a glob")
    filesystem: fs.FileSystem | None = None
    found: dict[str, FoundFile] = {}
    tops: list[str] = []
    for path in paths:
        this, root = open_filesystem(path)
        if filesystem is not None and this != filesystem:
            raise DataError(f"{path}: is on another filesystem than {paths[0]}; one table lies on one filesystem")
        filesystem = this
        try:
            top, files_of_path = list_root(this, root, path)
            tops.append(top)
            found |= files_of_path
        except OSError as error:
            refuse_silence(error)
            raise DataError(f"{path}: cannot be listed: {error}; give a path that can be read") from error
    assert filesystem is not None
    files = list(found.values())
    if len(paths) > 1:
        common = os.path.commonpath(tops)  # of the paths, not of what lies below them today: no file's name depends on another
        files = [file._replace(relative_path=os.path.relpath(file.path, common)) for file in files]
    return filesystem, each_once(filesystem, sorted(files, key=lambda file: file.relative_path))


def each_once(filesystem: fs.FileSystem, files: Sequence[FoundFile]) -> list[FoundFile]:
    """Returns the files without those that are another one behind a link: latest/ -> 2026-11-22/ adds no row."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        return list(files)
    folders = {folder: os.path.realpath(folder) for folder in {os.path.dirname(file.path) for file in files}}
    kept: dict[str, FoundFile] = {}
    for file in files:
        folder, name = os.path.split(file.path)
        there = os.path.realpath(file.path) if os.path.islink(file.path) else os.path.join(folders[folder], name)
        if there not in kept or there.endswith(f"/{file.relative_path}"):  # which no path behind a link does
            kept[there] = file
    return sorted(kept.values(), key=lambda file: file.relative_path)


def open_filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """Returns the filesystem of a path or URI and the path on it, either of which may be a glob; in a URI, ? begins the options."""
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    before_options, question_mark, options = path.partition("?")
    folder, below = split_glob(before_options)
    try:
        filesystem, root = fs.FileSystem.from_uri(folder + question_mark + options)
        return filesystem, "/".join([root, *(unquote(part) for part in below if part)])
    except (pa.ArrowException, OSError, ValueError) as error:
        refuse_silence(error)
        raise DataError(f"{path}: cannot be opened: {error}; give a path, file://, s3:// or gs:// URI") from error


def list_root(filesystem: fs.FileSystem, root: str, given: str) -> tuple[str, dict[str, FoundFile]]:
    """Returns the folder below which a file, folder or glob names files, and these by path; hidden names (_x, .x) only where named in
    full."""
    info = filesystem.get_file_info(root)
    named: set[str] = set()
    if info.type == fs.FileType.NotFound and GLOB.search(root):
        root, parts = split_glob(root)
        found, named = matching(filesystem, root, parts)
        if not found and not named:
            raise DataError(f"{given}: no file matches")
    elif info.type == fs.FileType.NotFound:
        raise DataError(f"{given}: nothing is there; give a Parquet file, a folder of them, or a glob")
    elif info.type == fs.FileType.File:
        return os.path.dirname(root), {root: FoundFile(root, PurePosixPath(root).name, info.mtime_ns or 0)}
    else:
        found = files_below(filesystem, root)
    files = [FoundFile(info.path, os.path.relpath(info.path, root), info.mtime_ns or 0) for info in found]
    visible = [file for file in files if not is_hidden(file.relative_path)]
    parquet = {file.path: file for file in visible if file.path in named or file.path.endswith((".parquet", ".parq", ".pq"))}
    if not parquet:
        raise DataError(f"{given}: the folder holds no .parquet file ({len(visible)} other files); is it the right one?")
    return root, parquet


def takes_in(path: str, filesystem: fs.FileSystem, folder: str) -> bool:
    """Whether a folder or glob that is an input also names files that would be written into a folder on a filesystem."""
    there, root = open_filesystem(path)
    kind = there.get_file_info(root).type
    if there != filesystem or kind == fs.FileType.File:
        return False
    root, parts = (root, []) if kind == fs.FileType.Directory else split_glob(root)
    if isinstance(there, fs.LocalFileSystem):
        root, folder = os.path.realpath(root), os.path.realpath(folder)
    if not PurePosixPath(folder).is_relative_to(root):
        return False
    names = PurePosixPath(folder).relative_to(root).parts
    files = [(*names, *below, "part.parquet") for below in ((), ("model_version=1",))]
    folders = [names[:depth] for depth in range(len(names) + 1)]
    return not parts or any(is_named(parts, name, True) for name in folders) or any(is_named(parts, name, False) for name in files)


def split_glob(path: str) -> tuple[str, list[str]]:
    """Returns the folder that a glob looks in, and the parts of the path below it: from the first that may match many names on."""
    parts = path.split("/")
    first = next((place for place, part in enumerate(parts) if GLOB.search(part)), len(parts))
    return "/".join(parts[:first]) or "/", parts[first:]


def matching(filesystem: fs.FileSystem, folder: str, parts: Sequence[str]) -> tuple[list[fs.FileInfo], set[str]]:
    """Returns the files that a glob names below a folder, or whose folder it names, and the paths of what it names itself.

    A store has no folders that could be looked into one by one, only names of files.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        # To glob, ** below a file is that file with a slash behind it; it is nothing.
        paths = [path for path in glob.glob("/".join([glob.escape(folder), *parts]), recursive=True) if os.path.exists(path)]
        return [info for path in paths for info in files_below(filesystem, path)], set(paths)
    files, named = [], set()
    for info in files_below(filesystem, folder):
        names = PurePosixPath(info.path).relative_to(folder).parts
        if is_named(parts, names, is_folder=False):
            named.add(info.path)
        if info.path in named or any(is_named(parts, names[:depth], is_folder=True) for depth in range(len(names))):
            files.append(info)
    return files, named


def is_named(parts: Sequence[str], names: Sequence[str], is_folder: bool) -> bool:
    """Whether the parts of a glob name a path of these names, as for glob.glob: ** is any folders, and a dot in front stands for itself."""
    if not parts:
        return not names
    if list(parts) == [ANY_FOLDERS]:
        return not any(name.startswith(".") for name in names) if names else is_folder
    if parts[0] == ANY_FOLDERS and is_named(parts[1:], names, is_folder):
        return True
    if not names or (names[0].startswith(".") and not parts[0].startswith(".")):
        return False
    rest = parts if parts[0] == ANY_FOLDERS else parts[1:]
    return fnmatchcase(names[0], parts[0]) and is_named(rest, names[1:], is_folder)


def is_hidden(relative_path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in PurePosixPath(relative_path).parts)


def files_below(filesystem: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    """Returns all files of a folder and of its folders, or the one file that the path is."""
    info = filesystem.get_file_info(path)
    if info.type != fs.FileType.Directory:
        return [info]
    return [info for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True)) if info.type == fs.FileType.File]


def in_partition(relative_path: str, partition: str) -> bool:
    """Whether a partition names a file: by its path, a folder above it, or a name or value in its path, each of which may be a glob.

    2026-11-22 names everything in the folders 2026-11-22/ and date=2026-11-22/, and the files 2026-11-22.parquet.
    """
    path = PurePosixPath(relative_path)
    folders = [str(folder) for folder in path.parents if folder.parts]
    names = [*path.parts, path.stem]
    values = [value for _, equals, value in (name.partition("=") for name in names) if equals]
    return any(fnmatchcase(candidate, partition.rstrip("/")) for candidate in (relative_path, *folders, *names, *values))


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
