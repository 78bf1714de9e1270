"""A worker's rows as its steps take them, held in memory or streamed; the numbers are the same. No Ray.

Shapes: R rows of a stretch of steps, L latent dimensions, S samples.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from data.fields import Arrays
from data.plan import NOISE_ROWS, Plan, Stretch, Window
from vae.model import VAE
from vae.rows import Rows

# Rows of several steps, and their noise, made at once: a few calls for many steps, and memory that stays small beside the rows held; on a
# GPU more of them, where small kernels take longer to launch than to run.
STRETCH_BYTES, GPU_STRETCH_BYTES = 2**23, 2**25
EVALUATION_ROWS = 1024
# The noise of evaluation is the same in every epoch, so that epochs differ by their weights alone; no epoch has this number.
EVALUATION_EPOCH = 2**31

Gather = Callable[[Stretch], Rows]
Draw = Callable[[int, tuple[int, ...]], Tensor]


class SideRows(Protocol):
    """One side's rows on this worker; size: the logical shards that it owns -> their rows."""

    @property
    def size(self) -> dict[int, int]: ...

    @property
    def bytes_per_row(self) -> int: ...

    def ordered(self, plan: Plan, epoch: int, first: int) -> Gather:
        """Returns what gives, stretch after stretch from step `first` on, the epoch's rows in the order of its steps."""

    def chunks(self) -> Iterator[tuple[int, int, Rows]]:
        """Yields every row once: a shard, the place in it, and up to EVALUATION_ROWS rows from there on."""


@dataclass(frozen=True)
class HeldRows:
    """Rows in memory, in the order of the logical shards; start: shard -> its first row here."""

    rows: Rows
    start: dict[int, int]
    size: dict[int, int]

    @property
    def bytes_per_row(self) -> int:
        return self.rows.bytes_per_row

    def ordered(self, plan: Plan, epoch: int, first: int) -> Gather:
        order = {shard: torch.from_numpy(plan.order(epoch, shard)) + start for shard, start in self.start.items()}

        def gather(stretch: Stretch) -> Rows:
            index = torch.cat([order[shard][stretch.begin[shard] : stretch.end[shard]] for shard in order])
            return self.rows.take(index[torch.from_numpy(stretch.merge)].to(self.rows.device))

        return gather

    def chunks(self) -> Iterator[tuple[int, int, Rows]]:
        for shard, start in self.start.items():
            for begin in range(0, self.size[shard], EVALUATION_ROWS):
                end = min(begin + EVALUATION_ROWS, self.size[shard])
                yield shard, begin, self.rows.slice(start + begin, start + end)


@dataclass(frozen=True)
class StreamedRows:
    """Rows that are read again whenever they are needed. open_stream: yields the arrays of the windows that it is given, in that order."""

    size: dict[int, int]
    no_rows: Rows
    window_rows: int
    open_stream: Callable[[Sequence[Window]], Iterator[tuple[Window, Arrays]]]

    @property
    def bytes_per_row(self) -> int:
        return self.no_rows.bytes_per_row

    def ordered(self, plan: Plan, epoch: int, first: int) -> Gather:
        given = plan.given(first)
        windows = [window for shard in self.size for window in plan.windows(epoch, shard) if window.begin + window.num_rows > given[shard]]
        # Shards are used up at one pace, so windows are needed in the order of where they begin.
        stream = self.open_stream(sorted(windows, key=lambda window: (window.begin, window.shard)))
        buffers = {shard: Buffer(shard) for shard in self.size}

        def pull() -> None:
            window, arrays = next(stream)
            buffers[window.shard].add(window, Rows.from_arrays(arrays).take(torch.from_numpy(plan.window_order(epoch, window))))

        def gather(stretch: Stretch) -> Rows:
            parts = [part for shard, buffer in buffers.items() for part in buffer.take(stretch.begin[shard], stretch.end[shard], pull)]
            return Rows.cat(parts or [self.no_rows]).take(torch.from_numpy(stretch.merge))

        return gather

    def chunks(self) -> Iterator[tuple[int, int, Rows]]:
        rows = max(1, self.window_rows // EVALUATION_ROWS) * EVALUATION_ROWS
        windows = [
            Window(shard, start, min(rows, size - start), start) for shard, size in self.size.items() for start in range(0, size, rows)
        ]
        for window, arrays in self.open_stream(windows):
            held = Rows.from_arrays(arrays)
            for begin in range(0, window.num_rows, EVALUATION_ROWS):
                yield window.shard, window.start + begin, held.slice(begin, min(begin + EVALUATION_ROWS, window.num_rows))


@dataclass
class Buffer:
    """A shard's windows that have come and are not used up: where each begins in the shard's order, and its rows in that order."""

    shard: int
    windows: deque[tuple[int, Rows]] = field(default_factory=deque)

    def add(self, window: Window, rows: Rows) -> None:
        self.windows.append((window.begin, rows))

    @property
    def end(self) -> int:
        return self.windows[-1][0] + self.windows[-1][1].num_rows if self.windows else -1

    def take(self, begin: int, end: int, pull: Callable[[], None]) -> list[Rows]:
        """Returns rows begin..end-1 of the shard's order in parts, pulling windows as long as they have not come."""
        if begin == end:
            return []
        while self.end < end:
            pull()
        parts = [rows.slice(max(0, begin - at), min(end - at, rows.num_rows)) for at, rows in self.windows if at < end]
        while self.windows and self.windows[0][0] + self.windows[0][1].num_rows <= end:
            self.windows.popleft()
        return parts


class Noise:
    """The noise of an epoch's rows: each shard's own, in blocks, so that it follows the rows to any worker.

    shape: of a row's noise; draw: makes what a seed and a shape name; stream: tells one kind of noise from another.
    """

    def __init__(self, plan: Plan, epoch: int, shape: tuple[int, ...], draw: Draw, stream: int = 0) -> None:
        self.plan, self.epoch, self.shape, self.draw, self.stream = plan, epoch, shape, draw, stream
        self.last: dict[int, tuple[int, Tensor]] = {}

    def block(self, shard: int, number: int) -> Tensor:
        if self.last.get(shard, (None,))[0] != number:
            seed = self.plan.noise_seed(self.epoch, number, shard + self.stream * self.plan.num_shards)
            self.last[shard] = number, self.draw(seed, (NOISE_ROWS, *self.shape))
        return self.last[shard][1]

    def of(self, stretch: Stretch, shards: Sequence[int]) -> Tensor:
        """Returns the noise of a stretch's rows, in their order, [R, *shape]."""
        drawn = torch.cat([part for shard in shards for part in self.take(shard, stretch.begin[shard], stretch.end[shard])])
        return drawn[torch.from_numpy(stretch.merge).to(drawn.device)]

    def take(self, shard: int, begin: int, end: int) -> list[Tensor]:
        """Returns the noise of rows begin..end-1 of the shard's order, [end - begin, *shape], in parts."""
        parts = [self.draw(0, (0, *self.shape))]
        while begin < end:
            number, skipped = divmod(begin, NOISE_ROWS)
            part = self.block(shard, number)[skipped : skipped + end - begin]
            parts.append(part)
            begin += len(part)
        return parts


def standard_normal(seed: int, shape: tuple[int, ...], model: VAE) -> Tensor:
    generator = torch.Generator(model.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=model.device, dtype=model.dtype)


def uniform(seed: int, shape: tuple[int, ...], model: VAE) -> Tensor:
    generator = torch.Generator(model.device).manual_seed(seed)
    return torch.rand(shape, generator=generator, device=model.device)


def binarised(rows: Rows, model: VAE, chances: Tensor) -> Rows:
    """Returns the rows with the pixels that the model wants binary drawn as 0 or 255, each with probability pixel / 255.

    chances: uniform numbers for all these pixels, [B, D]. A pixel that is 0 or 255 stays.
    """
    parts = torch.split(chances, list(model.binarised.values()), 1)
    drawn = {name: (part * 255 < rows.values[name]).to(torch.uint8) * 255 for name, part in zip(model.binarised, parts, strict=True)}
    return rows._replace(values=rows.values | drawn)


def training_stretches(
    plan: Plan, rows: SideRows, epoch: int, first: int, model: VAE, num_workers: int = 1, num_samples: int = 1
) -> Iterator[tuple[Stretch, Rows, Tensor]]:
    """Yields an epoch's steps from number `first` on in stretches: which they are, their rows in the order of steps, and noise [R, L].

    All of num_workers workers get the same stretches of steps, each with its own rows. Of several samples per row noise is [R, K, L].
    """
    gather, shards = rows.ordered(plan, epoch, first), list(rows.size)
    shape = (model.latent_dim,) if num_samples == 1 else (num_samples, model.latent_dim)
    noise = Noise(plan, epoch, shape, lambda seed, size: standard_normal(seed, size, model))
    pixels = Noise(plan, epoch, (model.num_binarised,), lambda seed, size: uniform(seed, size, model), stream=1)
    row_bytes = rows.bytes_per_row + math.prod(shape) * model.dtype.itemsize + model.num_binarised * torch.float32.itemsize
    max_bytes = GPU_STRETCH_BYTES if model.device.type == "cuda" else STRETCH_BYTES
    for stretch in plan.stretches(shards, num_workers * max(1, max_bytes // row_bytes), first):
        gathered = gather(stretch).to(model.device)
        if model.binarised:
            gathered = binarised(gathered, model, pixels.of(stretch, shards))
        yield stretch, gathered, noise.of(stretch, shards)


def batch_before(plan: Plan, rows: SideRows, epoch: int, position: int, steps_back: int, model: VAE) -> Rows:
    """Returns this worker's rows of the step that is so many steps back from `position` in an epoch, or of the epoch's first."""
    taken = [step.index for step in plan.steps() if step.index < position]
    stretch, some, _ = next(training_stretches(plan, rows, epoch, taken[max(0, len(taken) - steps_back)], model))
    return some.slice(*stretch.offsets[:2].tolist())


def evaluation_chunks(plan: Plan, rows: SideRows, side: int, num_samples: int, model: VAE) -> Iterator[tuple[int, Rows, Tensor]]:
    """Yields every row of a side once, each shard's in chunks of its own: the shard, rows [B], and noise [S, B, L].

    S * B is at most EVALUATION_ROWS, so that several samples take no more memory than one.
    """
    rows_at_once = max(1, EVALUATION_ROWS // num_samples)
    for shard, begin, chunk in rows.chunks():
        seed = plan.noise_seed(EVALUATION_EPOCH + side, begin, shard)
        noise = standard_normal(seed, (num_samples, chunk.num_rows, model.latent_dim), model)
        if model.binarised:
            seed = plan.noise_seed(EVALUATION_EPOCH + side, begin, plan.num_shards + shard)
            chunk = binarised(chunk.to(model.device), model, uniform(seed, (chunk.num_rows, model.num_binarised), model))
        for start in range(0, chunk.num_rows, rows_at_once):
            end = min(start + rows_at_once, chunk.num_rows)
            yield shard, chunk.slice(start, end).to(model.device), noise[:, start:end]
