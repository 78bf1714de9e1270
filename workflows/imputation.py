"""What an actor of reconstruct.py does: the rows as they came, with the model's values where cells were missing.

Shapes: B rows of a chunk, D cells of a column, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.column import Column
from data.filling import NUMBERS, filling_cells, merged, missing_cells
from data.table import RowGroup
from data.types import is_list
from vae.imputation import posterior_cells
from workflows.file_actor import Chunk, FileActor
from workflows.imputation_task import DEVIATION, output_schema

NUM_SAMPLES = 32


class Imputer(FileActor):
    """Fills what is missing of modelled columns from q(z|x) and p(x|z); every cell that is there stays as it is."""

    def output_schema(self) -> pa.Schema:
        return output_schema(self.encoding, self.task.what.deviations)

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
        """Returns stored cells [B, D] to fill in, by column, and where deviations are asked for draws [S, B, D] in data units."""
        columns = [self.column(name) for name in names]
        numbers = [column.name for column in columns if column.kind in NUMBERS]
        generator = torch.Generator().manual_seed(chunk.first_row % 2**32)
        found = posterior_cells(self.model, chunk.rows, NUM_SAMPLES if numbers else 0, generator, self.task.what.deviations)
        values = filling_cells(self.encoding, columns, found)
        samples = range(NUM_SAMPLES if found.draws and numbers else 0)
        draws = [self.split({name: drawn[sample] for name, drawn in found.draws.items()}) for sample in samples]
        return values, {name: np.stack([self.in_data_units(name, drawn[name]) for drawn in draws]) for name in numbers if draws}

    def split(self, fields: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
        return self.encoding.split({name: cells.cpu().numpy() for name, cells in fields.items()})

    def in_data_units(self, name: str, cells: NDArray[Any]) -> NDArray[np.float64]:
        """Returns stored cells [B, D] as numbers."""
        kind = self.schema.field(name).type
        array = self.encoding.decode_column(name, cells, np.ones(len(cells), np.bool_), kind)
        flat = array.flatten() if is_list(kind) else array
        return np.asarray(flat.cast(pa.float64(), safe=False)).reshape(len(cells), -1)


def deviations(draws: NDArray[np.float64], missing: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Returns the standard deviation over draws [S, B, D] of the cells that were filled, null for the others."""
    spread = draws.std(0, ddof=1)
    flat = pa.array(spread.reshape(-1), mask=~missing.reshape(-1))
    if not is_list(kind):
        return flat
    offsets = np.arange(len(missing) + 1, dtype=np.int32) * missing.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(~missing.any(1)))
