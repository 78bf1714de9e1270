"""MLflow's registry: models, their versions and aliases, and what references mean."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from data.encoding import TableEncoding
from vae.bundle_files import MANIFEST, BundleError, read_bundle
from workflows.cluster import ROOT
from workflows.lineage import pinned_requirements
from workflows.pinned import PinnedModel, default_tracking_uri, folder_model, without_password
from workflows.store_file import sqlite_file
from workflows.tracking import Tracking, run_open, service_errors

CHAMPION_CHANGE = "champion_change"
MAX_VERSIONS = 100_000  # MLflow allows 200,000


class Registry(Tracking):
    """A tracking store with its registered models."""

    @staticmethod
    def of_models(tracking_uri: str | None) -> Registry:
        """Returns the registry for a job that needs a model of it. Raises BundleError where it is a file that is not there."""
        file = sqlite_file(default_tracking_uri(tracking_uri))
        if file is not None and not file.exists():
            raise BundleError(f"the registry is the file {file}, which is not there; name another by registry.tracking_uri")
        return Registry(tracking_uri)

    def register(
        self, run_id: str, model_name: str, bundle: Path, encoding: TableEncoding, example: pd.DataFrame, tags: Mapping[str, str]
    ) -> str:
        """Returns the run's model version, registered under alias `candidate`; a run has at most one version."""
        with service_errors(self.uri):
            known = self.client.search_model_versions(f"name = '{model_name}' and run_id = '{run_id}'")
            version = str(known[0].version) if known else self._log_and_register(run_id, model_name, bundle, encoding, example)
            for key, value in tags.items():
                self.client.set_model_version_tag(model_name, version, key, value)
            self.client.set_registered_model_alias(model_name, "candidate", version)
        return version

    def _log_and_register(self, run_id: str, model_name: str, bundle: Path, encoding: TableEncoding, example: pd.DataFrame) -> str:
        latent_dim = int(json.loads((bundle / "model.json").read_text())["latent_dim"])
        with run_open(run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(ROOT / "workflows" / "served_model.py"),
                artifacts={"bundle": str(bundle)},
                code_paths=[str(ROOT / "vae"), str(ROOT / "data")],
                signature=signature(encoding, latent_dim),
                input_example=example,
                pip_requirements=pinned_requirements(),
            )
        return str(mlflow.register_model(info.model_uri, model_name, await_registration_for=60).version)

    def pin(self, reference: str) -> PinnedModel:
        """Returns the model that models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/PATH names. Raises as workflows.pinned.pin."""
        if re.fullmatch(r"runs:/[^/]+/.+", reference):
            return self._pin_run(reference)
        named = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d{1,18}))", reference)  # longer ones fit no database
        if named is None:
            raise BundleError(
                f"{reference}: not a model reference; give models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model or a folder"
            )
        name, alias, number = named.groups()
        with service_errors(self.uri):
            try:
                found = self.client.get_model_version_by_alias(name, alias) if alias else self.client.get_model_version(name, number)
                folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{found.version}"))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise BundleError(f"{reference}: not in the registry at {without_password(self.uri)}: {error.message}") from error
                raise
        files = read_bundle(folder / "artifacts" / "bundle")
        sha256 = hashlib.sha256(files[MANIFEST]).hexdigest()
        if found.tags.get("bundle_sha256", sha256) != sha256:
            raise BundleError(f"{reference}: the bundle's sha256 is {sha256}, registered was {found.tags['bundle_sha256']}; do not use it")
        return PinnedModel(files, name, str(found.version), found.run_id, sha256)

    def _pin_run(self, reference: str) -> PinnedModel:
        """Returns the model that a run logged: its registered version where it has one, else known by the bundle's hash."""
        run_id = reference.removeprefix("runs:/").split("/")[0]
        with service_errors(self.uri):
            try:
                self.client.get_run(run_id)
                versions = self.client.search_model_versions(f"run_id = '{run_id}'")
                if versions:
                    return self.pin(f"models:/{versions[0].name}/{versions[0].version}")
                folder = Path(mlflow.artifacts.download_artifacts(reference))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise BundleError(f"{reference}: not at {without_password(self.uri)}: {error.message}") from error
                raise
        return replace(folder_model(folder), run_id=run_id)

    def aliases(self, name: str) -> dict[str, str]:
        """Returns a registered model's aliases as alias -> version.

        Raises BundleError, naming the models that there are, where it is none; ServiceError where the registry does not answer.
        """
        with service_errors(self.uri):
            try:
                return {alias: str(version) for alias, version in self.client.get_registered_model(name).aliases.items()}
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            known = ", ".join(model.name for model in self.client.search_registered_models(max_results=20))
        raise BundleError(f"no model {name!r} in the registry at {without_password(self.uri)}; it has {known or 'none'}")

    def versions(self, name: str) -> list[str]:
        """Returns a registered model's version numbers, the lowest first. Raises ServiceError where the registry does not answer."""
        with service_errors(self.uri):
            found = self.client.search_model_versions(f"name = '{name}'", max_results=MAX_VERSIONS)
        return [str(number) for number in sorted(int(version.version) for version in found)]

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a model version. Raises ServiceError where the registry does not answer."""
        with service_errors(self.uri):
            for key, value in tags.items():
                self.client.set_model_version_tag(name, version, key, value)

    def version_files(self, name: str, version: str) -> dict[str, bytes]:
        """Returns every file of a model version, relative path -> its first bytes. Raises ServiceError."""
        with service_errors(self.uri):
            folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}"))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): first_bytes(path) for path in files}

    def last_champion_change(self, name: str) -> dict[str, str]:
        """Returns what move_champion last noted of a model; empty where it never did."""
        with service_errors(self.uri):
            noted: dict[str, str] = json.loads(self.client.get_registered_model(name).tags.get(CHAMPION_CHANGE, "{}"))
        return noted

    def move_champion(self, name: str, change: Mapping[str, str]) -> None:
        """Makes version change["to"] champion and change["from"], where there is one, previous.

        The change is noted first, as tags `champion_KEY` of the version and one JSON tag of the model; then `previous` is
        written, then `champion`. Cut off in between, both aliases name the old champion and the note says what was meant.
        """
        with service_errors(self.uri):
            for key, value in change.items():
                self.client.set_model_version_tag(name, change["to"], f"champion_{key}", value)
            self.client.set_registered_model_tag(name, CHAMPION_CHANGE, json.dumps(change))
            if change["from"]:
                self.client.set_registered_model_alias(name, "previous", change["from"])
            self.client.set_registered_model_alias(name, "champion", change["to"])


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(16)


def signature(encoding: TableEncoding, latent_dim: int) -> ModelSignature:
    """Returns what predict takes (the input columns by name) and gives (z_mean_0, ..).

    Inputs are of any type: MLflow's typed columns refuse what pandas makes of nulls and dictionaries, which the model takes.
    """
    inputs = [ColSpec(AnyType(), name, required=False) for name in encoding.inputs]
    outputs = [ColSpec(DataType.float, f"z_mean_{i}") for i in range(latent_dim)]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema([ParamSpec("task", DataType.string, "encode")]))
