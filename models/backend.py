"""One object that runs a trained detector, whatever its file format."""

from pathlib import Path

import torch
from torch import nn

from models.experimental import Ensemble
from models.yolo import Detect, Model, checkpoint_classes
from utils import checkpoint
from utils.files import ROOT
from utils.log import LOGGER


def newest_best() -> Path | None:
    """The `best.pt` that was written last, below the runs/ of the current folder or of the repository."""
    found = {p.resolve() for root in {Path.cwd(), ROOT} for p in (root / "runs").glob("**/best.pt")}
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def find_weights(name: str | Path, download: bool = False) -> Path:
    """The checkpoint file that `--weights` asks for; never fetched unless `download`.

    Raises FileNotFoundError that names the newest `best.pt` of a training run where there is one.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (ROOT / path).is_file():
        return ROOT / path
    if download:
        from utils.downloads import download_weights

        return download_weights(path)
    best = newest_best()
    hint = f"your newest trained weights are {best}" if best else "train some, or let --download fetch official ones"
    raise FileNotFoundError(f"no such weights: {path}; {hint}")


def load_checkpoint(path: str | Path) -> dict:
    """A checkpoint whose modules are brought up to date for today's torch."""
    content = checkpoint.load(path, checkpoint_classes())
    for key in ("model", "ema"):
        if isinstance(content.get(key), nn.Module):
            _check(content[key], path)
            _modernise(content[key])
    return content


def _check(model: nn.Module, path: str | Path) -> None:
    if not isinstance(model, Model) or not isinstance(model.model[-1], Detect):
        raise ValueError(f"{path}: holds a {type(model).__name__}, not a detector of this family")


def _modernise(model: Model) -> None:
    """Gives modules pickled by older releases and older torch what today's code expects."""
    for m in model.modules():
        if isinstance(m, nn.Hardswish | nn.LeakyReLU | nn.ReLU | nn.ReLU6 | nn.SiLU):
            m.inplace = True
        elif isinstance(m, nn.Upsample):
            m.__dict__.setdefault("recompute_scale_factor", None)
    if isinstance(model.names, dict):
        model.names = [model.names[k] for k in sorted(model.names)]


def load_model(weights: str | Path | list, device: str | torch.device = "cpu", fuse: bool = True) -> nn.Module:
    """A detector in float32 and eval mode from its checkpoint, or an Ensemble from several.

    The averaged weights are taken where the checkpoint has them.
    """
    paths = weights if isinstance(weights, list | tuple) else [weights]
    members = []
    for path in paths:
        content = load_checkpoint(path)
        model = (content.get("ema") or content["model"]).float()
        members.append((model.fuse() if fuse else model).eval().to(device))
    if len(members) == 1:
        return members[0]
    if len({m.model[-1].nc for m in members}) > 1:
        raise ValueError(f"an ensemble needs the same classes in each model, got {[m.model[-1].nc for m in members]}")
    ensemble = Ensemble(members).eval()
    ensemble.names = members[-1].names
    ensemble.stride = max((m.stride for m in members), key=lambda s: float(s.max()))
    return ensemble


class Backend(nn.Module):
    """A trained detector behind one call.

    Attributes: names (list of str), stride (int, pixels), device, dtype of the images it wants.

    Args:
        weights: a `.pt` file or a list of them (ensemble).
        device: where to run.
        half: float16 weights and images; CUDA only.
    """

    def __init__(self, weights: str | Path | list, device: torch.device | str = "cpu", half: bool = False):
        super().__init__()
        self.device = torch.device(device)
        if half and self.device.type != "cuda":
            LOGGER.warning(f"--half needs a CUDA GPU; running in float32 on {self.device}")
            half = False
        self.model = load_model(weights, self.device).to(memory_format=torch.channels_last)
        self.dtype = torch.float16 if half else torch.float32
        self.model.to(self.dtype)
        self.names = self.model.names
        self.stride = max(int(self.model.stride.max()), 32)

    def forward(self, images: torch.Tensor, augment: bool = False):
        """images (B, 3, H, W) in self.dtype, 0-1 -> (decoded (B, N, 5 + nc), raw maps or None)."""
        return self.model(images.contiguous(memory_format=torch.channels_last), augment=augment)
