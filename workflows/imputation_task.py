"""What the actors of reconstruct.py are told, and the columns that they write. No PyTorch, which the driver does without."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from data.encoding import TableEncoding
from data.filling import NUMBERS
from workflows.generation_task import readable_schema

DEVIATION = "_standard_deviation"


@dataclass(frozen=True)
class Imputed:
    """What is read and what is added. deviations: whether filled cells of numbers get their posterior standard deviation beside them."""

    filesystem: fs.FileSystem
    reads: pa.Schema
    deviations: bool


def output_schema(encoding: TableEncoding, with_deviations: bool) -> pa.Schema:
    """Returns the training table's columns, and the deviations where they were asked for."""
    schema = readable_schema(encoding, null_pattern=False, given=None)
    for index, column in enumerate(encoding.columns):  # conditions are not filled, and pyarrow 25 cannot read null fixed-size lists back
        if column.condition and pa.types.is_fixed_size_list(schema.field(index).type):
            schema = schema.set(index, pa.field(column.name, pa.list_(schema.field(index).type.value_type)))
    numbers = [column for column in encoding.columns if column.kind in NUMBERS] if with_deviations else []
    deviations = [pa.field(c.name + DEVIATION, pa.list_(pa.float64()) if c.kind in ("vector", "image") else pa.float64()) for c in numbers]
    return pa.schema([*schema, *deviations])
