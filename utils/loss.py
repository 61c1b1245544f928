"""The loss by v6.1's name, for programs written for it: `from utils.loss import ComputeLoss`.

Nothing in the project imports this file.
"""

from torch import nn

from utils.training import loss as _loss
from utils.training.ema import unwrap
from utils.training.loss import FocalLoss

__all__ = ["ComputeLoss", "FocalLoss", "smooth_BCE"]

smooth_BCE = _loss.smooth_labels


class ComputeLoss(_loss.ComputeLoss):
    """Computes the loss of a model, whose hyper-parameters are in `model.hyp` and whose head is its last layer."""

    def __init__(self, model: nn.Module, autobalance: bool = False):
        model = unwrap(model)
        if not isinstance(getattr(model, "hyp", None), dict):
            raise ValueError("ComputeLoss reads the hyper-parameters in model.hyp: set it to the dict of a hyp file")
        super().__init__(model.model[-1], model.hyp, autobalance)
