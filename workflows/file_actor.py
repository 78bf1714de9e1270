"""What one actor of a job over files does: row groups of a Parquet file in, a file (or a part of one) out. Rows stay in the actor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch

from data.encoding import TableEncoding
from data.listing import DataError
from data.reading import RowReader
from data.table import RowGroup
from data.units import Unit, finished, footer_line
from data.writing import PartWriter
from vae.bundle import open_bundle
from vae.rows import Rows
from workflows.actors import Shared
from workflows.file_task import FileTask
from workflows.overlap import ahead, behind

# Matrix products depend on the batch's shape in the last bits, so rows are cut at fixed places of each row group, whoever computes them:
# every CHUNK_ROWS rows, or at a power of two of rows whose cells are as many as this.
CHUNK_ROWS = 4096
CHUNK_CELLS = 2**24
# Chunks that wait to be computed, and to be written, where threads do that.
NUM_WAITING = 2


class Chunk(NamedTuple):
    """Rows that are computed at once: where they begin in the file, their arrays, and the columns that are kept as they are."""

    first_row: int
    rows: Rows
    kept: list[pa.ChunkedArray]


class FileActor(ABC):
    """Computes row groups of one Parquet file. schema: of what it writes."""

    def __init__(self, shared: Shared) -> None:
        torch.set_num_threads(1)
        files, task = ray.get(shared.reference)
        self.task: FileTask = task
        self.device = torch.device("cuda" if task.use_gpu else "cpu")
        bundle = open_bundle(files.files, self.device, files.name)
        self.model, self.encoding = bundle.model, TableEncoding.from_json(bundle.table)
        self.marginals = bundle.table.get("marginals", {})
        self.schema = self.output_schema().with_metadata(files.metadata)
        self.chunk_rows = chunk_rows(self.encoding)
        # For all units: what closing it gives back would be asked for again.
        self.reader = RowReader(task.what.filesystem, task.what.reads, task.max_batch_bytes)
        self.fetching = ThreadPoolExecutor(1)
        self.decoding = ThreadPoolExecutor(1) if task.use_gpu else None
        self.writing = ThreadPoolExecutor(1) if task.use_gpu else None

    @abstractmethod
    def output_schema(self) -> pa.Schema:
        """Returns the output's columns."""

    @abstractmethod
    def kept(self, table: pa.Table, part: RowGroup, relative_path: str) -> list[pa.ChunkedArray]:
        """Returns the columns of rows that were read which `columns` needs as they are."""

    @abstractmethod
    def columns(self, chunk: Chunk) -> list[pa.Array | pa.ChunkedArray]:
        """Returns the output's columns of a chunk, whose rows are on the device."""

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the unit's file or part and returns its record; of data that cannot be used, where it is put aside, only the reason."""
        unit: Unit = item["unit"]
        about = {"output": unit.output, "part": unit.part}
        try:
            return {"record": about | self.write(unit)}
        except DataError as error:
            if not self.task.quarantine:
                raise
            return {"record": about | {"input": unit.file.relative_path, "fault": str(error), "num_rows": 0}}

    def write(self, unit: Unit) -> dict[str, Any]:
        """Writes a unit and returns its record without its names. Raises DataError, OutputError.

        The next row group is fetched meanwhile. For a GPU rows are also decoded ahead and written behind. On CPUs such threads
        take from the other actors what they give to this one, and move every chunk between two cores' caches.
        """
        task, unseen, contents = self.task, Counter[str](), list[str]()
        whole = task.output.staged(unit.output, self.schema, task.fence.is_held)
        with task.output.staged_part(unit.part, self.schema) if unit.part else whole as writer:
            made = ahead(self.chunks(unit, unseen, contents), self.decoding, NUM_WAITING)
            with closing(made) as chunks, behind(writer.write_table, self.writing, NUM_WAITING) as write:
                for chunk in chunks:
                    write(pa.table(self.columns(chunk._replace(rows=chunk.rows.to(self.device))), schema=self.schema))
            if isinstance(writer, PartWriter):
                return {"num_rows": unit.num_rows, "unseen": dict(unseen), "contents": contents}
            record = finished(unit, task.made_by, unseen, contents)
            writer.annotate(footer_line(record))
        return record | task.output.stat(unit.output)

    def chunks(self, unit: Unit, unseen: Counter[str], contents: list[str]) -> Generator[Chunk]:
        """Yields the unit's rows, cut at the same places however they are read. contents: takes the row groups' hashes."""
        with closing(ahead(map(self.reader.fetch, row_groups(unit)), self.fetching, 1)) as groups:
            for group in groups:
                contents.append(self.reader.content(group))
                waiting: list[Chunk] = []
                missing = self.chunk_rows
                for part, table in self.reader.decode(group):
                    rows = Rows.from_arrays(self.encoding.encode(table, part.path, unseen))
                    kept = self.kept(table, part, unit.file.relative_path)
                    begin = 0
                    while begin < rows.num_rows:
                        end = min(rows.num_rows, begin + missing)
                        piece = [column.slice(begin, end - begin) for column in kept]
                        waiting.append(Chunk(part.first_row + begin, rows.slice(begin, end), piece))
                        missing -= end - begin
                        begin = end
                        if not missing:
                            yield joined(waiting)
                            waiting, missing = [], self.chunk_rows
                if waiting:
                    yield joined(waiting)


def row_groups(unit: Unit) -> Iterator[RowGroup]:
    """Yields the row groups of a unit."""
    file, first_row = unit.file, unit.first_row
    for index in range(unit.first_group, unit.end_group):
        partition = file.relative_path if file.partition else ""
        yield RowGroup(file.path, file.identity, index, first_row, file.row_groups[index], partition)
        first_row += file.row_groups[index]


def joined(chunks: list[Chunk]) -> Chunk:
    """Returns consecutive chunks as one whose arrays lie in row-major order, as products depend on that too."""
    rows = Rows.cat([chunk.rows for chunk in chunks])
    kept = [
        pa.chunked_array([array for column in columns for array in column.chunks])
        for columns in zip(*(c.kept for c in chunks), strict=True)
    ]
    return Chunk(chunks[0].first_row, rows.contiguous(), kept)


def chunk_rows(encoding: TableEncoding) -> int:
    """Returns the rows of a chunk: a power of two that depends on the model alone."""
    cells = sum(field.size + field.valid_size for field in encoding.fields)
    return min(CHUNK_ROWS, 1 << max(0, (CHUNK_CELLS // max(1, cells)).bit_length() - 1))
