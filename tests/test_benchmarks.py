"""Claims about benchmarks/: its scripts run in a checkout, whatever the current folder, and print what they say. No figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.batch import costs
from benchmarks.process_tree import Run
from tests.running import ROOT, job_environment


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    command = [sys.executable, str(ROOT / "benchmarks" / "plan.py")]
    options = ["--sizes", "50x1", "200x1", "20x10", "--workers", "4", "--files", "10"]
    folder: Path = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run([*command, *options], cwd=folder, env=job_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_plan_prints_every_size_with_time_and_memory_of_every_stage(plan: Any) -> None:
    assert [(size["files"], size["row_groups"]) for size in plan["sizes"]] == [(50, 50), (200, 200), (20, 200)]
    for size in plan["sizes"]:
        training, encode = size["training"], size["encode"]
        assert list(training["cpu_s"]) == [
            *("preflight", "fingerprint", "row groups", "scan runs", "steps of an epoch", "resume at a late step", "order of one shard"),
            "readings of all workers",
        ]
        assert list(encode["cpu_s"]) == ["preflight", "manifest written", "manifest read", "what is done", "units"]
        for job in (training, encode):
            peaks = list(job["peak_mb"].values())
            assert 0 < peaks[0] <= peaks[-1] == max(peaks)
            assert min(job["cpu_s"].values()) >= 0


def test_plan_plans_the_same_table_however_its_row_groups_are_filed(plan: Any) -> None:
    one_each, ten_each = (size["training"] for size in plan["sizes"][1:])
    assert 1_800_000 < one_each["rows"] == ten_each["rows"] < 2_200_000
    # 90 % of the rows are trained on, in steps of 4 workers x 128 rows; 4 workers x 2 sides have a reading task each.
    for training in (one_each, ten_each):
        assert abs(training["steps_per_epoch"] - 0.9 * training["rows"] / 512) < 20
        assert training["scan_tasks"] <= 200
        assert training["reading_tasks"] >= 8
    assert [size["encode"]["units"] for size in plan["sizes"]] == [25, 100, 10]


def test_plan_says_what_resident_rows_take(plan: Any) -> None:
    first = plan["resident"][0]
    # 20 float32 and 10 int32 cells with a validity byte each, and a float64 log-Jacobian.
    assert first["bytes_per_row"] == 20 * 5 + 10 * 5 + 8
    assert first["gb_per_worker"] == round(first["rows"] * first["bytes_per_row"] / first["workers"] / 1e9, 1)
    assert set(plan["footers"]) == {"cpu_us_per_file", "peak_kb_per_file"}
    assert set(plan["exponents"]) == {"training", "encode"}


def test_the_step_benchmark_runs_without_ray_and_mlflow(tmp_path: Path) -> None:
    """Both are hidden from it by modules that cannot be imported."""
    for name in ("ray", "mlflow"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on this machine')")
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), "--device", "cpu", "--workloads", "W2,W3"]
    options = ["--batch_rows", "32", "--num_rows", "100", "--steps", "2", "--rounds", "2"]
    environment = job_environment(PYTHONPATH=str(tmp_path))
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    whats = ("tuned", "model", "step", "tuned_encode", "encode")
    expected = [(workload, precision, what) for workload in ("W2", "W3") for precision in ("float32", "bfloat16") for what in whats]
    assert [(r["workload"], r["precision"], r["what"]) for r in results] == expected
    assert all(r["ratio"] == 1 for r in results if r["what"].startswith("tuned"))
    assert all(r["rows_per_s"] > 0 and r["memory"] > 0 and r["arithmetic"] > 0 and r["busy"] > 0 for r in results)


def test_the_drift_benchmark_prints_false_alarms_and_power(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "drift.py"), "--tables", "independent", "--changes"]
    options = ["--replications", "2", "--reference_rows", "500", "--rows", "300", "--steps", "3"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=job_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["independent"]["replications"], result["independent"]["tests"]) == (2, 12)
    assert set(result["independent"]["p_below_0.05"]) == {"column values", "latent means", "ELBO"}
    assert all(0 <= result[name]["alarms"] <= 1 for name in ("shift", "nulls", "category", "dependence"))


@pytest.mark.slow
def test_the_batch_benchmark_holds_the_product_against_a_script_that_makes_the_same(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "batch.py"), "--jobs", "encode", "--workloads", "W3", "--rounds", "1"]
    options = ["--variants", "tuned,product", "--file_rows", "256", "--rows_fraction", "0.01"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=job_environment(), capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "encode W3: tuned, product make the same of 256 rows" in done.stderr
    result = json.loads(done.stdout)["encode W3"]
    assert result["num_rows"] == [256, 512]
    assert list(result["variants"]) == ["tuned", "product"]
    for figures in result["variants"].values():
        assert list(figures) == ["k_rows_per_cpu_s", "k_rows_per_s", "fixed_cpu_s", "fixed_s", "peak_gb_small", "peak_gb"]
        assert min(figures["k_rows_per_cpu_s"], figures["peak_gb_small"], figures["peak_gb"]) > 0
    assert set(result["ratios"]) == {
        "k_rows_per_cpu_s: product/tuned",
        "peak_gb: tuned, larger table / smaller",
        "peak_gb: product, larger table / smaller",
    }


def test_costs_at_two_sizes_are_told_apart_into_what_is_fixed_and_what_rows_take() -> None:
    """5 s and 1 ms a row of one core; as much CPU time again besides."""
    small, large = (Run(wall_s=5 + rows / 1000, cpu_s=2 * (5 + rows / 1000), peak_bytes=10**9 + rows) for rows in (2000, 10_000))
    figures = costs(small, large, [2000, 10_000])
    expected = {"k_rows_per_cpu_s": 0.5, "k_rows_per_s": 1, "fixed_cpu_s": 10, "fixed_s": 5, "peak_gb_small": 1, "peak_gb": 1}
    assert figures == pytest.approx(expected, rel=1e-4)
