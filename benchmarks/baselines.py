"""The loops that benchmarks/train.py compares this product with; each prints "first step" and "epoch k/N" on standard error.

    python benchmarks/baselines.py check W2 TABLE                     the hand-written bound and gradient against vae.model's
    python benchmarks/baselines.py tuned W2 TABLE [--bfloat16]        plain PyTorch, tensors in memory, 1 process, 1 thread
    python benchmarks/baselines.py ddp W2 TABLE                       the same in 2 processes, gloo DistributedDataParallel
    python benchmarks/baselines.py ray W2 TABLE [--num_workers 2]     Ray Data and Ray Train as their user guides show them

"tuned" trains the model of benchmarks/lean.py: a fused Adam, no .item(), denormals flushed, every epoch gathered at once. "ray"
trains the same model on the raw columns with the usual loop (default Adam, .item() each step, a report with a checkpoint each epoch);
statistics and categories are given to it for nothing, so what it is slower by is Ray Data and that loop.

Shapes: N rows, B rows of a step, L latent dimensions.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from benchmarks.lean import BATCH_ROWS, HIDDEN_DIMS, LATENT_DIM, LIKELIHOODS, Lean, lean_model


def encoded(workload: str, path: str, key: str | None = None) -> tuple[Any, Any, dict[str, Tensor]]:
    """Returns the product's model (untrained, by seed 0) and encoding of a table, and all its rows' arrays."""
    from data.columns import Rules, decide_columns
    from data.encoding import TableEncoding
    from data.reading import RowReader
    from data.statistics import merge_all, summarise_table
    from data.table import open_table
    from data.wishes import with_likelihoods
    from vae.model import VAE
    from workflows.architecture import architecture
    from workflows.model_config import ModelConfig

    table = open_table(path)
    with RowReader(table.filesystem, table.schema) as reader:
        slices = [rows for group in table.row_groups() for _, rows in reader.slices(group)]
    summary = merge_all(summarise_table(rows, (len(rows), 0, 0)) for rows in slices)
    columns = with_likelihoods(decide_columns(table.schema, summary, key, {}, Rules()), summary, LIKELIHOODS.get(workload, {}))
    encoding = TableEncoding(table.schema, tuple(columns), key)
    parts = [encoding.encode(rows, path) for rows in slices]
    arrays = {name: torch.from_numpy(np.ascontiguousarray(np.concatenate([part[name] for part in parts]))) for name in parts[0]}
    torch.manual_seed(0)
    vae = VAE(**architecture(encoding, ModelConfig(LATENT_DIM[workload], HIDDEN_DIMS[workload], prior="standard", null_pattern=False)))
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
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])  # where Ray's processes find benchmarks.lean
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
