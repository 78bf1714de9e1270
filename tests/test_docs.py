"""What README.md and docs/ say of this repository is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.running import ROOT

FOLDERS = {
    "oracle": "vae",
    "posteriors": "vae",
    "likelihoods": "vae",
    "model": "vae",
    "condition": "vae",
    "training": "workflows",
    "ppca": "workflows",
}


def test_every_test_that_the_theory_cites_exists() -> None:
    cited = re.findall(r"`([\w/]+)::(test_\w+)`", (ROOT / "docs" / "theory.md").read_text())
    assert len(cited) > 30
    missing = [f"{name}::{test}" for name, test in cited if f"def {test}(" not in (ROOT / file_of(name)).read_text()]
    assert missing == []


def file_of(name: str) -> Path:
    folder, _, name = name.rpartition("/")
    return Path("tests") / (folder or FOLDERS[name]) / f"test_{name}.py"


def test_every_source_file_is_in_the_readmes_tree_and_the_other_way_round() -> None:
    tree = (ROOT / "README.md").read_text().split("## What is where")[1].split("## Limits")[0]
    named = set(re.findall(r"\b(\w+\.py)\b", tree))
    present = {path.name for folder in ("workflows", "vae", "data") for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert named == present


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/theory.md", "docs/scale.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
