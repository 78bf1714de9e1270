"""What one embedding actor does: a Parquet file in, a file of embeddings out. Rows never leave the actor but into their file.

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
import torch
from pyarrow import fs

from data.encoding import TableEncoding
from data.output import OutputFolder
from data.reading import RowReader
from data.table import RowGroup
from data.types import is_text
from vae.bundle import open_bundle
from vae.rows import Rows
from workflows.actors import Shared

# Matrix products depend on the batch's shape in the last bits, so work is cut the same way whoever does it.
CHUNK_ROWS = 4096
ELBO_SAMPLES = 8


@dataclass(frozen=True)
class EncodeTask:
    """What encoding actors are told."""

    filesystem: fs.FileSystem
    output: OutputFolder
    key: str | None
    key_type: pa.DataType | None
    columns: tuple[str, ...]
    max_batch_bytes: int


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


def key_storage(kind: pa.DataType) -> pa.DataType:
    """Returns the type in which keys come out: their own, dictionaries as they are read."""
    return pa.dictionary(pa.int32(), kind.value_type) if pa.types.is_dictionary(kind) and is_text(kind) else kind
