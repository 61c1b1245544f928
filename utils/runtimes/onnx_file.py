"""ONNX files, by ONNX Runtime or by OpenCV."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from utils.cli import require
from utils.files import below
from utils.runtimes.base import Metadata, Runtime, readable

if TYPE_CHECKING:
    import onnx


class ONNXRuntime(Runtime):
    """A file `.onnx`, by ONNX Runtime: on the GPU where its package has CUDA, else on the CPU."""

    packages = ("onnxruntime",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        # it has one exception for each kind of fault, and they share no base
        faults = tuple(v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception))
        wanted = ["CUDAExecutionProvider"] if self.device.type == "cuda" else []
        providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        content: bytes | str = self.path.read_bytes()
        if b"location" in content and _external_data(_parsed(content, path), self.path):
            content = str(path)  # ONNX Runtime reads the data beside it
        with readable(path, f"ONNX Runtime {onnxruntime.__version__}", RuntimeError, *faults):
            self.session = onnxruntime.InferenceSession(content, options, [*providers, "CPUExecutionProvider"])
        self.faults = (RuntimeError, *faults)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        shapes = [entry.shape for entry in inputs]
        if len(inputs) != 1 or len(shapes[0]) != 4 or not outputs or not outputs[0].shape:
            raise ValueError(
                f"{path}: it must take one input, images (B, C, H, W), and return rows; found inputs {shapes} and "
                f"outputs {[output.shape for output in outputs]}"
            )
        entry = inputs[0]
        texts = self.session.get_modelmeta().custom_metadata_map
        self.declare(Metadata.from_texts(texts, path, entry.shape), entry.shape, outputs[0].shape[-1])
        self.input = entry.name
        self.dtype = torch.float16 if entry.type == "tensor(float16)" else torch.float32
        count = 3 if self.metadata.nms else len(outputs) if self.metadata.train else 1  # v6.1 adds the raw maps
        self.outputs = [output.name for output in outputs][:count]

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with readable(self.path, "ONNX Runtime", *self.faults):
            outputs = self.session.run(self.outputs, {self.input: images.cpu().numpy()})
        return tuple(torch.from_numpy(output).to(self.device) for output in outputs)


class OpenCVRuntime(Runtime):
    """A file `.onnx`, by OpenCV's DNN module (`--dnn`): frames and batches of the size it was made for."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        import cv2

        content = self.path.read_bytes()
        model = _parsed(content, path)
        if _external_data(model, self.path):
            from onnx.external_data_helper import load_external_data_for_model

            with readable(path, "onnx", ValueError, OSError):
                load_external_data_for_model(model, str(self.path.parent))
            content = model.SerializeToString()
        with readable(path, f"OpenCV {cv2.__version__}", cv2.error):
            self.net = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
        texts, shape = _onnx_head(model, path)
        self.declare(Metadata.from_texts(texts, path, shape), shape)
        if self.metadata.nms or self.metadata.half:
            raise ValueError(
                f"{path}: --dnn runs files exported without --nms and --half; export it again, or leave out --dnn"
            )

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        import cv2

        with readable(self.path, f"OpenCV {cv2.__version__}", cv2.error):
            self.net.setInput(images.cpu().numpy())
            output = self.net.forward()
        return (torch.from_numpy(output).to(self.device),)


def _parsed(content: bytes, path: str | Path) -> "onnx.ModelProto":
    """Returns the model in the bytes of a file, without the data that it has in other files."""
    require("onnx", str(path))
    import onnx
    from google.protobuf.message import DecodeError

    with readable(path, f"onnx {onnx.__version__}", DecodeError, ValueError):
        return onnx.load_model_from_string(content)


def _external_data(model: "onnx.ModelProto", path: Path) -> bool:
    """Returns whether tensors of the model are in other files; ValueError where those are not in its folder."""
    import onnx

    found, waiting = False, [model]
    while waiting:
        message = waiting.pop()
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += value if isinstance(value, Sequence) else [value]
        if isinstance(message, onnx.TensorProto) and (message.external_data or message.data_location):
            found = True
            for location in [entry.value for entry in message.external_data if entry.key == "location"]:
                try:
                    below(path.parent, location)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}; put all files of the model into one folder") from None
    return found


def _onnx_head(model: "onnx.ModelProto", path: str | Path) -> tuple[dict[str, str], list]:
    """Returns the metadata and the input shape of a model."""
    if not model.graph.input:
        raise ValueError(f"{path}: its input must be images (B, C, H, W), found no input")
    shape = [d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    if len(shape) != 4:
        raise ValueError(f"{path}: its input must be images (B, C, H, W), found the shape {shape}")
    return {entry.key: entry.value for entry in model.metadata_props}, shape
