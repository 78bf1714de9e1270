"""What one generating actor does: a range of rows in, one file of them out; row i depends on model, seed, condition and i alone.

Shapes: B rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from data.column import Column
from data.conditions import draw_conditions, encode_conditions, given_condition
from data.decoding import constant_array
from data.encoding import TableEncoding
from data.marginals import summarise_rows
from data.statistics import TableSummary, merge_all
from vae.bundle import open_bundle
from vae.model import VAE
from vae.rows import Rows
from workflows.actors import Shared
from workflows.generation_task import SUMMARY, readable_schema

# Matrix products depend on the batch's shape in the last bits, so rows are made in the same chunks whoever makes them.
GENERATION_CHUNK_ROWS = 4096
# Chunks that are summarised together.
SUMMARY_CHUNKS = 16


class RowGenerator:
    """Generates rows, chunk by chunk; row i depends on the model, the seed, the condition and i alone. record: the bundle's table.

    num_rows: as many rows are wanted, and keys of a type that does not count so far are of a wider one; rows after them have no key of
    their own. conditions: rows of the condition columns, taken in turn, again from the first when they are at their end; None: drawn,
    where the model has conditions.
    """

    def __init__(self, model: VAE, record: Mapping[str, Any], num_rows: int, seed: int, conditions: pa.Table | None) -> None:
        self.model, self.encoding, self.num_rows, self.seed = model, TableEncoding.from_json(record), num_rows, seed
        self.null_pattern = bool(record["null_pattern"])
        self.marginals = record.get("marginals", {})
        self.given = conditions
        self.schema = counting_schema(readable_schema(self.encoding, self.null_pattern, self.given), self.encoding.key, num_rows)

    def _conditions(self, chunk: int) -> pa.Table:
        """Returns the chunk's condition columns, as many as the model has."""
        if self.given is not None:
            return self.given.take(
                pa.array(np.arange(chunk * GENERATION_CHUNK_ROWS, (chunk + 1) * GENERATION_CHUNK_ROWS) % len(self.given))
            )
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, chunk, 1])))
        return draw_conditions(self.encoding, self.marginals, GENERATION_CHUNK_ROWS, generator, self.null_pattern)

    def chunk(self, chunk: int) -> pa.Table:
        """Returns rows number chunk * GENERATION_CHUNK_ROWS and after, as many."""
        base = int(np.random.SeedSequence([self.seed]).generate_state(1)[0])
        conditions = self._conditions(chunk)
        told = self.model.condition(Rows.from_arrays(encode_conditions(self.encoding, conditions), self.model.device))
        rows = self.model.generate(GENERATION_CHUNK_ROWS, torch.Generator().manual_seed((base + chunk) % 2**32), told)
        there = self._there(rows)
        nulls = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, chunk])))
        arrays = self.encoding.split({name: tensor.cpu().numpy() for name, tensor in rows.values.items()})
        columns = []
        for column, kind in zip(self.encoding.columns, self.schema.types, strict=True):
            kept = nulls.random(GENERATION_CHUNK_ROWS) >= (column.null_fraction if self.null_pattern else 0.0)
            kept = there.get(column.name, kept)
            if column.condition:
                columns.append(conditions[column.name].cast(kind))
            else:
                columns.append(self._column(column, kind, chunk, arrays, kept))
        return pa.table(columns, schema=self.schema)

    def _there(self, rows: Rows) -> dict[str, np.ndarray[Any, Any]]:
        """Returns, by column whose nulls are modelled, which rows have a value, [B], or which of their elements, [B, D]."""
        result: dict[str, np.ndarray[Any, Any]] = {}
        columns = {field.name: field.columns for field in self.encoding.fields}
        for name, flags in self.model.null_pattern.flags.items() if self.null_pattern else ():
            valid, first = rows.valid[name].cpu().numpy(), columns[name][0]
            result |= {first.name: valid} if first.element_nulls else {columns[name][index].name: valid[:, index] for index in flags}
        return result

    def _column(
        self, column: Column, kind: pa.DataType, chunk: int, arrays: Mapping[str, np.ndarray[Any, Any]], valid: np.ndarray[Any, Any]
    ) -> pa.Array:
        if column.kind == "key":
            numbers = np.arange(chunk * GENERATION_CHUNK_ROWS, (chunk + 1) * GENERATION_CHUNK_ROWS).clip(max=self.num_rows - 1)
            return pa.array(numbers).cast(pa.string()).cast(kind) if not pa.types.is_integer(kind) else pa.array(numbers).cast(kind)
        if column.kind == "ignored":
            if column.constant is None:
                return pa.nulls(GENERATION_CHUNK_ROWS, kind)
            return constant_array(column.constant, kind, ~valid)
        return self.encoding.decode_column(column.name, arrays[column.name], valid, kind)


class Generator:
    """What a generating actor does: one file of rows."""

    def __init__(self, shared: Shared) -> None:
        torch.set_num_threads(1)
        model, self.task = ray.get(shared.reference)
        bundle = open_bundle(model.files, torch.device("cuda" if self.task.use_gpu else "cpu"), model.name)
        given = self.task.condition
        conditions = None if given is None else given_condition(TableEncoding.from_json(bundle.table), given)
        self.rows = RowGenerator(bundle.model, bundle.table, self.task.num_rows, self.task.seed, conditions)
        self.schema = self.rows.schema.with_metadata(model.metadata)

    def __call__(self, unit: Mapping[str, Any]) -> dict[str, Any]:
        """Writes rows first_row..end_row-1 and returns what the manifest says of them, and their summary."""
        first, end = unit["first_row"], unit["end_row"]
        parts: list[TableSummary] = []
        waiting: list[pa.Table] = []  # a summary costs the same for few rows as for many
        with self.task.output.staged(unit["output"], self.schema, self.task.fence.is_held) as writer:
            for chunk in range(first // GENERATION_CHUNK_ROWS, -(-end // GENERATION_CHUNK_ROWS)):
                start = chunk * GENERATION_CHUNK_ROWS
                begin = max(first - start, 0)
                rows = self.rows.chunk(chunk).slice(begin, min(end - start, GENERATION_CHUNK_ROWS) - begin)
                writer.write_table(rows.replace_schema_metadata(self.schema.metadata))
                waiting.append(rows)
                if len(waiting) == SUMMARY_CHUNKS or start + GENERATION_CHUNK_ROWS >= end:
                    parts.append(summarise_rows(self.rows.encoding, pa.concat_tables(waiting)))
                    waiting = []
        num_bytes = self.task.output.stat(unit["output"])["output_bytes"]
        return {"output": unit["output"], "first_row": first, "num_rows": end - first, "output_bytes": num_bytes, SUMMARY: merge_all(parts)}


def counting_schema(schema: pa.Schema, key: str | None, num_rows: int) -> pa.Schema:
    """Returns the schema with a key column that can number so many rows, 64 bits wide where its own type is too narrow."""
    if key is None:
        return schema
    index = schema.get_field_index(key)
    kind = schema.field(index).type
    counting = kind.index_type if pa.types.is_dictionary(kind) else kind
    if not pa.types.is_integer(counting) or num_rows - 1 <= np.iinfo(counting.to_pandas_dtype()).max:
        return schema
    wide = pa.dictionary(pa.int64(), kind.value_type) if pa.types.is_dictionary(kind) else pa.int64()
    return schema.set(index, schema.field(index).with_type(wide))
