"""Makes a version of a registered model its champion, or goes back to the champion before.

    python workflows/promote.py --model NAME --version N [--why TEXT] [--by WHO] [--section.key value ...]
    python workflows/promote.py --model NAME --rollback [--why TEXT]

Reads a model version, whose bundle is checked. Writes the aliases `champion` and `previous`, and tags that say who, when, why and from
which version. A second promotion of the same version does nothing; a second rollback undoes the first. After a kill the same command
finishes what was begun.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from workflows.batch_config import PromoteConfig
from workflows.job import run

if __name__ == "__main__":
    run("workflows.promote_job:promote", PromoteConfig)
