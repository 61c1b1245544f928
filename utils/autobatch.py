"""The search for a batch size by v6.1's names, for programs written for it.

Nothing in the project imports this file.
"""

from typing import Any

import torch
from torch import nn

from utils.training.autobatch import auto_batch_size

__all__ = ["autobatch", "check_train_batch_size"]


def check_train_batch_size(model: nn.Module, imgsz: int = 640, amp: Any = True) -> int:
    """Returns the largest batch size whose training step fits on the model's GPU; 16 on a CPU."""
    return auto_batch_size(model, imgsz, torch.float16 if amp else None)


def autobatch(model: nn.Module, imgsz: int = 640, fraction: float = 0.9, batch_size: int = 16) -> int:
    """Returns the same for that fraction of the free memory; batch_size: accepted for v6.1's sake."""
    return auto_batch_size(model, imgsz, usable=fraction)
