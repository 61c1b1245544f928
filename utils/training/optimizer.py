"""Parameter groups and the optimizers that v6.1 offers."""

from typing import NamedTuple

import torch
from torch import nn

ADAMW_DECAY = 0.01  # torch's own default, which v6.1 leaves on the groups it gives no decay


class ParameterGroups(NamedTuple):
    """Parameters by full name. The order of the groups is part of v6.1's optimizer state."""

    norms: dict[str, nn.Parameter]  # weights of 2-d batch norm, and bare parameters: no decay
    weights: dict[str, nn.Parameter]  # every other weight, those of other norm layers too: decay
    biases: dict[str, nn.Parameter]  # no decay; a warm-up of their own


def parameter_groups(model: nn.Module, weight_and_bias_only: bool = False) -> ParameterGroups:
    """Every parameter of the model in exactly one group, frozen ones too, so that freezing leaves the state's layout.

    v6.1 knows the names `weight` and `bias` alone, and so never trains `in_proj_weight` and `in_proj_bias` of attention
    or the bare tensors of Sum and ACON. Here a name that contains "weight" or "bias" goes where that word says, any
    other one to the first group. `weight_and_bias_only` gives v6.1's groups.
    """
    groups = ParameterGroups({}, {}, {})
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if weight_and_bias_only and leaf not in ("weight", "bias"):
            continue
        # SyncBatchNorm is what BatchNorm2d becomes in training over several processes
        batch_norm = isinstance(model.get_submodule(owner), nn.BatchNorm2d | nn.SyncBatchNorm)
        if "bias" in leaf:
            group = groups.biases
        elif "weight" in leaf and not batch_norm:
            group = groups.weights
        else:
            group = groups.norms
        group[name] = parameter

    if not weight_and_bias_only:
        assert sum(map(len, groups)) == len(list(model.parameters())), "a parameter is in no group"
    return groups


def build_optimizer(
    model: nn.Module,
    name: str = "SGD",
    lr: float = 0.01,
    momentum: float = 0.937,
    weight_decay: float = 5e-4,
    other_decay: float | None = None,
    weight_and_bias_only: bool = False,
) -> torch.optim.Optimizer:
    """An optimizer with three groups: norm weights, weights, biases. A group may be empty.

    Args:
        name: "SGD" (Nesterov), "Adam" or "AdamW".
        momentum: of SGD; the first beta of the others.
        weight_decay: of the weights, already scaled to the batch (`scale_weight_decay`).
        other_decay: of norm weights and biases. None is v6.1: 0, but 0.01 under AdamW; give 0 for none there too.
        weight_and_bias_only: leave out, as v6.1 does, parameters of other names.
    """
    if other_decay is None:
        other_decay = ADAMW_DECAY if name == "AdamW" else 0.0
    decays = (other_decay, weight_decay, other_decay)
    groups = [
        {"params": list(group.values()), "initial_lr": lr, "weight_decay": decay}
        for group, decay in zip(parameter_groups(model, weight_and_bias_only), decays)
    ]
    if name == "SGD":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    if name == "Adam":
        return torch.optim.Adam(groups, lr=lr, betas=(momentum, 0.999))
    if name == "AdamW":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    raise ValueError(f"optimizer must be SGD, Adam or AdamW, got {name!r}")
