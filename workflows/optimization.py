"""The optimiser: Adam that clips, averages, and skips steps that are not finite, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae.host import may_look_at
from vae.model import VAE
from workflows.model_config import TrainingConfig

# So many steps in a row that are not finite end a run.
MAX_NONFINITE_STEPS = 3


class Optimizer:
    """AdamW over a model's parameters, and the exponential moving average of its weights where one is asked for.

    Gradients must be the same on every worker, as DistributedDataParallel leaves them: then all skip the same steps.
    nonfinite: [3] on the device: steps skipped in a row, in all, and the first of that row. From MAX_NONFINITE_STEPS in a row on every
    step is skipped, so that the weights are those before the first until somebody looks.
    """

    def __init__(self, model: VAE, training: TrainingConfig) -> None:
        self.parameters = list(model.parameters())
        # One fused kernel; it divides gradients by grad_scale and leaves everything as it is where found_inf is 1.
        self.adam = torch.optim.AdamW(self.parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)
        self.max_norm, self.ema_decay = training.max_gradient_norm, training.ema_decay
        self.average = [parameter.detach().clone() for parameter in self.parameters] if self.ema_decay else []
        self.nonfinite = torch.zeros(3, dtype=torch.float64, device=model.device)

    def backward(self, loss: Tensor) -> None:
        """Computes gradients, of which every one is NaN where the loss is not finite."""
        self.adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, torch.where(loss.isfinite(), 1.0, torch.nan).to(loss.dtype))

    def step(self, learning_rate: float, number: int) -> None:
        """Takes step `number` (from 0) along the clipped gradients, or none where they are not finite."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        if may_look_at(norm) and norm <= self.max_norm and self.nonfinite[0] == 0:  # most steps, which need none of what follows
            self.adam.found_inf = self.adam.grad_scale = None  # type: ignore[attr-defined]
        else:
            self._guard(norm, number)
        self.adam.step()
        if self.ema_decay:
            decay = min(self.ema_decay, (1 + number) / (10 + number))  # else the first weights weigh for long
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def _guard(self, norm: Tensor, number: int) -> None:
        """Has the next step clip gradients of this norm, or leave everything as it is where they are not finite."""
        bad = ~norm.isfinite()
        in_row, total, first = self.nonfinite.unbind()
        halted = in_row >= MAX_NONFINITE_STEPS
        skipped = bad | halted
        first = torch.where(bad & (in_row == 0), number, first)
        self.nonfinite = torch.stack([torch.where(halted, in_row, (in_row + 1) * bad), total + skipped, first])
        self.adam.found_inf = skipped.float()  # type: ignore[attr-defined]
        self.adam.grad_scale = (norm / self.max_norm).clamp(min=1.0).float()  # type: ignore[attr-defined]

    def tensors(self) -> dict[str, Tensor]:
        """Returns all that the next step depends on, by name."""
        state = self.adam.state_dict()["state"]
        adam = {f"adam.{index}.{name}": tensor for index, values in state.items() for name, tensor in values.items()}
        average = {f"average.{index}": tensor for index, tensor in enumerate(self.average)}
        return {"nonfinite": self.nonfinite} | adam | average

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `tensors` returned."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                index, key = name.removeprefix("adam.").split(".", 1)
                state.setdefault(int(index), {})[key] = tensor
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})
        self.nonfinite = tensors["nonfinite"]
        self.average = [tensors[f"average.{index}"] for index in range(len(self.average))]


def with_weights(model: nn.Module, weights: list[Tensor]) -> dict[str, Tensor]:
    """Returns the model's state with other values of its parameters."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return state | {name: tensor for (name, _), tensor in zip(model.named_parameters(), weights, strict=True)}
