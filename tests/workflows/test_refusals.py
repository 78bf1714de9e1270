"""Every table that cannot be trained on or encoded is refused before the cluster is asked for anything: exit code, file and column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tests.running import Trained
from workflows import encode as encode_job
from workflows.batch_config import EncodeConfig
from workflows.cluster import refuse_silent
from workflows.config import TrainConfig
from workflows.errors import ServiceError
from workflows.job import exit_code, parse
from workflows.train_job import train

GOOD = pa.table({"id": [1, 2, 3], "x": [0.5, 1.5, 2.5]})
MAINS: dict[str, Callable[[Any], dict[str, Any]]] = {"train": train, "encode": encode_job.main}


def refused(name: str, config_type: Any, *arguments: object) -> tuple[int, str]:
    """Returns exit code and message of a job that must be refused without Ray."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  its code and message are what is asserted
        MAINS[name](parse(config_type, [str(argument) for argument in arguments]))
    assert not ray.is_initialized()
    return exit_code(caught.value), str(caught.value)


def trained_on(folder: Path, *arguments: object) -> tuple[int, str]:
    return refused("train", TrainConfig, "--data.path", folder, "--registry.tracking_uri", f"sqlite:///{folder}/none.db", *arguments)


def written(folder: Path, *tables: pa.Table) -> Path:
    for index, table in enumerate(tables):
        pq.write_table(table, folder / f"{'abcdefgh'[index]}.parquet")
    return folder


def with_column(name: str, values: Any, kind: pa.DataType | None = None) -> pa.Table:
    """Returns GOOD with a column set or added."""
    column = pa.array(values, kind)
    place = GOOD.schema.get_field_index(name)
    return GOOD.append_column(name, column) if place < 0 else GOOD.set_column(place, name, column)


DIFFERENCES = [
    (with_column("x", ["a", "b", "c"]), "column 'x' is string"),
    (with_column("x", [True, False, True]), "column 'x' is bool"),
    (with_column("id", [1, 2, 3], pa.timestamp("ms")), "column 'id' is timestamp[ms]"),
    (GOOD.select(["id"]), "column 'x' is missing"),
    (with_column("X", [1.0, 2.0, 3.0]), "'x' and 'X'"),
    (with_column("x", [{"a": 1.0}] * 3), "column 'x' is struct<a: double>, in "),
    (with_column("x", [["a"], ["b"], []]), "column 'x' is list<"),
    (with_column("x", pa.array([b"0" * 16] * 3, pa.uuid())), "column 'x' is extension<"),
    (with_column("x", [2**53 + 1, 2, 3]), f"column 'x' is int64 and double in other files, which cannot hold its value {2**53 + 1}"),
]


@pytest.mark.parametrize(("other", "said"), DIFFERENCES, ids=[said[:40] for _, said in DIFFERENCES])
def test_files_that_make_no_table_are_refused_by_file_and_column(other: pa.Table, said: str, tmp_path: Path) -> None:
    code, message = trained_on(written(tmp_path, GOOD, other))
    assert code == 65
    assert f"{tmp_path}/b.parquet" in message
    assert said in message


def test_all_differences_are_in_one_message(tmp_path: Path) -> None:
    code, message = trained_on(written(tmp_path, GOOD, *(table for table, _ in DIFFERENCES[:4])))
    assert code == 65
    for index, (_, said) in enumerate(DIFFERENCES[:4]):
        (line,) = [line for line in message.splitlines() if f"{'bcde'[index]}.parquet: " in line]
        assert said in line


def test_a_column_that_comes_twice_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]), tmp_path / "a.parquet")
    code, message = trained_on(tmp_path)
    assert (code, "a.parquet" in message, "'x' and 'x' have one name" in message) == (65, True, True)


def test_a_folder_that_contradicts_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "id=7").mkdir()
    pq.write_table(GOOD, tmp_path / "id=7" / "a.parquet")
    code, message = trained_on(tmp_path)
    assert code == 65
    assert f"{tmp_path}/id=7/a.parquet" in message
    assert "its folder says id=7, its column 'id' holds values from 1 to 3" in message


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet at all, but long enough to have a footer"])
def test_files_that_are_no_parquet_are_refused_by_path(content: bytes, tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    (tmp_path / "z.parquet").write_bytes(content)
    code, message = trained_on(tmp_path)
    assert (code, f"{tmp_path}/z.parquet" in message) == (65, True)


def test_a_truncated_file_is_refused_by_path(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD) / "a.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    code, message = trained_on(tmp_path)
    assert (code, f"{path}: does not end as a Parquet file does" in message) == (65, True)


def test_tables_without_a_row_or_a_file_are_refused(tmp_path: Path) -> None:
    code, message = trained_on(written(tmp_path, GOOD.slice(0, 0), GOOD.slice(0, 0)))
    assert (code, "2 Parquet files, none of which has a row" in message) == (65, True)
    code, message = trained_on(tmp_path / "nowhere")
    assert (code, f"{tmp_path}/nowhere: nothing is there" in message) == (65, True)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ('["y"]', "'y' is not in the table; choose among ['x', 'town']"),
        ('["id"]', "'id' is the key"),
        ('["x", "town"]', "names every column, ['x', 'town'], and nothing is left to model"),
    ],
)
def test_columns_that_cannot_condition_are_refused(condition: str, said: str, tmp_path: Path) -> None:
    table = written(tmp_path, with_column("town", ["a", "b", "a"]))
    code, message = trained_on(table, "--data.key", "id", "--data.condition", condition)
    assert code == 2
    assert said in message


def encode(trained: Trained, table: Path, *arguments: object) -> tuple[int, str]:
    options = ("--model", "models:/digits@candidate", "--data.path", table, "--output.path", table.parent / "out")
    return refused("encode", EncodeConfig, *options, "--registry.tracking_uri", trained.tracking_uri, *arguments)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("stroke", None, "column 'stroke' is missing"),
        ("ink", pa.array(["a"]), "column 'ink' is string, the model was trained on"),
        ("id", None, "the key column 'id' is missing"),
    ],
)
def test_a_table_that_does_not_fit_the_model_is_refused_by_file_and_column(
    column: str, values: pa.Array | None, said: str, trained: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    rows = pq.read_table(trained.table / "part-0.parquet").slice(0, 1)
    place = rows.schema.get_field_index(column)
    changed = rows.remove_column(place) if values is None else rows.set_column(place, column, values)
    pq.write_table(changed, folder / "a.parquet")
    code, message = encode(trained, folder)
    assert code == 65
    assert f"{folder}/a.parquet" in message
    assert said in message
    assert not (tmp_path / "out").exists()


def test_an_address_where_nothing_takes_connections_is_said_at_once() -> None:
    with pytest.raises(ServiceError, match=r"no Ray cluster at 127.0.0.1:9: .*see --cluster.address and RAY_ADDRESS"):
        refuse_silent("127.0.0.1:9")
