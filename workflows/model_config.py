"""What can be configured of the model, of what is optimised and of how: typed, frozen sections."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from workflows.checks import require

# Optimiser steps that small tables get by more epochs.
AUTO_STEPS = 10_000


@dataclass(frozen=True)
class ModelConfig:
    """The model."""

    latent_dim: int = 16
    """Latent dimensions."""
    hidden_dims: list[int] = field(default_factory=lambda: [256, 256])
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    network: Literal["mlp", "gated", "residual", "linear", "conv"] = "mlp"
    """mlp: affine maps with ReLU between; gated: each times the sigmoid of another; residual: blocks with LayerNorm added to their input;
    linear: one affine map (probabilistic PCA for one vector column); conv: convolutions for image columns of shape H x W or with 1 or 3
    channels, fused with a residual network for the other columns."""
    decoder_network: Literal["mlp", "gated", "residual", "linear", "conv"] | None = None
    """The decoder's network, where it is to be another than the encoder's."""
    posterior: Literal["diagonal", "full"] = "diagonal"
    """Family of q(z|x): Gaussians with independent dimensions, or with full covariance."""
    prior: Literal["auto", "standard", "fitted", "mixture", "vamp", "conditional"] = "auto"
    """Prior p(z); standard: N(0, I); fitted: that while the model trains, then a mixture of Gaussians fitted to the posteriors of all
    training rows, where the validation rows' ELBO is higher with it; mixture: of Gaussians that are learned with the rest; vamp: of the
    posteriors of learned pseudo-rows; conditional: a Gaussian that depends on the columns of data.condition; auto: from 10,000 training
    rows on fitted, or vamp for images without a condition, else standard."""
    num_prior_components: int = 100
    """Components of the priors fitted, mixture and vamp."""
    likelihoods: dict[str, str] = field(default_factory=dict)
    """Likelihoods by column where the default is not what is wanted, e.g. '{"visits": "negative_binomial", "income": "student_t"}';
    numeric: gaussian gaussian_per_row student_t logistics; with a known step, and integers: discretised_gaussian discretised_logistics
    warped_discretised_gaussian warped_discretised_logistics; count: these four, poisson negative_binomial zero_inflated_negative_binomial;
    timestamp: discretised_gaussian discretised_logistics; vector: as numeric, of integers as timestamp; image: as timestamp,
    continuous_bernoulli bernoulli."""
    null_pattern: bool = True
    """Which cells are null is modelled with the rest, one Bernoulli for every column (and every element of a list) that has nulls, and
    generated rows have nulls accordingly; its log-likelihood is reported apart from the ELBO of what is there. false: neither."""

    def check(self) -> None:
        require(self.latent_dim >= 1, "model.latent_dim", self.latent_dim, "at least 1")
        without_hidden = self.network == "linear" and self.decoder_network != "conv"
        sizes = all(size >= 1 for size in self.hidden_dims) and (without_hidden or len(self.hidden_dims) >= 1)
        require(self.num_prior_components >= 1, "model.num_prior_components", self.num_prior_components, "at least 1")
        require(sizes, "model.hidden_dims", self.hidden_dims, "one or more widths of at least 1")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is optimised."""

    kind: Literal["elbo", "iwae"] = "elbo"
    """elbo: the evidence lower bound; iwae: the importance-weighted bound of num_importance_samples, which lies nearer to log p(x)."""
    num_importance_samples: int = 8
    """Samples per row of iwae; a step costs about so many times the decoder's part of one of elbo."""
    doubly_reparameterised: bool = True
    """Of iwae: the encoder's gradient that keeps its signal with many samples (DReG); false: the plain one."""
    free_bits: float = 0.0
    """Nats of KL per latent dimension, on average over the step's rows, that cost nothing; against collapse."""
    beta: float = 1.0
    """Weight of the KL in what is optimised; what is reported as ELBO always has 1."""
    kl_warmup_steps: int = 0
    """Optimiser steps over which that weight rises from 0."""
    kl_warmup_cycles: int = 1
    """Times that it rises from 0: each rise is followed by as many steps at its full height (cyclical annealing)."""

    def check(self) -> None:
        require(self.beta >= 0, "objective.beta", self.beta, "at least 0")
        require(self.kl_warmup_steps >= 0, "objective.kl_warmup_steps", self.kl_warmup_steps, "at least 0")
        require(self.kl_warmup_cycles >= 1, "objective.kl_warmup_cycles", self.kl_warmup_cycles, "at least 1")
        require(self.free_bits >= 0, "objective.free_bits", self.free_bits, "at least 0")
        require(self.num_importance_samples >= 1, "objective.num_importance_samples", self.num_importance_samples, "at least 1")
        together = self.kind == "elbo" or not self.free_bits
        require(together, "objective.free_bits", self.free_bits, "0 with objective.kind iwae, whose bound has no KL of its own")

    def beta_at(self, step: int) -> float:
        """Returns the KL's weight at an optimiser step."""
        if not self.kl_warmup_steps:
            return self.beta
        cycle, place = divmod(step, 2 * self.kl_warmup_steps)
        return self.beta * min(1.0, (place + 1) / self.kl_warmup_steps) if cycle < self.kl_warmup_cycles else self.beta


@dataclass(frozen=True)
class TrainingConfig:
    """How it is optimised."""

    epochs: int | Literal["auto"] = "auto"
    """Passes over the training rows, at most; auto: 100, and up to 1,000 for small tables, as many as make 10,000 steps."""
    max_steps: int | None = None
    """Optimiser steps, at most; the epoch in which they end is the last."""
    global_batch_size: int = 256
    """Rows of one step over all workers."""
    learning_rate: float = 1e-3
    """Adam's step size at its highest."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW), per step and unit of learning rate."""
    max_gradient_norm: float = 1000.0
    """Gradients of a longer norm are shortened to it."""
    ema_decay: float = 0.999
    """Decay per step of an exponential moving average of the weights, which is then what is scored and registered; 0: none."""
    learning_rate_schedule: Literal["cosine", "constant"] = "cosine"
    """After a warm-up over 1 % of the steps: cosine falls to zero at the last step, constant stays."""
    seed: int = 0
    """Decides initial weights, order and noise."""
    precision: Literal["float32", "bfloat16", "auto", "float64"] = "float32"
    """float32: on GPUs with matrix products in TF32; bfloat16: matrix products in bfloat16, weights and bounds in float32; auto: bfloat16
    where the processor has it, else float32; float64: everything, to compare runs."""
    compile: bool = False
    """Compile the model (torch.compile): a minute or more of compilation per worker; on GPUs steps are captured and replayed whole. On CPUs
    it needs a C++ compiler; numbers and vectors gain, images lose."""
    max_time_s: float | None = None
    """Seconds of training, restarts included, after which it ends with the epoch as far as it came."""
    early_stopping_patience: int | Literal["auto"] = "auto"
    """Epochs without a better validation ELBO, with the null pattern's log-likelihood where that is modelled, after which training stops;
    auto: a tenth of the epochs, at least 10; 0 never stops early."""

    def check(self) -> None:
        require(self.epochs == "auto" or self.epochs >= 1, "training.epochs", self.epochs, 'at least 1, or "auto"')
        require(self.global_batch_size >= 1, "training.global_batch_size", self.global_batch_size, "at least 1")
        require(self.max_steps is None or self.max_steps >= 1, "training.max_steps", self.max_steps, "at least 1")
        require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "above 0")
        require(0 <= self.seed < 2**64, "training.seed", self.seed, "at least 0 and below 2^64")
        require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "at least 0")
        require(self.max_gradient_norm > 0, "training.max_gradient_norm", self.max_gradient_norm, "above 0")
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "at least 0 and below 1")
        require(self.max_time_s is None or self.max_time_s > 0, "training.max_time_s", self.max_time_s, "above 0")
        patience = self.early_stopping_patience
        require(patience == "auto" or patience >= 0, "training.early_stopping_patience", patience, 'at least 0, or "auto"')

    def for_rows(self, num_rows: int) -> TrainingConfig:
        """Returns this with the numbers that "auto" stands for with so many training rows."""
        enough = -(-AUTO_STEPS * self.global_batch_size // num_rows)
        epochs = max(100, min(1000, enough)) if self.epochs == "auto" else self.epochs
        patience = max(10, epochs // 10) if self.early_stopping_patience == "auto" else self.early_stopping_patience
        return replace(self, epochs=epochs, early_stopping_patience=patience)

    @property
    def num_epochs(self) -> int:
        """The epochs, which for_rows has settled."""
        assert self.epochs != "auto"
        return self.epochs

    @property
    def patience(self) -> int:
        """The patience, which for_rows has settled."""
        assert self.early_stopping_patience != "auto"
        return self.early_stopping_patience

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Returns the step size at an optimiser step of num_steps."""
        warmup = max(1, num_steps // 100)
        rise = min(1.0, (step + 1) / warmup)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps))) if self.learning_rate_schedule == "cosine" else 1.0
        return self.learning_rate * rise * fall
