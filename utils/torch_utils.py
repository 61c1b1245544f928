"""Helpers around torch by v6.1's names, for programs written for it: `from utils.torch_utils import select_device`.

Nothing in the project imports this file.
"""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as _prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils import device as _device
from utils.files import ROOT
from utils.general import intersect_dicts
from utils.log import LOGGER
from utils.training import ema as _ema
from utils.training.schedule import EarlyStopping

__all__ = [
    "EarlyStopping",
    "ModelEMA",
    "copy_attr",
    "date_modified",
    "de_parallel",
    "device_count",
    "fuse_conv_and_bn",
    "git_describe",
    "initialize_weights",
    "intersect_dicts",
    "is_parallel",
    "load_classifier",
    "model_info",
    "prune",
    "scale_img",
    "select_device",
    "smart_inference_mode",
    "sparsity",
    "time_sync",
    "time_synchronized",
    "torch_distributed_zero_first",
]


# --- devices and time -------------------------------------------------------------------------------------------------


def select_device(device: Any = "", batch_size: int | None = 0, newline: bool = True) -> torch.device:
    """Returns the device that v6.1's `--device` names, see `utils.device`; newline: accepted for v6.1's sake."""
    return _device.select_device(str(device), batch_size or 0)


def device_count() -> int:
    """Returns the number of CUDA GPUs."""
    return torch.cuda.device_count()


def time_sync() -> float:
    """Returns the time in seconds, after all work of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


time_synchronized = time_sync  # its name in v5.0


def smart_inference_mode(*_: Any) -> Callable:
    """Returns a decorator that runs a function without gradients, as torch.inference_mode; v6.2's name."""
    return torch.inference_mode()


@contextlib.contextmanager
def torch_distributed_zero_first(local_rank: int) -> Iterator[None]:
    """Lets the first process of a machine run the block before the others; local_rank: -1 for a single process."""
    if local_rank not in (-1, 0):
        torch.distributed.barrier(device_ids=[local_rank])
    yield
    if local_rank == 0:
        torch.distributed.barrier(device_ids=[0])


def date_modified(path: str | Path = __file__) -> str:
    """Returns the day on which a file was changed, such as 2022-2-22."""
    changed = datetime.fromtimestamp(Path(path).stat().st_mtime)
    return f"{changed.year}-{changed.month}-{changed.day}"


def git_describe(path: str | Path = ROOT) -> str:
    """Returns what `git describe` says of a folder; "" where it is no repository."""
    command = ["git", "-C", str(path), "describe", "--tags", "--long", "--always"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


# --- models -----------------------------------------------------------------------------------------------------------


class ModelEMA(_ema.ModelEMA):
    """The exponential moving average of a model's weights; `ema` is the average itself."""

    @property
    def ema(self) -> nn.Module:
        """Returns the average."""
        return self.model

    def update_attr(
        self, model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ("process_group", "reducer")
    ) -> None:
        """Copies attributes of the model to the average, see `copy_attr`."""
        copy_attr(self.model, model, include, exclude)


def copy_attr(a: Any, b: Any, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
    """Copies attributes of b to a: all public ones or those of `include`, without those of `exclude`."""
    for name, value in vars(b).items():
        if not (include and name not in include) and not name.startswith("_") and name not in exclude:
            setattr(a, name, value)


def is_parallel(model: nn.Module) -> bool:
    """Returns whether a model is wrapped for several devices."""
    return isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)


def de_parallel(model: nn.Module) -> nn.Module:
    """Returns the model inside such a wrapper."""
    return _ema.unwrap(model)


def fuse_conv_and_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Returns one convolution that does what a convolution and its batch norm do, for inference, without gradients."""
    training = conv.training, bn.training
    fused = fuse_conv_bn_eval(conv.eval(), bn.eval()).requires_grad_(False)
    conv.train(training[0])
    bn.train(training[1])
    return fused


def initialize_weights(model: nn.Module) -> None:
    """Sets v6.1's batch norm settings, eps 1e-3 and momentum 0.03, and lets activations work in place."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps, m.momentum = 1e-3, 0.03
        elif isinstance(m, nn.Hardswish | nn.LeakyReLU | nn.ReLU | nn.ReLU6 | nn.SiLU):
            m.inplace = True


def model_info(model: nn.Module, verbose: bool = False, img_size: Any = 640) -> None:
    """Logs the number of modules, parameters and gradients, and the GFLOPs; with verbose each parameter too."""
    if verbose:
        for i, (name, p) in enumerate(model.named_parameters()):
            LOGGER.info(f"{i:5g} {name:>40} {p.numel():>9} {list(p.shape)} {p.mean():10.3g} {p.std():10.3g}")
    model.info(max(img_size) if isinstance(img_size, list | tuple) else img_size)


def sparsity(model: nn.Module) -> torch.Tensor:
    """Returns the share of a model's parameters that are 0: 0-1."""
    parameters = list(model.parameters())
    return sum((p == 0).sum() for p in parameters) / sum(p.numel() for p in parameters)


def prune(model: nn.Module, amount: float = 0.3) -> None:
    """Sets that share, 0-1, of the weights of each convolution to 0: those nearest to 0."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            _prune.l1_unstructured(m, name="weight", amount=amount)
            _prune.remove(m, "weight")
    LOGGER.info(f"pruned: {sparsity(model):.3g} of all parameters are 0")


def scale_img(img: torch.Tensor, ratio: float = 1.0, same_shape: bool = False, gs: int = 32) -> torch.Tensor:
    """Resizes images (B, C, H, W) by ratio and pads them with grey, to multiples of gs or to their old shape."""
    from models.yolo import scale_image

    return scale_image(img, ratio, int(gs), same_shape)


def load_classifier(name: str = "resnet101", n: int = 2) -> nn.Module:
    """Returns a classifier of torchvision for n classes, for `apply_classifier`, once you have loaded your weights.

    Unlike v6.1's it starts without the weights of ImageNet, which would be downloaded.
    """
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    model.fc = nn.Linear(model.fc.in_features, n)
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    return model
