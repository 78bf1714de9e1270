"""Claims about data.wishes: which likelihoods can be named for a column, what that does to its cells, and how refusals read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.column import Column
from data.columns import Rules, decide_columns
from data.conditions import ConditionError, check_condition, conditioned
from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN
from data.likelihood_names import CONTINUOUS, COUNTS, MASSES, NAMES, SHADES, WARPED_MASSES
from data.overrides import ColumnOverrideError, counted_columns, key_column
from data.statistics import TableSummary, merge_all, summarise, summarise_table
from data.wishes import MAX_RAW_COUNT, check_likelihoods, with_likelihoods

N = 600
Overrides = Mapping[str, Mapping[str, Any]]


def mixed() -> pa.Table:
    rng = np.random.default_rng(0)

    def lists(kind: pa.DataType, values: Any) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), values.shape[1])

    return pa.table(
        {
            "id": pa.array(np.arange(N)),
            "height": rng.normal(170, 9, N),
            "income": np.exp(rng.normal(3, 2, N)),
            "rain": np.round(np.exp(rng.normal(0, 2.5, N)), 1),
            "degrees": np.round(rng.normal(8, 9, N), 1),
            "balance": rng.integers(-500, 500, N),
            "visits": pa.array(rng.poisson(30, N), mask=rng.random(N) < 0.2),
            "clicks": np.exp(rng.normal(3, 2, N)).astype(np.int64),
            "stamp": pa.array(1_700_000_000 + rng.integers(0, 10**6, N)).cast(pa.timestamp("s")),
            "flag": rng.random(N) < 0.3,
            "town": rng.choice(["Bonn", "Ulm"], N),
            "vector": lists(pa.float32(), rng.normal(0, 2, (N, 3))),
            "bytes": lists(pa.uint8(), rng.integers(0, 9, (N, 5))),
            "grey": lists(pa.uint8(), rng.integers(0, 256, (N, 4))),
            "black": lists(pa.uint8(), 255 * rng.integers(0, 2, (N, 4))),
            "same": np.zeros(N),
        }
    )


def fit(
    table: pa.Table,
    likelihoods: Mapping[str, str],
    overrides: Overrides | None = None,
    key: str | None = None,
    condition: tuple[str, ...] = (),
) -> TableEncoding:
    """Returns the encoding that training on all rows of a table would decide on."""
    overrides = overrides or {}
    key = key_column(key, overrides)
    check_likelihoods(table.schema, key, overrides, condition, likelihoods)
    leaves = [table.slice(begin, 97) for begin in range(0, len(table), 97)]
    summary = merge_all(summarise_table(leaf, (len(leaf), 0, 0), counted_columns(overrides)) for leaf in leaves)
    columns = conditioned(decide_columns(table.schema, summary, key, overrides, Rules()), condition)
    return TableEncoding(table.schema, tuple(with_likelihoods(columns, summary, likelihoods)), key)


def refusal(likelihoods: Mapping[str, str], **options: Any) -> list[str]:
    with pytest.raises(ColumnOverrideError) as caught:
        fit(mixed(), likelihoods, **options)
    return str(caught.value).splitlines()


def fields_of(encoding: TableEncoding) -> dict[str, list[str]]:
    return {field.name: [column.name for column in field.columns] for field in encoding.fields}


def column_named(encoding: TableEncoding, name: str) -> Column:
    return next(column for column in encoding.columns if column.name == name)


POSSIBLE = {
    "height": CONTINUOUS,
    "income": CONTINUOUS,
    "rain": CONTINUOUS + MASSES + WARPED_MASSES,
    "degrees": CONTINUOUS + MASSES + WARPED_MASSES,
    "balance": MASSES + WARPED_MASSES,
    "visits": MASSES + WARPED_MASSES + COUNTS,
    "clicks": MASSES + WARPED_MASSES + COUNTS,
    "stamp": MASSES,
    "flag": ("bernoulli",),
    "town": ("categorical",),
    "vector": CONTINUOUS,
    "bytes": MASSES,
    "grey": (*MASSES, "continuous_bernoulli"),
    "black": MASSES + SHADES,
}
NOT_NUMBERS = {
    "boolean": ["flag"],
    "categorical": ["town"],
    "vector_0": ["vector"],
    "vector_1": ["bytes"],
    "image_0": ["grey"],
    "image_1": ["black"],
}
DEFAULT_FIELDS = {
    "numeric": ["height", "income"],
    "warped": ["rain", "clicks"],
    "integer": ["degrees", "balance", "visits", "stamp"],
} | NOT_NUMBERS


def test_without_names_all_is_as_it_is_decided() -> None:
    assert fields_of(fit(mixed(), {}, key="id")) == DEFAULT_FIELDS
    assert all(field.likelihood is None for field in fit(mixed(), {}, key="id").fields)


@pytest.mark.parametrize("name", POSSIBLE)
@pytest.mark.parametrize("wish", NAMES)
def test_a_column_can_have_the_likelihoods_of_its_kind_and_no_other(name: str, wish: str) -> None:
    if wish in POSSIBLE[name]:
        encoding = fit(mixed(), {name: wish}, key="id")
        (field,) = (field for field in encoding.fields if name in [column.name for column in field.columns])
        assert wish in (field.likelihood or wish)
        assert column_named(encoding, name).reason.endswith(f"; {wish}, named by model.likelihoods")
        assert TableEncoding.from_json(json.loads(json.dumps(encoding.to_json(), allow_nan=False))) == encoding
    else:
        (line,) = refusal({name: wish}, key="id")
        assert line.startswith(f"model.likelihoods.{name} is '{wish}': ")
        assert "can have one of [" in line or "not all 0 or 255" in line


def test_columns_that_share_storage_and_likelihood_share_a_field() -> None:
    likelihoods = {
        **{"height": "student_t", "income": "student_t", "degrees": "gaussian", "rain": "discretised_logistics"},
        **{"visits": "poisson", "clicks": "negative_binomial", "balance": "warped_discretised_gaussian", "stamp": "discretised_gaussian"},
        "grey": "continuous_bernoulli",
    }
    encoding = fit(mixed(), likelihoods, key="id")
    assert (
        fields_of(encoding)
        == {
            "numeric_student_t": ["height", "income"],
            "integer": ["rain"],
            "numeric": ["degrees"],
            "warped_discretised_gaussian": ["balance"],
            "count_poisson": ["visits"],
            "count_negative_binomial": ["clicks"],
            "integer_discretised_gaussian": ["stamp"],
        }
        | NOT_NUMBERS
    )
    kinds = [field.kind for field in encoding.fields]
    assert kinds == ["numeric", "integer", "numeric", "warped", "count", "count", "integer", *kinds[7:]]
    assert kinds[7:] == ["boolean", "categorical", "vector", "vector", "image", "image"]


@pytest.mark.parametrize("name", ["height", "rain", "visits", "stamp", "town", "vector", "grey"])
def test_the_default_may_be_named_and_changes_nothing_but_the_reason(name: str) -> None:
    defaults = {
        "height": "gaussian",
        "rain": "warped_discretised_logistics",
        "visits": "discretised_logistics",
        "stamp": "discretised_logistics",
        "town": "categorical",
        "vector": "gaussian",
    }
    encoding = fit(mixed(), {name: defaults.get(name, "discretised_gaussian")}, key="id")
    assert fields_of(encoding) == DEFAULT_FIELDS
    plain = fit(mixed(), {}, key="id").encode(mixed(), "here")
    assert {key: array.tobytes() for key, array in encoding.encode(mixed(), "here").items()} == {
        key: array.tobytes() for key, array in plain.items()
    }


def test_counts_of_a_count_likelihood_are_stored_as_they_are() -> None:
    table = mixed()
    encoding = fit(table, {"visits": "poisson", "clicks": "zero_inflated_negative_binomial"}, key="id")
    arrays = encoding.encode(table, "here")
    visits, valid = arrays["count_poisson"][:, 0], arrays["count_poisson.valid"][:, 0]
    assert visits.dtype.name == "float32"
    assert valid.tolist() == table["visits"].is_valid().to_pylist()
    np.testing.assert_array_equal(visits, table["visits"].fill_null(0).to_numpy())
    column = column_named(encoding, "visits")
    logs = np.log1p(table["visits"].drop_null().to_numpy())
    assert [column.log_mean, column.log_scale] == pytest.approx([logs.mean(), logs.std()], rel=1e-12)
    others = fit(table.drop_columns(["visits", "clicks"]), {}, key="id").encode(table, "here")[LOG_JACOBIAN]
    np.testing.assert_array_equal(arrays[LOG_JACOBIAN], others)


def test_moments_of_too_many_counts_to_be_counted_are_those_of_the_sketch() -> None:
    values = np.random.default_rng(1).integers(0, MAX_RAW_COUNT, 30_000)
    column = column_named(fit(pa.table({"k": values}), {"k": "negative_binomial"}, {"k": {"kind": "count"}}), "k")
    logs = np.log1p(values)
    assert abs(column.log_mean - logs.mean()) < 1 / 128
    assert abs(column.log_scale - logs.std()) < 1 / 128


@settings(max_examples=50)
@given(
    values=st.lists(st.integers(0, MAX_RAW_COUNT), min_size=25, max_size=60, unique=True),
    drawn=st.lists(st.floats(-10, 1e12), min_size=1, max_size=9),
)
def test_raw_counts_come_back_and_what_is_drawn_is_rounded_and_clipped(values: list[int], drawn: list[float]) -> None:
    table = pa.table({"k": pa.array([*values, None, values[0]], pa.uint32())})
    encoding = fit(table, {"k": "poisson"})
    arrays = encoding.encode(table, "here")
    assert encoding.decode_column("k", arrays["count_poisson"], arrays["count_poisson.valid"][:, 0]).equals(table["k"].combine_chunks())
    assert not arrays[LOG_JACOBIAN].any()
    cells = np.array(drawn, np.float32)[:, None]
    found = encoding.decode_column("k", cells, np.ones(len(drawn), np.bool_)).to_pylist()
    assert found == [min(max(round(float(cell)), 0), 2**32 - 1) for cell in cells[:, 0]]


def test_a_negative_value_where_counts_are_raw_is_missing_and_counted() -> None:
    unseen: Counter[str] = Counter()
    encoding = fit(pa.table({"k": [*range(30), 0]}), {"k": "poisson"})
    arrays = encoding.encode(pa.table({"k": [3, -1, None]}), "here", unseen)
    assert (arrays["count_poisson"][:, 0].tolist(), arrays["count_poisson.valid"][:, 0].tolist()) == ([3, 0, 0], [True, False, False])
    assert unseen == {"k": 1}


@pytest.mark.parametrize("wish", COUNTS)
def test_counts_that_float32_does_not_hold_cannot_be_raw(wish: str) -> None:
    values = [*range(30), MAX_RAW_COUNT]
    assert fields_of(fit(pa.table({"k": [*values, 0]}), {"k": wish})) == {f"count_{wish}": ["k"]}
    with pytest.raises(ColumnOverrideError, match=r"go up to 16777217, and beyond 16777216 \(2\^24\) float32 skips whole numbers"):
        fit(pa.table({"k": [*values, MAX_RAW_COUNT + 1, 0]}), {"k": wish})


def test_masses_with_and_without_an_asinh_are_what_their_names_say() -> None:
    named = {"rain": "discretised_gaussian", "clicks": "discretised_logistics", "visits": "warped_discretised_logistics"}
    encoding, table = fit(mixed(), named, key="id"), mixed()
    for name in ("rain", "clicks"):
        column, values = column_named(encoding, name), table[name].to_numpy()
        assert (column.width, column.center) == (None, 0.0)
        assert [column.mean[0], column.scale] == pytest.approx([values.mean(), values.std()], rel=1e-9)
    visits = column_named(encoding, "visits")
    assert visits.width is not None
    assert visits.center == round(visits.center)
    cells = encoding.encode(table, "here")["warped"][:, 0]
    there = table["visits"].is_valid().to_numpy()
    u = np.arcsinh((table["visits"].fill_null(0).to_numpy() - visits.center) / visits.width)
    np.testing.assert_allclose(cells[there], ((u - visits.mean[0]) / visits.scale)[there], rtol=1e-5, atol=1e-6)


def test_an_asinh_of_values_that_the_sketch_cannot_tell_apart_has_a_width() -> None:
    encoding = fit(pa.table({"k": [10**9 + i % 40 for i in range(200)]}), {"k": "warped_discretised_logistics"})
    column = encoding.columns[0]
    assert column.width is not None
    assert column.width > 0
    assert np.isfinite(encoding.encode(pa.table({"k": [10**9, 10**9 + 39]}), "here")["warped"]).all()


def test_a_density_named_for_decimals_is_one_and_its_jacobian_that_of_the_scale() -> None:
    table = mixed().select(["degrees", "rain"])
    encoding = fit(table, {"degrees": "student_t", "rain": "gaussian"})
    assert fields_of(encoding) == {"numeric_student_t": ["degrees"], "numeric": ["rain"]}
    degrees, rain = encoding.columns
    assert rain.width is not None
    y = (table["rain"].to_numpy() - rain.center) / rain.width
    expected = -np.log(degrees.scale) - np.log(rain.scale * rain.width) - np.log(np.hypot(1, y))
    np.testing.assert_allclose(encoding.encode(table, "here")[LOG_JACOBIAN], expected, rtol=1e-12)
    cells = np.array([[0.123], [2.0]], np.float32)
    assert encoding.decode_column("degrees", cells, np.ones(2, np.bool_)).to_pylist() == [
        round(float(cell) * degrees.scale + degrees.mean[0], 1) for cell in cells[:, 0]
    ]


@pytest.mark.parametrize("wish", ["gaussian", "student_t", "logistics"])
def test_a_density_named_for_numbers_with_atoms_is_standardised_by_all(wish: str) -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random(1000) < 0.2, -999.0, rng.normal(10, 1, 1000))
    table = pa.table({"x": values})
    summary = TableSummary((1000, 0, 0), {"x": summarise(table["x"])})
    (decided,) = decide_columns(table.schema, summary, None, {}, Rules())
    assert len(decided.atoms) == 1
    (column,) = with_likelihoods([decided], summary, {"x": wish})
    assert (column.atoms, column.field_kind, column.lower, column.upper) == ([], "numeric", None, None)
    assert [*column.mean, column.scale] == pytest.approx([values.mean(), values.std()])


def test_what_names_and_types_forbid_is_refused_before_any_value_is_read_and_all_at_once() -> None:
    schema = mixed().schema
    wishes = {
        **{"nobody": "gaussian", "id": "poisson", "height": "poisson", "town": "gaussian", "flag": "bernouli", "vector": "poisson"},
        **{"same": "gaussian", "degrees": "student_t", "grey": "bernoulli", "black": "continuous_bernoulli", "visits": "gaussian"},
    }
    overrides = {"same": {"kind": "ignored"}, "black": {"kind": "image", "binarize": "per_epoch"}}
    with pytest.raises(ColumnOverrideError) as caught:
        check_likelihoods(schema, "id", overrides, ["degrees"], wishes)
    lines = str(caught.value).splitlines()
    assert [line.split(" is ")[0].removeprefix("model.likelihoods.") for line in lines] == [
        *("nobody", "id", "height", "town", "flag", "vector", "same", "degrees", "black", "visits")
    ]
    said = [
        *("does not have this column; it has ['id', ", "it is the key", f"can have one of {[*CONTINUOUS, *MASSES, *WARPED_MASSES]}"),
        *("a column of type string can have one of ['categorical']", "no such likelihood; there are ['gaussian', "),
        *(
            f"can have one of {list(CONTINUOUS)}",
            "ignored by data.columns",
            "conditions the model",
            "as image can have one of ['bernoulli']",
        ),
        f"a column of type int64 can have one of {[*MASSES, *WARPED_MASSES, *COUNTS, 'categorical']}",
    ]
    for line, part in zip(lines, said, strict=True):
        assert part in line


def test_what_values_forbid_is_refused_all_at_once() -> None:
    wishes = {"balance": "poisson", "height": "discretised_gaussian", "grey": "bernoulli", "same": "gaussian", "town": "categorical"}
    lines = refusal(wishes, key="id")
    assert [line.split(" is ")[0].removeprefix("model.likelihoods.") for line in lines] == ["height", "balance", "grey", "same"]
    assert f"the column is numeric (double type) and can have one of {list(CONTINUOUS)}" in lines[0]
    assert f"the column is numeric (integers, more than 20 values) and can have one of {[*MASSES, *WARPED_MASSES]}" in lines[1]
    assert 'not all 0 or 255; take continuous_bernoulli, or have them drawn by --data.columns \'{"grey"' in lines[2]
    assert "it is ignored (constant), and not modelled" in lines[3]


def test_integers_that_became_categories_are_refused_with_the_way_out() -> None:
    table = pa.table({"k": [0, 1, 2, 3] * 50})
    with pytest.raises(ColumnOverrideError, match=r"categorical \(integers, 4 values\).*; data\.columns can give it another kind"):
        fit(table, {"k": "poisson"})
    assert fields_of(fit(table, {"k": "poisson"}, {"k": {"kind": "count"}})) == {"count_poisson": ["k"]}


@pytest.mark.parametrize(("greys", "refused"), [([0, 255], False), ([0, 254], True), ([1, 255], True), ([0, 1], True)])
def test_one_grey_pixel_is_enough_to_refuse_a_bernoulli(greys: list[int], refused: bool) -> None:
    pixels = np.random.default_rng(2).choice([0, 255], (5000, 64))
    pixels[77, 5], pixels[78, 5] = greys
    table = pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1), pa.uint8()), 64)})
    if refused:
        with pytest.raises(ColumnOverrideError, match="not all 0 or 255"):
            fit(table, {"pixels": "bernoulli"})
    else:
        assert fit(table, {"pixels": "bernoulli"}).columns[0].likelihood == "bernoulli"


def test_pixels_to_be_binarised_are_stored_as_they_are_and_marked() -> None:
    override = {"grey": {"kind": "image", "binarize": "per_epoch"}}
    encoding = fit(mixed(), {}, override, key="id")
    grey = column_named(encoding, "grey")
    assert (grey.kind, grey.binarize, grey.likelihood, grey.shape) == ("image", True, "bernoulli", [2, 2])
    assert not column_named(encoding, "black").binarize
    assert TableEncoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding
    plain = fit(mixed(), {}, key="id").encode(mixed(), "here")
    assert encoding.encode(mixed(), "here")["image_0"].tobytes() == plain["image_0"].tobytes()
    named = fit(mixed(), {"grey": "bernoulli"}, override, key="id")
    assert [(field.name, field.likelihood) for field in named.fields] == [(field.name, field.likelihood) for field in encoding.fields]


def test_a_condition_is_not_binarised() -> None:
    with pytest.raises(ConditionError, match=r"'grey' is binarised by data\.columns"):
        check_condition(mixed().schema, "id", {"grey": {"kind": "image", "binarize": "per_epoch"}}, ["grey"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"kind": "image", "binarize": True}, "binarize is True; it must be 'per_epoch'"),
        ({"kind": "image", "binarize": "once"}, "binarize is 'once'; it must be 'per_epoch'"),
        ({"binarize": "per_epoch"}, "needs kind 'image'"),
        ({"kind": "vector", "binarize": "per_epoch"}, "needs kind 'image'"),
    ],
    ids=str,
)
def test_a_wish_to_binarise_that_cannot_be_is_refused(override: dict[str, Any], said: str) -> None:
    (line,) = refusal({}, overrides={"grey": override}, key="id")
    assert line.startswith("data.columns.grey.binarize")
    assert said in line
