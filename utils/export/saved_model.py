"""TensorFlow SavedModel, by onnx2tf in a separate environment."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from utils.export.formats import ExportError, ExportOptions, toolchain
from utils.export.onnx_file import simplified
from utils.runtimes.base import write_metadata
from utils.runtimes.environments import TENSORFLOW

if TYPE_CHECKING:
    import onnx

WORKER = Path(__file__).with_name("tensorflow_worker.py")
# onnx2tf looks for these images in its working folder, and downloads them where they are missing. They calibrate
# integers, which are not written here.
CALIBRATION = "calibration_image_sample_data_20x128x128x3_float32.npy"


def write(source: Path, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Converts an ONNX file, as v6.1 did, to images (B, H, W, C) and boxes in fractions of the frame.

    The output is output_0; with suppression boxes, scores and classes are output_0, output_1, output_2.
    """
    import onnx

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with toolchain("onnx", "onnxslim"):
            model = simplified(onnx.load(source))  # onnx2tf rejects nodes that do not depend on the images
            _to_fractions(model, tuple(sample.shape[2:]))
            onnx.checker.check_model(model, full_check=True)
            onnx.save(model, folder / "model.onnx")
        np.save(folder / CALIBRATION, np.zeros((20, 128, 128, 3), np.float32))
        with toolchain("onnx2tf"):
            TENSORFLOW.call(WORKER, "convert", "model.onnx", "model", cwd=folder)
        if not (folder / "model/saved_model.pb").is_file():
            raise ExportError(f"{' and '.join(TENSORFLOW.packages)} wrote no saved_model.pb")
        shutil.move(folder / "model", target)
    write_metadata(target, options.metadata)
    return target


def _to_fractions(model: "onnx.ModelProto", size: tuple[int, int]) -> None:
    """Divides the first four columns of the first output by the width and height of the frame (height, width)."""
    from onnx import helper, numpy_helper

    graph, output = model.graph, model.graph.output[0]
    height, width = size
    columns = output.type.tensor_type.shape.dim[-1].dim_value
    factors = np.ones((1, 1, columns), np.float32)
    factors[..., :4] = 1 / width, 1 / height, 1 / width, 1 / height
    inner = f"{output.name}_in_pixels"
    for node in graph.node:
        node.output[:] = [inner if name == output.name else name for name in node.output]
        node.input[:] = [inner if name == output.name else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(factors, "fractions"))
    graph.node.append(helper.make_node("Mul", [inner, "fractions"], [output.name], name="fractions_of_the_frame"))
