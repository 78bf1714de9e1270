"""What an actor of encode.py does: the rows' names and what was asked for of their latent variables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import fs

from data.encoding import TableEncoding
from data.table import RowGroup
from data.types import is_text
from vae.model import VAE
from workflows.actors import Shared
from workflows.file_actor import Chunk, FileActor
from workflows.scores import Scorer, fields_of


@dataclass(frozen=True)
class Embedded:
    """What is read and what is made of it. reads: the columns that the model and the key need; columns: as --output.columns has them."""

    filesystem: fs.FileSystem
    reads: pa.Schema
    key: str | None
    key_type: pa.DataType | None
    columns: tuple[str, ...]
    num_importance_samples: int


class Encoder(FileActor):
    """Encodes row groups of one Parquet file."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        what = self.task.what
        self.scorer = Scorer(self.model, self.encoding, self.marginals, what.columns, what.num_importance_samples)

    def output_schema(self) -> pa.Schema:
        return output_schema(self.model, self.encoding, self.task.what)

    def kept(self, table: pa.Table, part: RowGroup, relative_path: str) -> list[pa.ChunkedArray]:
        """Returns the columns that name rows: the key, or the file and the place in it."""
        key = self.task.what.key
        if key is not None:
            return [table[key].cast(self.schema.field(0).type)]
        places = np.arange(part.first_row, part.first_row + len(table))
        return [pa.chunked_array([pa.repeat(relative_path, len(table))]), pa.chunked_array([pa.array(places)])]

    def columns(self, chunk: Chunk) -> list[pa.Array | pa.ChunkedArray]:
        return [*chunk.kept, *self.scorer(chunk.rows, chunk.first_row)]


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
    more = [pa.field(key, key_type)] if key is not None and key not in encoding.inputs else []
    return pa.schema([*encoding.schema_of(encoding.inputs), *more])
