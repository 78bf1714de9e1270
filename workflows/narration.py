"""What a person sees of a training while it runs: a line that moves on, one per epoch, and a word when something looks wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from workflows.config import TrainConfig
from workflows.errors import logger
from workflows.mailbox import Message
from workflows.metrics_log import MetricsLog
from workflows.scoring import NULL_PATTERN, score_of

# Where standard error is no terminal, lines within an epoch come this often.
LINE_S = 30.0
# A KL below this, or no active unit, after this part of the epochs, and so many: the latents say nothing of the rows.
COLLAPSED_KL, COLLAPSE_SHARE, COLLAPSE_EPOCHS = 0.01, 0.05, 3


class Narrator:
    """Tells what the workers say: to the log of metrics, and to standard error."""

    def __init__(self, config: TrainConfig, log: MetricsLog) -> None:
        self.config, self.log = config, log
        self.said_at = time.monotonic()
        self.is_terminal = sys.stderr.isatty()
        self.first_elbo: float | None = None  # of the training rows, in the first epoch without a part of the KL's warm-up
        self.best: tuple[int, float] | None = None
        self.told: set[str] = set()
        self.num_workers = 0
        self.is_training = False

    def hear(self, message: Message) -> None:
        kind = message["kind"]
        if kind == "status":
            self.show_first_step(message)
            self.show_status(message)
        elif kind == "started":
            before, self.num_workers = self.num_workers, message["workers"]
            if before:
                what = "workers came" if self.num_workers > before else "workers were lost"
                logger.warning("%s; %d go on after step %d (epoch %d)", what, self.num_workers, message["step"], message["epoch"] + 1)
        elif kind == "prior":
            logger.info(
                "prior: %s ELBO %.3f nats per row with N(0, I), %.3f with a mixture of %d Gaussians that is fitted to the training rows' "
                "posteriors; the better one is kept",
                message["side"],
                message["standard"],
                message["fitted"],
                message["num_components"],
            )
        elif kind in ("steps", "epoch"):
            metrics = {name: value for name, value in message["metrics"].items() if name != "epoch"}
            is_new = self.log.append(kind, int(message["step"]), metrics)
            if kind == "epoch" and is_new:
                self.show_epoch(message["metrics"])

    def show_first_step(self, status: Mapping[str, Any]) -> None:
        """Says when training begins; what the steps before it took is preparation."""
        if not self.is_training:
            self.is_training = True
            left = status["num_steps"] - status["step"]
            logger.info("first step taken by %d workers; %d steps to go, unless training stops early", self.num_workers, left)

    def show_status(self, status: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if "elbo" not in status or (not self.is_terminal and now - self.said_at < LINE_S):
            return
        self.said_at = now
        line = (
            f"epoch {status['epoch'] + 1}/{self.config.training.num_epochs}  step {status['step']}/{status['num_steps']}  "
            f"train ELBO so far {status['elbo']:.3f} (KL {status['kl']:.3f}) nats per row  {status['rows_per_s']:.0f} rows/s  "
            f"{duration(status['eta_s'])} to go"
        )
        if self.is_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            logger.info("%s", line)

    def show_epoch(self, entry: Mapping[str, float]) -> None:
        if self.is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self.said_at = time.monotonic()
        validation = entry.get("validation/elbo_nats_per_row")
        pattern = entry.get(f"validation/{NULL_PATTERN}")
        measured = f"validation ELBO {validation:.3f} (KL {entry['validation/kl_nats_per_row']:.3f})  " if validation is not None else ""
        measured += f"null pattern {pattern:.3f}  " if pattern is not None else ""
        logger.info(
            "epoch %d/%d  step %d  train ELBO %.3f  %snats per row  %.0f rows/s",
            entry["epoch"] + 1,
            self.config.training.num_epochs,
            entry["step"],
            entry.get("train/elbo_nats_per_row", float("nan")),
            measured,
            entry["train/rows_per_s"],
        )
        if entry["train/skipped_steps"]:
            self.tell_once(
                f"skipped {entry['train/skipped_steps']}",
                "%d steps were skipped: their gradients were not finite",
                entry["train/skipped_steps"],
            )
        self.look_for_divergence(entry)
        if validation is not None:
            self.look_for_trouble(
                int(entry["epoch"]),
                score_of(entry) or 0.0,
                entry["validation/kl_nats_per_row"],
                int(entry["validation/active_units"]),
                "validation ELBO" if pattern is None else "validation ELBO with the null pattern",
            )

    def look_for_trouble(self, epoch: int, score: float, kl: float, active_units: int, scored: str) -> None:
        """Says once when the model collapsed, and when what epochs are compared by stands still. scored: what that is."""
        training = self.config.training
        if epoch + 1 >= max(COLLAPSE_EPOCHS, COLLAPSE_SHARE * training.num_epochs) and (kl < COLLAPSED_KL or active_units == 0):
            self.tell_once(
                "collapsed",
                "the model has collapsed: KL %.4f nats per row, %d of %d latent dimensions active, so embeddings say nothing; "
                "set --objective.kl_warmup_steps to some epochs of steps, or a smaller --model.latent_dim",
                kl,
                active_units,
                self.config.model.latent_dim,
            )
        if self.best is None or score > self.best[1]:
            self.best = epoch, score
        elif epoch - self.best[0] == training.patience // 2 > 0:
            logger.info(
                "%s stands still: the best, %.3f, was in epoch %d; training ends after %d epochs without a better one",
                scored,
                self.best[1],
                self.best[0] + 1,
                training.patience,
            )

    def look_for_divergence(self, entry: Mapping[str, float]) -> None:
        """Says once when an epoch leaves the training rows worse than the first one did."""
        elbo, warmup = entry.get("train/elbo_nats_per_row"), self.config.objective
        if elbo is None or entry["step"] <= 2 * warmup.kl_warmup_steps * warmup.kl_warmup_cycles:
            return
        if self.first_elbo is None:
            self.first_elbo = elbo
        elif not elbo >= self.first_elbo:
            self.tell_once(
                "diverges",
                "training diverges: the train ELBO, %.3f, is below the %.3f that it began with; the best epoch's weights are kept; "
                "stop, and try a lower --training.learning_rate or --training.max_gradient_norm under another --run.name",
                elbo,
                self.first_elbo,
            )

    def tell_once(self, what: str, text: str, *values: object) -> None:
        if what not in self.told:
            self.told.add(what)
            logger.warning(text, *values)


def duration(seconds: float) -> str:
    """Returns seconds as people say them, such as 1 h 05 min or 40 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
