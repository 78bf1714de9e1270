"""Random numbers that belong to rows: how these are cut into batches changes none. Shapes: S samples, B rows, L latent dimensions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class RowNoise:
    """A stream of random numbers for each row, named by a seed, a purpose and the row's number; streams of other names are independent.

    A stream goes on where it stood: two draws of n samples are one of 2 n.
    """

    def __init__(self, seed: int, purpose: str, row_numbers: range, device: torch.device | str = "cpu") -> None:
        self.streams = [np.random.default_rng([seed, int.from_bytes(purpose.encode()), number]) for number in row_numbers]
        self.device = torch.device(device)

    def normal(self, num_samples: int, latent_dim: int) -> Tensor:
        """Returns standard normal numbers, [S, B, L] in float64."""
        numbers = np.empty((len(self.streams), num_samples, latent_dim))
        for stream, row in zip(self.streams, numbers, strict=True):
            stream.standard_normal(out=row)
        return torch.from_numpy(numbers).movedim(0, 1).contiguous().to(self.device)

    def uniform(self, num_samples: int) -> Tensor:
        """Returns uniform numbers of [0, 1), [S, B] in float64."""
        numbers = np.empty((len(self.streams), num_samples))
        for stream, row in zip(self.streams, numbers, strict=True):
            stream.random(out=row)
        return torch.from_numpy(numbers).mT.contiguous().to(self.device)

    def generators(self) -> list[torch.Generator]:
        """Returns a generator for each row, for what draws by PyTorch."""
        return [torch.Generator().manual_seed(int(stream.integers(2**32))) for stream in self.streams]
