"""Which model a table gets: the likelihood of every field, from what its columns are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from data.cells import LARGEST_CELL
from data.column import Column
from data.encoding import TableEncoding
from data.fields import Field, atom_cells, stored
from data.likelihood_names import default_likelihood
from vae.convolutions import is_image
from workflows.checks import ConfigError
from workflows.model_config import ModelConfig

# Logistics of a mixture: enough for several modes and a spike among them.
NUM_COMPONENTS = 5
# Of a density on no grid: none of the model's is narrower anyway, in standardised units.
LEAST_LOG_SCALE = -7.0
# Where a grid has no end: more steps from its center than any cell is.
NO_END = 2.0**63


# Training rows from which on a mixture is worth its parameters: pseudo-rows are with 45,010 images, and are not with 1,617.
MANY_ROWS = 10_000


def architecture(encoding: TableEncoding, model: ModelConfig, num_rows: int = 0) -> dict[str, Any]:
    """Returns the arguments of vae.VAE for a table, plain JSON. Raises ConfigError for a network that the table has no columns for.

    num_rows: that the model is trained on, which decide what "auto" stands for.
    """
    if "conv" in (model.network, model.decoder_network) and not any(is_image(c.shape) for c in encoding.columns if not c.condition):
        raise ConfigError(
            "model.network is 'conv', and no column is an image of H x W pixels, or with 1 or 3 channels; name one by --data.columns "
            '\'{"COLUMN": {"kind": "image", "shape": [28, 28]}}\', or choose another network'
        )
    return {
        "fields": [
            model_field(field, encoding) | (modelled_flags(field) if model.null_pattern else {})
            for field in encoding.fields
            if not field.condition
        ],
        "latent_dim": model.latent_dim,
        "hidden_dims": list(model.hidden_dims),
        "network": model.network,
        "prior": "standard" if (prior := prior_of(encoding, model, num_rows)) == "fitted" else prior,
        "posterior": model.posterior,
        "num_prior_components": model.num_prior_components,
        "decoder_network": model.decoder_network,
    } | (
        {"condition_fields": [model_field(field, encoding) for field in encoding.fields if field.condition]} if encoding.conditions else {}
    )


def prior_of(encoding: TableEncoding, model: ModelConfig, num_rows: int) -> str:
    """Returns the prior that is asked for, or the one that held-out rows and generated ones speak for: benchmarks/README.md."""
    if model.prior != "auto":
        return model.prior
    if num_rows < MANY_ROWS:
        return "standard"
    has_image = any(field.kind == "image" for field in encoding.fields)
    return "vamp" if has_image and not encoding.conditions else "fitted"


def modelled_flags(field: Field) -> dict[str, Any]:
    """Returns which of a field's flags have a distribution in the model: those of columns that have nulls, and of lists' elements."""
    first = field.columns[0]
    if first.element_nulls:
        elements = {"null_pattern": list(range(first.size)), "null_rates": first.element_null_fractions}
        return elements | ({"null_list_rate": first.null_fraction} if first.null_fraction > 0 else {})
    rates = {index: column.null_fraction for index, column in enumerate(field.columns) if column.null_fraction > 0}
    return {"null_pattern": list(rates), "null_rates": list(rates.values())} if rates else {}


def model_field(field: Field, encoding: TableEncoding) -> dict[str, Any]:
    """Returns what the model is told of a field: its name, its likelihood's, and what that takes."""
    with_flags = any(column.null_fraction > 0 or column.element_nulls for column in field.columns)
    common = {"name": field.name, "valid_size": field.valid_size, "with_flags": with_flags}
    if field.kind == "image":
        common |= {"shape": list(field.columns[0].shape), "binarize": field.columns[0].binarize}
    return common | likelihood_of(field, encoding)


def likelihood_of(field: Field, encoding: TableEncoding) -> dict[str, Any]:
    columns = field.columns
    whole_list = field.kind in ("vector", "image") and columns[0].integer
    name = field.likelihood or default_likelihood(field.kind, whole_list, field.size)
    assert name is not None
    if field.kind == "categorical":
        return {"likelihood": name, "sizes": [column.num_codes for column in columns]} | rules(columns)
    named: dict[str, Any] = {"likelihood": name, "size": field.size}
    if name.endswith("discretised_logistics"):
        named["num_components"] = NUM_COMPONENTS
    match name:
        case "discretised_gaussian" | "discretised_logistics":
            return named | (list_grid(columns[0], encoding) if whole_list else grid(columns) | spikes(columns, name) | heaps(columns, name))
        case "warped_discretised_gaussian" | "warped_discretised_logistics":
            return named | warped_grid(columns) | spikes(columns, name) | heaps(columns, name)
        case "poisson" | "negative_binomial" | "zero_inflated_negative_binomial":
            return named | {"mean": [c.log_mean for c in columns], "scale": [c.log_scale for c in columns]}
        case "bernoulli" | "continuous_bernoulli":
            return named | ({"storage": "uint8"} if field.kind == "image" else {})
        case _:
            return named | density(field, name)


def rules(columns: tuple[Column, ...]) -> dict[str, Any]:
    """Returns by which other column of the field some are determined, and how."""
    if not any(c.determined_by for c in columns):
        return {}
    places = {c.name: place for place, c in enumerate(columns)}
    return {"rules": [None if c.determined_by is None else [places[c.determined_by], c.determined_codes, c.slack] for c in columns]}


def density(field: Field, name: str) -> dict[str, Any]:
    """Returns what the density of a field of numbers is told; a vector's elements share a scale where rows have none."""
    if name in ("logistics", "spiked_logistics"):
        least = [least_log_scale(column) for column in field.columns for _ in range(column.size)]
        atoms = {"atom_shares": [stored_atoms(column) for column in field.columns]} if name == "spiked_logistics" else {}
        return {"num_components": NUM_COMPONENTS, "min_log_scale": least} | atoms
    if name == "gaussian_per_row":
        return {"likelihood": "gaussian", "per_row": True}
    return {"shared_scale": True} if field.kind == "vector" else {}


def stored_atoms(column: Column) -> list[list[float]]:
    """Returns a column's atoms as they are stored, with their shares."""
    return [[float(cell), share] for cell, (_, share) in zip(atom_cells(column), column.atoms, strict=True)]


def least_log_scale(column: Column) -> float:
    """Returns the log of the least scale of a standardised density: half a step where values repeat at steps."""
    if column.resolution is None:
        return LEAST_LOG_SCALE
    return max(LEAST_LOG_SCALE, math.log(0.5 * column.resolution / (column.scale * (column.width or 1.0))))


def grid(columns: tuple[Column, ...]) -> dict[str, Any]:
    """Returns steps and ends of columns on grids, in standardised units."""
    return {
        "half_width": [0.5 * (c.resolution or 1.0) / c.scale for c in columns],
        "lower": [-LARGEST_CELL if c.lower is None else (float(c.lower - c.base) - c.mean[0]) / c.scale for c in columns],
        "upper": [LARGEST_CELL if c.upper is None else (float(c.upper - c.base) - c.mean[0]) / c.scale for c in columns],
    }


def warped_grid(columns: tuple[Column, ...]) -> dict[str, Any]:
    """Returns what an asinh does to columns on grids, and the grids' ends, in steps from the center."""
    return {
        "width": [(c.width or 1.0) / (c.resolution or 1.0) for c in columns],
        "mean": [c.mean[0] for c in columns],
        "scale": [c.scale for c in columns],
        "lower": [-NO_END if c.lower is None else steps_from_center(c.lower, c) for c in columns],
        "upper": [NO_END if c.upper is None else steps_from_center(c.upper, c) for c in columns],
    } | ({"off_grid": True} if any(c.off_grid for c in columns) else {})


def spikes(columns: tuple[Column, ...], name: str) -> dict[str, Any]:
    """Returns where mixtures start: of each column that has a spike, its cell as it is stored and its share."""
    if not name.endswith("logistics") or not any(c.spike for c in columns):
        return {}
    return {"spikes": [None if c.spike is None else [stored(c.spike[0], c), c.spike[1]] for c in columns]}


def heaps(columns: tuple[Column, ...], name: str) -> dict[str, Any]:
    """Returns the coarser step that a column is rounded to, in its grid's steps, a multiple's position, and the share of the rounded."""
    if not name.endswith("logistics") or not any(c.heap for c in columns):
        return {}
    return {"heaps": [None if c.heap is None else heap_on_grid(c, *c.heap) for c in columns]}


def heap_on_grid(column: Column, coarse: float, multiple: float, share: float) -> list[float]:
    """Positions are counted as the grid does: from the center of what is drawn in, else from the mean."""
    step = column.resolution or 1.0
    if column.width is None:
        from_base = (int(multiple) - column.base) % int(coarse) if column.base else multiple
        position = (from_base - column.mean[0]) / step
    else:
        position = steps_from_center(multiple, column)
    return [float(round(coarse / step)), position, share]


def steps_from_center(end: float, column: Column) -> float:
    return float(np.rint((end - column.center) / (column.resolution or 1.0)))


def list_grid(column: Column, encoding: TableEncoding) -> dict[str, Any]:
    """Returns steps and ends of a list's integers; pixels are standardised by the model."""
    element = encoding.schema.field(column.name).type.value_type
    low, high = standardised_range(element, np.array(column.mean), column.scale)
    ends = {"half_width": [0.5 / column.scale], "lower": low.tolist(), "upper": high.tolist()}
    return ends | ({"center": column.mean[0], "scale": column.scale, "storage": "uint8"} if column.kind == "image" else {})


def standardised_range(kind: pa.DataType, mean: np.ndarray[Any, Any], scale: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns the ends of an integer type's range in standardised units, one per mean."""
    bounds = np.iinfo(kind.to_pandas_dtype())
    return (float(bounds.min) - mean) / scale, (float(bounds.max) - mean) / scale
