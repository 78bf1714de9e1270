"""The model as MLflow serves it (models from code): frame in, latent means or scores out. Needs neither Ray nor the rest of workflows/."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from mlflow.models import set_model

from data.encoding import TableEncoding
from data.filling import filling_cells, merged, missing_cells
from data.frames import to_arrow, to_pandas
from vae import Rows, load_bundle
from vae.imputation import posterior_cells

SCORE_SAMPLES = 8
FILL_SAMPLES = 32
# Rows that pass the layers together: what these take does not grow with the frame.
ROWS_AT_ONCE = 4096


class ServedVAE(mlflow.pyfunc.PythonModel):
    """predict(frame) gives z_mean_0..; params={"task": "score"} elbo_nats_per_row; "reconstruct" the model's columns, filled."""

    def load_context(self, context: Any) -> None:
        bundle = load_bundle(context.artifacts["bundle"])
        self.model, self.encoding = bundle.model, TableEncoding.from_json(bundle.table)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Returns one row per row of the frame, in its order, under its index. Raises ValueError for a task or columns that cannot be."""
        task = (params or {}).get("task", "encode")
        if task not in ("encode", "score", "reconstruct"):
            raise ValueError(f"task is {task!r}; it must be encode, score or reconstruct")
        table = self._to_arrow(model_input)
        rows = Rows.from_arrays(self.encoding.encode(table, "the frame"))
        if task == "reconstruct":
            return self._filled(model_input, table, rows)
        with torch.inference_mode():
            if task == "encode":
                z_mean = torch.cat([self.model.posterior(part).mean for part in parts_of(rows)]).numpy()
                return pd.DataFrame(z_mean, columns=[f"z_mean_{i}" for i in range(z_mean.shape[1])], index=model_input.index)
            noise = torch.randn(SCORE_SAMPLES, rows.num_rows, self.model.latent_dim, generator=torch.Generator().manual_seed(0))
            pairs = zip(parts_of(rows), torch.split(noise, ROWS_AT_ONCE, 1), strict=True)
            elbo = torch.cat([self.model.evaluate_elbo(part, its_noise).elbo for part, its_noise in pairs])
            return pd.DataFrame({"elbo_nats_per_row": elbo.numpy()}, index=model_input.index)

    def _filled(self, frame: pd.DataFrame, table: pa.Table, rows: Rows) -> pd.DataFrame:
        columns = [column for column in self.encoding.columns if column.name in self.encoding.modelled]
        generator = torch.Generator().manual_seed(0)
        found = (posterior_cells(self.model, part, FILL_SAMPLES, generator) for part in parts_of(rows))
        parts = [filling_cells(self.encoding, columns, cells) for cells in found]
        cells = {column.name: np.concatenate([part[column.name] for part in parts]) for column in columns}
        result = frame.copy()
        for column in columns:
            missing = missing_cells(table[column.name], column, self.encoding.nonfinite)
            if missing.any():
                kind = table.schema.field(column.name).type
                replacement = self.encoding.decode_column(column.name, cells[column.name], np.ones(len(frame), np.bool_), kind)
                result[column.name] = to_pandas(merged(table[column.name], replacement, missing, kind)).to_numpy()
        return result

    def _to_arrow(self, frame: pd.DataFrame) -> pa.Table:
        missing = [name for name in self.encoding.inputs if name not in frame.columns]
        if missing:
            raise ValueError(f"the frame lacks the columns {missing}")
        return to_arrow(frame, self.encoding.schema_of(self.encoding.inputs))


def parts_of(rows: Rows) -> list[Rows]:
    """Returns the rows in parts of ROWS_AT_ONCE; of no rows one part."""
    return [rows.slice(begin, begin + ROWS_AT_ONCE) for begin in range(0, max(1, rows.num_rows), ROWS_AT_ONCE)]


set_model(ServedVAE())
