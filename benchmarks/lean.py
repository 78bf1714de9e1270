"""The models of benchmarks/train.py and step.py written by hand for one table each, in plain PyTorch.

They have the likelihoods that workflows/architecture.py gives the table, but for LIKELIHOODS: what follows from the data alone is computed
once (one-hot categories) or without branches (intervals' ends), flags that are always true are in the encoder's bias, the discretised
Gaussian has its gradient by hand.

Shapes: N rows, B rows of a step, D cells of a field, F features, L latent dimensions, C categorical columns, K categories in all.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN_DIMS = {"W1": [512, 256], "W2": [128, 128], "W3": [256]}
LATENT_DIM = {"W1": 32, "W2": 128, "W3": 16}
BATCH_ROWS = {"W1": 256, "W2": 500, "W3": 4096}
# Of the pixels of W1: the mixture that they have by default is not written by hand here.
LIKELIHOODS = {"W1": {"pixels": "discretised_gaussian"}}
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
SQRT_HALF = math.sqrt(0.5)
OPEN_END = 1e4  # stands for infinity, in standard deviations of the data
# Beyond it float32's erfc runs out of numbers, and Mills' ratio to two terms is good to 3 / TAIL^4.
TAIL = 9.0
# erfc and exp take ten times as long where they underflow, as they would at an open end; here nothing is left to add.
FAR = 12.0


class IntervalMass(torch.autograd.Function):
    """Sums over cells of log(Phi(v) - Phi(u)), u and v = (end - location) / scale, [B]; intervals are mirrored into the upper tail."""

    @staticmethod
    def forward(ctx: Any, location: Tensor, log_scale: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        inverse = torch.exp(-log_scale)
        u, v = (begin - location).mul_(inverse), (end - location).mul_(inverse)
        lo, hi = torch.maximum(u, -v), torch.maximum(v, -u)
        log_mass = (torch.erfc(lo * SQRT_HALF) - torch.erfc(hi.clamp(max=FAR) * SQRT_HALF)).mul_(0.5).log_()
        if lo.is_cuda or lo.max() > TAIL:  # where to ask would be to wait, without asking
            log_mass = torch.where(lo > TAIL, tail_mass(lo.clamp(min=TAIL), hi.clamp(min=TAIL)), log_mass)
        at_lo = lo.square().mul_(-0.5).sub_(log_mass).sub_(LOG_SQRT_2PI).exp_()  # phi(lo) / mass
        at_hi = hi.square().mul_(-0.5).sub_(log_mass).sub_(LOG_SQRT_2PI).clamp_(min=-80).exp_()
        ctx.save_for_backward((at_lo - at_hi).mul_(torch.sign(u + v)).mul_(inverse), at_lo.mul_(lo).sub_(at_hi.mul_(hi)))
        return log_mass.sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_location, by_log_scale = ctx.saved_tensors
        return by_location * gradients[0][:, None], gradients[0] @ by_log_scale, None, None


def tail_mass(lo: Tensor, hi: Tensor) -> Tensor:
    """Returns log(Phi(hi) - Phi(lo)) for TAIL <= lo < hi."""
    share_beyond = torch.exp(0.5 * (lo - hi) * (lo + hi)) * lo / hi
    return -0.5 * lo.square() - LOG_SQRT_2PI - lo.log() + torch.log1p(-lo.square().reciprocal()) + torch.log1p(-share_beyond)


class Lean(nn.Module, ABC):
    """A VAE of one field or two without missing rows, over one tensor; forward returns the ELBO in stored units, [B]."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, log_scale: Tensor, use_bfloat16: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.use_bfloat16 = encoder, decoder, use_bfloat16
        self.log_scale = nn.Parameter(log_scale.detach().clone())

    def forward(self, rows: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            mean, scale, log_scale = self.posterior(rows)
            outputs = self.decoder(torch.addcmul(mean, scale, noise))
        kl = 0.5 * (mean.square() + scale.square() - 2 * log_scale).sum(1) - 0.5 * mean.shape[1]
        result: Tensor = self.log_likelihood(outputs.float(), rows, self.log_scale.clamp(-7.0, 4.0)) - kl
        return result

    def posterior(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns means, scales and their logarithms, [B, L]."""
        mean, log_scale = self.encoder(self.features(rows)).float().chunk(2, -1)
        log_scale = log_scale.clamp(-10.0, 5.0)
        return mean, log_scale.exp(), log_scale

    def features(self, rows: Tensor) -> Tensor:
        return rows

    @abstractmethod
    def log_likelihood(self, outputs: Tensor, rows: Tensor, log_scale: Tensor) -> Tensor:
        """Returns log p of rows in stored units, [B]."""

    def tensor(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Returns the one tensor of rows, from their encoded arrays."""
        (values,) = (array for name, array in arrays.items() if "." not in name and name != "log_jacobian")
        return values


class Images(Lean):
    """uint8 pixels [B, D] under a discretised Gaussian; 0 and 255 have the whole tails."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, log_scale: Tensor, use_bfloat16: bool, center: float, scale: float) -> None:
        super().__init__(encoder, decoder, log_scale, use_bfloat16)
        self.center, self.scale = center, scale

    def features(self, rows: Tensor) -> Tensor:
        return (rows.float() - self.center) / self.scale

    def log_likelihood(self, outputs: Tensor, rows: Tensor, log_scale: Tensor) -> Tensor:
        pixels = rows.float()
        begin = ((pixels - (self.center + 0.5)) / self.scale).sub_((1 - pixels).relu_(), alpha=OPEN_END)
        end = ((pixels - (self.center - 0.5)) / self.scale).add_((pixels - 254).relu_(), alpha=OPEN_END)
        result: Tensor = IntervalMass.apply(outputs, log_scale, begin, end)  # type: ignore[no-untyped-call]
        return result


class Vectors(Lean):
    """float32 elements [B, D] under a Gaussian of one learned variance."""

    def log_likelihood(self, outputs: Tensor, rows: Tensor, log_scale: Tensor) -> Tensor:
        squares = (rows - outputs).square().sum(1)
        return -0.5 * squares * torch.exp(-2 * log_scale) - rows.shape[1] * (log_scale + LOG_SQRT_2PI)


class Mixed(Lean):
    """Numbers and categories with nulls: rows are the encoder's features [B, F], made once: cells, flags, one-hot categories, flags."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, log_scale: Tensor, use_bfloat16: bool, sizes: list[int]) -> None:
        super().__init__(encoder, decoder, log_scale, use_bfloat16)
        self.sizes = sizes
        self.membership: Tensor
        column_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.register_buffer("membership", nn.functional.one_hot(column_of).float())  # [K, C]

    def log_likelihood(self, outputs: Tensor, rows: Tensor, log_scale: Tensor) -> Tensor:
        num_numeric = log_scale.shape[0]
        parts = [num_numeric, num_numeric, sum(self.sizes), len(self.sizes)]
        numbers, there, one_hot, known = torch.split_with_sizes(rows, parts, 1)
        location, logits = torch.split_with_sizes(outputs, [num_numeric, sum(self.sizes)], 1)
        squares = ((numbers - location * there) * torch.exp(-log_scale)).square().sum(1)
        highest = logits.detach().amax(1, keepdim=True)
        sums = torch.exp(logits - highest) @ self.membership
        categories = (one_hot * logits).sum(1) - (known * (sums.log() + highest)).sum(1)
        result: Tensor = -0.5 * squares - there @ (log_scale + LOG_SQRT_2PI) + categories
        return result

    def tensor(self, arrays: Mapping[str, Tensor]) -> Tensor:
        known = arrays["categorical.valid"]
        sizes = torch.tensor(self.sizes)
        one_hot = torch.zeros(len(known), int(sizes.sum()))
        one_hot.scatter_(1, arrays["categorical"].long() + (sizes.cumsum(0) - sizes), known.float())
        there = arrays["numeric.valid"]
        return torch.cat([arrays["numeric"] * there, there, one_hot, known], 1)


def plain(network: nn.Module) -> nn.Module:
    """Returns a copy with PyTorch's own layers, as vae's have the faster of two libraries multiply."""
    network, weights = copy.deepcopy(network), network.state_dict()
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear):
                setattr(parent, name, nn.Linear(layer.in_features, layer.out_features))
    network.load_state_dict(weights)
    return network


def lean_model(workload: str, vae: Any, bfloat16: bool = False) -> Lean:
    """Returns the lean form of a vae.VAE, with its weights."""
    encoder, decoder = plain(vae.encoder), plain(vae.decoder)
    fields = dict(vae.likelihoods.items())
    names = {"W1": ["image_0"], "W2": ["numeric", "categorical"], "W3": ["vector_0"]}
    assert list(fields) == names[workload], f"{workload}: the table has the fields {list(fields)}"
    field = fields[names[workload][0]]
    if workload == "W2":
        return Mixed(encoder, decoder, field.log_scale, bfloat16, fields["categorical"].sizes)
    if workload == "W3":
        return Vectors(encoder, decoder, field.log_scale, bfloat16)
    return Images(encoder, decoder, field.log_scale, bfloat16, field.grid.center, field.grid.scale)
