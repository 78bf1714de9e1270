"""The champion of a registered model: the one that there is, and how another version takes its place."""

from __future__ import annotations

import getpass
import socket
from datetime import UTC, datetime

from workflows.errors import TryAgain, logger
from workflows.registry import Registry


def noted_change(how: str, old: str, new: str, why: str, by: str | None) -> dict[str, str]:
    """Returns what is noted of a change of champion: from and to which version, how, by whom, when (UTC) and why."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"from": old, "to": new, "how": how, "by": by or f"{getpass.getuser()}@{socket.gethostname()}", "at": at, "why": why}


def make_champion(registry: Registry, name: str, change: dict[str, str]) -> dict[str, str]:
    """Moves champion and previous, and returns the model's aliases.

    Raises TryAgain where the champion is no longer change["from"], or another promotion came between.
    """
    found = registry.aliases(name).get("champion", "")
    if found != change["from"]:
        before, now = (f"version {version}" if version else "none" for version in (change["from"], found))
        raise TryAgain(f"{name}: champion was {before} when this began and is {now} now; run again")
    registry.move_champion(name, change)
    moved = registry.aliases(name)
    if moved.get("champion") != change["to"]:
        raise TryAgain(f"{name}: another promotion came between; champion is now version {moved.get('champion')}; look, and run again")
    logger.info("%s: champion is version %s, previous is version %s", name, change["to"], moved.get("previous", "none"))
    return moved
