"""The folder list is the architecture: which package may import which, and what no source may call."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "vae", "workflows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ENTRIES = {"workflows.train", "workflows.encode", "workflows.generate", "workflows.tune", "workflows.demo"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> frozenset[str]:
    """Every dotted name that a file imports, at any depth of its code: modules, and what is taken from them."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def importers(top: str, within: str = "") -> set[str]:
    """The modules of a package (of all) that import the top-level package `top`."""
    found = {module_name(path) for path in SOURCES if any(name.split(".")[0] == top for name in imports(path))}
    return {name for name in found if name.split(".")[0] == within or not within}


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "?"


def calls(path: Path) -> set[str]:
    return {dotted(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}


def test_the_three_packages_are_found() -> None:
    assert {module_name(path).split(".")[0] for path in SOURCES} == set(PACKAGES)
    assert {"vae", "vae.model", "data.encoding", "workflows.train"} <= {module_name(path) for path in SOURCES}
    assert "torch" in imports(ROOT / "vae" / "model.py")
    assert "workflows.config.TrainConfig" in imports(ROOT / "workflows" / "train.py")


@pytest.mark.parametrize("forbidden", ["ray", "mlflow", "pyarrow", "data", "workflows"])
def test_vae_is_plain_pytorch(forbidden: str) -> None:
    assert importers(forbidden, "vae") == set()


@pytest.mark.parametrize("forbidden", ["torch", "mlflow", "vae", "workflows"])
def test_data_knows_neither_models_nor_jobs(forbidden: str) -> None:
    assert importers(forbidden, "data") == set()


def test_within_data_only_what_runs_on_the_cluster_imports_ray() -> None:
    assert importers("ray", "data") == {"data.scan", "data.shard", "data.stream"}


@pytest.mark.parametrize("forbidden", ["ray", "mlflow", "jsonargparse"])
@pytest.mark.parametrize("name", ["steps", "feed", "optimization", "scoring", "checkpoint"])
def test_the_training_step_runs_where_there_is_neither_ray_nor_mlflow(name: str, forbidden: str) -> None:
    code = f"import sys, workflows.{name}; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_only_tracking_registry_and_served_model_import_mlflow() -> None:
    assert importers("mlflow") == {"workflows.registry", "workflows.served_model", "workflows.tracking"}


def test_nothing_imports_an_entry_file() -> None:
    entries = {module_name(path) for path in SOURCES if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")}
    assert entries >= ENTRIES
    for path in SOURCES:
        assert not imports(path) & entries, f"{path} imports an entry file"


UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "yaml.load", "numpy.load", "np.load", "eval", "exec"}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_source_reads_what_could_run_code(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & UNSAFE_MODULES
    assert not calls(path) & UNSAFE_CALLS
    text = path.read_text(encoding="utf-8")
    for call in ("torch.load(", "pickle.load(", "pickle.loads(", "yaml.load(", "allow_pickle=True"):
        assert call not in text


def test_calls_are_found_by_their_dotted_names() -> None:
    node = ast.parse("import torch\nx = torch.load(open('f'))")
    found = {dotted(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
    assert found == {"torch.load", "open"}
    assert "torch.cat" in calls(ROOT / "vae" / "model.py")


@pytest.mark.parametrize(
    ("module", "absent"),
    [("vae", ("ray", "mlflow", "pyarrow", "data", "workflows")), ("data.encoding", ("ray", "torch", "mlflow", "vae", "workflows"))],
)
def test_a_fresh_import_leaves_out_what_the_package_does_not_need(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert module.split(".")[0] in loaded
    assert not loaded & set(absent)


@pytest.mark.parametrize("name", ["encode", "generate", "reconstruct"])
def test_a_batch_jobs_driver_does_without_pytorch(name: str) -> None:
    """It takes a second to load, longer than all else that a nightly job without new files does."""
    code = f"import sys, workflows.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", ["train", "tune", "evaluate", "promote"])
def test_a_typo_waits_for_no_import_of_seconds(name: str) -> None:
    code = f"import sys, workflows.{name}; sys.exit(bool({{'torch', 'ray', 'mlflow'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
