"""The pool of actors that does a batch job's units.

Plain Ray actors: Ray Data would start three more actors of its own and an executor that polls, for units that are neither rows nor blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import ray

from data.encoding import EncodingFormatError
from data.listing import DataError
from data.output import LostError, OutputError
from data.stores import StoreError
from vae.bundle_files import BundleError
from workflows.errors import ComputationError
from workflows.memory import keep_freed_memory

# Units that an actor has been given and not finished: the next one is there when it ends one.
UNITS_AHEAD = 2
# Times that a unit is tried again when its actor or its node was lost.
MAX_RETRIES = 3
# What an actor's work may raise that has an exit code of its own. Ray hands on the text of what an actor raises, and not all of it.
KINDS: list[type[Exception]] = [DataError, StoreError, OutputError, LostError, BundleError, EncodingFormatError]
FAILURES = {kind.__name__: kind for kind in KINDS}


@dataclass(frozen=True)
class ModelFiles:
    """A pinned model as it travels to actors. metadata: what every output file's footer says of it."""

    files: dict[str, bytes]
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.metadata.get('vae.model_name', 'bundle')} {self.metadata['vae.model_version']}"


@dataclass(frozen=True)
class Shared:
    """A model and a task in the object store, kept there by the driver for actors that start, or start again, later."""

    reference: ray.ObjectRef


Work = Callable[[Mapping[str, Any]], dict[str, Any]]


class Worker:
    """An actor that makes its work from what is shared, once, and reports what the work raises, so that the driver raises the same."""

    def __init__(self) -> None:
        keep_freed_memory()
        self.work: Work | None = None

    def do(self, kind: str, shared: Shared, unit: Mapping[str, Any] | None) -> dict[str, Any]:
        """Does a unit; None: is ready for one. An actor that was started again makes its work anew."""
        try:
            self.work = self.work or resolve_name(kind)(shared)
            return {"done": None if unit is None else self.work(unit)}
        except tuple(KINDS) as error:
            return {"failed": [type(error).__name__, str(error)]}


@dataclass(frozen=True)
class Pool:
    """How many actors work at once, and whether each has a GPU."""

    num_actors: int
    use_gpu: bool


def run_units(kind: str, model: ModelFiles, task: Any, units: Sequence[Mapping[str, Any]], pool: Pool) -> Iterator[dict[str, Any]]:
    """Yields what the actors return for each unit, as units end; an actor that has not come, for want of room, is not waited for.

    kind: "MODULE:NAME" of what makes the work of a Shared, which the actors alone import; task: what every actor is told. Raises what the
    work does, and ComputationError for a unit whose actors die of it.
    """
    shared = Shared(ray.put((model, task)))
    remote = ray.remote(num_cpus=1, num_gpus=int(pool.use_gpu), max_restarts=-1, max_task_retries=MAX_RETRIES)(Worker)
    actors = [remote.remote() for _ in range(min(pool.num_actors, len(units)))]
    try:
        yield from distributed(actors, lambda actor, unit: actor.do.remote(kind, shared, unit), deque(units))
    finally:
        for actor in actors:
            ray.kill(actor)


def distributed(
    actors: Sequence[Any], do: Callable[[Any, Any], ray.ObjectRef], waiting: deque[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yields the units' results; each actor gets units when it is ready, and the next one before it ends the last.

    do(actor, unit) has a unit done; of None, it ends when the actor is ready.
    """
    under_way: dict[ray.ObjectRef, Any] = {}

    def give(actor: Any, unit: Mapping[str, Any] | None) -> None:
        under_way[do(actor, unit)] = actor

    num_left = len(waiting)
    giving = ThreadPoolExecutor(1)  # a stop interrupts the main thread alone: what was given is known
    giving.submit(len, ()).result()  # a stop while it starts would have it forgotten: it starts before anything is given
    try:
        list(giving.map(give, actors, [None] * len(actors)))
        starting = set(under_way)
        while num_left:
            (ended,), _ = ray.wait(list(under_way), num_returns=1)
            actor = under_way.pop(ended)
            result = outcome(ended)
            while waiting and sum(other is actor for other in under_way.values()) < UNITS_AHEAD:
                giving.submit(give, actor, waiting.popleft()).result()
            if ended not in starting:
                num_left -= 1
                yield result
    finally:
        giving.shutdown()
        for reference in under_way:
            ray.cancel(reference)  # else Ray says that it tries again what the actors are killed over


def outcome(reference: ray.ObjectRef) -> Any:
    """Returns what a unit's work did. Raises what it raised."""
    try:
        result = ray.get(reference)
    except ray.exceptions.RayActorError as error:
        raise ComputationError(
            f"a unit was given up after {1 + MAX_RETRIES} actors died over it, for want of memory perhaps: {error}"
        ) from error
    if "failed" in result:
        kind, message = result["failed"]
        raise FAILURES[kind](message)
    return result["done"]
