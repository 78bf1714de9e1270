"""Real Ray, a real MLflow store, real processes: what the tests of workflows/ share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.object_store import ObjectStore, object_store
from tests.running import ROOT, SHARED_RAY, Trained, run_job

# Small tensors are no faster on several threads, and far slower where another process has one of the cores.
torch.set_num_threads(1)
# A first call imports, and a busy machine is slow: neither makes a claim false.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# What `make test` runs: the same examples for everybody. `make test-slow` looks for new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts all tests that run jobs on one worker of pytest-xdist: they share a Ray and what was trained, and take turns on the machine."""
    for item in items:
        if item.path.parent in (ROOT / "tests", ROOT / "tests/workflows"):
            item.add_marker(pytest.mark.xdist_group("jobs"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from workflows.digits import write_digits

    folder = tmp_path_factory.mktemp("trained")
    table = folder / "digits"
    write_digits(table)
    options = (
        *("--data.path", str(table), "--data.key", "id", "--run.name", "first", "--registry.model_name", "digits"),
        *("--training.epochs", "8", "--training.global_batch_size", "64", "--training.learning_rate", "3e-3"),
        *("--model.hidden_dims", "[64]", "--model.latent_dim", "8"),
    )
    return Trained(folder, table, options, run_job(folder, "train.py", *options))


@pytest.fixture(scope="session")
def store() -> Iterator[ObjectStore]:
    """An object store that the tests of this session share: each takes paths of its own."""
    with object_store() as server:
        yield server


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A local Ray cluster that the tests of this session share, so that each fit needs no start of its own."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 6, "include_dashboard": False})
    yield str(cluster.address)
    cluster.shutdown()


@pytest.fixture(scope="module")
def shared_ray(ray_address: str) -> Iterator[None]:
    """Jobs of a module start no Ray of their own: most of a short job is its start."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(SHARED_RAY, ray_address)
        yield
