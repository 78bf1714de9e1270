"""Ray Train with its controller in this process instead of an actor: fewer processes to wait for, and to pay for while training runs.

The actor takes four seconds to come up before the workers can, and whatever it starts has a runtime environment of its own, so that no
process that waits idle can be used; the actor that cleans up after it stays on a shared cluster when the driver is killed. Both take 2 %
of a core and 250 MB all the time. What this rests on is private in Ray Train (2.60); the names below that begin with an underscore are it,
and every test that trains runs through them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

import ray
import ray.train
from ray._private.log import PlainRayHandler
from ray.actor import ActorHandle
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
)
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from workflows.cluster import SAY_S
from workflows.errors import ComputationError, ServiceError, logger
from workflows.job import known_cause
from workflows.mailbox import Ear, Message

# How long a job that is asked to stop waits for its workers to save; `ray job stop` kills after 3 seconds anyway.
STOP_S = 60
# How long the end of Ray Train's controller is waited for: it ends its workers in good order.
END_S = 10
# Workers whose last words came so much before the others' are named.
SILENCE_S = 5.0

Hear = Callable[[Message], None]

# Variables that Ray Train hands on to workers, which have no use for them.
OF_THE_CONTROLLER = {HEALTH_CHECK_INTERVAL_S_ENV_VAR, ENABLE_PREEMPTION_WATCHER_ENV_VAR, WORKER_GROUP_START_TIMEOUT_S_ENV_VAR}
# Starts of the workers that may fail before the run does; each is given its part of the time, or as long as workers take to start at least.
MAX_FAILED_STARTS = 3
LEAST_START_S = 60.0


class Workers(WorkerGroup):
    """Training workers that know of no controller's actor: what they would ask it for, Ray Train's checkpoints, is not used here."""

    def _init_train_context_on_workers(self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]) -> None:
        told = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[number] for name, values in train_context_args.items()},
            )
            for number, worker in enumerate(workers)
        ]
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: dict[str, Any]) -> dict[str, Any]:
        """Returns the workers' runtime environment; an empty one where nothing has to be set, so that they can use idle processes."""
        found: dict[str, Any] = WorkerGroup._get_worker_runtime_env(custom_runtime_env)
        variables = {name: value for name, value in found.pop("env_vars").items() if name not in OF_THE_CONTROLLER}
        return found | ({"env_vars": variables} if variables else {})


class Controller(TrainController):
    """The controller whose log stays in Ray's session folder, as an actor's would."""

    worker_group_cls = Workers

    def _start(self) -> None:
        log = logging.getLogger("ray.train")
        log.handlers = [handler for handler in log.handlers if not isinstance(handler, PlainRayHandler)]
        super()._start()


class DriverTrainer(TorchTrainer):
    """A TorchTrainer whose `fit` is the controller. Call it on a thread that can wait."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> ray.train.Result:
        controller = Controller(**parts)
        asyncio.run(controller.run())
        return controller.get_result()


def run_trainer(trainer: DriverTrainer, mailbox: ActorHandle, hear: Hear, start_timeout_s: float) -> None:
    """Waits for the training, handing on what the workers say as it comes.

    Raises as fit does; ServiceError where workers did not start in time. The controller runs in a thread of its own, so that the main
    thread hears the workers, and Ctrl-C.
    """
    os.environ[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] = str(max(LEAST_START_S, start_timeout_s / (1 + MAX_FAILED_STARTS)))
    outcome: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:  # raised again where the result is asked for
            outcome.set_exception(error)

    said: set[str] = set()

    def take(message: Message) -> None:
        if message["kind"] == "failure":
            raise ComputationError(message["message"])
        said.add(message["kind"])
        hear(message)

    threading.Thread(target=fit, daemon=True).start()
    ear, begun, num_said = Ear(mailbox, take), time.monotonic(), 0
    try:
        while not outcome.done():
            ear.listen(0.5)
            if not said and time.monotonic() - begun > SAY_S * (1 + num_said):
                num_said += 1
                logger.info("waiting for the workers to start, for %.0f s by now: others may hold what they need", SAY_S * num_said)
    except KeyboardInterrupt:
        if not said:  # no worker has begun: there is nothing to save, and they may come late or never
            raise
        logger.info("stopping: the workers save where they stand")
        ray.get(mailbox.stop.remote())
        deadline = time.monotonic() + STOP_S
        while not outcome.done() and time.monotonic() < deadline and "stopped" not in said:
            ear.listen(0.2)
        wait([outcome], timeout=END_S)
        raise
    except ComputationError:
        wait([outcome], timeout=END_S)
        raise
    ear.listen(0.0)
    try:
        outcome.result()
    except ray.train.TrainingFailedError as error:
        if known_cause(error) is not None:
            raise
        if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            raise ServiceError(
                f"the workers did not start within {time.monotonic() - begun:.0f} s: no node has what one of them needs, or others hold "
                f"it; the cluster has {ray.cluster_resources()}, free are {ray.available_resources()}. See --cluster.start_timeout_s"
            ) from error
        raise ComputationError(describe_failure(error, ray.get(mailbox.silence.remote()))) from error


def describe_failure(error: ray.train.TrainingFailedError, silence: Mapping[int, tuple[float, int]]) -> str:
    """Returns which workers failed and how, and which were not heard of for long."""
    failures = getattr(error, "worker_failures", None) or {}
    lines = [f"worker of rank {rank}: {str(failure).strip().splitlines()[-1][:500]}" for rank, failure in sorted(failures.items())]
    last = min((seconds for seconds, _ in silence.values()), default=0.0)  # Ray ended them all at about that time
    lines += [
        f"worker of rank {rank} was last heard of {seconds:.0f} s ago, after step {step}"
        for rank, (seconds, step) in sorted(silence.items())
        if seconds > last + SILENCE_S
    ]
    return "training failed and did not recover; the same command goes on from the last checkpoint:\n  " + "\n  ".join(
        lines or [str(error)]
    )
