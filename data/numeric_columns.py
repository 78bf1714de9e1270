"""What columns of numbers and of points in time are: on which grid, with which atoms and ends, standardised by what."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.atoms import MAX_FEW, atoms_of, without_atoms
from data.column import Column
from data.grids import on_grid, relative_rounding, resolution
from data.heaps import heap_of
from data.lattices import Counts, Lattice, counted_values, is_coarser, lattice_of, spike_on
from data.scales import heavy_tails, tails_beside, usable, warped_moments
from data.statistics import ColumnSummary
from data.types import MAX_EXACT_INTEGER, calendar_range, integer_range, is_temporal, ticks_per_day

# Values with probabilities of their own that a column's reason names.
MAX_ATOMS_NAMED = 4


def numeric_column(name: str, values: pa.DataType, kind: str, summary: ColumnSummary, reason: str) -> Column:
    """Returns the column standardised, its tails drawn in where they are heavy."""
    moments, sketch = summary.moments, summary.sketch
    if moments is None or sketch is None:
        return Column(name, "ignored", "no finite value in the training rows")
    integer = kind != "numeric" or pa.types.is_integer(values)
    column = plain(Column(name, kind, reason, integer=integer, shape=[1]), summary)
    tails = heavy_tails(sketch) if kind != "timestamp" else None
    counted, counts = counted_values(summary)
    if integer:
        least, most = ends_of(values, summary)
        column = with_stride(replace(column, lower=0 if kind == "count" else least, upper=most), values, summary)
    else:
        width, rounding = tails[1] if tails else None, relative_rounding(values)
        found = resolution(summary.off_grid, sketch, column.scale, width, rounding)
        many = len(counted) > MAX_FEW and int(counts.sum()) == sketch.count
        lattice = lattice_of(counted, counts, width or column.scale, rounding) if many else None
        if lattice is not None and (found is None or is_coarser(lattice, *found)):
            column = with_steps(column, lattice, float(moments.minimum[0]))
        elif found is not None:
            column = with_steps(column, Lattice(0.0, *found), float(moments.minimum[0]))
        elif atoms := atoms_of(summary):
            return spiked_column(column, summary, atoms)
    if column.resolution is not None:
        spike = spike_on(column.resolution, column.origin, counted, counts, sketch.count)
        tails = tails if spike is None else (tails_beside(spike[0], sketch) or tails)
        return with_heap(with_tails(replace(column, spike=spike), summary, tails), values, counted, counts, sketch.count)
    return with_tails(column, summary, tails)


def ends_of(values: pa.DataType, summary: ColumnSummary) -> tuple[int, int]:
    """Returns the ends of a column of integers or points in time: its type's, or the calendar's where no value lies beyond them."""
    least, greatest = integer_range(values)
    if not is_temporal(values) or summary.moments is None:
        return least, greatest
    first, last = calendar_range(values)
    within = float(first) <= summary.moments.minimum[0], summary.moments.maximum[0] <= float(last)
    return first if within[0] else least, last if within[1] else greatest


def with_stride(column: Column, values: pa.DataType, summary: ColumnSummary) -> Column:
    """Returns a column of integers or points in time on the grid that all its values lie on, its ends too.

    Differences of a few values have common divisors by chance; of points in time one that divides a day is taken nevertheless.
    """
    origin, step = summary.stride or (0, 1)
    if summary.num_distinct <= MAX_FEW:
        step = math.gcd(step, ticks_per_day(values)) if is_temporal(values) else 1
    if step <= 1 or column.lower is None or column.upper is None:
        return column
    origin %= step
    lower, upper = (int(column.lower) - origin + step - 1) // step * step, (int(column.upper) - origin) // step * step
    said = duration(step, values) if is_temporal(values) else f"{step:,}" + (f" from {origin}" if origin else "")
    return replace(
        column, resolution=step, origin=origin, lower=lower + origin, upper=upper + origin, reason=f"{column.reason}; steps of {said}"
    )


def duration(ticks: int, kind: pa.DataType) -> str:
    """Returns a number of a temporal type's units in words."""
    seconds = Fraction(ticks * 86_400, ticks_per_day(kind))
    for name, size in (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds % size == 0:
            return f"{seconds // size} {name}s" if seconds > size else f"one {name}"
    return f"{float(seconds):g} seconds"


def with_steps(column: Column, lattice: Lattice, minimum: float) -> Column:
    """Returns a column of numbers on their grid. Where no value is negative, generated ones are not either, as of counts."""
    origin, step, off = lattice
    said = f"steps of {step:g}" + (f" from {origin:g}" if origin else "") + (f", but for {max(off, 1e-4):.2%} of the values" if off else "")
    lower = origin - math.floor(origin / step) * step if minimum >= 0 else None
    return replace(column, resolution=step, origin=origin, off_grid=off, lower=lower, reason=f"{column.reason}; {said}")


def with_heap(column: Column, values: pa.DataType, counted: NDArray[Any], counts: Counts, total: int) -> Column:
    """Returns a column of numbers on a grid with the coarser step to which many of them are rounded, if there is one."""
    heap = heap_of(column, counted, counts, total)
    if heap is None:
        return column
    step, multiple, share = heap
    origin = multiple % step
    said = duration(int(step), values) if is_temporal(values) else in_digits(step) + (f" from {in_digits(origin)}" if origin else "")
    least = "at least " if counts.sum() < total else ""
    return replace(column, heap=heap, reason=f"{column.reason}; {least}{share:.1%} rounded to steps of {said}")


def in_digits(number: float) -> str:
    """Returns a number with all of its digits where it is whole, else with six."""
    return f"{number:,.0f}" if number == round(number) else f"{number:g}"


def spiked_column(column: Column, summary: ColumnSummary, atoms: list[list[float]]) -> Column:
    """Returns a column of numbers with atoms, standardised by the other numbers."""
    rest = without_atoms(summary, atoms)
    assert summary.moments is not None
    assert rest.sketch is not None
    said = ", ".join(f"exactly {atom:g} in {share:.1%} of the values" for atom, share in atoms[:MAX_ATOMS_NAMED])
    said += f", and {len(atoms) - MAX_ATOMS_NAMED} such values more" if len(atoms) > MAX_ATOMS_NAMED else ""
    least, greatest = float(summary.moments.minimum[0]), float(summary.moments.maximum[0])
    values = [atom for atom, _ in atoms]
    lower, upper = least if least in values else 0 if least >= 0 else None, greatest if greatest in values else None
    column = replace(plain(column, rest), atoms=atoms, lower=lower, upper=upper, reason=f"{column.reason}; {said}")
    return with_tails(column, rest, heavy_tails(rest.sketch))


def with_tails(column: Column, summary: ColumnSummary, tails: tuple[float, float] | None) -> Column:
    """Returns a column with its tails drawn in by the asinh of a center and a width; None: as it is."""
    if tails is None:
        return column
    return replace(drawn_in(column, summary, *tails), reason=f"{column.reason}; heavy tails, drawn in")


def plain(column: Column, summary: ColumnSummary) -> Column:
    """Returns a column of numbers standardised by their mean and standard deviation."""
    moments = summary.moments
    assert moments is not None
    scale = usable(np.sqrt(moments.squares[0] / moments.count[0]))
    base = base_of(summary) if column.integer else 0
    mean = moments.mean[0] + float(int(moments.base[0]) - base)
    return replace(column, mean=[float(mean)], scale=scale, center=0.0, width=None, base=base)


def base_of(summary: ColumnSummary) -> int:
    """Returns the base of a column of integers: the least one's upper digits, which tell of no single value; 0 where float64 holds all, or
    where they lie so far apart that float32 cells round them more than float64 does."""
    moments = summary.moments
    assert moments is not None
    if summary.stride is None or moments.magnitude <= MAX_EXACT_INTEGER:
        return 0
    least = summary.stride[0]
    spread = int(moments.maximum[0]) - least
    return least >> spread.bit_length() << spread.bit_length() if spread <= MAX_EXACT_INTEGER else 0


def drawn_in(column: Column, summary: ColumnSummary, center: float, width: float) -> Column:
    """Returns a column of numbers standardised after the asinh of a center, put on their grid, and a width.

    As a sketch knows numbers, so wide that it needs no base.
    """
    assert summary.sketch is not None
    if column.resolution is not None:
        center = float(on_grid(np.array(center), column.resolution, column.origin))
    mean, scale = warped_moments(summary.sketch, center, width)
    return replace(column, mean=[mean], scale=scale, center=center, width=width, base=0)
