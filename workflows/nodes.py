"""The nodes of a Ray cluster: those that are here, and those that its autoscaler may start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

Resources = Mapping[str, float]

HEAD = "node:__internal_head__"
# How long a node may take to start a task that only looks.
LOOK_S = 60


@dataclass(frozen=True)
class Growth:
    """The nodes that may be started beside the head: at most `most` of `nodes`.

    is_known: False where something other than the head's own monitor starts nodes, such as KubeRay's autoscaler, and tells nobody how many.
    """

    nodes: tuple[Resources, ...] = ()
    most: int = 0
    is_known: bool = True


NO_GROWTH, UNKNOWN_GROWTH = Growth(), Growth(is_known=False)


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster by their resources: those that are here, the head among them, and those that may be started."""

    here: tuple[Resources, ...]
    head: Resources
    growth: Growth = NO_GROWTH

    @staticmethod
    def look() -> Nodes:
        """Returns the nodes of the cluster that this process is connected to."""
        alive = alive_nodes()
        head = next(node for node in alive if HEAD in node["Resources"])
        return Nodes(tuple(node["Resources"] for node in alive), head["Resources"], growth(head["NodeID"]))

    def room(self, bundle: Resources) -> int:
        """Returns how many bundles the nodes that are here hold, or those that may be if that is more; unknown growth counts nothing."""
        grown = sorted(each_fits(bundle, self.growth.nodes), reverse=True)[: self.growth.most]
        return max(sum(each_fits(bundle, self.here)), sum(each_fits(bundle, [self.head])) + sum(grown))


def each_fits(bundle: Resources, nodes: Iterable[Resources]) -> list[int]:
    """Returns how many bundles of resources fit on each node when nothing runs there."""
    return [min(int(node.get(name, 0) / amount) for name, amount in bundle.items()) for node in nodes]


def room_here(bundle: Resources) -> int:
    """Returns how many bundles, each on one node, the nodes that are here hold together when nothing runs."""
    return sum(each_fits(bundle, [node["Resources"] for node in alive_nodes()]))


def alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def growth(head: str) -> Growth:
    """Returns what the autoscaler may start, as the head knows it. Ray itself tells its drivers what is here, and no limits (2.60)."""
    context = ray.get_runtime_context()
    port = context.gcs_address.rpartition(":")[2]
    if context.get_node_id() == head:
        return read_growth(port)
    try:
        found: Growth = ray.get(task_on(head, read_growth).remote(port), timeout=LOOK_S)
    except ray.exceptions.GetTimeoutError:
        return UNKNOWN_GROWTH
    return found


def task_on(node_id: str, function: Any) -> Any:
    """Returns a function as a Ray task that takes no resources, on a node that may have none."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))(function)


def read_growth(port: str) -> Growth:
    """Returns what the monitor of the Ray at that port, a process of this machine, may start; every head has one but KubeRay's."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
        is_monitor = any(Path(word).name == "monitor.py" for word in words)
        if is_monitor and options.get("gcs-address", "").rpartition(":")[2] == port:
            file = options.get("autoscaling-config")
            return NO_GROWTH if file is None else growth_of(Path(file).expanduser())
    return UNKNOWN_GROWTH


def growth_of(file: Path) -> Growth:
    """Returns what a cluster's configuration, such as cluster.yaml, lets the autoscaler start. What it does not say is not known."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        return UNKNOWN_GROWTH
    most = config.get("max_workers", 2)  # Ray's default
    types = [kind for name, kind in config.get("available_node_types", {}).items() if name != config.get("head_node_type")]
    if not types or not all(kind.get("resources") for kind in types):
        return UNKNOWN_GROWTH
    return Growth(tuple(kind["resources"] for kind in types for _ in range(min(most, kind.get("max_workers", most)))), most)


def nodes_without(path: str) -> list[str]:
    """Returns the addresses of the nodes that do not see a file of this one, each once."""
    alive = alive_nodes()
    seen = ray.get([task_on(node["NodeID"], Path.is_file).remote(Path(path)) for node in alive], timeout=LOOK_S)
    return sorted({node["NodeManagerAddress"] for node, found in zip(alive, seen, strict=True) if not found})


@contextmanager
def demand(bundles: list[Resources]) -> Iterator[None]:
    """Makes the autoscaler see a need for bundles while open.

    It is a placement group, which adds to what others ask for and goes with this job however it ends; ray.autoscaler.sdk.request_resources
    has one request for a whole cluster, which stays.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    try:
        yield
    finally:
        remove_placement_group(group)
