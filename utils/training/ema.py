"""The moving average of the weights, which is validated and saved."""

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

TAU = 2000.0  # optimizer steps over which the decay rises

# Set on the model in training, and saved with its average
ATTRIBUTES = ("yaml", "nc", "hyp", "names", "stride", "class_weights")


def ema_decay(updates: int, decay: float = 0.9999, tau: float = TAU) -> float:
    """Returns the weight of the old average in update number `updates` (from 1): small at first, `decay` in the end."""
    return decay * (1 - math.exp(-updates / tau))


def ema_tau(hyp: Mapping[str, float | str], steps: int) -> float:
    """Returns tau for a run of that many optimizer steps: v6.1's 2000, or the recipe's `ema_share` of them if less.

    At the end of n steps the average covers about the last exp(n / tau) of them: 55 with a share of 0.25, and hardly
    any where tau is longer than the run.
    """
    return min(TAU, hyp["ema_share"] * max(steps, 1)) if "ema_share" in hyp else TAU


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside the wrappers of torch.compile and of training on several devices."""
    model = getattr(model, "_orig_mod", model)
    parallel = nn.DataParallel | nn.parallel.DistributedDataParallel
    return model.module if isinstance(model, parallel) else model


class ModelEMA:
    """The exponential moving average of all floating-point tensors of a model: weights and batch-norm statistics.

    Integer buffers keep the value they had at the start. The average is never kept in half precision, where the small
    steps towards the model would round to nothing.

    Attributes:
        model: the average, in eval mode, without gradients.
        updates: how many times it was updated.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = TAU, updates: int = 0):
        self.model = deepcopy(unwrap(model)).eval().requires_grad_(False)
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in self.model.parameters()):
            self.model.float()
        self.decay = decay
        self.tau = tau
        self.updates = updates

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Updates the average: d * average + (1 - d) * model, with d of `ema_decay`."""
        self.updates += 1
        d = ema_decay(self.updates, self.decay, self.tau)
        current = unwrap(model).state_dict()
        pairs = [(v, current[k].to(v)) for k, v in self.model.state_dict().items() if v.is_floating_point()]
        averages, values = map(list, zip(*pairs))
        # rounded after each product, not fused: the last bit is then v6.1's
        torch._foreach_mul_(averages, d)
        torch._foreach_add_(averages, torch._foreach_mul(values, 1 - d))

    def copy_attributes(self, model: nn.Module, names: Iterable[str] = ATTRIBUTES) -> None:
        """Copies these attributes of the model, where it has them, to the average."""
        model = unwrap(model)
        for name in names:
            if hasattr(model, name):
                setattr(self.model, name, getattr(model, name))

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
