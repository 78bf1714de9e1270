"""How often drift is found where there is none, and where there is some: replications with new rows on both sides.

    python benchmarks/drift.py [--tables independent,mixed] [--replications 1000] [--reference_rows 5000] [--rows 5000] [--changes]

For each made-up table a small model is fitted once; then, again and again, a reference is made of fresh rows and other fresh rows are
compared with it, by the functions that training and evaluation call. Printed as JSON: the share of replications with an alarm and its
standard error; the shares of single tests with p up to 0.05 and 0.005; with --changes the share with an alarm, and with one where it
belongs, by change:

    shift        one column of ten is shifted by 0.2 standard deviations
    nulls        2 % of one column's values are missing
    category     2 % of one column's values are a category that training never saw
    dependence   two groups of columns depend on each other (correlation 0.5 of what is behind them), every column alone is as before
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import scipy
import torch

from data.columns import Rules, decide_columns
from data.drift import COLUMN, Finding, Reference, category_shares
from data.encoding import TableEncoding
from data.marginals import marginals, summarise_rows
from data.statistics import summarise_table
from vae.model import VAE
from vae.rows import Rows
from workflows.architecture import architecture
from workflows.drift import LATENT, quantities
from workflows.model_config import ModelConfig

Generator = np.random.Generator
Draw = Callable[[Generator, int], pa.Table]
FITTED_ROWS = 20_000


def independent(rng: Generator, num_rows: int, shift: float = 0.0) -> pa.Table:
    """Returns ten columns that have nothing to do with each other."""
    values = rng.normal(size=(10, num_rows))
    values[3] += shift
    return pa.table({f"x{number}": column for number, column in enumerate(values)})


def two_groups(rng: Generator, num_rows: int, correlation: float = 0.0) -> pa.Table:
    """Returns ten standard normal columns, five on each of two factors of this correlation."""
    first, second = rng.normal(size=(2, num_rows))
    second = correlation * first + math.sqrt(1 - correlation**2) * second
    factors = np.stack([first] * 5 + [second] * 5)
    values = math.sqrt(0.7) * factors + math.sqrt(0.3) * rng.normal(size=factors.shape)
    return pa.table({f"x{number}": column for number, column in enumerate(values)})


def mixed(rng: Generator, num_rows: int, num_missing: float = 0.0, new_category: float = 0.0) -> pa.Table:
    """Returns columns of every kind that share three factors: numbers, heavy tails, whole and rounded ones, categories, vectors, nulls."""
    u = rng.normal(size=(3, num_rows))
    noise = rng.normal(size=(12, num_rows))
    numbers = {f"x{j}": u[j % 3] + 0.5 * u[(j + 1) % 3] + 0.7 * noise[j] for j in range(5)}
    town = np.array(["Bonn", "Ulm", "Rom", "Graz", "Bern"])[np.digitize(u[1] + noise[5], [-1.5, -0.5, 0.5, 1.5])]
    town = np.where(rng.random(num_rows) < new_category, "Oslo", town)
    place = np.minimum(rng.zipf(1.6, num_rows), 200).astype(str)
    vector = (u.T @ np.ones((3, 4)) + rng.normal(size=(num_rows, 4))).reshape(-1)
    columns: dict[str, Any] = {name: pa.array(values) for name, values in numbers.items()}
    columns["x1"] = pa.array(numbers["x1"], mask=rng.random(num_rows) < 0.1)
    columns["x2"] = pa.array(numbers["x2"], mask=rng.random(num_rows) < num_missing)
    columns["income"] = np.exp(u[0] + noise[6])
    columns["visits"] = rng.poisson(np.exp(2 + 0.5 * u[0]))
    columns["grade"] = np.round(u[1] + noise[7], 1)
    columns["town"] = pa.array(town, mask=rng.random(num_rows) < 0.05).dictionary_encode()
    columns["place"] = pa.array(place).dictionary_encode()
    columns["flag"] = pa.array(u[2] + noise[8] > 0.5, mask=rng.random(num_rows) < 0.001)
    columns["sensor"] = pa.FixedSizeListArray.from_arrays(pa.array(vector), 4)
    return pa.table(columns)


TABLES: dict[str, Draw] = {"independent": independent, "two_groups": two_groups, "mixed": mixed}
CHANGES: dict[str, tuple[str, dict[str, float], str, str]] = {
    "shift": ("independent", {"shift": 0.2}, COLUMN + "x3", "values"),
    "nulls": ("mixed", {"num_missing": 0.02}, COLUMN + "x2", "nulls"),
    "category": ("mixed", {"new_category": 0.02}, COLUMN + "town", "values"),
    "dependence": ("two_groups", {"correlation": 0.5}, LATENT, "values"),
}


class Watch:
    """A fitted linear model of a table, and the comparison with references that it gives."""

    def __init__(self, draw: Draw, latent_dim: int, num_steps: int, seed: int = 0) -> None:
        rows = draw(np.random.default_rng([seed, 1]), FITTED_ROWS)
        summary = summarise_table(rows, (rows.num_rows, 0, 0))
        columns = decide_columns(rows.schema, summary, None, {}, Rules())
        self.encoding = TableEncoding(rows.schema, tuple(columns), None)
        self.shares = category_shares(self.encoding, marginals(self.encoding, summarise_rows(self.encoding, rows)))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = VAE(**architecture(self.encoding, ModelConfig(latent_dim=latent_dim, network="linear"))).eval()
        fit(self.model, Rows.from_arrays(self.encoding.encode(rows, "rows")), num_steps)

    def reference(self, rows: pa.Table) -> Reference:
        return Reference.of(list(quantities(self.model, self.encoding, rows, "reference")), "reference", self.shares)

    def compare(self, reference: Reference, rows: pa.Table, alpha: float = 0.05) -> list[Finding]:
        new = reference.no_rows
        for part in quantities(self.model, self.encoding, rows, "rows"):
            new = new.merge(reference.sketch_of(part))
        return reference.compare(new, alpha)


def fit(model: VAE, rows: Rows, num_steps: int) -> None:
    """Maximises the ELBO by Adam on 512 rows at a time."""
    optimiser, generator = torch.optim.Adam(model.parameters(), 0.02), torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        chosen = rows.take(torch.randint(rows.num_rows, (512,), generator=generator))
        loss = -model.elbo(chosen, torch.randn(512, model.latent_dim, generator=generator)).elbo.mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def replicate(watch: Watch, before: Draw, after: Draw, replications: range, reference_rows: int, num_rows: int) -> list[list[Finding]]:
    """Returns what each replication's comparison found; a replication's rows depend on its number alone."""
    found = []
    for number in replications:
        rng = np.random.default_rng([7, number])
        found.append(watch.compare(watch.reference(before(rng, reference_rows)), after(rng, num_rows)))
    return found


def alarms(found: Sequence[Sequence[Finding]]) -> float:
    return sum(any(finding.drifted for finding in findings) for findings in found) / len(found)


def null_figures(found: Sequence[Sequence[Finding]]) -> dict[str, Any]:
    share = alarms(found)
    p_values = np.array([finding.p_value for findings in found for finding in findings])
    kinds = sorted({kind_of(finding) for findings in found for finding in findings})
    by_kind = {kind: np.array([f.p_value for findings in found for f in findings if kind_of(f) == kind]) for kind in kinds}
    return {
        "replications": len(found),
        "false_alarms": share,
        "standard_error": round(math.sqrt(share * (1 - share) / len(found)), 4),
        "tests": round(len(p_values) / len(found), 1),
        "p_below_0.05": {kind: round(float((values <= 0.05).mean()), 4) for kind, values in by_kind.items()},
        "p_below_0.005": {kind: round(float((values <= 0.005).mean()), 4) for kind, values in by_kind.items()},
    }


def kind_of(finding: Finding) -> str:
    return f"column {finding.what}" if finding.quantity.startswith(COLUMN) else finding.quantity


def changed_figures(found: Sequence[Sequence[Finding]], quantity: str, what: str) -> dict[str, float]:
    there = sum(any(f.drifted and (f.quantity, f.what) == (quantity, what) for f in findings) for findings in found)
    return {"replications": len(found), "alarms": alarms(found), f"{what} of {quantity}": there / len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="independent,mixed")
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--reference_rows", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--latent_dim", type=int, default=4)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--changes", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = range(args.replications), args.reference_rows, args.rows
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__, "torch": torch.__version__},
        "reference_rows": args.reference_rows,
        "rows": args.rows,
    }
    watches: dict[str, Watch] = {}

    def watch_of(name: str) -> Watch:
        if name not in watches:
            watches[name] = Watch(TABLES[name], args.latent_dim, args.steps)
        return watches[name]

    for name in filter(None, args.tables.split(",")):
        result[name] = null_figures(replicate(watch_of(name), TABLES[name], TABLES[name], *sizes))
        print(f"{name}: {result[name]}", file=sys.stderr, flush=True)
    for name, (table, change, quantity, what) in CHANGES.items() if args.changes else ():
        draw = TABLES[table]
        found = replicate(watch_of(table), draw, partial(draw, **change), *sizes)
        result[name] = changed_figures(found, quantity, what)
        print(f"{name}: {result[name]}", file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
