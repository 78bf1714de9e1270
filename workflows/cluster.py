"""Connecting to Ray, what it has, and what a submitted job must be told."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from workflows.checks import ConfigError
from workflows.config import ClusterConfig
from workflows.errors import ServiceError, logger
from workflows.job import stop_on_sigterm
from workflows.nodes import Nodes, Resources, demand, room_here

if TYPE_CHECKING:
    from ray.train import ScalingConfig

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vae", "data", "workflows")
CONNECT_S = 10.0
# A job's own tasks and actors hold resources for a moment after their end; what is held for longer is worth a word.
HELD_FOR_LONG_S = 5.0
# How often it is said what is waited for.
SAY_S = 30.0
# What a Ray of one job does without: looking for nodes that are taken away, and metrics that nobody reads.
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0", "REPORTER_UPDATE_INTERVAL_MS": "60000"}


def is_submitted() -> bool:
    """Whether this process is a job's entry point on a cluster, in a working directory that goes away with it."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def is_shared(address: str | None) -> bool:
    """Whether a job that names this address runs on a cluster that is there for others too, and on none of its own."""
    return bool(address or os.environ.get("RAY_ADDRESS")) or is_submitted()


@contextmanager
def connected(address: str | None, num_workers: int = 1) -> Iterator[None]:
    """Connects to the cluster at `address`, to RAY_ADDRESS or the job's own, or starts Ray here; ends what it started.

    Within a connection of the job it is that one. Raises ServiceError where no cluster answers.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # That the workers ended is seen at the controller's next look, every 2 s by default.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # A worker that stands still leaves no process group: it is ended all the same, not 30 s later.
    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")
    shared = is_shared(address)
    address = address or os.environ.get("RAY_ADDRESS")
    refuse_silent(address)
    try:
        if shared:
            ray.init(
                address=address or "auto",
                runtime_env=None if is_submitted() else {"py_modules": [str(ROOT / name) for name in PACKAGES]},
                **quiet(),
            )
        else:
            os.environ["PYTHONPATH"] = os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
            )  # what Ray's processes inherit
            for name, value in ALONE.items():
                os.environ.setdefault(name, value)
            # Ray Data needs a CPU beside those that the workers hold, or both wait for ever.
            ray.init(address="local", num_cpus=max(os.cpu_count() or 1, num_workers + 1), include_dashboard=False, **quiet())
    except Exception as error:  # Ray raises Exception itself where its processes did not start in time
        # Ray's own message says nothing of tokens. A cluster asks for one by default where ~/.ray/auth_token is (Ray 2.60).
        tokenless = shared and os.environ.get("RAY_AUTH_MODE", "").lower() != "token"
        hint = "; if the cluster asks for a token, set RAY_AUTH_MODE=token" if tokenless else ""
        raise ServiceError(f"no Ray cluster at {address or 'this machine'}: {error}{hint}") from error
    stop_on_sigterm()
    try:
        yield
    finally:
        ray.shutdown()


def refuse_silent(address: str | None) -> None:
    """Raises ServiceError where nothing takes connections at HOST:PORT, which Ray tries again for a quarter of an hour."""
    named = re.fullmatch(r"([^:/]+):(\d+)", address or "")
    if named is None:
        return
    try:
        socket.create_connection((named[1], int(named[2])), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ServiceError(f"no Ray cluster at {address}: {error}; see --cluster.address and RAY_ADDRESS") from error


def quiet() -> dict[str, object]:
    """What keeps the job's log to its own lines; workers' failures arrive as exceptions, their logs stay in Ray's session folder."""
    return {"log_to_driver": False, "logging_level": "ERROR"}


@dataclass(frozen=True)
class Workers:
    """What the training workers get: how many at most, and at least, and the resources of each."""

    num_workers: int
    fewest: int
    use_gpu: bool
    per_worker: dict[str, float]
    resize_interval_s: float
    shares_cluster: bool = False

    @property
    def is_elastic(self) -> bool:
        return self.fewest < self.num_workers

    @property
    def reading_cpus(self) -> int:
        """What a reading task takes: none beside workers, of this job or others, that take whatever CPUs there are, or all would wait for
        ever."""
        return 0 if self.is_elastic or self.shares_cluster else 1

    def scaling(self) -> ScalingConfig:
        """Returns this as Ray Train takes it."""
        from ray.train import ScalingConfig  # batch jobs do without Ray Train, whose import takes a second

        wanted = (self.fewest, self.num_workers) if self.is_elastic else self.num_workers
        return ScalingConfig(
            num_workers=wanted,
            use_gpu=self.use_gpu,
            resources_per_worker=self.per_worker,
            elastic_resize_monitor_interval_s=self.resize_interval_s,
        )


def claim_workers(config: ClusterConfig) -> Workers:
    """Returns the workers' resources once the cluster has them for the fewest that will do, and what reading takes beside them.

    Raises ServiceError where it cannot have them, or they did not come in time.
    """
    per_worker = {"CPU": float(config.cpus_per_worker)}
    use_gpu = config.use_gpu if config.use_gpu != "auto" else choose_gpu(per_worker, config.fewest_workers)
    per_worker |= {"GPU": 1.0} if use_gpu else {}
    shared = is_shared(config.address)
    workers = Workers(config.num_workers, config.fewest_workers, use_gpu, per_worker, config.resize_interval_s, shared)
    require_room(per_worker, config.fewest_workers, config.start_timeout_s, workers.reading_cpus)
    return workers


def choose_gpu(per_worker: Resources, num_workers: int) -> bool:
    """Returns whether every worker can have a GPU beside its CPUs."""
    nodes = Nodes.look()
    gpus = nodes.room({**per_worker, "GPU": 1.0})
    if 0 < gpus < num_workers:
        logger.info("GPUs for %d of %d workers: CPUs are used; ask for %d workers, or set cluster.use_gpu", gpus, num_workers, gpus)
    elif not gpus and not nodes.growth.is_known:
        logger.info("no GPU here, and it is not known whether the cluster can start some: CPUs are used; see --cluster.use_gpu")
    return gpus >= num_workers


def require_room(bundle: Resources, number: int, timeout_s: float, more_cpus: int = 0) -> None:
    """Returns when the cluster has nodes for a number of bundles of resources, each on one node, and for more CPUs anywhere, and others do
    not hold them.

    It says so while it waits, and the autoscaler is asked meanwhile. Raises ServiceError at once where not even a grown cluster could have
    them, and after timeout_s where they did not come.
    """
    needed = f"{number} x ({describe(bundle)})" + (f" and {describe({'CPU': more_cpus})}" if more_cpus else "")
    began = time.monotonic()
    if not is_enough(room_here, bundle, number, more_cpus):
        nodes = Nodes.look()
        if nodes.growth.is_known and not is_enough(nodes.room, bundle, number, more_cpus):
            there = describe({name: nodes.room({name: 1.0}) for name in bundle})
            raise ServiceError(f"the cluster cannot give {needed}, each on one node: it has, or can start, {there}; ask for less")
        with demand([bundle] * number + [{"CPU": 1.0}] * more_cpus):
            wait_until(lambda: is_enough(room_here, bundle, number, more_cpus), began, began, timeout_s, f"nodes for {needed}")
    say_at = time.monotonic() + HELD_FOR_LONG_S
    wait_until(lambda: is_free(bundle, number, more_cpus), began, say_at, timeout_s, f"others to leave {needed}")


def wait_until(is_there: Callable[[], bool], began: float, say_at: float, timeout_s: float, what: str) -> None:
    """Returns when something is there; says from say_at on what is waited for. Raises ServiceError timeout_s after it began."""
    while not is_there():
        found = f"the cluster has {describe(ray.cluster_resources())}, free are {describe(ray.available_resources())}"
        if time.monotonic() > began + timeout_s:
            raise ServiceError(f"waited {timeout_s:.0f} s for {what}; {found}")
        if time.monotonic() >= say_at:
            say_at = time.monotonic() + SAY_S
            logger.info("waiting up to %.0f s for %s; %s", began + timeout_s - time.monotonic(), what, found)
        time.sleep(1)


def is_free(bundle: Resources, number: int, more_cpus: int) -> bool:
    """Whether what so many bundles and CPUs take is free, all nodes together."""
    free = ray.available_resources()
    return all(free.get(name, 0) >= amount * number + (more_cpus if name == "CPU" else 0) for name, amount in bundle.items())


def is_enough(room: Callable[[Resources], int], bundle: Resources, number: int, more_cpus: int) -> bool:
    """Whether there is room for a number of bundles, and CPUs are left besides."""
    return room(bundle) >= number and room({"CPU": 1.0}) >= number * bundle["CPU"] + more_cpus


def describe(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()) if name in ("CPU", "GPU")) or "nothing"


def check_submitted(problems: list[str], submit_line: str) -> None:
    """Raises ConfigError for defaults that would be lost with a submitted job, all at once, with a line that would work."""
    if problems:
        raise ConfigError(
            "this job runs on a cluster, where defaults would be lost with it:\n  "
            + "\n  ".join(problems)
            + f"\na complete line:\n  {submit_line}"
        )
