"""Trains a VAE on UCI digits in plain PyTorch: no Ray, no MLflow, no Parquet.

    python examples/plain_pytorch.py [--epochs 100]

Prints the ELBO and the importance-weighted bound before and after, in nats per row, and generates a few digits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: imports start at the repository root

from vae import VAE, Rows, log_evidence_bound

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=100)
epochs = parser.parse_args().epochs
torch.manual_seed(0)
generator = torch.Generator().manual_seed(1)

# x: 64 pixels, integers 0..16, stored as (k - 8) / 8. Each has the mass of its interval under a Gaussian, so log p(x) is one of integers.
pixels = torch.from_numpy(load_digits().data).float()
x = Rows({"pixels": (pixels - 8) / 8}, {"pixels": torch.ones(len(pixels), 1, dtype=torch.bool)}, torch.zeros(len(pixels)))
grid = {"half_width": [1 / 16] * 64, "lower": [-1.0] * 64, "upper": [1.0] * 64}
field = {"name": "pixels", "likelihood": "discretised_gaussian", "size": 64, "valid_size": 1, "with_flags": False} | grid
model = VAE([field], latent_dim=8, hidden_dims=[128])
optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)


@torch.no_grad()
def report(epoch: int) -> None:
    elbo = model.elbo(x, torch.randn(x.num_rows, 8, generator=generator)).elbo.mean()
    bound = log_evidence_bound(model, x, 100, generator).mean()
    print(f"epoch {epoch}: ELBO {elbo:.3f}, log_evidence_bound {bound:.3f} nats per row", flush=True)


report(0)
for epoch in range(1, epochs + 1):
    for index in torch.randperm(x.num_rows, generator=generator).split(128):
        batch = x.take(index)
        q_z, p_z = model.posterior(batch), model.latent_prior()
        z = q_z.rsample(torch.randn(len(index), 8, generator=generator))  # z = mean + scale * noise
        elbo = model.likelihood(z).log_prob(batch) - q_z.kl(p_z)  # log p(x|z) - KL(q(z|x) || p(z)): the same as model.elbo
        loss = -elbo.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if epoch in (1, epochs):
        report(epoch)

for digit in model.generate(3, generator).values["pixels"]:
    rows = (8 * digit + 8).round().long().reshape(8, 8).tolist()
    print("\n".join("".join(" .:-=+*#@"[k // 2] * 2 for k in row) for row in rows), end="\n\n")
