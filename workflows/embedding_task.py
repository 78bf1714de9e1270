"""What an actor of encode.py is told, and the columns that it writes. No PyTorch, which the driver does without."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from data.decoding import storable
from data.encoding import TableEncoding
from data.types import is_text


@dataclass(frozen=True)
class Embedded:
    """What is read and what is made of it. reads: the columns that the model and the key need; columns: as --output.columns has them."""

    filesystem: fs.FileSystem
    reads: pa.Schema
    key: str | None
    key_type: pa.DataType | None
    columns: tuple[str, ...]
    num_importance_samples: int


def output_schema(latent_dim: int, encoding: TableEncoding, what: Embedded) -> pa.Schema:
    """Returns the output's columns: what names the rows, and what was asked for."""
    scores = [field for name in what.columns for field in fields_of(name, latent_dim, encoding)]
    return pa.schema([*name_fields(what.key, what.key_type), *scores])


def name_fields(key: str | None, key_type: pa.DataType | None) -> list[pa.Field]:
    """Returns the output's columns that name rows."""
    if key is None:
        return [pa.field("source_file", pa.string()), pa.field("source_row", pa.int64())]
    assert key_type is not None
    # Keys come out in their own type, dictionaries of text as they are read.
    as_read = pa.types.is_dictionary(key_type) and is_text(key_type)
    return [pa.field(key, pa.dictionary(pa.int32(), key_type.value_type) if as_read else key_type)]


def reads_of(encoding: TableEncoding, key: str | None, key_type: pa.DataType | None) -> pa.Schema:
    """Returns the columns that are read, in an order that the model and the key decide."""
    more = [pa.field(key, key_type)] if key is not None and key not in encoding.inputs else []
    return pa.schema([*encoding.schema_of(encoding.inputs), *more])


def fields_of(name: str, latent_dim: int, encoding: TableEncoding) -> list[pa.Field]:
    """Returns the output's columns for one name of --output.columns."""
    vector = pa.list_(pa.float32(), latent_dim)
    fields = {
        "mean": [("z_mean", vector)],
        "scale": [("z_scale", vector)],
        "elbo": [("elbo_nats_per_row", pa.float64())],
        "log_evidence_bound": [("log_evidence_bound_nats_per_row", pa.float64())],
        "reconstruction": [("reconstruction", pa.struct(reconstruction_fields(encoding)))],
        "anomaly": [
            ("anomaly_score_nats", pa.float64()),
            ("anomaly_columns", pa.list_(pa.string())),
            ("anomaly_excess_nats", pa.list_(pa.float64())),
        ],
    }
    return [pa.field(*field) for field in fields[name]]


def reconstruction_fields(encoding: TableEncoding) -> list[pa.Field]:
    columns = {column.name: column for column in encoding.columns}
    return [pa.field(name, storable(encoding.schema.field(name).type, columns[name])) for name in encoding.field_columns]
