"""TensorFlow.js: a folder with model.json and its weights, for browsers."""

from pathlib import Path

import torch

from utils.export.formats import Options, toolchain
from utils.export.saved_model import WORKER
from utils.runtimes.base import METADATA_FILE
from utils.runtimes.environments import TENSORFLOW


def write(source: Path, sample: torch.Tensor, target: Path, options: Options) -> Path:
    """Converts a SavedModel by tensorflowjs; outputs are named as in it."""
    with toolchain("tensorflowjs"):
        TENSORFLOW.call(WORKER, "web", source, target)
    (target / METADATA_FILE).write_text(options.metadata.as_json(), encoding="utf-8")
    return target
