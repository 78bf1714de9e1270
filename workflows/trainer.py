"""Ray Train with its controller in this process instead of an actor: fewer processes to wait for, and to pay for while training runs.

The actor takes four seconds to come up before the workers can, and whatever it starts has a runtime environment of its own, so that no
process that waits idle can be used; the actor that cleans up after it stays on a shared cluster when the driver is killed. Both take 2 %
of a core and 250 MB all the time. What this rests on is private in Ray Train (2.60); the names below that begin with an underscore are it,
and every test that trains runs through them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
import ray.train
from ray._private.log import PlainRayHandler
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR, HEALTH_CHECK_INTERVAL_S_ENV_VAR
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup

# Variables that Ray Train hands on to workers, which have no use for them.
OF_THE_CONTROLLER = {HEALTH_CHECK_INTERVAL_S_ENV_VAR, ENABLE_PREEMPTION_WATCHER_ENV_VAR}


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
