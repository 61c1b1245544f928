"""The schedule of a run: learning rates, momentum and batches per step by iteration, and when to stop.

The schedule is a function of the iteration, so a resumed run needs nothing saved of it.
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
    """Returns the factor of the initial learning rate in an epoch: 1 at epoch 0, lrf at `epochs`, linear or cosine."""
    x = epoch / epochs
    if cosine:
        return (1 - math.cos(math.pi * x)) / 2 * (lrf - 1) + 1
    return (1 - x) * (1 - lrf) + lrf


def warmup_iterations(hyp: Mapping[str, float], batches: int, floor: int = WARMUP_FLOOR) -> int:
    """Returns the length of the warm-up in iterations, for `batches` per epoch.

    v6.1 warms up for at least 1000 iterations, even if warmup_epochs is 0; `floor=0` turns that off.
    """
    return max(round(hyp["warmup_epochs"] * batches), floor)


def factor_epoch(epoch: int, batches: int, warmup_length: int) -> int:
    """Returns the epoch whose `lr_factor` is used: the current one in the warm-up, the one before it afterwards.

    v6.1's scheduler is one epoch late; the warm-up, which sets the rates itself, hides that.
    """
    return epoch if epoch * batches <= warmup_length else epoch - 1


class Settings(NamedTuple):
    """The settings of one iteration."""

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
    """Returns the settings of an iteration, during the warm-up and after it.

    Learning rates rise from 0 (biases fall from warmup_bias_lr), momentum from warmup_momentum and the batches per
    step from 1, each in a straight line to its final value.

    Args:
        iteration: counted from the start of training, over all epochs.
        length: of the warm-up, see `warmup_iterations`.
        factor: the final learning rate over lr0.
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
    """The schedule of a whole run, as in v6.1: `schedule.at(iteration)`.

    Two optional hyper-parameters adapt it to short runs: warmup_floor (1000 iterations in v6.1) and nominal_batch (64).
    """

    hyp: Mapping[str, float]
    epochs: int
    batches: int  # per epoch
    batch_size: int  # images, over all processes
    cosine: bool = False

    @property
    def warmup(self) -> int:
        """The length of the warm-up in iterations."""
        return warmup_iterations(self.hyp, self.batches, self.hyp.get("warmup_floor", WARMUP_FLOOR))

    def at(self, iteration: int) -> Settings:
        """Returns the settings of an iteration, counted from the start of training."""
        length = self.warmup
        epoch = factor_epoch(iteration // self.batches, self.batches, length)
        factor = lr_factor(epoch, self.epochs, self.hyp["lrf"], self.cosine)
        nominal_batch = self.hyp.get("nominal_batch", NOMINAL_BATCH)
        return warmup(iteration, length, factor, self.hyp, self.batch_size, nominal_batch)


def apply_settings(optimizer: "Optimizer", settings: Settings) -> None:
    """Sets learning rates and momentum of the three groups of `build_optimizer`. Adam's betas stay, as in v6.1."""
    for group, rate in zip(optimizer.param_groups, settings.learning_rates):
        group["lr"] = rate
        if "momentum" in group:
            group["momentum"] = settings.momentum


class EarlyStopping:
    """Decides to stop once fitness has not improved for `patience` epochs; with 0 it never stops.

    An epoch with the same fitness as the best one becomes the best one.
    """

    def __init__(self, patience: int = 100):
        self.patience = patience or math.inf
        self.best_fitness = 0.0
        self.best_epoch = 0
        self.possible_stop = False  # the next epoch may be the last

    def __call__(self, epoch: int, fitness: float) -> bool:
        """Records the fitness of an epoch; returns True when training should stop."""
        if fitness >= self.best_fitness:
            self.best_epoch = epoch
            self.best_fitness = float(fitness)
        waited = epoch - self.best_epoch
        self.possible_stop = waited >= self.patience - 1
        return waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Returns everything except the patience, which a resumed run may change."""
        names = ("best_fitness", "best_epoch", "possible_stop")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.best_fitness = state["best_fitness"]
        self.best_epoch = state["best_epoch"]
        self.possible_stop = state["possible_stop"]
