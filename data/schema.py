"""The one schema that holds the rows of many files: what differs is widened without loss, or listed by file and column."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from pyarrow import fs

from data.footer import Footer, Range, column_ranges, in_parallel
from data.listing import DataError, partition_type, spelled_scalar
from data.stores import refuse_silence
from data.types import MAX_EXACT_INTEGER
from data.widening import common_type, unsuitable

# The largest number of faults of one message; more do not help who mends them.
MAX_FAULTS = 1000


@dataclass(frozen=True, slots=True)
class Alike:
    """Files of one schema: its fields by name, and the files' footers."""

    fields: dict[str, pa.Field]
    footers: list[Footer]

    @property
    def first_path(self) -> str:
        return self.footers[0].file.path


def refuse(faults: Sequence[str], title: str = "the files do not make one table") -> None:
    """Raises DataError with all faults, where there are any."""
    if faults:
        more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise DataError(f"{title}:\n  " + "\n  ".join([*faults[:MAX_FAULTS], *more]))


def one_schema(footers: Sequence[Footer], columns: Collection[str] | None, allow_missing: bool) -> tuple[pa.Schema, tuple[str, ...]]:
    """Returns the schema that holds every file's rows, and which of its columns only the folders spell out.

    Raises DataError listing every difference by file and column.
    """
    groups = alike(footers)
    spelled = spelled_values(footers)
    in_files = dict.fromkeys(name for group in groups for name in group.fields)
    names = [name for name in in_files | dict.fromkeys(spelled) if columns is None or name in columns]
    faults = list(clashing_names(groups, footers, frozenset(names)))
    if columns is not None:  # else they are nobody's, until somebody names them
        faults += unsuitable_types(groups, frozenset(names))
    fields = []
    for name in names:
        kind = widened_type(name, groups, faults)
        if pa.types.is_null(kind) and name in spelled:
            kind = partition_type(spelled[name])
        faults += absences(name, kind, groups, allow_missing)
        fields.append(pa.field(name, kind))
    refuse(faults)
    return pa.schema(fields), tuple(name for name in names if name not in in_files)


def alike(footers: Sequence[Footer]) -> list[Alike]:
    """Returns the files by schema object, of which a million files share a few."""
    groups: dict[int, list[Footer]] = {}
    for footer in footers:
        groups.setdefault(id(footer.schema), []).append(footer)
    return [Alike({field.name: field for field in files[0].schema}, files) for files in groups.values()]


def spelled_values(footers: Sequence[Footer]) -> dict[str, set[str | None]]:
    """Returns the columns that folders spell out, with all their values."""
    values: dict[str, set[str | None]] = {}
    for footer in footers:
        for name, value in footer.partition.items():
            values.setdefault(name, set()).add(value)
    return values


def clashing_names(groups: Sequence[Alike], footers: Sequence[Footer], names: Collection[str]) -> Iterator[str]:
    """Yields the columns that have the name of another, or differ from it only in case: in one file, in two, or in a folder."""
    seen: dict[str, str] = {}
    folders = {name: footer.file.path for footer in reversed(footers) for name in footer.partition}
    places = [(group.first_path, group.footers[0].schema.names) for group in groups] + [(path, [name]) for name, path in folders.items()]
    for path, found in places:
        here: set[str] = set()
        for name in (name for name in found if name in names):
            first = seen.setdefault(name.lower(), name)
            if name in here or name != first:
                yield f"{path}: columns {first!r} and {name!r} have one name, or differ only in case; rename one"
            here.add(name)


def unsuitable_types(groups: Sequence[Alike], names: Collection[str]) -> Iterator[str]:
    for group in groups:
        for name, field in group.fields.items():
            fault = unsuitable(field) if name in names else None
            if fault is not None:
                yield from (f"{footer.file.path}: column {name!r} {fault}" for footer in group.footers)


def widened_type(name: str, groups: Sequence[Alike], faults: list[str]) -> pa.DataType:
    """Returns the type that holds a column's values in every file; notes the files whose type has none in common with another's."""
    kind = pa.null()
    first_of: dict[pa.DataType, str] = {}
    having = [group for group in groups if name in group.fields]
    if all(unsuitable(group.fields[name]) for group in having) and having:
        return having[0].fields[name].type
    for group in having:
        found = group.fields[name].type
        other = next((known for known in first_of if common_type(known, found) is None), None)
        if other is None:
            first_of.setdefault(found, group.first_path)
            kind = common_type(kind, found)
        else:
            said = f"column {name!r} is {found}, in {first_of[other]} it is {other}"
            faults += [f"{footer.file.path}: {said}" for footer in group.footers]
    return kind


def absences(name: str, kind: pa.DataType, groups: Sequence[Alike], allow_missing: bool) -> Iterator[str]:
    """Yields the files that lack a column and may not, or whose folder spells out what is no value of its type."""
    lacking = [footer for group in groups if name not in group.fields for footer in group.footers]
    required = [group.first_path for group in groups if name in group.fields and not group.fields[name].nullable]
    values = {footer.partition[name] for footer in lacking if name in footer.partition}
    unreadable = {value: fault for value in values if (fault := spelled_fault(value, kind)) is not None}
    for footer in lacking:
        if name in footer.partition:
            fault = unreadable.get(footer.partition[name])
            if fault is not None:
                yield f"{footer.file.path}: column {name!r} is spelled out by its folder: {fault}"
        elif required:
            yield f"{footer.file.path}: column {name!r} is missing, and may not be null in {required[0]}"
        elif not allow_missing:
            having = next(footer for group in groups for footer in group.footers if name in group.fields or name in footer.partition)
            yield f"{footer.file.path}: column {name!r} is missing, {having.file.path} has it"


def spelled_fault(value: str | None, kind: pa.DataType) -> str | None:
    """Returns why what a folder spells out is no value of a column's type, None where it is one."""
    try:
        spelled_scalar(value, kind)
    except ValueError as error:
        return str(error)
    return None


def refuse_values(filesystem: fs.FileSystem, footers: Sequence[Footer], schema: pa.Schema) -> None:
    """Raises DataError where statistics show that a file's values contradict its folders, or that double does not hold them.

    Integers of files without statistics are checked as they are read.
    """
    doubles = {field.name for field in schema if pa.types.is_float64(field.type)}
    doubtful: list[tuple[Footer, list[str], list[str]]] = []
    for group in alike(footers):
        wide = [name for name, field in group.fields.items() if name in doubles and field.type in (pa.int64(), pa.uint64())]
        for footer in group.footers:
            twice = [name for name in footer.partition if name in group.fields and name in schema.names]
            if wide or twice:
                doubtful.append((footer, wide, twice))
    refuse([fault for faults in in_parallel(partial(value_faults, filesystem), doubtful) for fault in faults])


def value_faults(filesystem: fs.FileSystem, doubtful: tuple[Footer, Sequence[str], Sequence[str]]) -> list[str]:
    """Returns one line per column that a file's statistics rule out: of those to become double, and of those that its folders spell out."""
    footer, wide, twice = doubtful
    path, kinds = footer.file.path, {name: footer.schema.field(name).type for name in (*wide, *twice)}
    try:
        ranges = column_ranges(filesystem, path, kinds)
    except (pa.ArrowException, OSError) as error:
        refuse_silence(error)
        return [f"{path}: {error}"]
    faults = []
    for name in wide:
        ends = [end for known in ranges[name] for end in (known.low, known.high) if end is not None and abs(end) > MAX_EXACT_INTEGER]
        if ends:
            said = f"column {name!r} is {kinds[name]} and double in other files, which cannot hold its value {ends[0]}"
            faults.append(f"{path}: {said}; store it as one type")
    for name in twice:
        value = footer.partition[name]
        held = [held for known in ranges[name] if (held := contradiction(known, value, kinds[name]))]
        if held:
            faults.append(f"{path}: its folder says {name}={value}, its column {name!r} {held[0]}; remove one of them")
    return faults


def contradiction(known: Range, value: str | None, kind: pa.DataType) -> str | None:
    """Returns what a column holds in a row group, by its statistics, unless it is nothing but the value that a folder spells out."""
    try:
        spelled = spelled_scalar(value, kind).as_py()
    except ValueError:
        spelled = value
    num_nulls = known.num_rows if spelled is None else 0
    if known.num_rows == 0 or (known.low, known.high, known.num_nulls) == (spelled, spelled, num_nulls):
        return None
    if known.low is None:
        return "holds nulls" if known.num_nulls == known.num_rows else "has no statistics that say what it holds"
    nulls = "" if known.num_nulls == 0 else " and nulls"
    return f"holds {known.low!r}{nulls}" if known.low == known.high else f"holds values from {known.low!r} to {known.high!r}"
