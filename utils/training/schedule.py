"""What changes while training goes on: learning rates, momentum, batches per step, and when to stop.

Everything is a function of the iteration, so nothing has to be saved for a resumed run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from utils.training.hyperparameters import NOMINAL_BATCH, WARMUP_FLOOR

if TYPE_CHECKING:
    from torch.optim import Optimizer


def lr_factor(epoch: int, epochs: int, lrf: float, cosine: bool = False) -> float:
    """Share of the initial learning rate in an epoch: from 1 at epoch 0 down to lrf at `epochs`, straight or cosine."""
    x = epoch / epochs
    if cosine:
        return (1 - math.cos(math.pi * x)) / 2 * (lrf - 1) + 1
    return (1 - x) * (1 - lrf) + lrf


def warmup_iterations(hyp: Mapping[str, float], batches: int, floor: int = WARMUP_FLOOR) -> int:
    """Length of the warm-up in iterations, for so many batches an epoch.

    v6.1 warms up for 1000 iterations at least, even when warmup_epochs is 0; `floor=0` turns that off.
    """
    return max(round(hyp["warmup_epochs"] * batches), floor)


def factor_epoch(epoch: int, batches: int, warmup_length: int) -> int:
    """The epoch whose `lr_factor` is in force: its own during the warm-up, the one before it afterwards.

    v6.1's scheduler runs one epoch behind, which nobody sees until the warm-up no longer overwrites the rates.
    """
    return epoch if epoch * batches <= warmup_length else epoch - 1


class Settings(NamedTuple):
    """What is in force during one iteration."""

    learning_rates: tuple[float, float, float]  # norm weights, weights, biases
    momentum: float
    accumulate: int  # batches per optimizer step


def warmup(
    iteration: int,
    length: int,
    factor: float,
    hyp: Mapping[str, float],
    batch_size: int,
    nominal_batch: int = NOMINAL_BATCH,
) -> Settings:
    """The settings of an iteration, during the warm-up and after it.

    Learning rates rise from 0 (biases fall from warmup_bias_lr), momentum from warmup_momentum and the batches per
    step from 1, each in a straight line to its final value.

    Args:
        iteration: counted from the start of training, over all epochs.
        length: of the warm-up, see `warmup_iterations`.
        factor: what the final learning rate is of lr0.
        batch_size: images per iteration over all processes.
    """

    def ramp(start: float, stop: float) -> float:
        return stop if iteration >= length else float(np.interp(iteration, [0, length], [start, stop]))

    rate = hyp["lr0"] * factor
    return Settings(
        learning_rates=(ramp(0.0, rate), ramp(0.0, rate), ramp(hyp["warmup_bias_lr"], rate)),
        momentum=ramp(hyp["warmup_momentum"], hyp["momentum"]),
        accumulate=max(round(ramp(1.0, nominal_batch / batch_size)), 1),  # half to even
    )


@dataclass(frozen=True)
class Schedule:
    """v6.1's schedule of a whole run: `schedule.at(iteration)`.

    Two optional hyper-parameters adapt it to short runs: warmup_floor (1000 iterations in v6.1) and nominal_batch (64).
    """

    hyp: Mapping[str, float]
    epochs: int
    batches: int  # per epoch
    batch_size: int  # images, over all processes
    cosine: bool = False

    @property
    def warmup(self) -> int:
        """Length of the warm-up in iterations."""
        return warmup_iterations(self.hyp, self.batches, self.hyp.get("warmup_floor", WARMUP_FLOOR))

    def at(self, iteration: int) -> Settings:
        """The settings in force in an iteration, counted from the start of training."""
        length = self.warmup
        epoch = factor_epoch(iteration // self.batches, self.batches, length)
        factor = lr_factor(epoch, self.epochs, self.hyp["lrf"], self.cosine)
        nominal_batch = self.hyp.get("nominal_batch", NOMINAL_BATCH)
        return warmup(iteration, length, factor, self.hyp, self.batch_size, nominal_batch)


def apply_settings(optimizer: "Optimizer", settings: Settings) -> None:
    """Writes the settings into the three groups of `build_optimizer`. Adam's betas stay, as in v6.1."""
    for group, rate in zip(optimizer.param_groups, settings.learning_rates):
        group["lr"] = rate
        if "momentum" in group:
            group["momentum"] = settings.momentum


class EarlyStopping:
    """Stops training once fitness has not improved for `patience` epochs; 0 never stops.

    An epoch as fit as the best becomes the best.
    """

    def __init__(self, patience: int = 100):
        self.patience = patience or math.inf
        self.best_fitness = 0.0
        self.best_epoch = 0
        self.possible_stop = False  # the next epoch may be the last

    def __call__(self, epoch: int, fitness: float) -> bool:
        """Takes in the fitness of an epoch; True when training should stop."""
        if fitness >= self.best_fitness:
            self.best_epoch = epoch
            self.best_fitness = float(fitness)
        waited = epoch - self.best_epoch
        self.possible_stop = waited >= self.patience - 1
        return waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Everything but the patience, which a resumed run may change."""
        names = ("best_fitness", "best_epoch", "possible_stop")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best_fitness = state["best_fitness"]
        self.best_epoch = state["best_epoch"]
        self.possible_stop = state["possible_stop"]
