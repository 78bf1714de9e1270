"""Which model a table gets: the likelihood of every field, from what its columns are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from data.encoding import Field, TableEncoding
from workflows.config import ModelConfig


def architecture(encoding: TableEncoding, model: ModelConfig) -> dict[str, Any]:
    """Returns the arguments of vae.VAE for a table, plain JSON."""
    return {
        "fields": [
            model_field(field, encoding) | (modelled_flags(field) if model.null_pattern else {})
            for field in encoding.fields
            if not field.condition
        ],
        "latent_dim": model.latent_dim,
        "hidden_dims": list(model.hidden_dims),
        "network": model.network,
        "prior": model.prior,
        "posterior": model.posterior,
        "num_prior_components": model.num_prior_components,
        "decoder_network": model.decoder_network,
    } | (
        {"condition_fields": [model_field(field, encoding) for field in encoding.fields if field.condition]} if encoding.conditions else {}
    )


def modelled_flags(field: Field) -> dict[str, list[int]]:
    """Returns which of a field's flags have a distribution in the model: those of columns that have nulls; not of single elements."""
    flags = [index for index, column in enumerate(field.columns) if column.null_fraction > 0 and not column.element_nulls]
    return {"null_pattern": flags} if flags else {}


def model_field(field: Field, encoding: TableEncoding) -> dict[str, Any]:
    columns = field.columns
    with_flags = any(column.null_fraction > 0 or column.element_nulls for column in columns)
    common: dict[str, Any] = {"name": field.name, "valid_size": field.valid_size, "with_flags": with_flags}
    match field.kind:
        case "numeric":
            return common | {"likelihood": "gaussian", "size": field.size}
        case "boolean":
            return common | {"likelihood": "bernoulli", "size": field.size}
        case "categorical":
            return common | {"likelihood": "categorical", "sizes": [column.num_codes for column in columns]}
        case "integer":
            return common | {
                "likelihood": "discretised_gaussian",
                "size": field.size,
                "half_width": [0.5 / c.scale for c in columns],
                "lower": [(float(c.lower or 0) - c.mean[0]) / c.scale for c in columns],
                "upper": [(float(c.upper or 0) - c.mean[0]) / c.scale for c in columns],
            }
        case "warped":
            return common | {
                "likelihood": "warped_discretised_gaussian",
                "size": field.size,
                "width": [c.width for c in columns],
                "mean": [c.mean[0] for c in columns],
                "scale": [c.scale for c in columns],
                "lower": [(c.lower or 0) - c.center for c in columns],
                "upper": [(c.upper or 0) - c.center for c in columns],
            }
        case "vector" if not columns[0].integer:
            return common | {"likelihood": "gaussian", "size": field.size, "shared_scale": True}
        case _:
            column = columns[0]
            element = encoding.schema.field(column.name).type.value_type
            low, high = standardised_range(element, np.array(column.mean), column.scale)
            grid = {"half_width": [0.5 / column.scale], "lower": low.tolist(), "upper": high.tolist()}
            stored = {"center": column.mean[0], "scale": column.scale, "storage": "uint8"} if field.kind == "image" else {}
            return common | {"likelihood": "discretised_gaussian", "size": field.size} | grid | stored


def standardised_range(kind: pa.DataType, mean: np.ndarray[Any, Any], scale: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns the ends of an integer type's range in standardised units, one per mean."""
    bounds = np.iinfo(kind.to_pandas_dtype())
    return (float(bounds.min) - mean) / scale, (float(bounds.max) - mean) / scale
