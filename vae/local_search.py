"""The best member of the encoder's family for each row by itself. Shapes: S samples, B rows, L latent dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vae.evidence import LogJoint
from vae.posteriors import Posterior
from vae.row_noise import RowNoise


@dataclass(frozen=True)
class LocalSearch:
    """Adam on every row's own posterior parameters, its steps falling from first to last in equal ratios.

    A parameter may travel first_step_size * num_steps / log(first / last) in all, 11 by default: means in units of z, scales as logarithms.
    """

    num_steps: int = 500
    num_samples: int = 8
    first_step_size: float = 0.1
    last_step_size: float = 0.001
    num_selection_samples: int = 200


# Adam's memories, in steps of 10 and 20: gradients of a bad start are forgotten long before the end.
BETAS = (0.9, 0.95)


def best_in_family(joint: LogJoint, q_z: Posterior, search: LocalSearch, noise: RowNoise) -> Posterior:
    """Returns, for each row, the member of q_z's family with the largest ELBO that the search found; q_z's own where it found none better.

    Which of the two it is, samples decide that judge nothing else: evaluate the answer with others. The search starts from q_z, and may end
    at a local maximum: the answer's ELBO is a lower bound on the family's best.
    """
    found = searched(joint, q_z, search, noise)
    with torch.no_grad():
        selection = noise.normal(search.num_selection_samples, q_z.mean.shape[-1])
        is_better = mean_elbo(joint, found, selection) > mean_elbo(joint, q_z, selection)
        return named_by(torch.where(is_better[:, None], found.outputs, q_z.outputs), q_z)


def searched(joint: LogJoint, q_z: Posterior, search: LocalSearch, noise: RowNoise) -> Posterior:
    """Returns where the search from q_z ends. Rows are independent problems: all of Adam is elementwise.

    The gradient leaves out the score of q, whose expectation is 0: it has no variance where q is the exact posterior, in which
    log p(x,z) - log q(z|x) is the same for all z (Roeder, Wu, Duvenaud 2017, "Sticking the landing").
    """
    outputs = q_z.outputs.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([outputs], lr=search.first_step_size, betas=BETAS)
    ratio = (search.last_step_size / search.first_step_size) ** (1 / max(1, search.num_steps - 1))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, ratio)
    for _ in range(search.num_steps):
        with torch.enable_grad():
            q = named_by(outputs, q_z)
            drawn = noise.normal(search.num_samples, q_z.mean.shape[-1])
            z = q.rsample(drawn)
            loss = -(joint(z) - q.path_log_prob(z, drawn)).mean(0).sum()
        (outputs.grad,) = torch.autograd.grad(loss, [outputs])
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            outputs.copy_(named_by(outputs, q_z).outputs)  # beyond the family's bounds there is no gradient to lead back
    return named_by(outputs.detach(), q_z)


def mean_elbo(joint: LogJoint, q_z: Posterior, noise: Tensor) -> Tensor:
    """Returns the ELBO of q_z, averaged over noise [S, B, L], in nats, [B]."""
    total = torch.zeros((), device=noise.device, dtype=noise.dtype)
    for part in torch.split(noise, joint.at_once):
        z = q_z.rsample(part)
        total = total + (joint(z) - q_z.log_prob_of(z, part)).sum(0)
    return total / len(noise)


def named_by(outputs: Tensor, like: Posterior) -> Posterior:
    """Returns the posteriors of the family of `like` that outputs [B, num_outputs] name."""
    return type(like).from_outputs(outputs, like.mean.shape[-1])
