"""The pool of actors that does a batch job's units."""

from __future__ import annotations

from collections.abc import Iterator
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


def run_units(actor: type, model: ModelFiles, task: Any, units: list[dict[str, Any]], num_actors: int) -> Iterator[dict[str, Any]]:
    """Yields what the actors return for each unit, as units end. Ray Data schedules them over a pool of actors.

    actor: a class that is made from a Shared and called with a unit. task: what every one of them is told.
    """
    items = ray.data.from_items(units, override_num_blocks=len(units))
    pool = ray.data.ActorPoolStrategy(size=min(num_actors, len(units)))
    shared = Shared(ray.put((model, task)))
    yield from items.map(actor, fn_constructor_args=(shared,), compute=pool, num_cpus=1).iter_rows()
