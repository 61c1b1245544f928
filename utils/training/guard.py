"""Finds the first place in a network where numbers stop being finite."""

import torch
from torch import nn


def first_not_finite(model: nn.Module, images: torch.Tensor, dtype: torch.dtype | None = None) -> str:
    """Returns where infinities or NaN come from: the weights, or the first layer that outputs some for these images.

    Runs the model once, in the mode it is in, so its batch-norm statistics may change.

    Args:
        images: (B, 3, H, W).
        dtype: of autocast, or None.

    Returns a sentence for the message of an error.
    """
    # only parameters: the output of a bad layer has already reached the statistics of the batch norm that follows
    if bad := _first(dict(model.named_parameters())):
        return f"{bad} is not finite"
    if not images.isfinite().all():
        return "the images are not finite"
    bad_layers = []

    def watch(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            tensors = [output] if isinstance(output, torch.Tensor) else output
            if not bad_layers and not all(t.isfinite().all() for t in tensors if isinstance(t, torch.Tensor)):
                bad_layers.append(f"{name} ({type(module).__name__})")

        return hook

    # hooks of inner modules run before those of the modules that contain them
    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if bad_layers:
        return f"the first layer whose output is not finite is {bad_layers[0]}"
    return "the outputs of all layers are finite, so it is the loss: check the labels, and box, obj and cls of --hyp"


def weights_not_finite(model: nn.Module) -> str | None:
    """Returns the name of the first parameter or buffer that holds an infinity or NaN, or None."""
    return _first(model.state_dict())


def _first(tensors: dict[str, torch.Tensor]) -> str | None:
    """Returns the name of the first tensor that is not finite, or None."""
    tensors = {name: t for name, t in tensors.items() if t.is_floating_point()}
    if not tensors or torch.stack([t.isfinite().all() for t in tensors.values()]).all():
        return None
    return next(name for name, t in tensors.items() if not t.isfinite().all())
