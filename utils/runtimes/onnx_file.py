"""ONNX files, by ONNX Runtime or by OpenCV."""

from pathlib import Path

import torch

from utils.cli import require
from utils.runtimes.base import Metadata, Runtime, readable


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
        with readable(path, f"ONNX Runtime {onnxruntime.__version__}", RuntimeError, *faults):
            self.session = onnxruntime.InferenceSession(str(path), options, [*providers, "CPUExecutionProvider"])
        entry, outputs = self.session.get_inputs()[0], self.session.get_outputs()
        if len(entry.shape) != 4:
            raise ValueError(f"{path}: its input must be images (B, C, H, W), found the shape {entry.shape}")
        texts = self.session.get_modelmeta().custom_metadata_map
        self.declare(Metadata.from_texts(texts, path), entry.shape, outputs[0].shape[-1])
        self.input = entry.name
        self.dtype = torch.float16 if entry.type == "tensor(float16)" else torch.float32
        count = 3 if self.metadata.nms else len(outputs) if self.metadata.train else 1  # v6.1 adds the raw maps
        self.outputs = [output.name for output in outputs][:count]

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.session.run(self.outputs, {self.input: images.cpu().numpy()})
        return tuple(torch.from_numpy(output).to(self.device) for output in outputs)


class OpenCVRuntime(Runtime):
    """A file `.onnx`, by OpenCV's DNN module (`--dnn`): frames and batches of the size it was made for."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        import cv2

        with readable(path, f"OpenCV {cv2.__version__}", cv2.error):
            self.net = cv2.dnn.readNetFromONNX(str(path))
        texts, shape = _onnx_head(path)
        self.declare(Metadata.from_texts(texts, path), shape)
        if self.metadata.nms or self.metadata.half:
            raise ValueError(
                f"{path}: --dnn runs files exported without --nms and --half; export it again, or leave out --dnn"
            )

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.net.setInput(images.cpu().numpy())
        return (torch.from_numpy(self.net.forward()).to(self.device),)


def _onnx_head(path: str | Path) -> tuple[dict[str, str], list]:
    """Reads the metadata and the input shape of an ONNX file."""
    require("onnx", "--dnn")
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    shape = [d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    return {entry.key: entry.value for entry in model.metadata_props}, shape
