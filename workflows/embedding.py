"""What an actor of encode.py does: the rows' names and what was asked for of their latent variables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from data.table import RowGroup
from workflows.actors import Shared
from workflows.embedding_task import output_schema
from workflows.file_actor import Chunk, FileActor
from workflows.scores import Scorer


class Encoder(FileActor):
    """Encodes row groups of one Parquet file."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        what = self.task.what
        self.scorer = Scorer(self.model, self.encoding, self.marginals, what.columns, what.num_importance_samples)

    def output_schema(self) -> pa.Schema:
        return output_schema(self.model.latent_dim, self.encoding, self.task.what)

    def kept(self, table: pa.Table, part: RowGroup, relative_path: str) -> list[pa.ChunkedArray]:
        """Returns the columns that name rows: the key, or the file and the place in it."""
        key = self.task.what.key
        if key is not None:
            return [table[key].cast(self.schema.field(0).type)]
        places = np.arange(part.first_row, part.first_row + len(table))
        return [pa.chunked_array([pa.repeat(relative_path, len(table))]), pa.chunked_array([pa.array(places)])]

    def columns(self, chunk: Chunk) -> list[pa.Array | pa.ChunkedArray]:
        return [*chunk.kept, *self.scorer(chunk.rows, chunk.first_row)]
