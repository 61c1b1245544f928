"""What went wrong where: the first place in a network at which numbers stop being finite."""

import torch
from torch import nn


def first_not_finite(model: nn.Module, images: torch.Tensor, dtype: torch.dtype | None = None) -> str:
    """Where infinities or NaN come into a model: its weights, or the first layer that gives some for these images.

    Runs the model once, in the mode it is in, so its batch-norm statistics may move.

    Args:
        images: (B, 3, H, W).
        dtype: of autocast, or None.

    Returns: a sentence for the message of an error.
    """
    # parameters alone: what a bad layer gave has already reached the statistics of the batch norm behind it
    if bad := _first(dict(model.named_parameters())):
        return f"{bad} is not finite any more"
    if not images.isfinite().all():
        return "the images are not finite"
    found = []

    def look(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            tensors = [output] if isinstance(output, torch.Tensor) else output
            if not found and not all(t.isfinite().all() for t in tensors if isinstance(t, torch.Tensor)):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    # leaves come before the modules that hold them, whose hooks run last
    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"the first layer whose output is not finite is {found[0]}"
    return "all layers give finite outputs, so it is the loss itself: look at the labels and at the weights in hyp"


def weights_not_finite(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer that holds an infinity or NaN."""
    return _first(model.state_dict())


def _first(tensors: dict[str, torch.Tensor]) -> str | None:
    """Name of the first tensor that is not finite."""
    tensors = {name: t for name, t in tensors.items() if t.is_floating_point()}
    if not tensors or torch.stack([t.isfinite().all() for t in tensors.values()]).all():
        return None
    return next(name for name, t in tensors.items() if not t.isfinite().all())
