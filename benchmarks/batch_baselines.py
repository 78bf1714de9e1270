"""The jobs that benchmarks/batch.py compares encode.py and generate.py with; they know a bundle's files and nothing of this product.

    python benchmarks/batch_baselines.py tuned encode BUNDLE OUTPUT --table FOLDER       pyarrow and PyTorch, 1 process, 1 thread
    python benchmarks/batch_baselines.py tuned generate BUNDLE OUTPUT --num_rows N
    python benchmarks/batch_baselines.py ray encode|generate ..                          Ray Data as its user guide shows batch inference

"tuned" is the arithmetic of the product by hand, for the benchmark's tables: columns "id" and pixels, a vector, or numbers and categories
with nulls. "ray" is read_parquet or range, map_batches with a class in a pool of one actor, write_parquet; its actor calls the same
functions, so what it takes more is Ray Data, and the usual np.stack of a batch's lists.

Shapes: B rows, D cells of a row, L latent dimensions.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

CHUNK_ROWS = 4096  # of a forward pass: what it makes stays in the cache
GROUP_ROWS = 65_536  # of a row group written


def network(weights: dict[str, Tensor], name: str) -> nn.Sequential:
    """Returns affine maps with ReLU between them."""
    layers: list[nn.Module] = []
    for key in sorted((key for key in weights if key.startswith(name) and key.endswith("weight")), key=lambda key: int(key.split(".")[1])):
        layer = nn.Linear(*reversed(weights[key].shape))
        layer.load_state_dict({"weight": weights[key], "bias": weights[key.replace("weight", "bias")]})
        layers += [layer, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class Model:
    """A bundle's networks and what its table is."""

    def __init__(self, bundle: Path) -> None:
        weights = load_file(bundle / "weights.safetensors")
        self.encoder, self.decoder = network(weights, "encoder"), network(weights, "decoder")
        self.latent_dim = self.decoder[0].in_features
        self.scales = {key.split(".")[1]: tensor.exp() for key, tensor in weights.items() if key.endswith("log_scale")}
        table = json.loads((bundle / "table.json").read_text())
        self.schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(table["schema"])))
        self.columns = {column["name"]: column for column in table["columns"] if column["kind"] != "key"}
        first = next(iter(self.columns.values()))
        self.name, self.mean, self.scale = first["name"], torch.tensor(first["mean"]), first["scale"]

    @torch.inference_mode()
    def posterior(self, elements: Tensor) -> tuple[Tensor, Tensor]:
        """Returns means and scales [B, L] of bytes or float32 [B, D]."""
        mean, log_scale = self.encoder(torch.sub(elements, self.mean).mul_(1 / self.scale)).chunk(2, -1)
        return mean, log_scale.clamp(-10, 5).exp_()

    @torch.inference_mode()
    def sample(self, num_rows: int, generator: torch.Generator) -> list[pa.Array]:
        """Returns the columns of new rows, without their key."""
        outputs = self.decoder(torch.randn(num_rows, self.latent_dim, generator=generator))
        if "vector_0" in self.scales:
            vectors = gaussian(outputs, self.scales["vector_0"], generator).mul_(self.scale).add_(self.mean)
            return [pa.FixedSizeListArray.from_arrays(pa.array(vectors.view(-1).numpy()), vectors.shape[1])]
        return self.mixed(outputs, generator)

    def mixed(self, outputs: Tensor, generator: torch.Generator) -> list[pa.Array]:
        numeric = [column for column in self.columns.values() if column["kind"] == "numeric"]
        categories = [column["categories"] for column in self.columns.values() if column["kind"] == "categorical"]
        missing = (torch.rand(len(self.columns), len(outputs), generator=generator) < self.null_fractions()[:, None]).numpy()
        location, *scores = outputs.split([len(numeric), *map(len, categories)], -1)
        cells = gaussian(location, self.scales["numeric"], generator).T.double()
        cells.mul_(column_of(numeric, "scale")).add_(column_of([{"mean": c["mean"][0]} for c in numeric], "mean"))
        arrays = [pa.array(numbers, mask=mask) for numbers, mask in zip(cells.numpy(), missing[: len(numeric)], strict=True)]
        uniform = torch.rand(len(categories), len(outputs), 1, generator=generator)
        for of_column, names, u, mask in zip(scores, categories, uniform, missing[len(numeric) :], strict=True):
            codes = draws(of_column, u).numpy()
            arrays.append(pa.array(names).take(pa.array(codes, mask=mask)))
        return arrays

    def null_fractions(self) -> Tensor:
        return torch.tensor([column["null_fraction"] for column in self.columns.values()])


def column_of(columns: list[dict[str, Any]], name: str) -> Tensor:
    return torch.tensor([column[name] for column in columns], dtype=torch.float64)[:, None]


def gaussian(location: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(location.shape, generator=generator).mul_(scale).add_(location)


def draws(scores: Tensor, uniform: Tensor) -> Tensor:
    """Returns draws from softmax(scores) [B, K] by inverting its distribution function; uniform [B, 1]. int64 [B]."""
    sums = (scores - scores.amax(-1, keepdim=True)).exp_().cumsum(-1)
    return (sums < uniform * sums[:, -1:]).sum(-1)


def embedding_schema(model: Model) -> pa.Schema:
    vector = pa.list_(pa.float32(), model.latent_dim)
    return pa.schema({"id": pa.int64(), "z_mean": vector, "z_scale": vector})


def tuned_encode(model: Model, table: Path, output: Path) -> None:
    """Writes a file of embeddings for every file, a row group for every row group."""
    schema = embedding_schema(model)
    for path in sorted(table.glob("*.parquet")):
        with (
            pq.ParquetFile(path) as file,
            pq.ParquetWriter(output / path.name, schema, compression="zstd", use_dictionary=False) as writer,
        ):
            for index in range(file.num_row_groups):
                rows = file.read_row_group(index, ["id", model.name], use_threads=False)
                elements = rows[model.name].combine_chunks().flatten().to_numpy()
                elements = torch.from_numpy(elements).view(len(rows), -1)
                means, scales = (torch.cat(parts) for parts in zip(*map(model.posterior, elements.split(CHUNK_ROWS)), strict=True))
                writer.write_table(pa.table([rows["id"], *(lists(part) for part in (means, scales))], schema=schema))


def lists(cells: Tensor) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(cells.view(-1).numpy()), cells.shape[1])


def tuned_generate(model: Model, num_rows: int, output: Path) -> None:
    """Writes one file of rows."""
    schema = model.schema
    plain = [field.name for field in schema if pa.types.is_string(field.type)]
    generator = torch.Generator().manual_seed(0)
    with pq.ParquetWriter(output / "rows.parquet", schema, compression="zstd", use_dictionary=plain) as writer:
        for first, end in pairwise([*range(0, num_rows, GROUP_ROWS), num_rows]):
            chunks = chunk_tables(model, first, end, generator)
            writer.write_table(pa.concat_tables(chunks), row_group_size=GROUP_ROWS)


def chunk_tables(model: Model, first: int, end: int, generator: torch.Generator) -> Iterator[pa.Table]:
    for begin, stop in pairwise([*range(first, end, CHUNK_ROWS), end]):
        yield pa.table([pa.array(np.arange(begin, stop)), *model.sample(stop - begin, generator)], schema=model.schema)


class RayEmbedder:
    """What map_batches calls with the columns of a batch."""

    def __init__(self, bundle: Path) -> None:
        self.model = Model(bundle)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        mean, scale = self.model.posterior(torch.from_numpy(np.stack(batch[self.model.name])))
        return {"id": batch["id"], "z_mean": mean.numpy(), "z_scale": scale.numpy()}


class RaySampler:
    """What map_batches calls with the numbers of rows."""

    def __init__(self, bundle: Path) -> None:
        self.model = Model(bundle)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        generator = torch.Generator().manual_seed(int(batch["id"][0]))
        return pa.table([pa.array(batch["id"]), *self.model.sample(len(batch["id"]), generator)], schema=self.model.schema)


def ray_data(job: str, bundle: Path, table: Path | None, num_rows: int, output: Path) -> None:
    import ray
    from ray.data import ActorPoolStrategy

    ray.init(address="local", include_dashboard=False)
    if job == "encode":
        rows, actor = ray.data.read_parquet(str(table)), RayEmbedder
    else:
        rows, actor = ray.data.range(num_rows), RaySampler
    made = rows.map_batches(actor, fn_constructor_args=(bundle,), compute=ActorPoolStrategy(size=1), batch_size=CHUNK_ROWS)
    made.write_parquet(str(output))
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=["tuned", "ray"])
    parser.add_argument("job", choices=["encode", "generate"])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--num_rows", type=int, default=0)
    chosen = parser.parse_args()
    chosen.output.mkdir()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    if chosen.how == "ray":
        ray_data(chosen.job, chosen.bundle, chosen.table, chosen.num_rows, chosen.output)
    elif chosen.job == "encode":
        tuned_encode(Model(chosen.bundle), chosen.table, chosen.output)
    else:
        tuned_generate(Model(chosen.bundle), chosen.num_rows, chosen.output)


if __name__ == "__main__":
    main()
