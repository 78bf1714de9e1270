"""What an actor of reconstruct.py does: the rows as they came, with the model's values where cells were missing.

Shapes: B rows of a chunk, D cells of a column, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pyarrow import fs

from data.columns import Column
from data.encoding import TableEncoding
from data.table import RowGroup
from data.types import is_list
from vae.posteriors import Posterior
from workflows.file_actor import Chunk, FileActor
from workflows.generation import readable_schema

NUM_SAMPLES = 32
# Kinds whose cells are numbers, so that averages and deviations mean something.
NUMBERS = ("numeric", "count", "vector", "image")
DEVIATION = "_standard_deviation"


@dataclass(frozen=True)
class Imputed:
    """What is read and what is added. deviations: whether filled cells of numbers get their posterior standard deviation beside them."""

    filesystem: fs.FileSystem
    reads: pa.Schema
    deviations: bool


class Imputer(FileActor):
    """Fills what is missing of modelled columns from q(z|x) and p(x|z); every cell that is there stays as it is."""

    def output_schema(self) -> pa.Schema:
        return output_schema(self.encoding, self.task.what)

    def kept(self, table: pa.Table, part: RowGroup, relative_path: str) -> list[pa.ChunkedArray]:
        return list(table.columns)

    @torch.inference_mode()
    def columns(self, chunk: Chunk) -> list[pa.Array | pa.ChunkedArray]:
        """Returns every column of the training table, filled; then the deviations."""
        columns = dict(zip(self.task.what.reads.names, chunk.kept, strict=True))
        holes = {name: missing_cells(columns[name], self.column(name), self.encoding.nonfinite) for name in self.encoding.modelled}
        filled = {name for name, missing in holes.items() if missing.any()}
        values, draws = self.posterior_values(chunk, filled) if filled else ({}, {})
        result = []
        for field in self.schema:
            name = field.name
            if name not in columns:
                of = name.removesuffix(DEVIATION)
                result.append(deviations(draws[of], holes[of], field.type) if of in filled else pa.nulls(chunk.rows.num_rows, field.type))
            elif name in filled:
                replacement = self.encoding.decode_column(name, values[name], np.ones(chunk.rows.num_rows, np.bool_), field.type)
                result.append(merged(columns[name], replacement, holes[name], field.type))
            else:
                result.append(columns[name].cast(field.type))
        return result

    def column(self, name: str) -> Column:
        return next(column for column in self.encoding.columns if column.name == name)

    def posterior_values(self, chunk: Chunk, names: set[str]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Returns stored cells [B, D] to fill in, by column, and draws [S, B, D] of numbers in data units where deviations are asked for.

        Numbers are E_q[E[x|z]], estimated with NUM_SAMPLES samples; the rest is the most probable value at the mean of q.
        """
        q_z: Posterior = self.model.posterior(chunk.rows)
        generator = torch.Generator().manual_seed(chunk.first_row % 2**32)
        told = self.model.condition(chunk.rows)
        values = self.split(self.model.likelihood(q_z.mean, told).fields, lambda cells: cells.mean)
        sums: dict[str, NDArray[np.float64]] = {}
        draws: dict[str, list[NDArray[np.float64]]] = {}
        numbers = [name for name in names if self.column(name).kind in NUMBERS]
        for _ in range(NUM_SAMPLES if numbers else 0):
            z = q_z.rsample(torch.randn(chunk.rows.num_rows, self.model.latent_dim, generator=generator).to(self.device))
            fields = self.model.likelihood(z, told).fields
            means = self.split(fields, lambda cells: cells.mean)
            drawn = self.split(fields, lambda cells: cells.sample(generator)) if self.task.what.deviations else {}
            for name in numbers:
                sums[name] = sums.get(name, 0.0) + means[name].astype(np.float64)
                if drawn:
                    draws.setdefault(name, []).append(self.in_data_units(name, drawn[name]))
        for name, total in sums.items():
            average = total / NUM_SAMPLES
            values[name] = (np.rint(average) if values[name].dtype.kind in "iu" else average).astype(values[name].dtype)
        return values, {name: np.stack(found) for name, found in draws.items()}

    def split(self, fields: Mapping[str, Any], cells_of: Any) -> dict[str, NDArray[Any]]:
        return self.encoding.split({name: cells_of(distribution).cpu().numpy() for name, distribution in fields.items()})

    def in_data_units(self, name: str, cells: NDArray[Any]) -> NDArray[np.float64]:
        """Returns stored cells [B, D] as numbers."""
        kind = self.schema.field(name).type
        array = self.encoding.decode_column(name, cells, np.ones(len(cells), np.bool_), kind)
        flat = array.flatten() if is_list(kind) else array
        return np.asarray(flat.cast(pa.float64(), safe=False)).reshape(len(cells), -1)


def output_schema(encoding: TableEncoding, what: Imputed) -> pa.Schema:
    """Returns the training table's columns, and the deviations that were asked for."""
    schema = readable_schema(encoding, null_pattern=False, given=None)
    for index, column in enumerate(encoding.columns):  # conditions are not filled, and pyarrow 25 cannot read null fixed-size lists back
        if column.condition and pa.types.is_fixed_size_list(schema.field(index).type):
            schema = schema.set(index, pa.field(column.name, pa.list_(schema.field(index).type.value_type)))
    numbers = [column for column in encoding.columns if column.kind in NUMBERS] if what.deviations else []
    deviations = [pa.field(c.name + DEVIATION, pa.list_(pa.float64()) if c.kind in ("vector", "image") else pa.float64()) for c in numbers]
    return pa.schema([*schema, *deviations])


def missing_cells(column: pa.ChunkedArray, about: Column, nonfinite: str) -> NDArray[np.bool_]:
    """Returns which cells are to be filled, [B, D]: nulls, elements of null lists, null elements, and NaN where those stand for nulls."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    missing = np.asarray(array.is_null())[:, None]
    if not is_list(column.type):
        return missing | (not_finite(array, nonfinite)[:, None])
    cells = np.repeat(missing, about.size, 1)
    elements = pc.list_flatten(array)
    cells[~missing[:, 0]] = (np.asarray(elements.is_null()) | not_finite(elements, nonfinite)).reshape(-1, about.size)
    return cells


def not_finite(array: pa.Array, nonfinite: str) -> NDArray[np.bool_]:
    if nonfinite == "error" or not pa.types.is_floating(array.type):
        return np.zeros(len(array), np.bool_)
    return ~np.asarray(pc.is_finite(array).fill_null(True))


def merged(column: pa.ChunkedArray, replacement: pa.Array, missing: NDArray[np.bool_], kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Returns a column with the replacement's cells where they are missing, as its type."""
    if not is_list(kind):
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pc.if_else(pa.array(missing[:, 0]), replacement.cast(plain), column.cast(plain)).cast(kind)
    size = missing.shape[1]
    there = np.asarray(column.is_valid())
    elements = np.asarray(replacement.flatten()).copy()
    observed = pc.list_flatten(column.combine_chunks())
    # Of observed lists every element that is there keeps its bits.
    places = np.flatnonzero(np.repeat(there, size))
    kept = ~missing.reshape(-1)[places]
    elements[places[kept]] = np.asarray(observed.fill_null(0))[kept]
    values = pa.array(elements, kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    offsets = np.arange(len(there) + 1, dtype=np.int64) * size
    return pa.LargeListArray.from_arrays(pa.array(offsets), values).cast(kind)


def deviations(draws: NDArray[np.float64], missing: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Returns the standard deviation over draws [S, B, D] of the cells that were filled, null for the others."""
    spread = draws.std(0, ddof=1)
    flat = pa.array(spread.reshape(-1), mask=~missing.reshape(-1))
    if not is_list(kind):
        return flat
    offsets = np.arange(len(missing) + 1, dtype=np.int32) * missing.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(~missing.any(1)))
