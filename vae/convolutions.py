"""Convolutional networks for the image fields of a row, fused with its other features.

Shapes: S samples, B rows, F features, C channels, H x W pixels, P decoder outputs per cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.linear import Linear
from vae.networks import residual

# Channels of the finest level; each coarser one has twice as many, up to MAX_CHANNELS.
FIRST_CHANNELS, MAX_CHANNELS = 32, 128
# Halving stops at this many pixels a side.
COARSEST_SIDE = 4
# Channels that are normalised together.
GROUP_CHANNELS = 8


@dataclass(frozen=True)
class Image:
    """An image among a row's numbers: where its cells begin, and its shape as it is stored: H x W, H x W x C or C x H x W."""

    begin: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def channels_last(self) -> bool:
        return len(self.shape) == 3 and self.shape[2] in (1, 3)

    @property
    def pixels(self) -> tuple[int, int, int]:
        """C, H and W."""
        if len(self.shape) == 2:
            return 1, self.shape[0], self.shape[1]
        a, b, c = self.shape
        return (c, a, b) if self.channels_last else (a, b, c)

    def stacked(self, cells: Tensor) -> Tensor:
        """Returns the image's cells [B, size] as [B, C, H, W]."""
        cells = cells.reshape(len(cells), *self.shape)
        return cells[:, None] if len(self.shape) == 2 else cells.movedim(-1, 1) if self.channels_last else cells

    def flattened(self, outputs: Tensor) -> Tensor:
        """Returns [B, P C, H, W] as [B, P size], each cell in its stored place, P after P."""
        outputs = outputs.reshape(len(outputs), outputs.shape[1] // self.pixels[0], *self.pixels)
        return (outputs.movedim(2, -1) if self.channels_last else outputs).flatten(1)


def is_image(shape: Sequence[int] | None) -> bool:
    """Whether cells of such a shape can be convolved: H x W, or three dimensions of which the first or the last is 1 or 3 channels."""
    return shape is not None and (len(shape) == 2 or (len(shape) == 3 and (shape[2] in (1, 3) or shape[0] in (1, 3))))


class ResidualPixels(nn.Module):
    """x + two convolutions of it, [B, C, H, W]; normalised within each row, and the sum starts as x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(channels // GROUP_CHANNELS, channels)
        self.into, self.out = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs + self.out(F.silu(self.into(F.silu(self.norm(inputs)))))
        return outputs


def levels(image: Image) -> list[tuple[int, int, int]]:
    """Returns channels, height and width of every level, the finest first; a level has half the pixels a side of the one before it."""
    _, height, width = image.pixels
    channels, found = FIRST_CHANNELS, [(FIRST_CHANNELS, height, width)]
    while min(height, width) > COARSEST_SIDE:
        height, width, channels = -(-height // 2), -(-width // 2), min(2 * channels, MAX_CHANNELS)
        found.append((channels, height, width))
    return found


class ImageEncoder(nn.Module):
    """An image's cells to a vector, [B, size] -> [B, num_outputs]."""

    def __init__(self, image: Image, num_outputs: int) -> None:
        super().__init__()
        self.image, sizes = image, levels(image)
        layers: list[nn.Module] = [nn.Conv2d(image.pixels[0], sizes[0][0], 3, padding=1)]
        for (channels, _, _), coarser in zip(sizes, [*sizes[1:], None], strict=True):
            layers.append(ResidualPixels(channels))
            layers += [nn.Conv2d(channels, coarser[0], 3, stride=2, padding=1)] if coarser else []
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), Linear(math.prod(sizes[-1]), num_outputs))

    def forward(self, cells: Tensor) -> Tensor:
        vectors: Tensor = self.layers(self.image.stacked(cells))
        return vectors


class ImageDecoder(nn.Module):
    """A vector to P outputs for each of an image's cells, [B, num_inputs] -> [B, P size]."""

    def __init__(self, num_inputs: int, image: Image, outputs_per_cell: int) -> None:
        super().__init__()
        self.image, self.sizes = image, levels(image)
        coarsest = self.sizes[-1]
        self.into = Linear(num_inputs, math.prod(coarsest))
        self.blocks = nn.ModuleList([ResidualPixels(channels) for channels, _, _ in self.sizes])
        self.finer = nn.ModuleList(
            [nn.Conv2d(coarse[0], fine[0], 3, padding=1) for fine, coarse in zip(self.sizes, self.sizes[1:], strict=False)]
        )
        self.out = nn.Conv2d(self.sizes[0][0], outputs_per_cell * image.pixels[0], 3, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        pixels = self.blocks[-1](self.into(vectors).reshape(len(vectors), *self.sizes[-1]))
        for level in reversed(range(len(self.finer))):
            pixels = F.interpolate(pixels, size=self.sizes[level][1:])  # nearest: any side, whole or half
            pixels = self.blocks[level](self.finer[level](pixels))
        return self.image.flattened(self.out(F.silu(pixels)))


class FusedEncoder(nn.Module):
    """One encoder for each image; what they find and the other features enter one residual network, [B, F] -> [B, num_outputs]."""

    def __init__(self, num_features: int, images: Sequence[Image], hidden_dims: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        self.images = list(images)
        self.encoders = nn.ModuleList([ImageEncoder(image, hidden_dims[0]) for image in images])
        others = num_features - sum(image.size for image in images)
        self.fuse = residual(others + len(images) * hidden_dims[0], hidden_dims, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        parts, end = [], 0
        for image, encoder in zip(self.images, self.encoders, strict=True):
            parts += [features[:, end : image.begin], encoder(features[:, image.begin : image.begin + image.size])]
            end = image.begin + image.size
        outputs: Tensor = self.fuse(torch.cat([*parts, features[:, end:]], 1))
        return outputs


class FusedDecoder(nn.Module):
    """One residual network, after it one decoder for each image and an affine map for the rest, [.., B, num_inputs] -> [.., B, F].

    images: where among the outputs each image's begin, and how many it has per cell.
    """

    def __init__(self, num_inputs: int, images: Sequence[tuple[Image, int]], hidden_dims: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        width = hidden_dims[-1]
        self.trunk = residual(num_inputs, hidden_dims[:-1], width) if len(hidden_dims) > 1 else Linear(num_inputs, width)
        self.decoders = nn.ModuleList([ImageDecoder(width, image, per_cell) for image, per_cell in images])
        self.spans = [(image.begin, image.begin + per_cell * image.size) for image, per_cell in images]
        others = num_outputs - sum(end - begin for begin, end in self.spans)
        self.others: Any = Linear(width, others) if others else None

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.trunk(inputs.reshape(math.prod(inputs.shape[:-1]), inputs.shape[-1]))
        others = self.others(hidden) if self.others is not None else hidden[:, :0]
        parts, taken, end = [], 0, 0
        for (begin, last), decoder in zip(self.spans, self.decoders, strict=True):
            parts += [others[:, taken : taken + begin - end], decoder(F.silu(hidden))]
            taken, end = taken + begin - end, last
        outputs = torch.cat([*parts, others[:, taken:]], 1)
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[1])
