"""The loops that benchmarks/train.py compares this product with; each prints "first step" and "epoch k/N" on standard error.

    python benchmarks/baselines.py check W2 TABLE                     the hand-written bound and gradient against vae.model's
    python benchmarks/baselines.py tuned W2 TABLE [--bfloat16]        plain PyTorch, tensors in memory, 1 process, 1 thread
    python benchmarks/baselines.py ddp W2 TABLE                       the same in 2 processes, gloo DistributedDataParallel
    python benchmarks/baselines.py ray W2 TABLE [--num_workers 2]     Ray Data and Ray Train as their user guides show them

"tuned" is the model that workflows/architecture.py gives the table, with its likelihoods, written by hand for that one table: what
follows from the data alone is computed once (one-hot categories) or without branches (intervals' ends), flags that are always true are in
the encoder's bias, the discretised Gaussian has its gradient by hand. A fused Adam, no .item(), denormals flushed, every epoch gathered at
once. "ray" trains the same lean model on the raw columns with the usual loop (default Adam, .item() each step, a report with a checkpoint
each epoch); statistics and categories are given to it for nothing, so what it is slower by is Ray Data and that loop.

Shapes: N rows, B rows of a step, D cells of a field, F features, C categorical columns, K categories in all.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

HIDDEN_DIMS = {"W1": [512, 256], "W2": [128, 128], "W3": [256]}
LATENT_DIM = {"W1": 32, "W2": 128, "W3": 16}
BATCH_ROWS = {"W1": 256, "W2": 500, "W3": 4096}
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
SQRT_HALF = math.sqrt(0.5)
OPEN_END = 1e4  # stands for infinity, in standard deviations of the data
# Beyond it float32's erfc runs out of numbers, and Mills' ratio to two terms is good to 3 / TAIL^4.
TAIL = 9.0
# erfc and exp take ten times as long where they underflow, as they would at an open end; here nothing is left to add.
FAR = 12.0


class IntervalMass(torch.autograd.Function):
    """Sums over cells of log(Phi(v) - Phi(u)), u and v = (end - location) / scale, [B]; intervals are mirrored into the upper tail."""

    @staticmethod
    def forward(ctx: Any, location: Tensor, log_scale: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        inverse = torch.exp(-log_scale)
        u, v = (begin - location).mul_(inverse), (end - location).mul_(inverse)
        lo, hi = torch.maximum(u, -v), torch.maximum(v, -u)
        log_mass = (torch.erfc(lo * SQRT_HALF) - torch.erfc(hi.clamp(max=FAR) * SQRT_HALF)).mul_(0.5).log_()
        if lo.max() > TAIL:
            log_mass = torch.where(lo > TAIL, tail_mass(lo.clamp(min=TAIL), hi.clamp(min=TAIL)), log_mass)
        at_lo = lo.square().mul_(-0.5).sub_(log_mass).sub_(LOG_SQRT_2PI).exp_()  # phi(lo) / mass
        at_hi = hi.square().mul_(-0.5).sub_(log_mass).sub_(LOG_SQRT_2PI).clamp_(min=-80).exp_()
        ctx.save_for_backward((at_lo - at_hi).mul_(torch.sign(u + v)).mul_(inverse), at_lo.mul_(lo).sub_(at_hi.mul_(hi)))
        return log_mass.sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_location, by_log_scale = ctx.saved_tensors
        return by_location * gradients[0][:, None], gradients[0] @ by_log_scale, None, None


def tail_mass(lo: Tensor, hi: Tensor) -> Tensor:
    """Returns log(Phi(hi) - Phi(lo)) for TAIL <= lo < hi."""
    share_beyond = torch.exp(0.5 * (lo - hi) * (lo + hi)) * lo / hi
    return -0.5 * lo.square() - LOG_SQRT_2PI - lo.log() + torch.log1p(-lo.square().reciprocal()) + torch.log1p(-share_beyond)


class Lean(nn.Module, ABC):
    """A VAE of one field or two without missing rows, over one tensor; forward returns the ELBO in stored units, [B]."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, log_scale: Tensor, use_bfloat16: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.use_bfloat16 = encoder, decoder, use_bfloat16
        self.log_scale = nn.Parameter(log_scale.detach().clone())

    def forward(self, rows: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.use_bfloat16):
            mean, log_scale = self.encoder(self.features(rows)).float().chunk(2, -1)
            log_scale = log_scale.clamp(-10.0, 5.0)
            scale = log_scale.exp()
            outputs = self.decoder(torch.addcmul(mean, scale, noise))
        kl = 0.5 * (mean.square() + scale.square() - 2 * log_scale).sum(1) - 0.5 * mean.shape[1]
        result: Tensor = self.log_likelihood(outputs.float(), rows, self.log_scale.clamp(-7.0, 4.0)) - kl
        return result

    def features(self, rows: Tensor) -> Tensor:
        return rows

    @abstractmethod
    def log_likelihood(self, outputs: Tensor, rows: Tensor, log_scale: Tensor) -> Tensor:
        """Returns log p of rows in stored units, [B]."""

    def tensor(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Returns the one tensor of rows, from their encoded arrays."""
        (values,) = (array for name, array in arrays.items() if "." not in name and name != "log_jacobian")
        return values


class Images(Lean):
    """uint8 pixels [B, D] under a discretised Gaussian; 0 and 255 have the whole tails."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, log_scale: Tensor, use_bfloat16: bool, center: float, scale: float) -> None:
        super().__init__(encoder, decoder, log_scale, use_bfloat16)
        self.center, self.scale = center, scale

    def features(self, rows: Tensor) -> Tensor:
        return (rows.float() - self.center) / self.scale

    def log_likelihood(self, outputs: Tensor, rows: Tensor, log_scale: Tensor) -> Tensor:
        pixels = rows.float()
        begin = ((pixels - (self.center + 0.5)) / self.scale).sub_((1 - pixels).relu_(), alpha=OPEN_END)
        end = ((pixels - (self.center - 0.5)) / self.scale).add_((pixels - 254).relu_(), alpha=OPEN_END)
        result: Tensor = IntervalMass.apply(outputs, log_scale, begin, end)  # type: ignore[no-untyped-call]
        return result


class Vectors(Lean):
    """float32 elements [B, D] under a Gaussian of one learned variance."""

    def log_likelihood(self, outputs: Tensor, rows: Tensor, log_scale: Tensor) -> Tensor:
        squares = (rows - outputs).square().sum(1)
        return -0.5 * squares * torch.exp(-2 * log_scale) - rows.shape[1] * (log_scale + LOG_SQRT_2PI)


class Mixed(Lean):
    """Numbers and categories with nulls: rows are the encoder's features [B, F], made once: cells, flags, one-hot categories, flags."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, log_scale: Tensor, use_bfloat16: bool, sizes: list[int]) -> None:
        super().__init__(encoder, decoder, log_scale, use_bfloat16)
        self.sizes = sizes
        column_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.membership = nn.functional.one_hot(column_of).float()  # [K, C]

    def log_likelihood(self, outputs: Tensor, rows: Tensor, log_scale: Tensor) -> Tensor:
        num_numeric = log_scale.shape[0]
        parts = [num_numeric, num_numeric, sum(self.sizes), len(self.sizes)]
        numbers, there, one_hot, known = torch.split_with_sizes(rows, parts, 1)
        location, logits = torch.split_with_sizes(outputs, [num_numeric, sum(self.sizes)], 1)
        squares = ((numbers - location * there) * torch.exp(-log_scale)).square().sum(1)
        highest = logits.detach().amax(1, keepdim=True)
        sums = torch.exp(logits - highest) @ self.membership
        categories = (one_hot * logits).sum(1) - (known * (sums.log() + highest)).sum(1)
        result: Tensor = -0.5 * squares - there @ (log_scale + LOG_SQRT_2PI) + categories
        return result

    def tensor(self, arrays: Mapping[str, Tensor]) -> Tensor:
        known = arrays["categorical.valid"]
        sizes = torch.tensor(self.sizes)
        one_hot = torch.zeros(len(known), int(sizes.sum()))
        one_hot.scatter_(1, arrays["categorical"].long() + (sizes.cumsum(0) - sizes), known.float())
        there = arrays["numeric.valid"]
        return torch.cat([arrays["numeric"] * there, there, one_hot, known], 1)


def lean_model(workload: str, vae: Any, bfloat16: bool = False) -> Lean:
    """Returns the lean form of a vae.VAE, with its weights."""
    encoder, decoder = copy.deepcopy(vae.encoder), copy.deepcopy(vae.decoder)
    fields = dict(vae.likelihoods.items())
    names = {"W1": ["image_0"], "W2": ["numeric", "categorical"], "W3": ["vector_0"]}
    assert list(fields) == names[workload], f"{workload}: the table has the fields {list(fields)}"
    field = fields[names[workload][0]]
    if workload == "W2":
        return Mixed(encoder, decoder, field.log_scale, bfloat16, fields["categorical"].sizes)
    if workload == "W3":
        return Vectors(encoder, decoder, field.log_scale, bfloat16)
    return Images(encoder, decoder, field.log_scale, bfloat16, field.center, field.scale)


def encoded(workload: str, path: str, key: str | None = None) -> tuple[Any, Any, dict[str, Tensor]]:
    """Returns the product's model (untrained, by seed 0) and encoding of a table, and all its rows' arrays."""
    from data.columns import Rules, decide_columns
    from data.encoding import TableEncoding
    from data.reading import RowReader
    from data.statistics import merge_all, summarise_table
    from data.table import open_table
    from vae.model import VAE
    from workflows.architecture import architecture
    from workflows.config import ModelConfig

    table = open_table(path)
    with RowReader(table.filesystem, table.schema) as reader:
        slices = [rows for group in table.row_groups() for _, rows in reader.slices(group)]
    summary = merge_all(summarise_table(rows, (len(rows), 0, 0)) for rows in slices)
    columns = decide_columns(table.schema, summary, key, {}, Rules())
    encoding = TableEncoding(table.schema, tuple(columns), key)
    parts = [encoding.encode(rows, path) for rows in slices]
    arrays = {name: torch.from_numpy(np.ascontiguousarray(np.concatenate([part[name] for part in parts]))) for name in parts[0]}
    torch.manual_seed(0)
    vae = VAE(**architecture(encoding, ModelConfig(LATENT_DIM[workload], HIDDEN_DIMS[workload])))
    return vae, encoding, arrays


def gradients(model: Any) -> list[Tensor]:
    """Returns the gradients of the last layers' weights, which the whole bound reaches."""
    return [model.encoder[-1].weight.grad, model.decoder[-1].weight.grad]


def check(workload: str, path: str) -> None:
    """Raises AssertionError unless the lean bound and its gradients are the product's, at its first weights and after some training."""
    from vae.rows import Rows

    vae, _, arrays = encoded(workload, path)
    some = {name: array[:512] for name, array in arrays.items()}
    rows, noise = Rows.from_arrays({name: array.numpy() for name, array in some.items()}), torch.randn(512, vae.latent_dim)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for steps in (0, 100):
        for _ in range(steps):
            optimizer.zero_grad()
            (-vae.elbo(rows, torch.randn_like(noise)).elbo.mean()).backward()
            optimizer.step()
        lean = lean_model(workload, vae)
        vae.zero_grad()
        expected = vae.elbo(rows, noise).elbo
        found = lean(lean.tensor(some), noise) + some["log_jacobian"]
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-4)
        expected.mean().backward()
        found.mean().backward()
        scales = torch.cat([lik.log_scale.grad for lik in vae.likelihoods.values() if hasattr(lik, "log_scale")])
        for ours, theirs in zip([*gradients(lean), lean.log_scale.grad], [*gradients(vae), scales], strict=True):
            assert ours is not None
            error = float((ours - theirs).norm() / theirs.norm())
            assert error < 1e-3, f"{workload}: gradients differ by {error:.1e} after {steps} steps"
        means = [float(bound.detach().mean()) for bound in (found, expected)]
        say(f"{workload}: after {steps} steps the lean ELBO is {means[0]:.4f}, vae.model's {means[1]:.4f}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def train_epoch(model: nn.Module, rows: Tensor, batch_rows: int, latent_dim: int, optimizer: torch.optim.Optimizer, first: bool) -> Tensor:
    """Takes one epoch's steps; returns the sum of the ELBO over the rows, []."""
    shuffled = rows.index_select(0, torch.randperm(len(rows)))
    total = torch.zeros(())
    for number, batch in enumerate(torch.split(shuffled, batch_rows)):
        optimizer.zero_grad(set_to_none=True)
        elbo = model(batch, torch.randn(len(batch), latent_dim))
        (-elbo.mean()).backward()
        optimizer.step()
        total += elbo.detach().sum()
        if first and number == 0:
            say("first step")
    return total


def tuned(workload: str, path: str, epochs: int, bfloat16: bool = False, rank: int = 0, num_workers: int = 1) -> None:
    """Trains on every num_workers-th row from number `rank` on."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    vae, _, arrays = encoded(workload, path)
    lean = lean_model(workload, vae, bfloat16)
    num_rows = len(arrays["log_jacobian"]) // num_workers
    rows = lean.tensor({name: array[rank::num_workers][:num_rows] for name, array in arrays.items()})
    log_jacobian = float(arrays.pop("log_jacobian").mean())
    del vae, arrays
    model = nn.parallel.DistributedDataParallel(lean) if num_workers > 1 else lean
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    torch.manual_seed(rank)
    for epoch in range(epochs):
        total = train_epoch(model, rows, BATCH_ROWS[workload] // num_workers, LATENT_DIM[workload], optimizer, epoch == 0 and rank == 0)
        if rank == 0:
            say(f"epoch {epoch + 1}/{epochs}  train ELBO {float(total) / num_rows + log_jacobian:.3f}")


def ddp_rank(rank: int, workload: str, path: str, epochs: int, meeting: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    tuned(workload, path, epochs, rank=rank, num_workers=2)
    torch.distributed.destroy_process_group()


def ddp(workload: str, path: str, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spawn(  # type: ignore[no-untyped-call]
            ddp_rank, args=(workload, path, epochs, f"{folder}/meeting"), nprocs=2
        )


def usual_preprocessing(workload: str, encoding: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns what map_batches does with raw columns: arrays named as the encoding names them."""
    # Closures hold nothing of the package data: Ray's workers start in benchmarks/, where data.py would be found in its place.
    if workload != "W2":
        (name,), (field,) = encoding.modelled, encoding.fields
        target, mean, scale = field.name, np.array(field.columns[0].mean, np.float32), np.float32(field.columns[0].scale)

        def stack(batch: dict[str, Any]) -> dict[str, Any]:
            elements = np.stack(batch[name])  # one Python object per row until here
            return {target: elements if workload == "W1" else (elements - mean) / scale}

        return stack
    numeric, categorical = (field.columns for field in encoding.fields)
    statistics = [(c.name, c.mean[0], c.scale) for c in numeric]
    categories = [(c.name, list(c.categories)) for c in categorical]

    def standardise(batch: dict[str, Any]) -> dict[str, Any]:
        import pandas as pd

        cells = np.stack([(batch[name].astype(np.float64) - mean) / scale for name, mean, scale in statistics], 1).astype(np.float32)
        codes = np.stack([pd.Categorical(batch[name], categories=known).codes for name, known in categories], 1).astype(np.int64)
        valid = {"numeric.valid": np.isfinite(cells), "categorical.valid": codes >= 0}
        return {"numeric": np.nan_to_num(cells), "categorical": np.maximum(codes, 0), **valid}

    return standardise


def ray_worker(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import prepare_model

    lean: Lean = config["model"]
    model = prepare_model(lean)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rows_of_worker = config["batch_rows"] // ray.train.get_context().get_world_size()
    for epoch in range(config["epochs"]):
        losses = list(usual_steps(model, lean, optimizer, config["latent_dim"], rows_of_worker, epoch == 0))
        with tempfile.TemporaryDirectory() as folder:
            torch.save(lean.state_dict(), Path(folder) / "model.pt")
            ray.train.report({"loss": sum(losses) / len(losses)}, checkpoint=ray.train.Checkpoint.from_directory(folder))
        if ray.train.get_context().get_world_rank() == 0:
            say(f"epoch {epoch + 1}/{config['epochs']}  train ELBO {config['log_jacobian'] - sum(losses) / len(losses):.3f}")


def usual_steps(
    model: nn.Module, lean: Lean, optimizer: torch.optim.Optimizer, latent_dim: int, batch_rows: int, first: bool
) -> Iterator[float]:
    import ray.train

    shard = ray.train.get_dataset_shard("train")
    for number, batch in enumerate(shard.iter_torch_batches(batch_size=batch_rows, local_shuffle_buffer_size=10 * batch_rows)):
        rows = lean.tensor(batch)
        loss = -model(rows, torch.randn(len(rows), latent_dim)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()
        if first and number == 0 and ray.train.get_context().get_world_rank() == 0:
            say("first step")


def ray_example(workload: str, path: str, epochs: int, num_workers: int) -> None:
    import ray.data
    import ray.train
    from ray.train.torch import TorchTrainer

    vae, encoding, arrays = encoded(workload, path)
    config = {
        "model": lean_model(workload, vae),
        "epochs": epochs,
        "batch_rows": BATCH_ROWS[workload],
        "latent_dim": LATENT_DIM[workload],
        "log_jacobian": float(arrays["log_jacobian"].mean()),
    }
    preprocessing = usual_preprocessing(workload, encoding)
    del vae, encoding, arrays
    # With as many CPUs as workers Ray Data would get none and wait for ever.
    ray.init(address="local", num_cpus=4, include_dashboard=False)
    with tempfile.TemporaryDirectory() as storage:
        TorchTrainer(
            ray_worker,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=num_workers),
            datasets={"train": ray.data.read_parquet(path).map_batches(preprocessing)},
            run_config=ray.train.RunConfig(storage_path=storage),
        ).fit()
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=["check", "tuned", "ddp", "ray"])
    parser.add_argument("workload", choices=list(BATCH_ROWS))
    parser.add_argument("table")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--bfloat16", action="store_true", help="tuned: matrix products in bfloat16")
    parser.add_argument("--num_workers", type=int, default=1, help="ray: training workers")
    chosen = parser.parse_args()
    match chosen.loop:
        case "check":
            check(chosen.workload, chosen.table)
        case "tuned":
            tuned(chosen.workload, chosen.table, chosen.epochs, chosen.bfloat16)
        case "ddp":
            ddp(chosen.workload, chosen.table, chosen.epochs)
        case "ray":
            ray_example(chosen.workload, chosen.table, chosen.epochs, chosen.num_workers)


if __name__ == "__main__":
    main()
