"""What the actors of generate.py are told, and the columns that they write. No PyTorch, which the driver does without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data.decoding import storable
from data.encoding import TableEncoding
from data.output import OutputFolder
from workflows.lease import Fence

# What a unit's record says of its rows beside what the manifest keeps.
SUMMARY = "summary"


@dataclass(frozen=True)
class GenerateTask:
    """What generating actors are told.

    num_rows: of all files. condition: column -> its value in all rows; None: drawn, where the model has conditions.
    """

    output: OutputFolder
    fence: Fence
    num_rows: int
    seed: int
    condition: dict[str, Any] | None
    use_gpu: bool


def readable_schema(encoding: TableEncoding, null_pattern: bool, given: pa.Table | None) -> pa.Schema:
    """Returns the training schema; fixed-size lists some of which come out null, as plain lists. given: rows of conditions.

    pyarrow 25 writes but cannot read back a fixed_size_list column that has null rows.
    """
    fields = []
    for field, column in zip(encoding.schema, encoding.columns, strict=True):
        some_null = column.kind == "ignored" or (null_pattern and column.null_fraction > 0)
        if column.condition and given is not None:
            some_null = given[column.name].null_count > 0
        null_lists = pa.types.is_fixed_size_list(field.type) and some_null
        kind = pa.list_(field.type.value_type) if null_lists else storable(field.type, column)
        fields.append(field.with_type(kind))
    return pa.schema(fields)
