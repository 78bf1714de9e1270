"""Claims about data.conditions, and how conditions are encoded."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.columns import Rules, decide_columns
from data.conditions import (
    ConditionError,
    check_condition,
    check_drawable,
    conditioned,
    draw_conditions,
    encode_conditions,
    given_condition,
    one_value,
)
from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN
from data.marginals import marginals
from data.statistics import summarise_table

NUM_ROWS = 4000
KINDS = {"visits": {"kind": "count"}, "town": {"kind": "categorical"}}


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    missing = rng.random(NUM_ROWS) < 0.2
    return pa.table(
        {
            "id": np.arange(NUM_ROWS),
            "weight": rng.normal(70, 12, NUM_ROWS),
            "income": np.exp(rng.normal(8, 2, NUM_ROWS)),
            "visits": pa.array(rng.poisson(30, NUM_ROWS), pa.int16()),
            "town": pa.array(rng.choice(["Bonn", "Köln", "Ulm", "Rom"], NUM_ROWS, p=[0.5, 0.3, 0.195, 0.005]), mask=missing),
            "code": pa.array(rng.choice([3, 7, 9], NUM_ROWS), pa.int8()),
            "flag": pa.array(rng.random(NUM_ROWS) < 0.3),
            "day": pa.array(rng.integers(15_000, 20_000, NUM_ROWS).astype(np.int32)).cast(pa.date32()),
            "moment": pa.array(rng.integers(0, 10**9, NUM_ROWS)).cast(pa.timestamp("s", "Europe/Berlin")),
            "price": pa.array([Decimal(number) / 100 for number in rng.integers(0, 10_000, NUM_ROWS).tolist()], pa.decimal128(9, 2)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=3 * NUM_ROWS).astype(np.float32)), 3),
            "constant": np.ones(NUM_ROWS),
        }
    )


CONDITIONS = ["income", "visits", "town", "code", "flag", "day", "moment", "price"]


def encoding(*condition: str, rules: Rules | None = None) -> TableEncoding:
    rows = table()
    summary = summarise_table(rows, (NUM_ROWS, 0, 0), ["town"])
    columns = decide_columns(rows.schema, summary, "id", KINDS, rules or Rules(min_category_count=100))
    return TableEncoding(rows.schema, tuple(conditioned(columns, condition)), "id")


def known(of: TableEncoding) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(marginals(of, summarise_table(table(), (NUM_ROWS, 0, 0), ["town"]))))
    return result


def test_condition_columns_have_fields_of_their_own_and_no_jacobian() -> None:
    plain, told = encoding(), encoding("income", "town", "vector")
    assert [field.name for field in told.fields if field.condition] == ["condition_numeric", "condition_categorical", "condition_vector_0"]
    assert not {"income", "town", "vector"} & {c.name for field in told.fields if not field.condition for c in field.columns}
    assert told.inputs == plain.inputs == plain.modelled
    assert told.modelled == [name for name in plain.modelled if name not in ("income", "town", "vector")]
    rows = table()
    here, there = told.encode(rows, "here"), plain.encode(rows, "here")
    place = [column.name for field in plain.fields if field.name == "numeric" for column in field.columns].index("income")
    np.testing.assert_array_equal(here["condition_numeric"][:, 0], there["numeric"][:, place])
    np.testing.assert_array_equal(here["condition_vector_0"], there["vector_0"])
    without = encoding("income").encode(rows, "here")[LOG_JACOBIAN]
    vector = next(column for column in plain.columns if column.name == "vector")
    np.testing.assert_allclose(without - here[LOG_JACOBIAN], -3 * np.log(vector.scale), rtol=1e-12)
    income = next(column for column in plain.columns if column.name == "income")
    assert income.width is not None
    y = (rows["income"].to_numpy() - income.center) / income.width
    jacobian = -np.log(income.scale * income.width) - np.log(np.hypot(1, y))
    np.testing.assert_allclose(there[LOG_JACOBIAN] - without, jacobian, rtol=1e-9)


def test_the_encoding_comes_back_from_json_and_says_nothing_of_conditions_where_there_are_none() -> None:
    told = encoding("town", "day")
    assert TableEncoding.from_json(json.loads(json.dumps(told.to_json()))) == told
    assert '"condition"' not in json.dumps(encoding().to_json())


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (["town", "nowhere"], "'nowhere' is not in the table"),
        (["id"], "'id' is the key"),
        (["weight"], "'weight' is ignored by data.columns"),
        (["town", "town"], "'town' comes twice"),
        (["nowhere", "id"], "'nowhere' is not in the table; 'id' is the key; choose among"),
        ([name for name in table().column_names if name not in ("id", "weight")], "nothing is left to model"),
    ],
)
def test_columns_that_cannot_condition_are_refused_by_name(condition: list[str], said: str) -> None:
    with pytest.raises(ConditionError, match=said):
        check_condition(table().schema, "id", {"weight": {"kind": "ignored"}}, condition)


def test_columns_that_turn_out_to_be_ignored_or_to_be_all_are_refused_with_the_reason() -> None:
    with pytest.raises(ConditionError, match=r"'constant' is ignored \(constant\)"):
        encoding("town", "constant")
    everything = [name for name in encoding().inputs if name != "constant"]
    with pytest.raises(ConditionError, match=r"no column to model .*constant: constant"):
        encoding(*everything)


def test_values_are_given_in_the_tables_own_types() -> None:
    given = {"income": 1200, "visits": 4, "town": "Ulm", "code": 7, "flag": True, "day": "2024-02-29", "price": "12.5", "moment": None}
    row = given_condition(encoding(*CONDITIONS), given)
    assert row.to_pylist() == [given | {"income": 1200.0, "day": date(2024, 2, 29), "price": Decimal("12.50")}]
    assert {name: row.schema.field(name).type for name in row.column_names} == {n: table().schema.field(n).type for n in given}
    dated = given_condition(encoding("day", "moment"), {"day": date(2024, 2, 29), "moment": "2024-02-29T12:00:00+01:00"})
    assert dated["day"][0].as_py() == date(2024, 2, 29)
    assert dated["moment"][0].as_py() == datetime.fromisoformat("2024-02-29T12:00:00+01:00")
    assert given_condition(encoding("vector"), {"vector": [1, 2, 3]})["vector"].to_pylist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("s", "Europe/Berlin"), pa.date32(), pa.time64("us")])
@pytest.mark.parametrize("number", [1_714_557_600, 19_000.0])
def test_numbers_are_no_times_as_they_do_not_say_their_unit(kind: pa.DataType, number: float) -> None:
    with pytest.raises(ValueError, match=r"numbers do not say their unit; give text such as 2024-12-31T23:59:00"):
        one_value(number, kind)


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")])
def test_times_of_day_are_given_as_text(kind: pa.DataType) -> None:
    assert one_value("23:59:01", kind).to_pylist() == [time(23, 59, 1)]
    assert one_value("07:30", kind).type == kind
    for wrong in ("25:00:00", "", "noon"):
        with pytest.raises(pa.ArrowInvalid, match="Failed to parse"):
            one_value(wrong, kind)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"town": "Trier", "code": 3},
            "'town' is 'Trier', which the model does not know; the model's conditions are 'town' .one of 'Bonn', 'Köln', 'Ulm'",
        ),
        ({"town": "Rom", "code": 3}, "'town' is 'Rom', which the model does not know"),
        ({"town": "Ulm"}, "'code' is missing; the model's conditions are .*'code' .one of 3, 7, 9"),
        ({"town": "Ulm", "code": 3, "weight": 70}, "'weight' is no condition of the model"),
        ({"town": 5, "code": "three"}, "'town' is 5: .*'code' is 'three'"),
        ({"town": "Ulm", "code": 3.5}, "'code' is 3.5"),
        ({"town": "Ulm", "code": "3"}, "'code' is '3': the column is int8"),
        ({"town": "Ulm", "code": True}, "'code' is True: the column is int8"),
        ({"town": "Ulm", "code": 1000}, "'code' is 1000"),
    ],
)
def test_values_that_the_model_does_not_know_are_refused_with_those_that_it_knows(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConditionError, match=said):
        given_condition(encoding("town", "code"), given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"vector": [1.0, 2.0], "visits": 1, "day": "2024-01-01"}, "vector"),
        ({"vector": [1, 2, 3], "visits": -1, "day": "2024-01-01"}, "'visits' is -1, which the model does not know"),
        ({"vector": [1, 2, 3], "visits": 1, "day": "yesterday"}, "'day' is 'yesterday'"),
        ({"vector": [1, float("nan"), 3], "visits": 1, "day": None}, "NaN or infinite"),
    ],
)
def test_numbers_dates_and_vectors_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConditionError, match=said):
        given_condition(encoding("vector", "visits", "day"), given)


def test_a_model_without_conditions_says_so() -> None:
    with pytest.raises(ConditionError, match="'town' is no condition of the model; the model has no condition"):
        given_condition(encoding(), {"town": "Ulm"})


def test_drawn_conditions_have_the_training_rows_marginals_and_no_rare_category() -> None:
    of = encoding(*CONDITIONS)
    drawn = draw_conditions(of, known(of), 50_000, np.random.default_rng(0), null_pattern=True)
    real = table()
    assert drawn.schema.equals(of.schema_of(CONDITIONS))
    towns = {item["values"]: item["counts"] / 50_000 for item in drawn["town"].value_counts().to_pylist()}
    assert set(towns) == {"Bonn", "Köln", "Ulm", None}
    assert towns[None] == pytest.approx(0.2, abs=0.02)
    assert towns["Bonn"] == pytest.approx(0.8 * 0.5, abs=0.02)
    assert sum(drawn["flag"].to_pylist()) / 50_000 == pytest.approx(0.3, abs=0.03)
    for name in ("visits", "day", "moment", "price"):
        a, b = (np.sort(np.array([float(x) for x in kind(each[name])])) for each in (real, drawn) for kind in (numbers,))
        # between neighbouring 5 % levels the distribution is uniform, and rows beyond 1 % and 99 % are drawn in
        levels = np.linspace(0.05, 0.95, 19)
        assert np.quantile(b, levels) == pytest.approx(np.quantile(a, levels), abs=0.05 * (a[-1] - a[0])), name
        assert a[0] <= b[0] < b[-1] <= a[-1]
    assert np.median(drawn["income"].to_numpy()) == pytest.approx(np.median(real["income"].to_numpy()), rel=0.05)


def numbers(column: pa.ChunkedArray) -> list[float]:
    kind = column.type
    ticks = column.cast(pa.int32()) if kind == pa.date32() else column.cast(pa.int64()) if pa.types.is_timestamp(kind) else column
    return [float(value) for value in ticks.to_pylist()]


def test_without_the_null_pattern_no_drawn_condition_is_null() -> None:
    of = encoding("town")
    assert draw_conditions(of, known(of), 1000, np.random.default_rng(0), null_pattern=False)["town"].null_count == 0


def test_vectors_have_to_be_given() -> None:
    check_drawable(encoding("town"))
    with pytest.raises(ConditionError, match=r"\['vector'\] cannot be drawn"):
        check_drawable(encoding("town", "vector"))


def test_a_condition_alone_is_encoded_as_it_is_among_all_columns() -> None:
    of, rows = encoding(*CONDITIONS, "vector"), table()
    alone, among = encode_conditions(of, rows.select([*CONDITIONS, "vector"])), of.encode(rows, "here")
    assert set(alone) == {LOG_JACOBIAN} | {f"{f.name}{end}" for f in of.fields if f.condition for end in ("", ".valid")}
    for name in set(alone) - {LOG_JACOBIAN}:
        np.testing.assert_array_equal(alone[name], among[name])
    assert (alone[LOG_JACOBIAN] == 0).all()
