"""Shows what attention does in a detector: its gates, the covariance under SOCA, and Grad-CAM of detections.

Nothing here changes a model: everything is done by forward hooks, which are removed when a function returns.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from models.gates import ChannelGate
from models.registry import has, lacks
from models.second_order import central, covariance, left_by_rounding, newton_schulz_scalar
from utils.boxes import xywh_to_xyxy
from utils.nms import non_max_suppression

REPLACEMENTS = ("mean", "one")  # what `without_gates` can put in place of a gate


# --- gates ------------------------------------------------------------------------------------------------------------


def gated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the blocks of a models.yolo.Model that have a `gate(x)` (models/registry.py), by name.

    A block that is a layer is `24-SOCA`; inside a layer, as in LSRAG and NLRG, it is `9.groups.0.soca-SOCA`.
    """
    return {
        f"{'.'.join(filter(None, (str(layer.i), path)))}-{type(block).__name__}": block
        for layer in model.model
        for path, block in layer.named_modules()
        if has(block, "gate")
    }


def without_gate(model: nn.Module) -> list[str]:
    """Returns the layers that are blocks of attention without a `gate(x)`, also inside, by name."""
    gated = {int(name.partition("-")[0].partition(".")[0]) for name in gated_blocks(model)}
    return [
        f"{layer.i}-{type(layer).__name__}" for layer in model.model if lacks(layer, "gate") and layer.i not in gated
    ]


def fitted_gate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns the weight (N, C) of each channel with which x (N, C, H, W) is nearest to y, by least squares.

    For a gate per channel it is that gate. For a gate that differs between positions it is the mean, weighted by the
    square of x. For a channel that is zero everywhere it is 1.
    """
    x, y = (m if m.dtype == torch.float64 else m.float() for m in (x, y))
    energy = x.square().sum((2, 3))
    return torch.where(energy > 0, (x * y).sum((2, 3)) / energy, torch.ones_like(energy))


def channel_gate(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Returns the weight (N, C) of each channel that a block with a `gate(x)` gives; of one that differs between
    positions as `fitted_gate`.
    """
    gate = block.gate(x)
    per_channel = gate.shape[2:] == (1, 1)
    return gate.flatten(1).expand(x.shape[:2]) if per_channel else fitted_gate(x, gate.type_as(x) * x)


Observer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | None]


@contextmanager
def observed(block: nn.Module, observer: Observer) -> Iterator[None]:
    """Inside, each pass through the block calls observer(x, gate (N, C), y), whose result, if not None, replaces y."""

    def after(_, inputs, y):
        return observer(inputs[0], channel_gate(block, inputs[0]), y)

    hook = block.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


class GateRecorder:
    """Keeps the gates of every block of a model for the forward passes that run inside `with`."""

    def __init__(self, model: nn.Module):
        self._blocks, self._kept, self._hooks = gated_blocks(model), {}, ExitStack()

    def __enter__(self) -> "GateRecorder":
        for name, block in self._blocks.items():
            kept = self._kept[name] = []
            self._hooks.enter_context(observed(block, partial(self._keep, kept)))
        return self

    def __exit__(self, *_) -> None:
        self._hooks.close()

    @staticmethod
    def _keep(kept: list[np.ndarray], x, gate: torch.Tensor, y) -> None:
        kept.append(gate.detach().float().cpu().numpy())

    @property
    def gates(self) -> dict[str, np.ndarray]:
        """Returns the gates so far, by the names of `gated_blocks`: float32 arrays (images, C)."""
        return {name: np.concatenate(parts) for name, parts in self._kept.items() if parts}


@contextmanager
def without_gates(model: nn.Module, how: str = "mean") -> Iterator[None]:
    """Inside, every gate of the model is replaced by a constant.

    how: "mean" for the mean of the gate over the channels of each image, so that the size of the map stays what later
        layers were trained with; "one" for 1, as if the block were not there.
    """
    if how not in REPLACEMENTS:
        raise ValueError(f"a gate can be replaced by {' or '.join(REPLACEMENTS)}, got {how!r}")

    def scale(x, gate, y):
        factor = gate.mean(1) if how == "mean" else torch.ones_like(gate[:, 0])
        return factor[:, None, None, None].type_as(x) * x

    with ExitStack() as hooks:
        for block in gated_blocks(model).values():
            hooks.enter_context(observed(block, scale))
        yield


@contextmanager
def fixed_gates(model: nn.Module, gates: dict[str, np.ndarray]) -> Iterator[None]:
    """Inside, the gates of the named blocks (see `gated_blocks`) are those given: of each block an array (C,) for every
    image, or (n, C) for n images in the order in which they pass.

    Raises ValueError where more images pass than have a gate.
    """
    with ExitStack() as hooks:
        for name, block in gated_blocks(model).items():
            hooks.callback(block.register_forward_hook(_Fixed(gates[name])).remove)
        yield


class _Fixed:
    """A forward hook that gives x times a gate that is known beforehand."""

    def __init__(self, gates: np.ndarray):
        self.gates, self.passed = torch.from_numpy(gates), 0

    def __call__(self, _, inputs: tuple[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        x, gates = inputs[0], self.gates[None]
        if self.gates.ndim == 2:
            gates = self.gates[self.passed : self.passed + len(x)]
            self.passed += len(x)
            if len(gates) < len(x):
                raise ValueError(f"there are gates for {len(self.gates)} images, but more images pass")
        return gates[:, :, None, None].to(x) * x


# --- one image --------------------------------------------------------------------------------------------------------


class BlockView(NamedTuple):
    """The input and the gate of one block for one image."""

    maps: np.ndarray  # (C, h, w) float32, the input
    gate: np.ndarray  # (C,) float32


@torch.no_grad()
def view_blocks(model: nn.Module, image: torch.Tensor) -> dict[str, BlockView]:
    """Returns the view of each block for an image (1, 3, H, W), 0-1, by the names of `gated_blocks`."""
    views = {}
    with ExitStack() as hooks:
        for name, block in gated_blocks(model).items():

            def keep(x, gate, y, name=name):
                views[name] = BlockView(x[0].float().cpu().numpy(), gate[0].float().cpu().numpy())

            hooks.enter_context(observed(block, keep))
        model(image)
    return views


class TracedDetections(NamedTuple):
    """The detections in an image, each with the row of the model's output that it comes from."""

    boxes: torch.Tensor  # (n, 6): x1, y1, x2, y2 in pixels of the image, confidence, class
    rows: torch.Tensor  # (n,) of the decoded output
    strides: np.ndarray  # (n,) of the map that predicted it, in pixels


@torch.no_grad()
def trace_detections(model: nn.Module, image: torch.Tensor, **suppression) -> TracedDetections:
    """Returns the detections in an image (1, 3, H, W), 0-1, the most confident first.

    suppression: options of `non_max_suppression`.
    """
    decoded, raw = model(image)
    boxes = non_max_suppression(decoded, **suppression)[0]
    corners = xywh_to_xyxy(decoded[0, :, :4].float())
    rows = torch.cdist(boxes[:, :4], corners, p=1).argmin(1)  # suppression does not return them
    last = np.cumsum([m[0, ..., 0].numel() for m in raw])  # rows are ordered by level
    strides = model.model[-1].stride.cpu().numpy()[np.searchsorted(last, rows.cpu().numpy(), side="right")]
    return TracedDetections(boxes, rows, strides)


class Activation(NamedTuple):
    """The scores of detections, and the Grad-CAM maps of each."""

    scores: np.ndarray  # (n,) objectness times class score
    maps: list[
        dict[str, np.ndarray | None]
    ]  # per detection, by block: (h, w), at least 0; None where the block has no influence


def class_activation(model: nn.Module, image: torch.Tensor, rows: Sequence[int], classes: Sequence[int]) -> Activation:
    """Returns where in the output of each block the score of a detection comes from, by Grad-CAM.

    Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2, at the output A (C, h, w) of each gated block, with y the
    objectness times the class score: ReLU(sum_c alpha_c A_c), alpha_c the mean over positions of dy / dA_c. Where no
    path leads from the block to the map that predicted a detection, there is no gradient.

    Args:
        image: (1, 3, H, W), 0-1.
        rows, classes: the row in the decoded output and the class of each detection, as in `TracedDetections`.
    """
    outputs: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks, torch.enable_grad():
        for name, block in gated_blocks(model).items():

            def keep(_, inputs, y, name=name):
                outputs[name] = y if y.requires_grad else y.detach().requires_grad_()
                return outputs[name]

            hooks.callback(block.register_forward_hook(keep).remove)
        decoded = model(image)[0][0]
        scores = decoded[list(rows), 4] * decoded[list(rows), [5 + int(c) for c in classes]]
        maps = []
        for score in scores:
            gradients = torch.autograd.grad(score, list(outputs.values()), retain_graph=True, allow_unused=True)
            maps.append({name: _grad_cam(y, g) for (name, y), g in zip(outputs.items(), gradients)})
    return Activation(scores.detach().cpu().numpy(), maps)


def _grad_cam(activation: torch.Tensor, gradient: torch.Tensor | None) -> np.ndarray | None:
    """Returns the map (h, w) for both (1, C, h, w); None where the gradient is zero everywhere."""
    if gradient is None or not gradient.any():
        return None
    weights = gradient[0].mean((1, 2))
    return torch.einsum("c,chw->hw", weights, activation[0]).relu().detach().float().cpu().numpy()


# --- the covariance under SOCA ----------------------------------------------------------------------------------------


class Spectrum(NamedTuple):
    """The covariance of a map's channels, and its root by five Newton-Schulz steps against the true root; float64."""

    eigenvalues: np.ndarray  # (C,) of A = S / trace(S), descending, at least 0, their sum 1
    five: np.ndarray  # (C,) f of each eigenvalue, the result of five steps
    root: np.ndarray  # (C,) the square root of each eigenvalue
    s_five: np.ndarray  # (C,) SOCA's statistic, the row means of sqrt(trace) f(A)
    s_root: np.ndarray  # (C,) the same of the true root

    @property
    def effective_rank(self) -> float:
        """Returns exp of the entropy of the eigenvalues: 1 where all channels vary as one, C where none correlate.

        Roy and Vetterli, The effective rank, EUSIPCO 2007, here of the covariance.
        """
        positive = self.eigenvalues[self.eigenvalues > 0]
        return float(np.exp(-(positive * np.log(positive)).sum()))

    @property
    def matrix_distance(self) -> float:
        """Returns |f(A) - A^(1/2)| / |A^(1/2)|, Frobenius."""
        return float(np.linalg.norm(self.five - self.root) / np.linalg.norm(self.root))

    @property
    def statistic_distance(self) -> float:
        """Returns |s of five steps - s of the root| / |s of the root|."""
        return float(np.linalg.norm(self.s_five - self.s_root) / np.linalg.norm(self.s_root))


def spectrum(maps: np.ndarray) -> Spectrum | None:
    """Returns the spectrum of an input of SOCA (C, h, w); None where the map does not vary.

    Where A has a rank below C, the last eigenvalues are 0.
    """
    x = central(torch.from_numpy(np.asarray(maps, np.float64)))[None]
    S = covariance(x)[0].numpy()
    trace = S.trace()
    largest_mean = float(x.mean((2, 3)).abs().max())
    if not trace > left_by_rounding(len(S), largest_mean, float(np.finfo(np.float32).eps)):
        return None
    values, vectors = np.linalg.eigh(S / trace)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    five, root = newton_schulz_scalar(values), np.sqrt(values)
    means = vectors.mean(0)  # v in the basis of eigenvectors
    s_five, s_root = (np.sqrt(trace) * vectors @ (f * means) for f in (five, root))
    return Spectrum(values, five, root, s_five, s_root)


@torch.no_grad()
def gate_of_statistic(block: ChannelGate, s: np.ndarray) -> np.ndarray:
    """Returns the gate (C,) of the block for a statistic (C,), of SOCA the row means; for zeros it is the part that no
    image influences.
    """
    weight = block.conv_du[0].weight
    gate = block.conv_du(block.in_unit(torch.from_numpy(s).to(weight.device, weight.dtype)[None])[:, :, None, None])
    return gate.flatten().float().cpu().numpy()
