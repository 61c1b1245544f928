"""TensorFlow SavedModel, by onnx2tf in an environment of its own."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from utils.export.formats import ExportError, Options, toolchain
from utils.export.onnx_file import simplified
from utils.runtimes.base import METADATA_FILE
from utils.runtimes.environments import TENSORFLOW

if TYPE_CHECKING:
    import onnx

WORKER = Path(__file__).with_name("tensorflow_worker.py")
# onnx2tf looks for these pictures in its working folder, and fetches them from the network where they are not there.
# They serve integers that are not asked for here.
CALIBRATION = "calibration_image_sample_data_20x128x128x3_float32.npy"


def write(source: Path, sample: torch.Tensor, target: Path, options: Options) -> Path:
    """Converts an ONNX file: images (B, H, W, C), and places as shares of the frame, as v6.1 did.

    Outputs are output_0, or with suppression boxes, scores and classes as output_0, output_1, output_2.
    """
    import onnx

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with toolchain("onnx", "onnxslim"):
            model = simplified(onnx.load(source))  # onnx2tf takes no nodes that depend on no image
            _to_shares(model, tuple(sample.shape[2:]))
            onnx.checker.check_model(model, full_check=True)
            onnx.save(model, folder / "model.onnx")
        np.save(folder / CALIBRATION, np.zeros((20, 128, 128, 3), np.float32))
        with toolchain("onnx2tf"):
            TENSORFLOW.call(WORKER, "convert", "model.onnx", "model", cwd=folder)
        if not (folder / "model/saved_model.pb").is_file():
            raise ExportError(f"{' and '.join(TENSORFLOW.packages)} wrote no saved_model.pb")
        shutil.move(folder / "model", target)
    (target / METADATA_FILE).write_text(options.metadata.as_json(), encoding="utf-8")
    return target


def _to_shares(model: "onnx.ModelProto", size: tuple[int, int]) -> None:
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
    graph.initializer.append(numpy_helper.from_array(factors, "shares"))
    graph.node.append(helper.make_node("Mul", [inner, "shares"], [output.name], name="shares_of_the_frame"))
