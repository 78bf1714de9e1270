"""What one batch actor does: load the model once, then unit in, unit out. Rows never leave the actor but into their file.

Shapes: B rows of a chunk, L latent dimensions, S samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from pyarrow import fs

from data.columns import Column
from data.decoding import constant_array, storable
from data.encoding import TableEncoding
from data.output import OutputFolder
from data.reading import RowReader
from data.table import RowGroup
from data.types import is_text
from vae.bundle import open_bundle
from vae.rows import Rows

# Matrix products depend on the batch's shape in the last bits, so work is cut the same way whoever does it.
CHUNK_ROWS = 4096
GENERATION_CHUNK_ROWS = 1024
ELBO_SAMPLES = 8


@dataclass(frozen=True)
class ModelFiles:
    """A pinned model as it travels to actors. metadata: what every output file's footer says of it."""

    files: dict[str, bytes]
    metadata: dict[str, str]


@dataclass(frozen=True)
class EncodeTask:
    """What encoding actors are told."""

    filesystem: fs.FileSystem
    output: OutputFolder
    key: str | None
    key_type: pa.DataType | None
    columns: tuple[str, ...]
    max_batch_bytes: int


@dataclass(frozen=True)
class Shared:
    """A model and a task in the object store, kept there by the driver for actors that start, or start again, later."""

    reference: ray.ObjectRef


class Encoder:
    """Encodes one Parquet file into one."""

    def __init__(self, shared: Shared) -> None:
        torch.set_num_threads(1)
        model, task = ray.get(shared.reference)
        bundle = open_bundle(model.files)
        self.model, self.encoding, self.task = bundle.model, TableEncoding.from_json(bundle.table), task
        self.schema = self._schema().with_metadata(model.metadata)
        key = [pa.field(task.key, task.key_type)] if task.key and task.key not in self.encoding.modelled else []
        self.reads = pa.schema([*self.encoding.schema_of(self.encoding.modelled), *key])

    def _schema(self) -> pa.Schema:
        vector = pa.list_(pa.float32(), self.model.latent_dim)
        asked = {
            "mean": pa.field("z_mean", vector),
            "scale": pa.field("z_scale", vector),
            "elbo": pa.field("elbo_nats_per_row", pa.float64()),
        }
        keys = (
            [pa.field(self.task.key, key_storage(self.task.key_type))]
            if self.task.key
            else [pa.field("source_file", pa.string()), pa.field("source_row", pa.int64())]
        )
        return pa.schema(keys + [asked[name] for name in self.task.columns])

    def __call__(self, unit: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the unit's file and returns what the manifest says of it."""
        num_rows = 0
        unseen: Counter[str] = Counter()
        with (
            self.task.output.staged(unit["output"], self.schema) as writer,
            RowReader(self.task.filesystem, self.reads, self.task.max_batch_bytes) as reader,
        ):
            for index, rows in enumerate(unit["row_groups"]):
                group = RowGroup(unit["path"], unit["identity"], index, num_rows, rows, unit["partition"])
                for part, table in reader.slices(group):
                    chunks = self._encode_slice(table, part, unit["input"], unseen)
                    writer.write_table(pa.concat_tables(chunks))
                num_rows += rows
        known = {name: unit[name] for name in ("output", "input", "identity", "num_bytes")}
        return known | {"num_rows": num_rows, "unseen": dict(unseen)}

    def _encode_slice(self, table: pa.Table, part: RowGroup, relative_path: str, unseen: Counter[str]) -> Iterator[pa.Table]:
        rows = Rows.from_arrays(self.encoding.encode(table, part.path, unseen))
        key = table[self.task.key].cast(self.schema.field(0).type) if self.task.key else None
        for begin in range(0, rows.num_rows, CHUNK_ROWS):
            chunk = rows.slice(begin, begin + CHUNK_ROWS)
            first_row = part.first_row + begin
            places = np.arange(first_row, first_row + chunk.num_rows)
            keys = [key.slice(begin, CHUNK_ROWS)] if key is not None else [pa.array([relative_path] * len(places)), pa.array(places)]
            yield pa.table([*keys, *self._columns(chunk, first_row)], schema=self.schema)

    @torch.inference_mode()
    def _columns(self, rows: Rows, first_row: int) -> Iterator[pa.Array]:
        """Yields the columns asked for of one chunk's rows."""
        q_z = self.model.posterior(rows)
        for name in self.task.columns:
            if name == "elbo":
                generator = torch.Generator().manual_seed(first_row % 2**32)
                noise = torch.randn(ELBO_SAMPLES, rows.num_rows, self.model.latent_dim, generator=generator)
                yield pa.array(self.model.evaluate_elbo(rows, noise).elbo.numpy())
            else:
                values = (q_z.mean if name == "mean" else q_z.scale).contiguous().numpy()
                yield pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), self.model.latent_dim)


@dataclass(frozen=True)
class GenerateTask:
    """What generating actors are told."""

    output: OutputFolder
    seed: int


class Generator:
    """Generates one file of rows; row i depends on the model, the seed and i alone."""

    def __init__(self, shared: Shared) -> None:
        torch.set_num_threads(1)
        model, task = ray.get(shared.reference)
        bundle = open_bundle(model.files)
        self.model, self.encoding, self.task = bundle.model, TableEncoding.from_json(bundle.table), task
        self.null_pattern = bool(bundle.table["null_pattern"])
        self.schema = readable_schema(self.encoding, self.null_pattern).with_metadata(model.metadata)

    def __call__(self, unit: Mapping[str, Any]) -> dict[str, Any]:
        """Writes rows first_row..end_row-1 and returns what the manifest says of them."""
        first, end = unit["first_row"], unit["end_row"]
        with self.task.output.staged(unit["output"], self.schema) as writer:
            for chunk in range(first // GENERATION_CHUNK_ROWS, -(-end // GENERATION_CHUNK_ROWS)):
                start = chunk * GENERATION_CHUNK_ROWS
                rows = self._generate_chunk(chunk)
                writer.write_table(rows.slice(max(first - start, 0), min(end - start, GENERATION_CHUNK_ROWS) - max(first - start, 0)))
        return {"output": unit["output"], "first_row": first, "num_rows": end - first}

    def _generate_chunk(self, chunk: int) -> pa.Table:
        base = int(np.random.SeedSequence([self.task.seed]).generate_state(1)[0])
        cells = self.model.generate(GENERATION_CHUNK_ROWS, torch.Generator().manual_seed((base + chunk) % 2**32))
        nulls = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.task.seed, chunk])))
        arrays = self._decode({name: tensor.numpy() for name, tensor in cells.items()})
        columns = []
        for column, kind in zip(self.encoding.columns, self.schema.types, strict=True):
            missing = nulls.random(GENERATION_CHUNK_ROWS) < (column.null_fraction if self.null_pattern else 0.0)
            columns.append(self._column(column, kind, chunk, arrays, missing))
        return pa.table(columns, schema=self.schema)

    def _decode(self, cells: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Returns column name -> stored cells [B, size]."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for field in self.encoding.fields:
            ends = np.cumsum([column.size for column in field.columns])
            arrays |= dict(zip((c.name for c in field.columns), np.split(cells[field.name], ends[:-1], axis=1), strict=True))
        return arrays

    def _column(
        self, column: Column, kind: pa.DataType, chunk: int, arrays: Mapping[str, np.ndarray[Any, Any]], missing: np.ndarray[Any, Any]
    ) -> pa.Array:
        if column.kind == "key":
            numbers = np.arange(chunk * GENERATION_CHUNK_ROWS, (chunk + 1) * GENERATION_CHUNK_ROWS)
            return pa.array(numbers).cast(pa.string()).cast(kind) if not pa.types.is_integer(kind) else pa.array(numbers).cast(kind)
        if column.kind == "ignored":
            if column.constant is None:
                return pa.nulls(GENERATION_CHUNK_ROWS, kind)
            return constant_array(column.constant, kind, missing)
        return self.encoding.decode_column(column.name, arrays[column.name], ~missing, kind)


def key_storage(kind: pa.DataType) -> pa.DataType:
    """Returns the type in which keys come out: their own, dictionaries as they are read."""
    return pa.dictionary(pa.int32(), kind.value_type) if pa.types.is_dictionary(kind) and is_text(kind) else kind


def readable_schema(encoding: TableEncoding, null_pattern: bool) -> pa.Schema:
    """Returns the training schema; fixed-size lists some of which come out null, as plain lists.

    pyarrow 25 writes but cannot read back a fixed_size_list column that has null rows.
    """
    fields = []
    for field, column in zip(encoding.schema, encoding.columns, strict=True):
        some_null = column.kind == "ignored" or (null_pattern and column.null_fraction > 0)
        null_lists = pa.types.is_fixed_size_list(field.type) and some_null
        kind = pa.list_(field.type.value_type) if null_lists else storable(field.type, column)
        fields.append(field.with_type(kind))
    return pa.schema(fields)


def run_units(
    actor: type[Encoder] | type[Generator], model: ModelFiles, task: EncodeTask | GenerateTask, units: list[dict[str, Any]], num_actors: int
) -> Iterator[dict[str, Any]]:
    """Yields what the actors return for each unit, as units end. Ray Data schedules them over a pool of actors."""
    items = ray.data.from_items(units, override_num_blocks=len(units))
    pool = ray.data.ActorPoolStrategy(size=min(num_actors, len(units)))
    shared = Shared(ray.put((model, task)))
    yield from items.map(actor, fn_constructor_args=(shared,), compute=pool, num_cpus=1).iter_rows()
