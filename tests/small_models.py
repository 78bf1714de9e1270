"""A small model of a table in memory, trained in this process: neither Ray nor MLflow."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import torch

from data.columns import Rules, decide_columns
from data.dependencies import Dependencies
from data.determined import with_dependencies
from data.encoding import TableEncoding
from data.statistics import summarise_table
from vae import VAE, Rows
from vae.objective import Loss, Objective
from workflows.architecture import architecture
from workflows.model_config import ModelConfig

NUM_STEPS = 400


def encoding_of(table: pa.Table) -> TableEncoding:
    summary = replace(summarise_table(table, (table.num_rows, 0, 0)), dependencies=Dependencies.of(table))
    columns = with_dependencies(decide_columns(table.schema, summary, None, {}, Rules()), summary)
    return TableEncoding(table.schema, tuple(columns), None)


def small_model(encoding: TableEncoding, table: pa.Table, learning_rate: float, num_steps: int = NUM_STEPS) -> VAE:
    """Returns a model of 4 latent dimensions after so many steps of all rows."""
    rows = Rows.from_arrays(encoding.encode(table, "here"))
    torch.manual_seed(0)
    model = VAE(**architecture(encoding, ModelConfig(4, [64])))
    loss, adam, g = Loss(model, Objective()), torch.optim.Adam(model.parameters(), learning_rate), torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        adam.zero_grad()
        torch.autograd.backward(loss(rows, torch.randn(table.num_rows, 4, generator=g), 1.0)[0] / table.num_rows)
        adam.step()
    return model.eval()
