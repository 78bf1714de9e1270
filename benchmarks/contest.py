"""What benchmarks/step.py times: the same model as vae has it and by hand, and what each of them does with the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lean import HIDDEN_DIMS, LATENT_DIM, Lean, lean_model
from data.plan import Plan, shard_bounds
from vae import linear
from vae.model import VAE
from vae.objective import Loss, Objective
from vae.rows import Rows
from workflows.feed import HeldRows, training_stretches
from workflows.model_config import TrainingConfig
from workflows.optimization import Optimizer
from workflows.steps import autocast, compiled, take_step

CATEGORIES = [2, 3, 5, 8, 10, 12, 20, 30, 40, 50]

Work = Callable[[], object]


def fields(workload: str) -> list[dict[str, Any]]:
    """Returns what workflows.architecture makes of the workload's table."""
    if workload == "W1":
        grid = {"half_width": [0.5 / 80], "lower": [-0.5], "upper": [255 / 80 - 0.5], "center": 40.0, "scale": 80.0, "storage": "uint8"}
        return [{"name": "image_0", "likelihood": "discretised_gaussian", "size": 784, "valid_size": 1, "with_flags": False} | grid]
    if workload == "W2":
        categorical = {"name": "categorical", "likelihood": "categorical", "sizes": CATEGORIES, "valid_size": len(CATEGORIES)}
        return [{"name": "numeric", "likelihood": "gaussian", "size": 20, "valid_size": 20}, categorical]
    return [{"name": "vector_0", "likelihood": "gaussian", "size": 64, "valid_size": 1, "with_flags": False, "shared_scale": True}]


def rows_of(workload: str, num_rows: int) -> Rows:
    """Returns rows that 16 numbers explain up to noise, 5 % of the cells of W2 missing, on the CPU."""
    g = torch.Generator().manual_seed(0)

    def explained(size: int) -> Tensor:
        return torch.randn(num_rows, 16, generator=g) @ torch.randn(16, size, generator=g) / 4 + 0.3 * torch.randn(
            num_rows, size, generator=g
        )

    if workload == "W1":
        values = {"image_0": (explained(784) * 60 - 20).clamp(0, 255).to(torch.uint8)}
    elif workload == "W2":
        codes = [((explained(1) * size / 4 + size / 2).clamp(0, size - 1)).int() for size in CATEGORIES]
        values = {"numeric": explained(20), "categorical": torch.cat(codes, 1)}
    else:
        values = {"vector_0": explained(64)}
    valid = {
        name: torch.rand(cells.shape, generator=g) > 0.05 if workload == "W2" else torch.ones(num_rows, 1, dtype=torch.bool)
        for name, cells in values.items()
    }
    values = {name: torch.where(valid[name], cells, torch.zeros_like(cells)) for name, cells in values.items()}
    return Rows(values, valid, torch.zeros(num_rows, dtype=torch.float64))


class Contest:
    """The same model as vae has it and by hand, and what each of them does with the same rows."""

    def __init__(self, workload: str, device: torch.device, batch_rows: int, num_rows: int, precision: str) -> None:
        torch.manual_seed(0)
        self.device, self.batch_rows, self.precision = device, batch_rows, precision
        self.model = VAE(fields(workload), LATENT_DIM[workload], HIDDEN_DIMS[workload]).to(device)
        held = rows_of(workload, num_rows)
        self.lean = lean_model(workload, self.model, precision == "bfloat16").to(device)
        arrays = dict(held.values) | {f"{name}.valid": valid for name, valid in held.valid.items()}
        tensor = self.lean.tensor(arrays).to(device)
        self.rows = held.to(device)
        self.bytes_per_row = held.bytes_per_row
        starts = range(0, num_rows - batch_rows + 1, batch_rows)
        self.tensors = [tensor[begin : begin + batch_rows] for begin in starts]
        self.batches = [self.rows.slice(begin, begin + batch_rows) for begin in starts]
        self.check()

    def noise(self) -> Tensor:
        return torch.randn(self.batch_rows, self.model.latent_dim, device=self.device)

    def check(self) -> None:
        """Raises AssertionError unless both models have one bound."""
        noise = self.noise()
        with torch.no_grad(), autocast(self.device, self.precision):
            expected = self.model.elbo(self.batches[0], noise).elbo
        with torch.no_grad():
            found = self.lean(self.tensors[0], noise)
        tolerance = 1e-4 if self.precision == "float32" else 2e-2
        torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)

    def works(self, compile_models: bool) -> dict[str, Work]:
        """Returns what is timed, by name."""
        loss, lean = Loss(self.model, Objective()), self.lean
        own = compiled(loss) if compile_models else loss
        tuned: Any = torch.compile(lean, mode="reduce-overhead" if self.device.type == "cuda" else None) if compile_models else lean
        steps = self.steps(own)
        works: dict[str, Work] = {
            "tuned": self.tuned(tuned, lean),
            "model": self.plain(own),
            "step": lambda: next(steps),
            "tuned_encode": self.tuned_encode(lean),
            "encode": self.encode(),
        }
        return {f"{name}_compiled": work for name, work in works.items() if "encode" not in name} if compile_models else works

    def tuned(self, model: Any, lean: Lean) -> Work:
        tensors, optimizer = cycle(self.tensors), torch.optim.Adam(lean.parameters(), lr=1e-3, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            (-model(next(tensors), self.noise()).mean()).backward()
            optimizer.step()

        return step

    def plain(self, loss: nn.Module) -> Work:
        batches, optimizer = cycle(self.batches), torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(self.device, self.precision):
                minimised, _ = loss(next(batches), self.noise(), 1.0)
            (minimised / self.batch_rows).backward()
            optimizer.step()

        return step

    def steps(self, loss: nn.Module) -> Iterator[Tensor]:
        """Takes a training step whenever it is asked for one; yields the sums of take_step."""
        optimizer = Optimizer(self.model, TrainingConfig(ema_decay=0))  # the other loop averages nothing
        for number, (rows, noise) in enumerate(gathered(self.rows, self.batch_rows, self.model)):
            yield take_step(loss, optimizer, rows, noise, 1 / rows.num_rows, 1.0, 1e-3, self.precision, number)

    def tuned_encode(self, lean: Lean) -> Work:
        tensors = cycle(self.tensors)

        @torch.inference_mode()
        def embed() -> object:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                return lean.posterior(next(tensors))[:2]

        return embed

    def encode(self) -> Work:
        batches = cycle(self.batches)

        @torch.inference_mode()
        def embed() -> object:
            with autocast(self.device, self.precision):
                q_z = self.model.posterior(next(batches))
            return q_z.mean, q_z.scale

        return embed

    def products(self, training: bool) -> Work:
        """Returns a step's matrix products alone, by the faster library: every layer's, forward and for both gradients, or encoding."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        parameters = [*self.model.encoder.parameters(), *(self.model.decoder.parameters() if training else [])]
        weights = [w.detach().to(dtype) for w in parameters if w.dim() == 2]
        inputs = [torch.randn(self.batch_rows, w.shape[1], device=w.device).to(dtype) for w in weights]
        outputs = [torch.randn(self.batch_rows, w.shape[0], device=w.device).to(dtype) for w in weights]

        onednn = self.device.type == "cpu" and dtype == torch.float32 and linear.prefers_onednn()
        multiply = linear.product if onednn else torch.nn.functional.linear

        def products() -> None:
            for w, x, y in zip(weights, inputs, outputs, strict=True):
                _ = (multiply(x, w), multiply(y.T, x.T), multiply(y, w.T)) if training else multiply(x, w)

        return products

    def least_bytes(self, training: bool) -> int:
        weights = sum(p.numel() for p in (self.model if training else self.model.encoder).parameters())
        return 4 * weights * (6 if training else 1) + self.batch_rows * self.bytes_per_row


def gathered(rows: Rows, batch_rows: int, model: VAE) -> Iterator[tuple[Rows, Tensor]]:
    """Yields the batches that training takes of rows that it holds, with their noise, epoch after epoch."""
    plan = Plan(rows.num_rows, 8, batch_rows, 0, rows.num_rows)
    bounds = shard_bounds(rows.num_rows, 8).tolist()
    sizes = {shard: bounds[shard + 1] - bounds[shard] for shard in range(8)}
    held, epoch = HeldRows(rows, dict(enumerate(bounds[:-1])), sizes), 0
    while True:
        for stretch, some, noise in training_stretches(plan, held, epoch, 0, model):
            for begin, end in zip(stretch.offsets[:-1].tolist(), stretch.offsets[1:].tolist(), strict=True):
                if end - begin == batch_rows:  # the last of an epoch is smaller, and would be timed as one of the others
                    yield some.slice(begin, end), noise[begin:end]
        epoch += 1
