"""What the batch jobs share."""

from __future__ import annotations

import pytest

from workflows import batch
from workflows.batch import followed


@pytest.mark.parametrize("num_rows", [1000, None])
def test_files_that_are_put_aside_take_no_centuries(
    num_rows: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batch, "PROGRESS_S", -1.0)
    caplog.set_level("INFO", "vae")
    assert len(list(followed([{"num_rows": 0}, {"num_rows": 500}], 2, num_rows))) == 2
    assert [record.getMessage().split(", ")[-1] for record in caplog.records] == ["about 0 s to go"] * 2
