"""One change of champion."""

from __future__ import annotations

from typing import Any

from vae.bundle import open_bundle
from vae.bundle_files import BundleError
from workflows.batch import refuse_lost_registry
from workflows.batch_config import PromoteConfig
from workflows.champion import make_champion, noted_change
from workflows.errors import logger
from workflows.registry import Registry


def promote(config: PromoteConfig) -> dict[str, Any]:
    refuse_lost_registry(config.registry.tracking_uri)
    registry = Registry.of_models(config.registry.tracking_uri)
    aliases = registry.aliases(config.model)
    version = version_before(registry, config.model, aliases) if config.rollback else asked_version(registry, config)
    if aliases.get("champion") == version:
        logger.info("%s version %s is champion already; nothing to do", config.model, version)
        return json_line(config.model, aliases, changed=False)
    reference = f"models:/{config.model}/{version}"
    open_bundle(registry.pin(reference).files, where=reference)  # what cannot be loaded does not become champion
    how = "rollback" if config.rollback else "promotion"
    moved = make_champion(registry, config.model, noted_change(how, aliases.get("champion", ""), version, config.why, config.by))
    return json_line(config.model, moved, changed=True)


def asked_version(registry: Registry, config: PromoteConfig) -> str:
    """Returns the version asked for. Raises BundleError, naming those that there are, where it is none."""
    versions = registry.versions(config.model)
    if str(config.version) not in versions:
        raise BundleError(f"{config.model} has no version {config.version}; its versions are {', '.join(versions) or 'none'}")
    return str(config.version)


def version_before(registry: Registry, name: str, aliases: dict[str, str]) -> str:
    """Returns the version that a rollback makes champion. Raises BundleError, saying what there is, where none is known."""
    champion, previous = aliases.get("champion"), aliases.get("previous")
    there = f"champion is version {champion}, versions are {', '.join(registry.versions(name)) or 'none'}; name one by --version"
    if champion is None or previous is None:
        raise BundleError(f"{name} has no alias {'previous' if champion else 'champion'} to go back from or to: {there}")
    if previous != champion:
        return previous
    last = registry.last_champion_change(name)
    if (last.get("how"), last.get("from")) == ("rollback", champion):  # a rollback that was cut off between its two aliases
        return last["to"]
    raise BundleError(f"{name}: champion and previous are the same version, a promotion was cut off: {there}")


def json_line(name: str, aliases: dict[str, str], changed: bool) -> dict[str, Any]:
    versions = {"champion_version": aliases.get("champion"), "previous_version": aliases.get("previous")}
    return {"job": "promote", "model_name": name, **versions, "changed": changed}
