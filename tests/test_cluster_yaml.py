"""Claims about cluster.yaml, checked offline by the code that `ray up` itself runs before it asks AWS for anything."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError  # type: ignore[import-untyped, unused-ignore]
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.job.cli import submit

from workflows.config import TrainConfig
from workflows.job import parse

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")

Cluster = dict[str, Any]
Options = dict[str, Any]


def prepared(cluster: Cluster) -> Cluster:
    """Returns `cluster` with Ray's defaults filled in, after Ray's own validation; raises what `ray up` would raise."""
    config: Cluster = prepare_config(copy.deepcopy(cluster))
    validate_config(config)
    return config


@pytest.fixture
def written() -> Cluster:
    """Returns the file as it is written."""
    cluster: Cluster = yaml.safe_load(TEXT)
    return cluster


@pytest.fixture
def cluster(written: Cluster) -> Cluster:
    """Returns the file as Ray understands it."""
    return prepared(written)


def gpu_types(cluster: Cluster) -> dict[str, Cluster]:
    """Returns the node types that are not the head's, by name."""
    return {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def start_options(commands: list[str]) -> Options:
    """Returns the options of the one `ray start` in `commands`, as Ray's own command line reads them; nothing is started."""
    (line,) = [command for command in commands if "ray start" in command]
    words = shlex.split(line.partition("ray start")[2])
    with warnings.catch_warnings(action="ignore"):  # it imports Ray Serve, whose settings Pydantic 2.14 calls deprecated (Ray 2.60)
        from ray.scripts.scripts import start
    options: Options = start.make_context("ray start", words).params
    return options


def opening_commands() -> list[str]:
    """Returns the commands of the opening comment, those over several lines joined."""
    comment = TEXT.partition("\ncluster_name:")[0].replace("\\\n#", " ")
    return [line.removeprefix("#   ") for line in comment.splitlines() if line.startswith("#   ")]


def submit_options() -> Options:
    """Returns the options of the `ray job submit` in the opening comment, those of the job by name beside those of Ray."""
    (line,) = [command for command in opening_commands() if command.startswith("ray job submit ")]
    options: Options = submit.make_context("ray job submit", shlex.split(line)[3:]).params
    entry = options["entrypoint"]
    assert entry[:2] == ("python", "workflows/train.py")
    return options | dict(zip(entry[2::2], entry[3::2], strict=True))


def test_ray_accepts_the_file(written: Cluster) -> None:
    assert prepared(written)["cluster_name"] == "vae"


def unknown_top_level_key(cluster: Cluster) -> None:
    cluster["max_worker"] = 4


def head_type_that_does_not_exist(cluster: Cluster) -> None:
    cluster["head_node_type"] = "nobody"


def gpu_as_a_string(cluster: Cluster) -> None:
    cluster["available_node_types"]["gpu_on_demand"]["resources"]["GPU"] = "1"


def node_type_without_resources(cluster: Cluster) -> None:
    del cluster["available_node_types"]["gpu_spot"]["resources"]


def misspelt_key_of_a_node_type(cluster: Cluster) -> None:
    cluster["available_node_types"]["gpu_spot"]["max_worker"] = 1


def command_that_is_not_text(cluster: Cluster) -> None:
    cluster["setup_commands"].append({"run": "true"})


def more_nodes_asked_for_than_allowed(cluster: Cluster) -> None:
    cluster["available_node_types"]["gpu_on_demand"]["min_workers"] = cluster["max_workers"] + 1


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (unknown_top_level_key, ValidationError, "'max_worker' was unexpected"),
        (head_type_that_does_not_exist, ValueError, "`head_node_type` must be one of"),
        (gpu_as_a_string, ValidationError, "'1' is not of type 'integer'"),
        (node_type_without_resources, ValidationError, "'resources' is a required property"),
        (misspelt_key_of_a_node_type, ValidationError, "'max_worker' was unexpected"),
        (command_that_is_not_text, ValidationError, "is not of type 'string'"),
        (more_nodes_asked_for_than_allowed, ValueError, "smaller than the sum of `min_workers`"),
    ],
)
def test_ray_refuses_the_file_when_it_is_broken(
    written: Cluster, break_it: Callable[[Cluster], None], error: type[Exception], message: str
) -> None:
    break_it(written)
    with pytest.raises(error, match=re.escape(message)):
        prepared(written)


def test_head_offers_no_cpu_and_no_gpu_to_tasks(cluster: Cluster) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    options = start_options(cluster["head_start_ray_commands"])
    assert options["head"] is True
    assert options["num_cpus"] == 0


def test_dashboard_listens_on_the_head_alone(cluster: Cluster) -> None:
    assert start_options(cluster["head_start_ray_commands"])["dashboard_host"] == "127.0.0.1"
    assert "0.0.0.0" not in TEXT
    assert "IpPermissions" not in cluster["provider"]["security_group"]  # Ray's default: the group itself, and ssh


def test_head_runs_the_autoscaler_where_ray_up_puts_its_configuration(cluster: Cluster) -> None:
    assert start_options(cluster["head_start_ray_commands"])["autoscaling_config"] == "~/ray_bootstrap_config.yaml"


def test_workers_join_the_port_that_the_head_opens(cluster: Cluster) -> None:
    port = start_options(cluster["head_start_ray_commands"])["port"]
    assert start_options(cluster["worker_start_ray_commands"])["address"] == f"$RAY_HEAD_IP:{port}"


def test_every_worker_type_declares_its_gpus_and_starts_from_zero(cluster: Cluster) -> None:
    assert gpu_types(cluster)
    for name, node in gpu_types(cluster).items():
        assert node["resources"]["GPU"] >= 1, name
        assert node["resources"]["CPU"] > node["resources"]["GPU"], f"{name}: no CPU is left to read data"
        assert node["min_workers"] == 0, name
        assert node["max_workers"] <= cluster["max_workers"], name


def test_some_gpu_type_may_be_started_and_idle_ones_are_ended(cluster: Cluster) -> None:
    assert max(node["max_workers"] for node in gpu_types(cluster).values()) >= 1
    assert 0 < cluster["idle_timeout_minutes"] <= 60
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_spot_and_on_demand_differ_in_the_market_alone(cluster: Cluster) -> None:
    nodes = {name: dict(node["node_config"]) for name, node in gpu_types(cluster).items()}
    market = {name: node.pop("InstanceMarketOptions", None) for name, node in nodes.items()}
    assert market == {"gpu_on_demand": None, "gpu_spot": {"MarketType": "spot"}}
    assert nodes["gpu_spot"] == nodes["gpu_on_demand"]
    types = gpu_types(cluster)
    assert types["gpu_spot"]["resources"] == types["gpu_on_demand"]["resources"]
    assert types["gpu_spot"]["priority"] > types["gpu_on_demand"].get("priority", 0)


def test_every_node_type_has_an_instance_profile_and_the_head_has_its_own(cluster: Cluster) -> None:
    profiles = {name: node["node_config"]["IamInstanceProfile"] for name, node in cluster["available_node_types"].items()}
    assert all(profile.get("Name") or profile.get("Arn") for profile in profiles.values())
    head = profiles.pop(cluster["head_node_type"])
    assert head not in profiles.values()  # the right to start machines stays with the head


def test_every_node_type_names_its_image_and_a_disk(cluster: Cluster) -> None:
    for name, node in cluster["available_node_types"].items():
        assert node["node_config"]["ImageId"].startswith("ami-"), f"{name}: without one Ray takes Ubuntu 18.04"
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 100, name
        assert disk["Ebs"]["Encrypted"] is True, name


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_starts_with_token_authentication(cluster: Cluster, commands: str) -> None:
    (line,) = [command for command in cluster[commands] if "ray start" in command]
    assert re.search(r"(^|; )RAY_AUTH_MODE=token ray start ", line)


def test_the_token_reaches_every_node_and_only_its_user_reads_it(cluster: Cluster) -> None:
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster[commands])


def test_every_node_installs_the_locked_versions(cluster: Cluster) -> None:
    (lock,) = [remote for remote, local in cluster["file_mounts"].items() if local == "requirements.lock"]
    for commands in ("head_setup_commands", "worker_setup_commands"):
        installs = [command for command in cluster[commands] if "pip install" in command]
        assert len(installs) == 1
        assert f"-r {lock}" in installs[0]


def test_mounted_files_of_the_repository_exist(cluster: Cluster) -> None:
    inside = [local for local in cluster["file_mounts"].values() if not local.startswith("~")]
    assert inside
    for local in inside:
        assert not Path(local).is_absolute(), local
        assert (ROOT / local).is_file(), local


def test_every_command_is_valid_shell(cluster: Cluster) -> None:
    keys = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    for command in [command for key in keys for command in cluster[key]]:
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_the_submit_line_names_options_that_train_has() -> None:
    words = [word for pair in submit_options().items() if pair[0].startswith("--") for word in pair]
    assert parse(TrainConfig, words).data.key == "customer_id"


def test_the_submit_line_keeps_nothing_on_the_cluster() -> None:
    options = submit_options()
    assert options["address"].startswith("http://127.0.0.1:")
    assert options["working_dir"] == "."
    assert options["--data.path"].startswith("s3://")
    assert options["--run.storage_path"].startswith("s3://")
    assert options["--registry.tracking_uri"].startswith("http")


def test_the_submit_line_asks_for_no_more_gpus_than_the_cluster_may_start(cluster: Cluster) -> None:
    each = [node["resources"]["GPU"] * min(node["max_workers"], cluster["max_workers"]) for node in gpu_types(cluster).values()]
    assert 1 <= int(submit_options()["--cluster.num_workers"]) <= max(each)


def test_the_opening_comment_leads_from_up_to_down() -> None:
    steps = ["export RAY_AUTH_MODE=token", "ray get-auth-token --generate", "ray up", "ray dashboard", "ray job submit", "ray down"]
    commands = opening_commands()
    found = [next(step for step in steps if command.startswith(step)) for command in commands if command.startswith(tuple(steps))]
    assert found == steps
