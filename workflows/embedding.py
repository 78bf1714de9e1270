"""What one embedding actor does: row groups of a Parquet file in, a file of embeddings (or a part of one) out. Rows stay in the actor.

Shapes: B rows of a chunk, L latent dimensions, S samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import torch
from pyarrow import fs

from data.encoding import TableEncoding
from data.listing import DataError
from data.reading import RowReader
from data.table import RowGroup
from data.types import is_text
from data.units import Unit, finished, footer_line
from data.writing import PartWriter
from vae.bundle import open_bundle
from vae.model import VAE
from vae.rows import Rows
from workflows.actors import Shared
from workflows.file_job import FileTask
from workflows.overlap import ahead, behind
from workflows.scores import Scorer, fields_of

# Matrix products depend on the batch's shape in the last bits, so rows are cut at fixed places of each row group, whoever encodes them:
# every CHUNK_ROWS rows, or at a power of two of rows whose cells are as many as this.
CHUNK_ROWS = 4096
CHUNK_CELLS = 2**24


@dataclass(frozen=True)
class Embedded:
    """What is read and what is made of it. reads: the columns that the model and the key need; columns: as --output.columns has them."""

    filesystem: fs.FileSystem
    reads: pa.Schema
    key: str | None
    key_type: pa.DataType | None
    columns: tuple[str, ...]
    num_importance_samples: int


class Chunk(NamedTuple):
    """Rows that are encoded at once: where they begin in the file, their arrays, and the columns that name them in the output."""

    first_row: int
    rows: Rows
    names: list[pa.ChunkedArray]


class Encoder:
    """Encodes row groups of one Parquet file into one file, or into a part of one."""

    def __init__(self, shared: Shared) -> None:
        torch.set_num_threads(1)
        files, task = ray.get(shared.reference)
        self.task: FileTask = task
        self.what: Embedded = task.what
        self.device = torch.device("cuda" if task.use_gpu else "cpu")
        bundle = open_bundle(files.files, self.device)
        self.encoding = TableEncoding.from_json(bundle.table)
        self.scorer = Scorer(bundle.model, self.encoding, self.what.columns, self.what.num_importance_samples)
        self.schema = output_schema(bundle.model, self.encoding, self.what).with_metadata(files.metadata)
        self.chunk_rows = chunk_rows(self.encoding)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Writes the unit's file or part and returns its record; of data that cannot be used, where it is put aside, only the reason."""
        unit: Unit = item["unit"]
        about = {"output": unit.output, "part": unit.part}
        try:
            return {"record": about | self.encode(unit)}
        except DataError as error:
            if not self.task.quarantine:
                raise
            return {"record": about | {"input": unit.file.relative_path, "fault": str(error), "num_rows": 0}}

    def encode(self, unit: Unit) -> dict[str, Any]:
        output, unseen, contents = self.task.output, Counter[str](), list[str]()
        staged = (
            output.staged_part(unit.part, self.schema) if unit.part else output.staged(unit.output, self.schema, self.task.fence.is_held)
        )
        with staged as writer:
            with (
                RowReader(self.what.filesystem, self.what.reads, self.task.max_batch_bytes) as reader,
                closing(ahead(self.chunks(unit, reader, unseen, contents))) as chunks,
                behind(writer.write_table) as write,
            ):
                for chunk in chunks:
                    columns = self.scorer(chunk.rows.to(self.device), chunk.first_row)
                    write(pa.table([*chunk.names, *columns], schema=self.schema))
            if isinstance(writer, PartWriter):
                return {"num_rows": unit.num_rows, "unseen": dict(unseen), "contents": contents}
            record = finished(unit, self.task.made_by, unseen, contents)
            writer.annotate(footer_line(record))
        return record | output.stat(unit.output)

    def chunks(self, unit: Unit, reader: RowReader, unseen: Counter[str], contents: list[str]) -> Generator[Chunk]:
        """Yields the unit's rows, cut at the same places however they are read. contents: takes the row groups' hashes."""
        file, first_row = unit.file, unit.first_row
        for index in range(unit.first_group, unit.end_group):
            partition = file.relative_path if file.partition else ""
            group = RowGroup(file.path, file.identity, index, first_row, file.row_groups[index], partition)
            contents.append(reader.content(group))
            waiting: list[Chunk] = []
            for part, table in reader.slices(group):
                rows = Rows.from_arrays(self.encoding.encode(table, part.path, unseen))
                names = self.names_of(table, part, file.relative_path)
                begin = 0
                while begin < rows.num_rows:
                    end = min(rows.num_rows, begin + self.chunk_rows - sum(chunk.rows.num_rows for chunk in waiting))
                    piece = [name.slice(begin, end - begin) for name in names]
                    waiting.append(Chunk(part.first_row + begin, rows.slice(begin, end), piece))
                    begin = end
                    if sum(chunk.rows.num_rows for chunk in waiting) == self.chunk_rows:
                        yield joined(waiting)
                        waiting = []
            if waiting:
                yield joined(waiting)
            first_row += group.num_rows

    def names_of(self, table: pa.Table, part: RowGroup, relative_path: str) -> list[pa.ChunkedArray]:
        """Returns the columns that name rows: the key, or the file and the place in it."""
        if self.what.key:
            return [table[self.what.key].cast(self.schema.field(0).type)]
        places = np.arange(part.first_row, part.first_row + len(table))
        return [pa.chunked_array([pa.repeat(relative_path, len(table))]), pa.chunked_array([pa.array(places)])]


def joined(chunks: list[Chunk]) -> Chunk:
    """Returns consecutive chunks as one whose arrays lie in one order, as products depend on that too."""
    rows = Rows.cat([chunk.rows for chunk in chunks])
    names = [pa.chunked_array([a for column in columns for a in column.chunks]) for columns in zip(*(c.names for c in chunks), strict=True)]
    return Chunk(chunks[0].first_row, rows.contiguous(), names)


def chunk_rows(encoding: TableEncoding) -> int:
    """Returns the rows of a chunk: a power of two that depends on the model alone."""
    cells = sum(field.size + field.valid_size for field in encoding.fields)
    return min(CHUNK_ROWS, 1 << max(0, (CHUNK_CELLS // max(1, cells)).bit_length() - 1))


def output_schema(model: VAE, encoding: TableEncoding, what: Embedded) -> pa.Schema:
    """Returns the output's columns: what names the rows, and what was asked for."""
    scores = [field for name in what.columns for field in fields_of(name, model.latent_dim, encoding)]
    return pa.schema([*name_fields(what.key, what.key_type), *scores])


def name_fields(key: str | None, key_type: pa.DataType | None) -> list[pa.Field]:
    """Returns the output's columns that name rows."""
    if key is None:
        return [pa.field("source_file", pa.string()), pa.field("source_row", pa.int64())]
    assert key_type is not None
    # Keys come out in their own type, dictionaries of text as they are read.
    as_read = pa.types.is_dictionary(key_type) and is_text(key_type)
    return [pa.field(key, pa.dictionary(pa.int32(), key_type.value_type) if as_read else key_type)]


def reads_of(encoding: TableEncoding, key: str | None, key_type: pa.DataType | None) -> pa.Schema:
    """Returns the columns that are read, in an order that the model and the key decide."""
    more = [pa.field(key, key_type)] if key is not None and key not in encoding.modelled else []
    return pa.schema([*encoding.schema_of(encoding.modelled), *more])
