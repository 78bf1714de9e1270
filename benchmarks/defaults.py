"""What the defaults are worth: validation ELBO of variants of the configuration, by the engine of train.py in one process without Ray.

    python benchmarks/defaults.py --data TABLE [--key COLUMN] [--common "--training.epochs 30"] \\
        --variant "" --variant "--training.learning_rate 3e-3" --variant "--model.latent_dim 32 --training.ema_decay 0.999"

A variant is a line of train.py's options ("" are the defaults). Each trains on the same rows, with the same split, and is scored as
train.py scores: the best epoch's weights, 8 samples per validation row, in nats per row, but under N(0, I) where train.py fits the prior
afterwards. Printed: a JSON line per variant.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.independent import encoded_rows
from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.plan import Plan, shard_bounds
from data.reading import RowReader
from data.shard import bytes_per_row
from data.split import TRAIN, VALIDATION, split_rows, take
from data.statistics import TableSummary, merge_all, summarise_table
from data.table import Table, open_table
from data.wishes import with_likelihoods
from vae.model import VAE
from vae.objective import Loss
from vae.rows import Rows
from workflows.architecture import architecture
from workflows.checkpoint import Progress, TrainingState
from workflows.config import TrainConfig
from workflows.feed import EVALUATION_ROWS, HeldRows
from workflows.job import parse
from workflows.mailbox import Line
from workflows.optimization import Optimizer
from workflows.scoring import scores, shard_sums
from workflows.training import WINDOW_BYTES
from workflows.training_loop import (
    EPOCH_SAMPLES,
    FINAL_SAMPLES,
    finish_epoch,
    is_last,
    objective_of,
    scored_model,
    total_steps,
    train_epoch,
)
from workflows.worker import Worker, WorkerTask


class Alone(Worker):
    """A worker that has nobody to tell and nothing to save."""

    def tell(self, step: int, *messages: Any) -> None:
        pass

    def save(self, state: TrainingState) -> None:
        pass


class Silence:
    """In place of the line to a driver."""

    stop, kept = False, 0


def summary_of(table: Table, key: str | None, fractions: tuple[float, float]) -> TableSummary:
    """Returns the summary of the training rows."""
    with RowReader(table.filesystem, table.schema) as reader:
        slices = [(part, rows) for group in table.row_groups() for part, rows in reader.slices(group)]
    return merge_all(
        summarise_table(take(rows, split_rows(rows, part, key, fractions) == TRAIN), (number, 0, 0))
        for number, (part, rows) in enumerate(slices)
    )


def encoding_of(table: Table, key: str | None, summary: TableSummary, config: TrainConfig) -> TableEncoding:
    """Returns the encoding that train.py fits: to the training rows."""
    columns = decide_columns(table.schema, summary, key, config.data.columns, Rules())
    return TableEncoding(table.schema, tuple(with_likelihoods(columns, summary, config.model.likelihoods)), key)


def held(rows: Rows, num_shards: int) -> HeldRows:
    bounds = shard_bounds(rows.num_rows, num_shards).tolist()
    return HeldRows(rows, dict(enumerate(bounds[:-1])), {shard: bounds[shard + 1] - bounds[shard] for shard in range(num_shards)})


def train(config: TrainConfig, encoding: TableEncoding, sides: dict[int, Rows]) -> tuple[VAE, dict[str, Any]]:
    """Returns the model with the best epoch's weights, and their scores, how many epochs it took, and its CPU-seconds."""
    began = time.process_time()
    data, training = config.data, config.training.for_rows(sides[TRAIN].num_rows)
    window_rows = data.shuffle_window_rows or max(EVALUATION_ROWS, WINDOW_BYTES // bytes_per_row(encoding))
    plan = Plan(sides[TRAIN].num_rows, data.num_logical_shards, training.global_batch_size, training.seed, window_rows)
    torch.manual_seed(training.seed)
    model = VAE(**architecture(encoding, config.model, sides[TRAIN].num_rows))
    state = TrainingState(model, Optimizer(model, training), {}, Progress())
    loss = Loss(model, objective_of(config.objective))
    task = cast(WorkerTask, argparse.Namespace(plan=plan, objective=config.objective, training=training, run=config.run))
    task.architecture = architecture(encoding, config.model, sides[TRAIN].num_rows)  # type: ignore[misc]
    worker = Alone(task, 0, 1, cast(Line, Silence()), torch.device("cpu"))
    rows = {side: held(part, data.num_logical_shards) for side, part in sides.items()}
    num_steps = total_steps(training, plan.num_steps_with_rows)
    progress = state.progress
    while not is_last(progress, training, num_steps):
        train_epoch(loss, state, worker, rows[TRAIN], num_steps)
        sums = shard_sums(scored_model(state, worker), plan, rows[VALIDATION], VALIDATION, EPOCH_SAMPLES)
        finish_epoch(state, scores(sums, model))
    model.load_state_dict(state.best)
    final = scores(shard_sums(model, plan, rows[VALIDATION], VALIDATION, FINAL_SAMPLES), model)
    best = {"num_epochs": progress.epoch, "best_epoch": progress.best_epoch + 1, "cpu_s": round(time.process_time() - began)}
    return model, {name: round(value, 3) for name, value in final.items()} | best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--key", default=None)
    parser.add_argument("--common", default="", help="options of all variants")
    parser.add_argument("--variant", action="append", required=True, help="options of one variant; give several")
    chosen = parser.parse_args()
    given = ["--data.path", chosen.data, *(["--data.key", chosen.key] if chosen.key else []), *shlex.split(chosen.common)]
    configs = {variant: parse(TrainConfig, [*given, *shlex.split(variant)]) for variant in chosen.variant}
    torch.set_flush_denormal(True)
    fractions = next(iter(configs.values())).data.fractions
    table = open_table(chosen.data)
    summary = summary_of(table, chosen.key, fractions)
    for variant, config in configs.items():
        encoding = encoding_of(table, chosen.key, summary, config)
        sides = {side: encoded_rows(table, encoding, side, fractions) for side in (TRAIN, VALIDATION)}
        found = {"data": Path(chosen.data).name, "common": chosen.common, "variant": variant, **train(config, encoding, sides)[1]}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
