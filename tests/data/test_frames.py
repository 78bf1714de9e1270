"""What pandas and JSON make of a table's columns comes back as the table's types."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data.frames import column_to_arrow, example_frame, to_arrow, to_pandas

COLUMNS = {
    "decimal": pa.array([Decimal("1.25"), None], pa.decimal128(8, 2)),
    "wide": pa.array([Decimal("9" * 40 + ".25"), None], pa.decimal256(45, 2)),
    "moment": pa.array([datetime(2024, 1, 2, 3, 4, 5, 265000), None], pa.timestamp("ms")),
    "zoned": pa.array([datetime(2024, 1, 2, 3, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
    "seconds": pa.array([time(1, 2, 3), None], pa.time32("s")),
    "nanoseconds": pa.array([3_600_000_000_000, None], pa.time64("ns")),
    "day": pa.array([date(2024, 1, 2), None]),
    "numbers": pa.array([[1.5, 2.5], None], pa.list_(pa.float32(), 2)),
    "prices": pa.array([[Decimal("1.25"), None], None], pa.list_(pa.decimal128(9, 2))),
    "text": pa.array(["a", None]).dictionary_encode(),
    "flag": pa.array([True, None]),
    "whole": pa.array([3, None], pa.int16()),
}
TABLE = pa.table(COLUMNS)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_survives_pandas(name: str) -> None:
    assert column_to_arrow(to_pandas(TABLE[name]), TABLE[name].type).to_pylist() == TABLE[name].to_pylist()


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "wide"])  # more digits than a JSON number has
def test_a_column_survives_json_as_mlflow_writes_it(name: str) -> None:
    frame = example_frame(TABLE.select([name]))
    text = json.dumps([as_plain(value) for value in frame[name]])
    assert column_to_arrow(pd.Series(json.loads(text)), TABLE[name].type).to_pylist() == TABLE[name].to_pylist()


def as_plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return [None if np.isnan(item) else float(item) for item in value]
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    return value.isoformat() if isinstance(value, date | time) else value


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    "empty", [pd.Series([np.nan, np.nan]), pd.Series([None, None]), pd.Series([pd.NaT, pd.NaT]), pd.Categorical([None, None])]
)
def test_a_column_without_a_value_is_one_of_nulls(name: str, empty: pd.Series) -> None:
    found = to_arrow(pd.DataFrame({name: empty}), TABLE.schema.empty_table().select([name]).schema)
    assert found[name].null_count == 2


def test_a_null_as_pandas_writes_it_is_one() -> None:
    found = column_to_arrow(pd.Series(["NaT", "2024-01-02T03:04:05.265000"]), pa.timestamp("ms"))
    assert found.to_pylist() == [None, datetime(2024, 1, 2, 3, 4, 5, 265000)]


def test_a_time_that_nanoseconds_do_not_reach_is_read() -> None:
    assert column_to_arrow(pd.Series(["9999-12-31T00:00:00"]), pa.timestamp("us")).to_pylist() == [datetime(9999, 12, 31)]


def test_what_is_no_value_of_its_type_is_said_by_column() -> None:
    with pytest.raises(ValueError, match=r"column 'day' does not hold values of type date32\[day\]"):
        to_arrow(pd.DataFrame({"day": ["yesterday"]}), pa.schema({"day": pa.date32()}))


def test_an_example_is_json_whatever_the_columns() -> None:
    frame = example_frame(TABLE)
    assert frame["decimal"].tolist()[0] == 1.25
    assert next(iter(frame["prices"][0])) == 1.25
    assert example_frame(pa.table({"t": pa.array([36_684_533_333_324], pa.time64("ns"))}))["t"][0] == time(10, 11, 24, 533333)


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("s", "Europe/Berlin"), pa.date32(), pa.time64("us")])
def test_numbers_are_no_times_as_they_do_not_say_their_unit(kind: pa.DataType) -> None:
    moments = pd.Series(pd.to_datetime(["2024-01-02", "2024-01-03"]))
    for numbers in (moments.astype("int64"), moments.astype("int64") / 1e6, pd.Series([1.5, None]), pd.Series([0], dtype=object)):
        with pytest.raises(ValueError, match=r"column 'when' does not hold values of type .* do not say their unit"):
            to_arrow(pd.DataFrame({"when": numbers}), pa.schema([("when", kind)]))


@pytest.mark.parametrize("as_given", [lambda times: times, lambda times: times.astype(object), lambda times: times.convert_dtypes()])
def test_times_are_not_moved_to_another_time_zone_unasked(as_given: Callable[[pd.Series], pd.Series]) -> None:
    noon = pd.Series(pd.to_datetime(["2024-05-01T12:00:00", None]))
    with pytest.raises(ValueError, match=r"column 'when' .*2024-05-01 12:00:00 has no time zone, and the column has"):
        to_arrow(pd.DataFrame({"when": as_given(noon)}), pa.schema([("when", pa.timestamp("us", "Europe/Berlin"))]))
    with pytest.raises(ValueError, match=r"column 'when' .*2024-05-01 12:00:00\+02:00 has a time zone, and the column has none"):
        to_arrow(pd.DataFrame({"when": as_given(noon.dt.tz_localize("Europe/Berlin"))}), pa.schema([("when", pa.timestamp("us"))]))


@pytest.mark.parametrize("numbers", [[0.5, None], [2, 1]])
def test_numbers_other_than_0_and_1_are_no_booleans(numbers: list[float | None]) -> None:
    with pytest.raises(ValueError, match=r"column 'flag' does not hold values of type bool: numbers other than 0 and 1"):
        to_arrow(pd.DataFrame({"flag": numbers}), pa.schema([("flag", pa.bool_())]))
    assert column_to_arrow(pd.Series([0.0, 1.0, None]), pa.bool_()).to_pylist() == [False, True, None]
