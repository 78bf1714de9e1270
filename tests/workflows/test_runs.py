"""A run's folder, as the next start finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.output import OutputError
from workflows.errors import ServiceError
from workflows.job import exit_code
from workflows.runs import RECORD, TABLE, Run


@pytest.mark.parametrize("content", [b"", b'{"identity": {', b"\xff\xfe", b"[]", b"null", b"{}"])
def test_a_record_that_is_none_is_said_with_its_path(content: bytes, tmp_path: Path) -> None:
    Run.open(str(tmp_path), "one", {"seed": 1}).save()
    record = tmp_path / "one" / RECORD
    record.write_bytes(content)
    with pytest.raises(OutputError, match=f"{record} is not the record of a run; restore it") as caught:
        Run.open(str(tmp_path), "one", {"seed": 1})
    assert exit_code(caught.value) == 73


def test_checkpoints_of_which_no_record_says_what_they_are_of_are_not_taken_over(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path), "one", {"seed": 1})
    run.save()
    run.write("checkpoints/000000000001-000001-000000/state.json", b"{}")
    (tmp_path / "one" / RECORD).unlink()
    with pytest.raises(OutputError, match=f"{tmp_path}/one has checkpoints, and no {RECORD} that says what of; restore it") as caught:
        Run.open(str(tmp_path), "one", {"seed": 2})
    assert exit_code(caught.value) == 73


def test_a_run_is_found_as_it_was_saved(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path), "one", {"seed": 1})
    run.result = {"num_steps": 3}
    run.save()
    again = Run.open(str(tmp_path), "one", {"seed": 1})
    assert (again.key, again.result) == (run.key, {"num_steps": 3})


@pytest.mark.parametrize("content", [None, b"", b'{"columns": [', b"\xff\xfe", b"null"])
def test_a_record_of_the_table_that_is_damaged_or_gone_is_said_with_where_another_is(content: bytes | None, tmp_path: Path) -> None:
    run = Run.open(str(tmp_path), "one", {})
    run.mlflow_run_id = "0123"
    if content is not None:
        run.write(TABLE, content)
    with pytest.raises(
        OutputError, match=f"{tmp_path}/one/{TABLE} is not what was saved there; restore it from the artifacts of MLflow run 0123"
    ):
        run.table_record()


def test_storage_that_cannot_be_looked_into_is_said_with_its_path(tmp_path: Path) -> None:
    storage = tmp_path / ("o" * 300)  # more than a filesystem's 255 bytes
    with pytest.raises(ServiceError, match=rf"run\.storage_path: {storage}/one cannot be read: .*File name too long"):
        Run.open(str(storage), "one", {})
