"""What a cluster is asked for, waited for and refused, by what is here and what its autoscaler may start."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from tests.running import ROOT, job_environment, run_job
from tests.workflows.test_ray_jobs import RAY, end_tree, free_ports
from workflows import cluster
from workflows.cluster import choose_gpu, require_room
from workflows.errors import ServiceError
from workflows.nodes import NO_GROWTH, UNKNOWN_GROWTH, Growth, Nodes, growth_of

CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}
HEAD_NODE = {"CPU": 0.0, "memory": 1e9}
L4 = {"CPU": 8.0, "GPU": 1.0}
# The id by which Ray's node provider for tests, which starts nodes on this machine, knows the head.
HEAD_ID = "f" * 51 + "00000"


def scaled_to_zero(growth: Growth) -> Nodes:
    return Nodes((HEAD_NODE,), HEAD_NODE, growth)


def test_cluster_yaml_can_hold_four_workers_with_a_gpu_each() -> None:
    nodes = scaled_to_zero(growth_of(ROOT / "cluster.yaml"))
    assert nodes.room({"CPU": 2.0, "GPU": 1.0}) == 4
    assert nodes.room({"CPU": 9.0}) == 0
    assert nodes.room(CPU) == 32


def test_all_types_together_start_no_more_nodes_than_the_cluster_may_have(tmp_path: Path) -> None:
    types = {"a": {"resources": L4, "max_workers": 4}, "b": {"resources": {"CPU": 2}, "max_workers": 4}, "head": {"resources": {"CPU": 4}}}
    config = {"max_workers": 5, "available_node_types": types, "head_node_type": "head"}
    growth = Growth((L4,) * 4 + ({"CPU": 2},) * 4, 5)
    nodes = scaled_to_zero(growth)
    assert nodes.room(GPU) == 4
    assert nodes.room({"CPU": 2.0}) == 4 * 4 + 1
    assert growth_from(tmp_path / "a.yaml", config) == growth


def growth_from(file: Path, config: object) -> Growth:
    file.write_text(yaml.safe_dump(config))
    return growth_of(file)


def test_a_configuration_that_states_no_resources_says_nothing_about_limits(tmp_path: Path) -> None:
    assert growth_from(tmp_path / "a.yaml", {"available_node_types": {"a": {"max_workers": 4}}}) == UNKNOWN_GROWTH
    assert growth_of(tmp_path / "missing.yaml") == UNKNOWN_GROWTH


@pytest.fixture
def demanded(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    """What the autoscaler was asked for, on a cluster without a free node, as long as it was asked."""
    asked: list[list[dict[str, float]]] = []

    @contextmanager
    def demand(bundles: list[dict[str, float]]) -> Iterator[None]:
        asked.append(bundles)
        yield
        asked.append([])

    monkeypatch.setattr(cluster, "demand", demand)
    monkeypatch.setattr(cluster, "room_here", lambda bundle: 0)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 9.0, "GPU": 9.0})
    return asked


def with_growth(monkeypatch: pytest.MonkeyPatch, growth: Growth) -> None:
    monkeypatch.setattr(Nodes, "look", lambda: scaled_to_zero(growth))


@pytest.mark.parametrize("growth", [NO_GROWTH, Growth((L4,) * 4, 4), Growth((L4,) * 9, 4)])
def test_what_no_node_can_give_is_refused_at_once(
    growth: Growth, demanded: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_growth(monkeypatch, growth)
    with pytest.raises(ServiceError, match=r"cannot give 5 x \(1 CPU, 1 GPU\) and 1 CPU, .*it has, or can start, .*; ask for less"):
        require_room(GPU, 5, 900, 1)
    assert demanded == []


def test_nodes_that_can_be_started_are_asked_for_and_waited_for(
    demanded: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_growth(monkeypatch, Growth((L4,) * 4, 4))
    monkeypatch.setattr(cluster, "room_here", lambda bundle: 9 if demanded else 0)
    require_room(GPU, 4, 900, 1)
    assert demanded == [[GPU] * 4 + [CPU], []]


def test_where_limits_are_not_known_the_job_waits_says_so_and_ends(
    demanded: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_growth(monkeypatch, UNKNOWN_GROWTH)
    with (
        caplog.at_level("INFO", "vae"),
        pytest.raises(ServiceError, match=r"1 s for nodes for 2 x \(1 CPU\); the cluster has nothing"),
    ):
        require_room(CPU, 2, 1)
    assert "waiting up to 1 s for nodes for 2 x (1 CPU); the cluster has" in caplog.text
    assert len(demanded) == 1


def test_what_others_hold_is_waited_for_and_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    free = iter([{"CPU": 1.0}] * 5)
    monkeypatch.setattr(cluster, "room_here", lambda bundle: 4)
    monkeypatch.setattr(cluster, "HELD_FOR_LONG_S", 0.0)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "available_resources", lambda: next(free, {"CPU": 3.0}))
    with caplog.at_level("INFO", "vae"):
        require_room(CPU, 2, 60, 1)
    assert "for others to leave 2 x (1 CPU) and 1 CPU; the cluster has 4 CPU, free are 1 CPU" in caplog.text
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ServiceError, match=r"waited 1 s for others to leave 2 x \(1 CPU\) and 1 CPU"):
        require_room(CPU, 2, 1, 1)


def test_gpus_that_can_be_started_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with_growth(monkeypatch, growth_of(ROOT / "cluster.yaml"))
    assert choose_gpu(CPU, 4)
    assert not choose_gpu(CPU, 5)
    assert not choose_gpu({"CPU": 9.0}, 1)
    with_growth(monkeypatch, UNKNOWN_GROWTH)
    assert not choose_gpu(CPU, 1)


@contextmanager
def growing_cluster(folder: Path, **environment: str) -> Iterator[str]:
    """A cluster without CPUs whose autoscaler may start two nodes of two CPUs, on this machine."""
    port, agent, metrics, client = free_ports(4)
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{port}",
        **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check", "foreground_node_launch"), True),
        **{"launch_multiple": True, "head_node_id": HEAD_ID},
    }
    types = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    types["cpus"] = {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    lists = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files"]
    lists += ["head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter"]
    config = {"cluster_name": "grows", "max_workers": 2, "idle_timeout_minutes": 5, "provider": provider, "available_node_types": types}
    config |= {"head_node_type": "ray.head.default", "auth": {}, "file_mounts": {}, "upscaling_speed": 1.0, **{name: [] for name in lists}}
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=0", "--disable-usage-stats"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}"]
    command += ["--include-dashboard=false", f"--autoscaling-config={file}", "--temp-dir", f"/tmp/vae-{secrets.token_hex(4)}"]
    fake = {"RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (folder / "head.txt").open("w") as log:
        process = subprocess.Popen(
            command, env=job_environment(RAY_AUTH_MODE="disabled", **fake, **environment), stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (folder / "head.txt").read_text():
            assert process.poll() is None, (folder / "head.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        end_tree(process)


V2 = {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID}


@pytest.mark.slow
@pytest.mark.parametrize("autoscaler", [{}, V2], ids=["v1", "v2"])
def test_a_cluster_that_is_scaled_to_zero_starts_nodes_for_a_job(autoscaler: dict[str, str], tmp_path: Path) -> None:
    table = pa.table({"id": range(200), "x": [float(i % 17) / 3 for i in range(200)]})
    pq.write_table(table, tmp_path / "table.parquet")
    with growing_cluster(tmp_path, **autoscaler) as address:
        options = ("--data.path", tmp_path / "table.parquet", "--data.key", "id", "--training.epochs", 1, "--cluster.address", address)
        started = time.monotonic()
        refused = run_job(tmp_path, "train.py", *options, "--cluster.num_workers", 5, RAY_AUTH_MODE="disabled")
        assert refused.code == 69, refused.stderr
        assert "the cluster cannot give 5 x (1 CPU), each on one node: it has, or can start, 4 CPU" in refused.stderr
        assert time.monotonic() - started < 60
        trained = run_job(tmp_path, "train.py", *options, "--cluster.num_workers", 3, RAY_AUTH_MODE="disabled")
        assert trained.json["train"]["num_rows"] + trained.json["validation"]["num_rows"] == 200
        assert "s for nodes for 3 x (1 CPU); the cluster has nothing" in trained.stderr
