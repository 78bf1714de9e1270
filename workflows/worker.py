"""A worker of a training: what it is told, its place among the others, its line to the driver, and its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.train.torch import get_device
from torch import Tensor

from data.plan import Plan, shard_bounds, shards_of_rank
from data.shard import PLACE, Layout, ResidentRows, fill_resident
from data.stream import Stream
from vae.rows import Rows
from workflows.checkpoint import Checkpoints, TrainingState
from workflows.config import RunConfig
from workflows.feed import HeldRows, SideRows, StreamedRows
from workflows.mailbox import Line, Message
from workflows.model_config import ObjectiveConfig, TrainingConfig


@dataclass(frozen=True)
class WorkerTask:
    """Everything that a worker is told. num_rows: side of the split -> rows of the whole table; columns: field -> its columns' names.

    streams: side -> where its rows come from again and again, where they do not fit; None where workers hold them. by_shard: whether there
    is a dataset for every logical shard, instead of one for every worker. fits_prior: whether the prior is fitted once the rest is trained.
    """

    architecture: dict[str, Any]
    fits_prior: bool
    columns: dict[str, list[str]]
    layout: Layout
    plan: Plan
    num_rows: dict[int, int]
    streams: dict[int, Stream] | None
    by_shard: bool
    objective: ObjectiveConfig
    training: TrainingConfig
    run: RunConfig
    checkpoints: Checkpoints
    mailbox: ActorHandle


@dataclass(frozen=True)
class Worker:
    """One worker's place: its task, its rank among the workers, its line to the driver, and what it computes on."""

    task: WorkerTask
    rank: int
    world_size: int
    line: Line
    device: torch.device

    @staticmethod
    def here(task: WorkerTask) -> Worker:
        context = ray.train.get_context()
        return Worker(task, context.get_world_rank(), context.get_world_size(), Line(task.mailbox, context.get_world_rank()), get_device())

    def tell(self, step: int, *messages: Message) -> None:
        """Sends the first worker's messages to the driver; from the others it is a sign of life."""
        self.line.send(step, list(messages) if self.rank == 0 else [])

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint; the first worker's state is everybody's."""
        if self.rank == 0:
            self.task.checkpoints.save(state.files(), state.progress)


def sum_over_workers(own: Tensor) -> Tensor:
    """Returns the sum of every worker's tensor, the same everywhere."""
    if dist.is_initialized():
        dist.all_reduce(own)
    return own


def open_rows(worker: Worker) -> dict[int, SideRows]:
    """Returns this worker's rows of each side: decoded once, on the GPU where they fit beside the model; or streamed."""
    task = worker.task
    shards = shards_of_rank(task.plan.num_shards, worker.rank, worker.world_size)
    found: dict[int, SideRows] = {}
    for side, count in task.num_rows.items():
        sizes = np.diff(shard_bounds(count, task.plan.num_shards))[shards].tolist()
        if task.streams is not None:
            no_rows = Rows.from_arrays(ResidentRows(task.layout, 0).arrays)
            size = dict(zip(shards, sizes, strict=True))
            found[side] = StreamedRows(size, no_rows, task.plan.shuffle_window_rows, task.streams[side].windows)
            continue
        starts = np.cumsum([0, *sizes])[:-1].tolist()
        apart = zip(shards, starts, sizes, strict=True) if task.by_shard else [(worker.rank, 0, sum(sizes))]
        blocks = blocks_of({f"{side}-{number}": place for number, place, size in apart if size})
        arrays = fill_resident(blocks, task.layout, {side: sum(sizes)})[side].arrays
        num_bytes = sum(array.nbytes for array in arrays.values())
        resident = worker.device.type == "cuda" and num_bytes < 0.5 * torch.cuda.mem_get_info(worker.device)[0]
        rows = Rows.from_arrays(arrays, worker.device if resident else "cpu")
        found[side] = HeldRows(rows, dict(zip(shards, starts, strict=True)), dict(zip(shards, sizes, strict=True)))
    return found


def blocks_of(places: Mapping[str, int]) -> Iterator[pa.Table]:
    """Yields encoded rows from datasets that the driver planned; places: dataset -> where its first row belongs."""
    for dataset, place in places.items():
        for block in ray.train.get_dataset_shard(dataset).iter_batches(batch_size=None, batch_format="pyarrow"):
            number = block.schema.get_field_index(PLACE)
            yield block.set_column(number, PLACE, pc.add(block[PLACE], place))
