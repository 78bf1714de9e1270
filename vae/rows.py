"""Rows as the model takes them: one tensor of values and one of validity per field.

A field is a group of columns that share a likelihood. Shapes: B rows, D cells of a field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

VALID_SUFFIX = ".valid"
LOG_JACOBIAN = "log_jacobian"


class Rows(NamedTuple):
    """A batch of rows.

    values: field name -> [B, D], in the field's own storage (float32 standardised values, integer codes, uint8 pixels).
    valid: field name -> bool, [B, D], or [B, 1] where a row's cells are there or missing together.
    log_jacobian: [B], the sum of log |dy/dx| over the observed standardised cells y of data x; adding it to
        log p(y) gives log p(x) in data units.
    """

    values: dict[str, Tensor]
    valid: dict[str, Tensor]
    log_jacobian: Tensor

    @property
    def num_rows(self) -> int:
        return self.log_jacobian.shape[0]

    @property
    def device(self) -> torch.device:
        return self.log_jacobian.device

    @property
    def bytes_per_row(self) -> int:
        """The memory that one row takes."""
        tensors = [*self.values.values(), *self.valid.values()]
        return self.log_jacobian.element_size() + sum(tensor.shape[1] * tensor.element_size() for tensor in tensors)

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> Rows:
        """Returns the rows held by NumPy arrays named FIELD, FIELD.valid and log_jacobian (without a copy on the CPU)."""
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return Rows(
            values={n: t for n, t in tensors.items() if n != LOG_JACOBIAN and not n.endswith(VALID_SUFFIX)},
            valid={n.removesuffix(VALID_SUFFIX): t for n, t in tensors.items() if n.endswith(VALID_SUFFIX)},
            log_jacobian=tensors[LOG_JACOBIAN],
        )

    def to(self, device: torch.device | str) -> Rows:
        """Returns the rows on a device: these where they are there already, else copies; the host does not wait for those on a GPU."""
        device = torch.device(device)
        if self.device == device:
            return self
        values, valid = ({name: copied(part, device) for name, part in parts.items()} for parts in (self.values, self.valid))
        return Rows(values, valid, copied(self.log_jacobian, device))

    def take(self, index: Tensor) -> Rows:
        """Returns the rows at `index` [n], gathered."""
        return Rows(
            {name: tensor.index_select(0, index) for name, tensor in self.values.items()},
            {name: tensor.index_select(0, index) for name, tensor in self.valid.items()},
            self.log_jacobian.index_select(0, index),
        )

    @staticmethod
    def cat(parts: Sequence[Rows]) -> Rows:
        """Returns the rows of one or more batches, one after the other."""
        if len(parts) == 1:
            return parts[0]
        values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
        valid = {name: torch.cat([part.valid[name] for part in parts]) for name in parts[0].valid}
        return Rows(values, valid, torch.cat([part.log_jacobian for part in parts]))

    def contiguous(self) -> Rows:
        """Returns the rows with every tensor in row-major order."""
        values, valid = ({name: tensor.contiguous() for name, tensor in parts.items()} for parts in (self.values, self.valid))
        return Rows(values, valid, self.log_jacobian.contiguous())

    def slice(self, begin: int, end: int) -> Rows:
        """Returns rows begin..end-1, as views."""
        return Rows(
            {name: tensor[begin:end] for name, tensor in self.values.items()},
            {name: tensor[begin:end] for name, tensor in self.valid.items()},
            self.log_jacobian[begin:end],
        )


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a copy on a device; to a GPU by pinned memory, as the host would wait else until the GPU has done all that it was given."""
    to_gpu = device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory().to(device, non_blocking=True) if to_gpu else tensor.to(device)
