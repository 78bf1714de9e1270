"""What a model's ELBO must exceed: the likelihood of independent columns, fitted to the same training rows, on the same validation rows.

    python benchmarks/independent.py --model models:/vae/1 --data TABLE [--validation TABLE]

Each column gets the likelihood that the model gives it, with parameters that do not depend on the row: a decoder that is one vector of
outputs, fitted by Adam. Numbers are nats per row in data units, nulls integrated out, as the ELBO's; a VAE whose latent says nothing
ends here. Needs neither Ray nor a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.encoding import TableEncoding
from data.reading import RowReader
from data.split import TRAIN, VALIDATION, split_rows, take
from data.table import Table, open_table
from vae.bundle import open_bundle
from vae.independent import fit_independent
from vae.rows import Rows
from workflows.pinned import pin


def encoded_rows(table: Table, encoding: TableEncoding, side: int, fractions: tuple[float, float]) -> Rows:
    """Returns all rows of one side of the split."""
    parts: list[dict[str, np.ndarray[Any, Any]]] = []
    names = dict.fromkeys([*encoding.modelled, *([encoding.key] if encoding.key else [])])
    with RowReader(table.filesystem, encoding.schema_of(names)) as reader:
        for part, rows in (found for group in table.row_groups() for found in reader.slices(group)):
            sides = split_rows(rows, part, encoding.key, fractions)
            parts.append(encoding.encode(take(rows, sides == side), part.path))
    return Rows.from_arrays({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="the table on which the model was trained")
    parser.add_argument("--validation", help="its validation table, where that is one of its own")
    parser.add_argument("--tracking_uri", default=None)
    arguments = parser.parse_args()
    bundle = open_bundle(pin(arguments.model, arguments.tracking_uri).files)
    encoding, split = TableEncoding.from_json(bundle.table), bundle.table["split"]
    fractions = (split["validation_fraction"], split["test_fraction"])
    table = open_table(arguments.data, encoding.modelled + ([encoding.key] if encoding.key else []))
    train = encoded_rows(table, encoding, TRAIN, fractions)
    if arguments.validation:
        validation = encoded_rows(open_table(arguments.validation, table.schema.names), encoding, VALIDATION, (1.0, 0.0))
    else:
        validation = encoded_rows(table, encoding, VALIDATION, fractions)
    fitted = fit_independent(bundle.model.architecture, train)
    scores = {"train": float(fitted.score(train).mean()), "validation": float(fitted.score(validation).mean())}
    print(
        json.dumps(
            {"model": arguments.model, "independent_columns_nats_per_row": scores, "num_rows": [train.num_rows, validation.num_rows]}
        )
    )


if __name__ == "__main__":
    main()
