"""The pool of actors that does a batch job's units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from data.encoding import EncodingFormatError
from data.listing import DataError
from data.output import LostError, OutputError
from vae.bundle import BundleError


@dataclass(frozen=True)
class ModelFiles:
    """A pinned model as it travels to actors. metadata: what every output file's footer says of it."""

    files: dict[str, bytes]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Shared:
    """A model and a task in the object store, kept there by the driver for actors that start, or start again, later."""

    reference: ray.ObjectRef


# What an actor's work may raise that has an exit code of its own. Ray Data hands on only the text of what an actor raises.
KINDS: list[type[Exception]] = [DataError, OutputError, LostError, BundleError, EncodingFormatError]
FAILURES = {kind.__name__: kind for kind in KINDS}


class Reporting:
    """An actor that reports what its work raises, so that the driver raises the same."""

    def __init__(self, actor: type, shared: Shared) -> None:
        self.work = actor(shared)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"done": self.work(unit)}
        except tuple(KINDS) as error:
            return {"failed": [type(error).__name__, str(error)]}


@dataclass(frozen=True)
class Pool:
    """How many actors work at once, and whether each has a GPU."""

    num_actors: int
    use_gpu: bool


def run_units(actor: type, model: ModelFiles, task: Any, units: Sequence[Mapping[str, Any]], pool: Pool) -> Iterator[dict[str, Any]]:
    """Yields what the actors return for each unit, as units end. Ray Data schedules them over a pool of actors.

    actor: a class that is made from a Shared and called with a unit. task: what every one of them is told. Raises what the work does.
    """
    # Results may hold Python objects; Ray Data is to know that this is meant.
    ray.data.DataContext.get_current().enable_fallback_to_arrow_object_ext_type = True
    items = ray.data.from_items([dict(unit) for unit in units], override_num_blocks=len(units))
    actors = ray.data.ActorPoolStrategy(size=min(pool.num_actors, len(units)))
    shared = Shared(ray.put((model, task)))
    options = {"num_cpus": 1} | ({"num_gpus": 1} if pool.use_gpu else {})
    for result in items.map(Reporting, fn_constructor_args=(actor, shared), compute=actors, **options).iter_rows():
        if result.get("failed"):
            kind, message = result["failed"]
            raise FAILURES[kind](message)
        yield result["done"]
