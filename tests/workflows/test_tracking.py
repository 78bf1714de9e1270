"""MLflow's failures of every kind are a service's, and its runs are found again by whoever starts once more."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from boto3.exceptions import S3UploadFailedError  # type: ignore[import-untyped]
from botocore.exceptions import ClientError, NoCredentialsError  # type: ignore[import-untyped]

from workflows.errors import ServiceError
from workflows.registry import Registry
from workflows.tracking import Tracking, service_errors

FAULTS = {
    "a proxy that refuses": requests.HTTPError("413 Client Error: Payload Too Large for url: http://server/artifacts"),
    "a connection that breaks": requests.exceptions.ChunkedEncodingError("Connection broken"),
    "a folder that is none": NotADirectoryError(20, "Not a directory", "mlartifacts/1"),
    "a bucket that refuses": ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "PutObject"),
    "an upload that fails": S3UploadFailedError("Failed to upload a to b: AccessDenied"),
    "no credentials": NoCredentialsError(),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_an_artifact_client_raises_is_a_services_failure(fault: Exception) -> None:
    with pytest.raises(ServiceError, match="MLflow at http://server: ") as caught, service_errors("http://server"):
        raise fault
    assert str(fault) in str(caught.value)


@pytest.mark.parametrize("fault", [KeyError("x"), ValueError("x"), ServiceError("x")])
def test_what_is_none_of_a_services_failures_stays_what_it_is(fault: Exception) -> None:
    with pytest.raises(type(fault)) as caught, service_errors("http://server"):
        raise fault
    assert caught.value is fault


def test_a_file_in_place_of_the_artifacts_is_said(tmp_path: Path) -> None:
    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = tracking.open_run(tracking.open_experiment("vae"), "r", "key", {}, {})
    (tmp_path / "mlartifacts").write_text("no folder")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.txt").write_text("a")
    with pytest.raises(ServiceError, match="mlartifacts"):
        tracking.log_files(run_id, tmp_path / "pictures", "pictures")


def test_a_model_whose_files_cannot_be_fetched_is_a_services_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = registry.open_run(registry.open_experiment("vae"), "r", "key", {}, {})

    def refuse(*_: object, **__: object) -> None:
        raise requests.HTTPError("403 Client Error: Forbidden")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", refuse)
    with pytest.raises(ServiceError, match="403 Client Error"):
        registry.pin(f"runs:/{run_id}/model")


def test_a_run_that_is_found_again_keeps_the_parameters_of_its_first_start(tmp_path: Path) -> None:
    """As where the first start was killed before it wrote the run's record, and the second has other workers."""
    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = tracking.open_experiment("vae")
    run_id = tracking.open_run(experiment, "r", "key", {"cluster.num_workers": 2}, {})
    assert tracking.open_run(experiment, "r", "key", {"cluster.num_workers": 1, "training.epochs": 3}, {}) == run_id
    assert tracking.client.get_run(run_id).data.params == {"cluster.num_workers": "2", "training.epochs": "3"}
