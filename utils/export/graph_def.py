"""TensorFlow GraphDef: a SavedModel whose variables become constants (`.pb`)."""

import tempfile
from pathlib import Path

import torch

from utils.export.formats import ExportOptions, toolchain
from utils.export.saved_model import WORKER
from utils.runtimes.environments import TENSORFLOW
from utils.runtimes.tensorflow_server import METADATA_NODE


def write(source: Path, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Freezes a SavedModel; the metadata is a constant of the graph."""
    with tempfile.TemporaryDirectory() as folder, toolchain("tensorflow"):
        metadata = Path(folder, "metadata.json")
        metadata.write_text(options.metadata.as_json(), encoding="utf-8")
        TENSORFLOW.call(WORKER, "freeze", source, target, metadata, METADATA_NODE)
    return target
