"""Claims about examples/: they run in a checkout, whatever the current folder, and what they print improves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.running import ROOT


def test_the_example_in_plain_pytorch_improves_and_its_bound_exceeds_the_elbo(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "plain_pytorch.py"), "--epochs", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=True)
    number = r"(-?\d+\.\d+)"
    lines = re.findall(rf"epoch (\d+): ELBO {number}, log_evidence_bound {number} nats per row", done.stdout)
    assert [int(epoch) for epoch, _, _ in lines] == [0, 1]
    elbos, bounds = [[float(line[part]) for line in lines] for part in (1, 2)]
    assert all(bound > elbo for elbo, bound in zip(elbos, bounds, strict=True))
    for before, after in (elbos, bounds):
        assert after > before
    pictures = done.stdout.split("nats per row\n")[-1].strip("\n").split("\n\n")
    assert len(pictures) == 3
    assert all([len(line) for line in picture.split("\n")] == [16] * 8 for picture in pictures)
    assert not done.stderr


def test_it_needs_neither_ray_nor_mlflow_nor_arrow() -> None:
    found = set(re.findall(r"^(?:from|import) (\w+)", (ROOT / "examples" / "plain_pytorch.py").read_text(), re.MULTILINE))
    assert found == {"__future__", "argparse", "sys", "pathlib", "torch", "sklearn", "vae"}
