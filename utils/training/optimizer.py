"""The optimizers of v6.1 and their parameter groups."""

from typing import NamedTuple

import torch
from torch import nn

ADAMW_DECAY = 0.01  # torch's default, which v6.1 keeps for the groups that have no weight decay otherwise


class ParameterGroups(NamedTuple):
    """The parameters by full name. The order of the groups is part of v6.1's optimizer state."""

    norms: dict[str, nn.Parameter]  # weights of 2-d batch norm, and parameters of other names: no decay
    weights: dict[str, nn.Parameter]  # all other weights, also those of other norm layers: decay
    biases: dict[str, nn.Parameter]  # no decay; their own warm-up


def parameter_groups(model: nn.Module, weight_and_bias_only: bool = False) -> ParameterGroups:
    """Puts every parameter of the model into exactly one group, also frozen ones, so that the state keeps its layout.

    v6.1 uses the names `weight` and `bias` only, and so never trains `in_proj_weight` and `in_proj_bias` of attention
    or the parameters of Sum and ACON. Here a name that contains "weight" or "bias" decides the group; parameters of
    other names are in the first group. With `weight_and_bias_only` the groups are v6.1's.
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
    """Returns an optimizer with three groups: norm weights, weights, biases. A group may be empty.

    Args:
        name: "SGD" (Nesterov), "Adam" or "AdamW".
        momentum: of SGD; the first beta of Adam and AdamW.
        weight_decay: of the weights, already scaled to the batch (`scale_weight_decay`).
        other_decay: of norm weights and biases. None is v6.1's value: 0, but 0.01 with AdamW.
        weight_and_bias_only: leave out parameters of other names, as v6.1 does.

    Raises ValueError for another name.
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
