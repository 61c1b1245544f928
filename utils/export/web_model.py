"""TensorFlow.js: a folder with model.json and its weights, for browsers."""

from pathlib import Path

import torch

from utils.export.formats import ExportOptions, toolchain
from utils.export.saved_model import WORKER
from utils.runtimes.base import write_metadata
from utils.runtimes.environments import TENSORFLOW


def write(source: Path, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Converts a SavedModel by tensorflowjs; the outputs keep their names."""
    with toolchain("tensorflowjs"):
        TENSORFLOW.call(WORKER, "web", source, target)
    write_metadata(target, options.metadata)
    return target
