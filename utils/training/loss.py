"""The detection loss of boxes, objectness and classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from utils.boxes import paired_iou
from utils.training.targets import LevelTargets, build_targets

# --- binary criteria --------------------------------------------------------------------------------------------------


class BCE(nn.Module):
    """Binary cross entropy on logits.

    pos_weight: weight of the part of the loss that belongs to target 1.

    Shape: logits and targets (*), targets 0-1 and possibly soft -> (), the mean.
    """

    def __init__(self, pos_weight: float = 1.0):
        super().__init__()
        self.pos_weight = pos_weight

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the loss of each element (*)."""
        pos_weight = None if self.pos_weight == 1 else logits.new_tensor([self.pos_weight])
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight, reduction="none")

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss ()."""
        return self.elements(logits, targets).mean()


class FocalLoss(BCE):
    """BCE times alpha_t (1 - p_t)^gamma, which lowers the loss of what is already right (Lin et al., ICCV 2017).

    p_t = y p + (1 - y)(1 - p) and alpha_t = y alpha + (1 - y)(1 - alpha), for soft targets y too.
    """

    def __init__(self, gamma: float = 1.5, alpha: float = 0.25, pos_weight: float = 1.0):
        super().__init__(pos_weight)
        self.gamma = gamma
        self.alpha = alpha

    def elements(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the loss of each element (*)."""
        alpha_t = targets * self.alpha + (1 - targets) * (1 - self.alpha)
        # 1 - p_t, from two sigmoids so that it is exact near 0. There, for gamma < 1, the power has an infinite slope,
        # and infinity times zero is not a number
        distance = targets * torch.sigmoid(-logits) + (1 - targets) * torch.sigmoid(logits)
        distance = distance.clamp(min=torch.finfo(distance.dtype).tiny)
        return super().elements(logits, targets) * alpha_t * distance**self.gamma


def smooth_labels(eps: float) -> tuple[float, float]:
    """Returns the targets of the true class and of the others under label smoothing with eps, 0-1."""
    return 1 - eps / 2, eps / 2


# --- the loss ---------------------------------------------------------------------------------------------------------


class Head(Protocol):
    """The attributes of the detection layer that the loss uses."""

    nl: int  # levels
    na: int  # anchors per level
    nc: int  # classes
    anchors: torch.Tensor  # (nl, na, 2) in cells of their level
    stride: torch.Tensor  # (nl,) pixels per cell


class ComputeLoss:
    """Computes the box, objectness and class loss of raw predictions.

    Args:
        detect: the detection layer, already on its device.
        hyp: weights box, obj, cls (scaled to this model, see `scale_hyp`), positive weights cls_pw, obj_pw, the
            anchor ratio anchor_t, fl_gamma (above 0: focal loss) and, optionally, label_smoothing.
        autobalance: adapt the weights of the levels in the objectness loss to the loss of each.
        gr: how much the objectness target of a positive follows its IoU: 1 fully; with 0 every target is 1.
        sort_obj_iou: among positives that share a cell the highest IoU counts, not the last one.
        average: returns the mean of a tensor over the processes that train together (`utils.dist.Group.average`). Box
            and class loss are then means over the positives of all processes, so that the gradients, averaged and
            multiplied by the number of processes, are those of one process with the whole batch.
    """

    def __init__(
        self,
        detect: Head,
        hyp: Mapping[str, float],
        autobalance: bool = False,
        gr: float = 1.0,
        sort_obj_iou: bool = False,
        average: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.anchors = detect.anchors.detach().clone()
        if self.anchors.dtype in (torch.float16, torch.bfloat16):
            self.anchors = self.anchors.float()
        self.nc = detect.nc
        self.weights = {part: hyp[part] for part in ("box", "obj", "cls")}
        self.anchor_t = hyp["anchor_t"]
        self.positive, self.negative = smooth_labels(hyp.get("label_smoothing", 0.0))
        self.gr = gr
        self.sort_obj_iou = sort_obj_iou
        self.average = average

        def criterion(pos_weight: float) -> BCE:
            return FocalLoss(hyp["fl_gamma"], pos_weight=pos_weight) if hyp["fl_gamma"] > 0 else BCE(pos_weight)

        self.class_criterion = criterion(hyp["cls_pw"])
        self.object_criterion = criterion(hyp["obj_pw"])

        # Weights of the levels in the objectness loss: the finer the level, the larger
        self.balance = [4.0, 1.0, 0.4] if detect.nl == 3 else [4.0, 1.0, 0.25, 0.06, 0.02][: detect.nl]
        self.autobalance = autobalance
        if autobalance:
            strides = [int(s) for s in detect.stride]
            if 16 not in strides:
                raise ValueError(f"autobalance needs a level of stride 16, but the model has strides {strides}")
            self.reference = strides.index(16)

    def __call__(self, raw: Sequence[torch.Tensor], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the loss of a batch.

        Args:
            raw: per level (B, A, rows, columns, 5 + nc) logits; any floating type.
            targets: (T, 6) image index, class, x, y, w, h; 0-1 of the image. T may be 0.

        Returns:
            total (1,): weighted sum of the parts times B, to differentiate.
            items (3,): the weighted parts box, obj, cls; not times B, detached.
        """
        if len(raw) != len(self.anchors):
            raise ValueError(f"the loss needs predictions of {len(self.anchors)} levels, got {len(raw)}")
        targets = targets.to(raw[0].device)
        grids = [(level.shape[2], level.shape[3]) for level in raw]
        levels = build_targets(targets, self.anchors, grids, self.anchor_t)

        box, obj, cls = zip(*(self._level_loss(*level) for level in zip(raw, levels)))
        if self.average:
            factors = self._positives_over_mean(levels, raw[0].device)
            box, cls = ([factor * loss for factor, loss in zip(factors, part)] for part in (box, cls))
        weighted = torch.stack(
            [
                self.weights["box"] * sum(box),
                self.weights["obj"] * sum(weight * loss for weight, loss in zip(self.balance, obj)),
                self.weights["cls"] * sum(cls),
            ]
        )
        if self.autobalance:
            self._rebalance(torch.stack(obj).tolist())
        return weighted.sum(0, keepdim=True) * len(raw[0]), weighted.detach()

    def _level_loss(
        self, predictions: torch.Tensor, positives: LevelTargets
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the unweighted box, objectness and class loss of one level: scalars, in float32 at least."""
        dtype = torch.promote_types(predictions.dtype, torch.float32)
        object_logits = predictions[..., 4].to(dtype)  # (B, A, rows, columns)
        if not len(positives.image):
            zero = object_logits.new_zeros(())
            return zero, self.object_criterion(object_logits, torch.zeros_like(object_logits)), zero

        image, anchor, row, column, target_box, anchor_wh, label = positives
        chosen = predictions[image, anchor, row, column].to(dtype)  # (P, 5 + nc)
        centre = 2 * chosen[:, :2].sigmoid() - 0.5
        wh = (2 * chosen[:, 2:4].sigmoid()) ** 2 * anchor_wh
        iou = paired_iou(torch.cat([centre, wh], 1), target_box, "ciou")  # (P,)
        scores = (1 - self.gr) + self.gr * iou.detach().clamp(min=0).to(dtype)
        object_targets = self._object_targets(object_logits.shape, positives, scores)

        cls = object_logits.new_zeros(())
        if self.nc > 1:
            class_targets = torch.full_like(chosen[:, 5:], self.negative)
            class_targets[torch.arange(len(label), device=label.device), label] = self.positive
            cls = self.class_criterion(chosen[:, 5:], class_targets)
        return (1 - iou).mean(), self.object_criterion(object_logits, object_targets), cls

    def _positives_over_mean(self, levels: Sequence[LevelTargets], device: torch.device) -> torch.Tensor:
        """Returns, per level, the number of positives of this process over the mean of all processes."""
        here = torch.tensor([len(level.image) for level in levels], dtype=torch.float32, device=device)
        return here / self.average(here).clamp(min=torch.finfo(here.dtype).tiny)

    def _object_targets(self, shape: torch.Size, positives: LevelTargets, scores: torch.Tensor) -> torch.Tensor:
        """Returns a map (B, A, rows, columns) with the scores (P,) of the positives in their cells, 0 elsewhere.

        Where several share a cell the last one counts. Indexed assignment does not fix that order on an accelerator;
        the maximum of their positions does.
        """
        _, A, rows, columns = shape
        cell = ((positives.image * A + positives.anchor) * rows + positives.row) * columns + positives.column
        if self.sort_obj_iou:
            order = scores.argsort()
            cell, scores = cell[order], scores[order]
        position = torch.arange(1, len(cell) + 1, device=cell.device)  # 0: cells without a positive
        last = cell.new_zeros(shape.numel()).scatter_reduce_(0, cell, position, "amax")
        return torch.cat([scores.new_zeros(1), scores])[last].view(shape)

    def _rebalance(self, losses: list[float]) -> None:
        """Moves the weights of the levels slowly towards 1 / loss, then scales them to 1 for the level of stride 16."""
        weights = [0.9999 * weight + 0.0001 / loss for weight, loss in zip(self.balance, losses)]
        self.balance = [weight / weights[self.reference] for weight in weights]
