"""What a person looks at: learning curves, reconstructions, generated images, latent means in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.column import Column
from data.encoding import TableEncoding
from data.reading import RowReader, plain_text
from data.table import Table
from vae.model import VAE
from vae.rows import Rows
from workflows.evaluation_pictures import literal

SAMPLE_ROWS = 2000
IMAGES_PER_ROW = 12
MAX_COLOURS = 20
# Of the pixels above 0, those that are shown at full strength lie above this share: a few outliers among drawn ones do not fade the rest.
FULL_SHARE = 0.99


def sample_rows(table: Table, encoding: TableEncoding, max_batch_bytes: int, num_rows: int = SAMPLE_ROWS) -> pa.Table:
    """Returns up to num_rows rows from the table's first row groups, with the columns that the model reads."""
    parts: list[pa.Table] = []
    with RowReader(table.filesystem, encoding.schema_of(encoding.inputs), max_batch_bytes) as reader:
        for _, rows in (part for group in table.row_groups() for part in reader.slices(group)):
            parts.append(rows)
            if sum(part.num_rows for part in parts) >= num_rows:
                break
    return pa.concat_tables([plain_text(part) for part in parts]).slice(0, num_rows)


@torch.inference_mode()
def save_training_pictures(
    folder: Path, model: VAE, encoding: TableEncoding, rows: pa.Table, history: Sequence[Mapping[str, float]]
) -> None:
    """Saves every picture that the table allows into `folder`, as PNG."""
    save(learning_curves(history), folder / "learning_curves.png")
    encoded = Rows.from_arrays(encoding.encode(rows, "the sample"))
    z_mean = model.posterior(encoded).mean
    column, labels = label_column(encoding, rows)
    save(latent_plane(z_mean.numpy(), labels, column), folder / "latent_means.png")
    generator = torch.Generator().manual_seed(0)
    condition = model.condition(encoded)
    num_drawn = 4 * IMAGES_PER_ROW if condition is None else min(4 * IMAGES_PER_ROW, encoded.num_rows)
    told = None if condition is None else condition[:num_drawn]
    drawn = model.likelihood(model.latent_prior(told).sample(num_drawn, generator), told)
    reconstructed = model.likelihood(z_mean, condition)
    given = "" if condition is None else " and the sample's conditions"
    for field in encoding.fields:
        if field.kind == "image" and not field.condition:
            (image,) = field.columns
            originals, means = encoded.values[field.name].numpy(), reconstructed.fields[field.name].mean.numpy()
            present = np.flatnonzero(encoded.valid[field.name].all(1).numpy())[: 2 * IMAGES_PER_ROW]
            save(image_pairs(originals[present], means[present], image), folder / f"reconstructions_{field.name}.png")
            grid = drawn.fields[field.name].mean.numpy()
            save(
                image_grid(grid, image, f"{image.name}: generated (expected image for z from the prior{given})"),
                folder / f"generated_{field.name}.png",
            )


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path)


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Returns ELBO and KL by epoch, for the training rows (running, while weights move) and the validation rows."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for side in ("train", "validation"):
        entries = [entry for entry in history if f"{side}/elbo_nats_per_row" in entry]
        epochs = [entry["epoch"] + 1 for entry in entries]
        left.plot(epochs, [entry[f"{side}/elbo_nats_per_row"] for entry in entries], label=side)
        right.plot(epochs, [entry[f"{side}/kl_nats_per_row"] for entry in entries], label=side)
    values = [entry[key] for entry in history[1:] for key in ("train/elbo_nats_per_row", "validation/elbo_nats_per_row") if key in entry]
    if values:  # the first epoch is far below all others and would flatten the rest
        low, high = min(np.percentile(values, 5), values[0]), max(values)
        left.set_ylim(low - 0.05 * (high - low) - 1e-6, high + 0.05 * (high - low) + 1e-6)
    left.set(title="ELBO", xlabel="epoch", ylabel="nats per row (higher is better)")
    right.set(title="KL(q(z|x) || p(z))", xlabel="epoch", ylabel="nats per row")
    left.legend()
    right.legend()
    return figure


def label_column(encoding: TableEncoding, rows: pa.Table) -> tuple[str | None, NDArray[Any] | None]:
    """Returns the first column with few values, by which the plane is coloured, and its values; None where there is none."""
    for column in encoding.columns:
        if column.kind == "boolean" or (column.kind == "categorical" and len(column.categories) <= MAX_COLOURS):
            return column.name, np.array([str(value) for value in rows[column.name].to_pylist()])
    return None, None


def latent_plane(z_mean: NDArray[np.float32], labels: NDArray[Any] | None, name: str | None) -> Figure:
    """Returns latent means [rows, latent] in the plane of their two main directions, coloured by label."""
    from sklearn.decomposition import PCA  # a second to import, for one picture at the end

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    plane = PCA(2).fit_transform(z_mean) if min(z_mean.shape) > 2 else np.pad(z_mean, ((0, 0), (0, max(0, 2 - z_mean.shape[1]))))[:, :2]
    if labels is None:
        axes.scatter(plane[:, 0], plane[:, 1], s=6)
    else:
        for label in sorted(set(labels), key=lambda text: (len(text), text)):
            here = labels == label
            axes.scatter(plane[here, 0], plane[here, 1], s=6, label=literal(label))
        axes.legend(title=literal(str(name)), markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(title="latent means, two main directions (PCA)", xlabel="first", ylabel="second")
    return figure


def image_pairs(originals: NDArray[Any], reconstructions: NDArray[Any], column: Column) -> Figure:
    """Returns originals [n, D] above their reconstructions, IMAGES_PER_ROW to a line."""
    lines = [part[i : i + IMAGES_PER_ROW] for i in range(0, len(originals), IMAGES_PER_ROW) for part in (originals, reconstructions)]
    return draw(lines, column, f"{column.name}: originals above their reconstructions")


def image_grid(images: NDArray[Any], column: Column, title: str) -> Figure:
    """Returns images [n, D], IMAGES_PER_ROW to a line."""
    return draw([images[i : i + IMAGES_PER_ROW] for i in range(0, len(images), IMAGES_PER_ROW)], column, title)


def draw(lines: Sequence[NDArray[Any]], column: Column, title: str) -> Figure:
    figure = Figure(figsize=(IMAGES_PER_ROW * 0.8, 0.8 * max(1, len(lines)) + 0.5), layout="constrained")
    figure.suptitle(literal(title))
    lit = np.concatenate([line[line > 0] for line in lines if line.size] or [np.ones(1)])
    top = float(np.quantile(lit, FULL_SHARE)) if lit.size else 1.0
    for axes, image in zip(
        figure.subplots(max(1, len(lines)), IMAGES_PER_ROW, squeeze=False).flat,
        [line[i] if i < len(line) else None for line in lines for i in range(IMAGES_PER_ROW)],
        strict=False,
    ):
        axes.axis("off")
        if image is not None:
            axes.imshow(image.reshape(column.shape), cmap="gray_r" if len(column.shape) == 2 else None, vmin=0, vmax=top)
    return figure
