"""What attention did with a picture: its gates, the covariance under SOCA, and what each detection drew from it.

Nothing here changes a model: all of it is forward hooks that are gone when a function returns.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from models.attention import CBAM, ECA, GCT, CoordAttention, SimAM
from models.common import SE, SOCA
from models.second_order import central, covariance, left_by_rounding, newton_schulz_scalar
from utils.boxes import xywh_to_xyxy
from utils.nms import non_max_suppression

GATED = (SOCA, SE, ECA, CBAM, CoordAttention, SimAM, GCT)  # out = gate * x
WITHOUT = ("mean", "one")  # what may stand for a gate


# --- gates ------------------------------------------------------------------------------------------------------------


def gated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a models.yolo.Model that multiply their map by a gate, by name.

    A layer of its own is `24-SOCA`; inside a layer, as in LSRAG and NLRG, it is `9.groups.0.soca-SOCA`.
    """
    return {
        f"{'.'.join(filter(None, (str(layer.i), path)))}-{type(block).__name__}": block
        for layer in model.model
        for path, block in layer.named_modules()
        if isinstance(block, GATED)
    }


def fitted_gate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The weight (N, C) of each channel by which x (N, C, H, W) comes nearest to y, by least squares.

    For a gate per channel it is that gate; for one that differs from place to place its mean, each position counting
    by its square. A channel that is zero everywhere counts as let through, 1.
    """
    x, y = (m if m.dtype == torch.float64 else m.float() for m in (x, y))
    energy = x.square().sum((2, 3))
    return torch.where(energy > 0, (x * y).sum((2, 3)) / energy, torch.ones_like(energy))


See = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | None]


@contextmanager
def watched(block: nn.Module, see: See) -> Iterator[None]:
    """Inside, each pass through the block calls see(x, gate (N, C), y); what that returns, if anything, replaces y."""
    gates: list[torch.Tensor] = []

    def after(_, inputs, y):
        return see(inputs[0], gates.pop() if gates else fitted_gate(inputs[0], y), y)

    with ExitStack() as hooks:
        if isinstance(network := getattr(block, "conv_du", None), nn.Module):  # whose output is the gate itself
            keep = network.register_forward_hook(lambda _, x, gate: gates.append(gate.flatten(1)))
            hooks.callback(keep.remove)
        hooks.callback(block.register_forward_hook(after).remove)
        yield


class GateRecorder:
    """Keeps the gates of every block of a model through the passes that run inside `with`.

    Attribute gates: by the names of `gated_blocks`, float32 arrays (images so far, C), on the CPU.
    """

    def __init__(self, model: nn.Module):
        self._blocks, self._kept, self._hooks = gated_blocks(model), {}, ExitStack()

    def __enter__(self) -> "GateRecorder":
        for name, block in self._blocks.items():
            kept = self._kept[name] = []
            self._hooks.enter_context(watched(block, partial(self._keep, kept)))
        return self

    def __exit__(self, *_) -> None:
        self._hooks.close()

    @staticmethod
    def _keep(kept: list[np.ndarray], x, gate: torch.Tensor, y) -> None:
        kept.append(gate.detach().float().cpu().numpy())

    @property
    def gates(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(parts) for name, parts in self._kept.items() if parts}


@contextmanager
def without_gates(model: nn.Module, how: str = "mean") -> Iterator[None]:
    """Inside, the model's gates choose no channel and no place.

    how: "mean" puts in place of each gate its mean over the channels, of each picture, so that the map stays as loud as
        the layers behind it know it and only the choice is gone; "one" takes the blocks out, as if they were not there.
    """
    if how not in WITHOUT:
        raise ValueError(f"a gate is replaced by {' or '.join(WITHOUT)}, got {how!r}")

    def level(x, gate, y):
        factor = gate.mean(1) if how == "mean" else torch.ones_like(gate[:, 0])
        return factor[:, None, None, None].type_as(x) * x

    with ExitStack() as hooks:
        for block in gated_blocks(model).values():
            hooks.enter_context(watched(block, level))
        yield


# --- one picture ------------------------------------------------------------------------------------------------------


class BlockView(NamedTuple):
    """What one block did with one picture."""

    maps: np.ndarray  # (C, h, w) float32, what came in
    gate: np.ndarray  # (C,) float32


@torch.no_grad()
def look(model: nn.Module, image: torch.Tensor) -> dict[str, BlockView]:
    """By the names of `gated_blocks`: what each block makes of an image (1, 3, H, W), 0-1."""
    views = {}
    with ExitStack() as hooks:
        for name, block in gated_blocks(model).items():

            def see(x, gate, y, name=name):
                views[name] = BlockView(x[0].float().cpu().numpy(), gate[0].float().cpu().numpy())

            hooks.enter_context(watched(block, see))
        model(image)
    return views


class Detections(NamedTuple):
    """What a model finds in an image."""

    boxes: torch.Tensor  # (n, 6): x1, y1, x2, y2 in pixels of the image, confidence, class
    rows: torch.Tensor  # (n,) of the decoded output, where each was predicted
    strides: np.ndarray  # (n,) of the map that predicted it, in pixels


@torch.no_grad()
def detect(model: nn.Module, image: torch.Tensor, **suppression) -> Detections:
    """The boxes of an image (1, 3, H, W), 0-1, the most confident first; suppression as in `non_max_suppression`."""
    decoded, raw = model(image)
    boxes = non_max_suppression(decoded, **suppression)[0]
    corners = xywh_to_xyxy(decoded[0, :, :4].float())
    rows = torch.cdist(boxes[:, :4], corners, p=1).argmin(1)  # suppression does not say which it kept
    last = np.cumsum([m[0, ..., 0].numel() for m in raw])  # rows are ordered by level
    strides = model.model[-1].stride.cpu().numpy()[np.searchsorted(last, rows.cpu().numpy(), side="right")]
    return Detections(boxes, rows, strides)


class Activation(NamedTuple):
    """Scores of detections, and for each the maps of Grad-CAM."""

    scores: np.ndarray  # (n,) objectness times class score
    maps: list[dict[str, np.ndarray | None]]  # n times, by block (h, w), at least 0; None where nothing reaches it


def class_activation(model: nn.Module, image: torch.Tensor, rows: Sequence[int], classes: Sequence[int]) -> Activation:
    """Where in the output of each block lies what speaks for a detection.

    Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2, at the output A (C, h, w) of each gated block, with y the
    objectness times the class score: ReLU(sum_c alpha_c A_c), alpha_c the mean over positions of dy / dA_c. A detection
    of a map that the block does not lead to has no gradient there.

    Args:
        image: (1, 3, H, W), 0-1.
        rows, classes: of the decoded output and of each detection, as `Detections` has them.
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
    """(1, C, h, w) both -> (h, w); None where the gradient is zero everywhere."""
    if gradient is None or not gradient.any():
        return None
    weights = gradient[0].mean((1, 2))
    return torch.einsum("c,chw->hw", weights, activation[0]).relu().detach().float().cpu().numpy()


# --- the covariance under SOCA ----------------------------------------------------------------------------------------


class Spectrum(NamedTuple):
    """The covariance of a map's channels, and how far five Newton-Schulz steps are from its root. All float64."""

    eigenvalues: np.ndarray  # (C,) of A = S / trace(S), descending, at least 0, their sum 1
    five: np.ndarray  # (C,) f of each, what five steps make of it
    root: np.ndarray  # (C,) the square root of each
    s_five: np.ndarray  # (C,) SOCA's statistic, the row means of sqrt(trace) f(A)
    s_root: np.ndarray  # (C,) the same of the true root

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the eigenvalues: 1 where channels move as one, C where they do not know each other.

        Roy and Vetterli, The effective rank, EUSIPCO 2007, here of the covariance.
        """
        positive = self.eigenvalues[self.eigenvalues > 0]
        return float(np.exp(-(positive * np.log(positive)).sum()))

    @property
    def matrix_distance(self) -> float:
        """|f(A) - A^(1/2)| / |A^(1/2)|, Frobenius."""
        return float(np.linalg.norm(self.five - self.root) / np.linalg.norm(self.root))

    @property
    def statistic_distance(self) -> float:
        """|s of five steps - s of the root| / |s of the root|."""
        return float(np.linalg.norm(self.s_five - self.s_root) / np.linalg.norm(self.s_root))


def spectrum(maps: np.ndarray) -> Spectrum | None:
    """Of what came into SOCA, (C, h, w); None where the map does not vary. A of rank below C has zeros at the end."""
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
def gate_of_statistic(block: SOCA | SE, s: np.ndarray) -> np.ndarray:
    """The gate (C,) that the block's small network makes of a statistic (C,); of zeros, what no picture decides."""
    weight = block.conv_du[0].weight
    gate = block.conv_du(torch.from_numpy(s).to(weight.device, weight.dtype)[None, :, None, None])
    return gate.flatten().float().cpu().numpy()
