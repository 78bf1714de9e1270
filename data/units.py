"""What a batch job has to do: which files are not done, as units of row groups; and what the output holds of files that are gone.

An output file's record: what it was made from (input, path, identity, content, num_bytes, mtime_ns), what is in it (num_rows, unseen), and
how it was listed afterwards (output_bytes, output_mtime_ns). Its footer holds the parts of it that do not depend on time or place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from data.content import content_of, content_of_file
from data.footer import DataFile, in_parallel
from data.listing import in_partition
from data.output import RECORD, OutputError, OutputFolder, output_name
from data.table import Table

Record = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """Consecutive row groups of a file, which one actor does at once. part: the staged part's name, None where this is the whole file."""

    file: DataFile
    output: str
    first_group: int
    end_group: int
    part: str | None

    @property
    def first_row(self) -> int:
        return sum(self.file.row_groups[: self.first_group])

    @property
    def num_rows(self) -> int:
        return sum(self.file.row_groups[self.first_group : self.end_group])


@dataclass(frozen=True)
class State:
    """What the output holds (records by output name), which files are to be done, and the records of files that are gone.

    emptied: the output of files that have no row now, which goes; moved: that of files which are there under another path.
    """

    done: dict[str, Record]
    to_do: list[DataFile]
    vanished: dict[str, Record]
    emptied: list[str]
    moved: list[str]


def state_of(
    table: Table, output: OutputFolder, known: Mapping[str, Record], names: list[str], partition: str | None, made_by: str
) -> State:
    """Returns what is done and what is to do, from one listing of the output and, where that does not decide, footers and contents.

    known: the newest manifest's records. names: the columns that are read, whose content decides whether a file changed.
    partition: the files that the table was restricted to. made_by: what a record must say of the model and the output's types to count.
    Raises OutputError where another table's files would be replaced.
    """
    listed = output.files()
    files = {output_name(file.relative_path): file for file in table.files}
    done = {
        name: record
        for name, record in known.items()
        if listed.get(name) == at_listing(record) and (name not in files or record.get("made_by") == made_by)
    }
    doubtful = [name for name, file in files.items() if name in listed and not is_of(done.get(name), file)]
    found = in_parallel(lambda name: checked(table, files[name], output, name, done.get(name), names, made_by), doubtful)
    for name, record in zip(doubtful, found, strict=True):
        done.pop(name, None)
        if record is not None:
            done[name] = record | listed[name]
    to_do = [file for name, file in files.items() if name not in done]
    replaced = {*listed} & {*known} - {*done}
    refuse_another_table(table, output, {known[name].get("path", file.path): file for name, file in files.items() if name in replaced})
    emptied = [name for name in map(output_name, table.empty) if name in listed]
    done = {name: record for name, record in done.items() if name not in emptied}
    inputs = {file.relative_path for file in table.files} | set(table.bad)
    gone = {name: record for name, record in done.items() if record["input"] not in inputs}
    vanished = {name: record for name, record in gone.items() if partition is None or in_partition(record["input"], partition)}
    there = {(file.identity, file.mtime_ns) for file in table.files}
    moved = [name for name, record in vanished.items() if (record["identity"], record["mtime_ns"]) in there]
    done, vanished = ({name: record for name, record in part.items() if name not in moved} for part in (done, vanished))
    return State(done, to_do, vanished, emptied, moved)


def refuse_another_table(table: Table, output: OutputFolder, made_anew: Mapping[str, DataFile]) -> None:
    """Raises OutputError where output would be replaced whose input is still there, in another place: it is not this table's.

    made_anew: the files whose output is made anew, by the path of the input that it was made from.
    """
    elsewhere = {path: file for path, file in made_anew.items() if path != file.path}
    there = [info.path for info in table.filesystem.get_file_info(list(elsewhere)) if info.is_file]
    if there:
        raise OutputError(
            f"{output.address}: holds the rows of {there[0]}, which those of {elsewhere[there[0]].path} would replace ({len(there)} of "
            f"{len(table.files)} files are like it): an output belongs to one --data.path. Name a folder above both, and a part of it by "
            "--data.partition, or choose another output.path"
        )


def at_listing(record: Record) -> dict[str, int | None]:
    return {key: record.get(key) for key in ("output_bytes", "output_mtime_ns")}


def is_of(record: Record | None, file: DataFile) -> bool:
    """Whether a record says that nothing about a file has changed since."""
    return record is not None and (record["identity"], record["mtime_ns"]) == (file.identity, file.mtime_ns)


def checked(
    table: Table, file: DataFile, output: OutputFolder, name: str, record: Record | None, names: list[str], made_by: str
) -> Record | None:
    """Returns the record of an output file that holds what its input holds now; None where it has to be made."""
    if record is None:
        record = output.footer_record(name)
        if record is None or record.get("made_by") != made_by or record.get("input") != file.relative_path:
            return None
    if record["content"] != content_of_file(table.filesystem, file, names):
        return None
    return record | of_file(file)


def of_file(file: DataFile) -> Record:
    about = {"input": file.relative_path, "path": file.path, "identity": file.identity}
    return about | {"num_bytes": file.num_bytes, "mtime_ns": file.mtime_ns}


def units_of(files: list[DataFile], max_unit_rows: int, made_by: str) -> Iterator[Unit]:
    """Yields the units of files: consecutive row groups of up to max_unit_rows rows, at least one row group each."""
    for file in files:
        cuts, rows = [0], 0
        for index, num_rows in enumerate(file.row_groups):
            if rows and rows + num_rows > max_unit_rows:
                cuts.append(index)
                rows = 0
            rows += num_rows
        cuts.append(len(file.row_groups))
        name = output_name(file.relative_path)
        for first, end in pairwise(cuts):
            part = None if len(cuts) == 2 else part_name(file, first, end, made_by)
            yield Unit(file, name, first, end, part)


def part_name(file: DataFile, first: int, end: int, made_by: str) -> str:
    """Returns a name that only the same rows under the same model have, so that a part which is there need not be made again."""
    return hashlib.sha256(f"{file.relative_path}\n{file.identity}\n{file.mtime_ns}\n{first}\n{end}\n{made_by}".encode()).hexdigest()[:32]


def finished(unit: Unit, made_by: str, unseen: Mapping[str, int], contents: list[str]) -> Record:
    """Returns the record of a whole file. contents: the hashes of all its row groups."""
    about = {"num_rows": unit.file.num_rows, "unseen": dict(unseen), "made_by": made_by, "content": content_of(contents)}
    return of_file(unit.file) | about


def footer_line(record: Record) -> dict[str, str]:
    """Returns what an output file's footer says of its input: nothing of time or place, so that the same input gives the same bytes."""
    return {RECORD: json.dumps({key: value for key, value in record.items() if key not in ("path", "mtime_ns")}, sort_keys=True)}
