"""How generated rows compare with held-out rows: columns one by one, in pairs and all together, their nulls, their use, and what they leak.

Tables in memory, of one schema. It starts no Ray and needs no MLflow. Shapes: B rows, C columns.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.decoding import settled
from data.encoding import TableEncoding
from data.marginals import marginals, summarise_rows, total_variation
from workflows.cells import Cells, cells_of, drawn, with_few_codes
from workflows.dependence import compare_dependence
from workflows.leakage import leakage
from workflows.two_sample import ComparisonError, UseError, train_on_synthetic, two_sample_test

# Rows of each table that classifiers, pairs and distances see: an area is then known to about 0.004.
MAX_ROWS = 10_000
# Rows of each side that the membership attack tries.
MAX_ATTACKED_ROWS = 2000
# Null patterns that are told apart, the most frequent ones of the held-out rows; the others are one.
MAX_PATTERNS = 20
MIN_ROWS = 20
NULL_RATES = "null_rate", "element_null_rate"


def compare_tables(
    encoding: TableEncoding,
    held_out: pa.Table,
    synthetic: pa.Table,
    training: pa.Table | None = None,
    label: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the comparison, plain JSON, the same for the same rows and seed.

    training: the rows the model was trained on, without which there is no test of leaks. label: a column that is predicted. All tables have
    the encoding's columns in its types; copies are looked for in the modelled ones. Rare values that are one category, other, to the model
    come out of it as null: a difference that is found as any other. Raises DataError for rows that do not fit, ComparisonError for too few
    rows, and UseError for a label that cannot be, before anything is computed.
    """
    tables = {"held-out": held_out, "generated": synthetic} | ({} if training is None else {"training": training})
    for name, table in tables.items():
        encoding.check_schema(table.schema, f"{name} rows")
        if table.num_rows < MIN_ROWS:
            raise ComparisonError(f"there are {table.num_rows} {name} rows; a comparison needs {MIN_ROWS} at least: give more rows")
    chosen = {name: table.select(encoding.inputs).cast(encoding.schema_of(encoding.inputs)) for name, table in tables.items()}
    parts = {name: table.take(drawn(table.num_rows, MAX_ROWS, seed)) for name, table in chosen.items()}
    cells = dict(zip(parts, with_few_codes([cells_of(encoding, part, f"{name} rows") for name, part in parts.items()]), strict=True))
    real, made = same_size(cells["held-out"], cells["generated"], seed)
    use = None if label is None else compare_use(encoding, label, cells, seed)
    result = {
        "num_rows": {name: table.num_rows for name, table in tables.items()},
        "marginals": compare_marginals(encoding, chosen["held-out"], chosen["generated"], real, made),
        "dependence": compare_dependence(real, made),
        "null_patterns": compare_null_patterns(encoding, chosen["held-out"], chosen["generated"]),
        "two_sample_test_roc_auc": two_sample_test(real, made, seed),
        "train_on_synthetic": use,
        "privacy": None,
    }
    if training is not None:
        attacked = (shuffled(cells[name], seed) for name in ("training", "held-out"))
        attack = (*(part.take(np.arange(min(MAX_ATTACKED_ROWS, len(part.values)))) for part in attacked), cells["generated"])
        modelled = (settled(chosen[name].select(encoding.modelled), encoding.columns) for name in ("training", "held-out", "generated"))
        result["privacy"] = leakage(tuple(modelled), attack)  # type: ignore[arg-type]
    return result | {"words": in_words(result)}


def shuffled(cells: Cells, seed: int) -> Cells:
    return cells.take(np.random.default_rng(seed).permutation(len(cells.values)))


def same_size(real: Cells, made: Cells, seed: int) -> tuple[Cells, Cells]:
    """Returns as many rows of both, in any order."""
    size = min(len(real.values), len(made.values))
    first, second = (shuffled(cells, seed).take(np.arange(size)) for cells in (real, made))
    return first, second


def compare_use(encoding: TableEncoding, label: str, cells: dict[str, Cells], seed: int) -> dict[str, Any]:
    """Returns what a label's prediction by generated rows is worth. Without training rows half of the held-out ones stand in for them."""
    column = next((column for column in encoding.columns if column.name == label and label in encoding.inputs), None)
    if column is None or column.kind in ("vector", "image", "timestamp"):
        kind = "is not a column of the model" if column is None else f"is a {column.kind}"
        raise UseError(f"the label {label!r} {kind}; name a number, count, category or boolean among {encoding.inputs}")
    if encoding.inputs == [label]:
        raise UseError(f"the label {label!r} is the model's only column; there is nothing to predict it from")
    test = shuffled(cells["held-out"], seed)
    half = len(test.values) // 2
    training = cells.get("training", test.take(np.arange(half)))
    return train_on_synthetic(
        column, training, cells["generated"], test if "training" in cells else test.take(np.arange(half, 2 * half)), seed
    )


def compare_marginals(encoding: TableEncoding, real: pa.Table, synthetic: pa.Table, real_cells: Cells, made: Cells) -> dict[str, Any]:
    """Returns, by column, null rates (of lists' elements too) and how far the values lie apart, 0 to 1, of numbers those that are there.

    Categories: total_variation, nulls and rare values being one category more. Numbers: kolmogorov_smirnov, of lists the largest among
    elements. "noise": what two tables of so many rows of one distribution have, on average the first, in one case of a hundred the second.
    """
    first, second = (marginals(encoding, summarise_rows(encoding, table))["columns"] for table in (real, synthetic))
    result = {}
    for name in first:
        rates = {key: {"real": first[name][key], "synthetic": second[name][key]} for key in NULL_RATES if key in first[name]}
        entry = {"kind": first[name]["kind"], **rates}
        if "frequencies" in first[name]:
            shares = first[name]["frequencies"], second[name]["frequencies"]
            entry |= {
                "total_variation": total_variation(*shares),
                "noise": expected_variation(shares[0], real.num_rows, synthetic.num_rows),
            }
        else:
            places = [place for place, column in enumerate(real_cells.columns) if column == name]
            found = [kolmogorov_smirnov(real_cells.values[:, place], made.values[:, place]) for place in places]
            distance, noise = max(found, key=lambda pair: -1.0 if pair[0] is None else pair[0])
            entry |= {"kolmogorov_smirnov": distance, "noise": noise}
        result[name] = entry
    return result


def expected_variation(shares: list[float], num_real: int, num_synthetic: int) -> float:
    """Returns the mean total variation of two samples of one distribution, by the normal approximation of each frequency."""
    p = np.array([*shares, max(0.0, 1 - sum(shares))])
    return float(0.5 * np.sqrt(2 / np.pi * p * np.clip(1 - p, 0, 1) * (1 / num_real + 1 / num_synthetic)).sum())


def kolmogorov_smirnov(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Returns the largest difference of two distribution functions, missing cells left out, and its 99 % quantile for equal ones.

    None where one has no values at all. The quantile is Smirnov's (1948), for values without ties and so an upper end for others.
    """
    first, second = (np.sort(values[~np.isnan(values)]) for values in (first, second))
    if not len(first) or not len(second):
        return None, None
    both = np.concatenate([first, second])
    shares = [np.searchsorted(values, both, side="right") / len(values) for values in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max()), float(1.628 * np.sqrt(1 / len(first) + 1 / len(second)))


def compare_null_patterns(encoding: TableEncoding, real: pa.Table, synthetic: pa.Table) -> dict[str, Any]:
    """Returns how the tables' null patterns, the sets of columns that are null together, differ, plain JSON."""
    nullable = [name for name in encoding.inputs if any(is_null(encoding, table, name).any() for table in (real, synthetic))]
    first, second = (pattern_shares(encoding, table, nullable) for table in (real, synthetic))
    frequent = [pattern for pattern, _ in Counter(first).most_common(MAX_PATTERNS)]
    shares = [[found.get(pattern, 0.0) for pattern in frequent] for found in (first, second)]
    return {
        "columns_with_nulls": nullable,
        "num_patterns": {"real": len(first), "synthetic": len(second)},
        "total_variation": total_variation(*shares),
        "noise": expected_variation(shares[0], real.num_rows, synthetic.num_rows),
        "patterns": [{"null_columns": list(pattern), "real": p, "synthetic": q} for pattern, p, q in zip(frequent, *shares, strict=True)],
    }


def is_null(encoding: TableEncoding, table: pa.Table, name: str) -> NDArray[np.bool_]:
    """Returns which rows have no value of a column, [B]."""
    flags: NDArray[np.bool_] = np.asarray(pc.is_null(table[name], nan_is_null=encoding.nonfinite == "null"), np.bool_)
    return flags


def pattern_shares(encoding: TableEncoding, table: pa.Table, nullable: list[str]) -> dict[tuple[str, ...], float]:
    flags = np.stack([is_null(encoding, table, name) for name in nullable], 1) if nullable else np.zeros((table.num_rows, 0), np.bool_)
    patterns, counts = np.unique(flags, axis=0, return_counts=True) if nullable else (flags[:1], np.array([table.num_rows]))
    return {
        tuple(name for name, null in zip(nullable, pattern, strict=True) if null): float(count) / table.num_rows
        for pattern, count in zip(patterns, counts, strict=True)
    }


def in_words(result: dict[str, Any]) -> list[str]:
    """Returns the findings as sentences."""
    found, pairs, nulls = result["two_sample_test_roc_auc"], result["dependence"], result["null_patterns"]
    words = [
        f"A classifier tells generated from held-out rows with an area under the ROC curve of {area(found)} (0.5: cannot tell, 1: always).",
        f"{pairs['num_notable_pairs']} of {pairs['num_pairs']} pairs of columns depend on each other otherwise than in held-out rows.",
    ]
    if nulls["columns_with_nulls"]:
        words.append(f"Null patterns lie {nulls['total_variation']:.3f} apart in total variation; chance alone gives {nulls['noise']:.3f}.")
    if result["train_on_synthetic"]:
        words.append(use_in_words(result["train_on_synthetic"]))
    if result["privacy"]:
        words.append(privacy_in_words(result["privacy"]))
    return words


def use_in_words(use: dict[str, Any]) -> str:
    name, share = next(iter(use["ratio"].items()))
    reached = "cannot be compared by its" if share is None else f"reaches {100 * share:.1f} % of the"
    return f"Who learned {use['label']!r} from generated rows {reached} {name} of who learned it from as many real ones."


def privacy_in_words(privacy: dict[str, Any]) -> str:
    return (
        f"{privacy['num_copies_of_training_rows']:,} of {privacy['num_synthetic_rows']:,} generated rows equal a training row; so do "
        f"{privacy['num_held_out_rows_that_equal_training_rows']:,} of {privacy['num_held_out_rows']:,} held-out rows. By how near the "
        f"nearest generated row is, training rows are told from held-out ones with an area of "
        f"{area(privacy['membership_attack_roc_auc'])} (0.5: nothing leaks). {privacy['note']}"
    )


def area(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} +- {found['standard_error']:.3f}"
