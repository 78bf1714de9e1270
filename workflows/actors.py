"""The pool of actors that does a batch job's units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data


@dataclass(frozen=True)
class ModelFiles:
    """A pinned model as it travels to actors. metadata: what every output file's footer says of it."""

    files: dict[str, bytes]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Shared:
    """A model and a task in the object store, kept there by the driver for actors that start, or start again, later."""

    reference: ray.ObjectRef


@dataclass(frozen=True)
class Pool:
    """How many actors work at once, and whether each has a GPU."""

    num_actors: int
    use_gpu: bool


def run_units(actor: type, model: ModelFiles, task: Any, units: Sequence[Mapping[str, Any]], pool: Pool) -> Iterator[dict[str, Any]]:
    """Yields what the actors return for each unit, as units end. Ray Data schedules them over a pool of actors.

    actor: a class that is made from a Shared and called with a unit. task: what every one of them is told.
    """
    items = ray.data.from_items([dict(unit) for unit in units], override_num_blocks=len(units))
    actors = ray.data.ActorPoolStrategy(size=min(pool.num_actors, len(units)))
    shared = Shared(ray.put((model, task)))
    options = {"num_cpus": 1} | ({"num_gpus": 1} if pool.use_gpu else {})
    yield from items.map(actor, fn_constructor_args=(shared,), compute=actors, **options).iter_rows()
