"""How units are handed to actors."""

import os
import signal
import time
from collections import deque
from typing import Any

import pytest
import ray

from workflows.actors import distributed


class Slow:
    """An actor that is ready at once and never ends a unit."""

    def do(self, unit: dict[str, int] | None) -> dict[str, Any]:
        while unit is not None:
            time.sleep(1)
        return {"done": None}


@pytest.mark.parametrize(("stopped_at", "under_way"), [(0, slice(0, 1)), (1, slice(1, 2)), (2, slice(1, 3))])
def test_a_stop_while_a_unit_is_handed_over_leaves_none_that_is_not_cancelled(
    ray_address: str, monkeypatch: pytest.MonkeyPatch, stopped_at: int, under_way: slice
) -> None:
    ray.init(address=ray_address, log_to_driver=False)
    actor = ray.remote(num_cpus=0)(Slow).remote()
    given: list[ray.ObjectRef] = []
    cancelled: list[ray.ObjectRef] = []

    def do(actor: Any, unit: Any) -> ray.ObjectRef:
        given.append(actor.do.remote(unit))
        if len(given) == stopped_at + 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return given[-1]

    monkeypatch.setattr(ray, "cancel", cancelled.append)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(distributed([actor], do, deque({"unit": unit} for unit in range(8))))
        assert cancelled == given[under_way]
    finally:
        ray.kill(actor)
        ray.shutdown()
