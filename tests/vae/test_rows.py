"""Claims about vae.rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae.rows import Rows

NUM_ROWS = 6


def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "numeric": generator.normal(size=(NUM_ROWS, 3)).astype(np.float32),
        "numeric.valid": generator.random((NUM_ROWS, 3)) < 0.5,
        "image_0": generator.integers(0, 256, (NUM_ROWS, 4), dtype=np.uint8),
        "image_0.valid": generator.random((NUM_ROWS, 1)) < 0.5,
        "log_jacobian": generator.normal(size=NUM_ROWS),
    }


def back_to_arrays(rows: Rows) -> dict[str, np.ndarray]:
    valid = {f"{name}.valid": tensor.numpy() for name, tensor in rows.valid.items()}
    return {name: tensor.numpy() for name, tensor in rows.values.items()} | valid | {"log_jacobian": rows.log_jacobian.numpy()}


def assert_same(actual: Rows, expected: dict[str, np.ndarray]) -> None:
    found = back_to_arrays(actual)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_rows_hold_each_array_in_its_own_type_and_without_a_copy() -> None:
    source = arrays()
    rows = Rows.from_arrays(source)
    assert_same(rows, source)
    assert rows.num_rows == NUM_ROWS
    source["image_0"][2, 1] = 77
    assert rows.values["image_0"][2, 1] == 77


@given(index=st.lists(st.integers(0, NUM_ROWS - 1), max_size=12))
def test_take_gathers_the_rows_of_every_array(index: list[int]) -> None:
    taken = Rows.from_arrays(arrays()).take(torch.tensor(index, dtype=torch.int64))
    assert taken.num_rows == len(index)
    assert_same(taken, {name: array[index] for name, array in arrays().items()})


@given(begin=st.integers(0, NUM_ROWS), length=st.integers(0, NUM_ROWS))
def test_slice_gives_the_rows_of_every_array(begin: int, length: int) -> None:
    rows = Rows.from_arrays(arrays()).slice(begin, begin + length)
    assert_same(rows, {name: array[begin : begin + length] for name, array in arrays().items()})


def test_a_slice_is_a_view_and_a_take_is_a_copy() -> None:
    rows = Rows.from_arrays(arrays())
    sliced, taken = rows.slice(2, 5), rows.take(torch.tensor([2, 3, 4]))
    before = taken.values["numeric"].clone()
    rows.values["numeric"][2] = 99
    assert (sliced.values["numeric"][0] == 99).all()
    assert torch.equal(taken.values["numeric"], before)


def test_rows_without_a_log_jacobian_are_refused() -> None:
    source = arrays()
    del source["log_jacobian"]
    with pytest.raises(KeyError, match="log_jacobian"):
        Rows.from_arrays(source)
