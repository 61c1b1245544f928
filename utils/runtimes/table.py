"""Exported detectors on computers: a class per toolchain that runs what it wrote.

Packages are imported where a file of theirs is opened.
"""

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from utils.cli import require
from utils.runtimes.base import (
    Metadata,
    Runtime,
    as_text,
    as_tuple,
    first_line,
    folder_metadata,
    only_file,
    undeclared,
)
from utils.runtimes.mobile import CoreMLRuntime, ExecuTorchRuntime, NCNNRuntime
from utils.runtimes.tensorflow_runtimes import EdgeTPURuntime, LiteRTRuntime, TensorFlowRuntime, WebModelRuntime

# --- torch's own ------------------------------------------------------------------------------------------------------


class TorchScriptRuntime(Runtime):
    """`.torchscript`: a traced graph that torch runs without this project's code."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import torchvision  # noqa: F401  its operators, which a graph with suppression calls

        config = {"config.txt": ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, which would rather have us compile
                self.graph = torch.jit.load(str(path), map_location=self.device, _extra_files=config).eval()
        except RuntimeError as error:
            raise ValueError(f"{path}: torch {torch.__version__} cannot read it: {first_line(error)}") from None
        metadata = Metadata.from_json(as_text(config["config.txt"]), path)
        # a trace follows whatever size comes in
        self.declare(metadata, undeclared((None, None, None, None)))
        self.dtype = torch.float16 if self.metadata.half else torch.float32

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return as_tuple(self.graph(images))


class ProgramRuntime(Runtime):
    """`.pt2`: what torch.export wrote."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import torchvision  # noqa: F401  its operators, which a graph with suppression calls

        config = {"config.txt": ""}
        try:
            program = torch.export.load(str(path), extra_files=config)
        except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: torch {torch.__version__} cannot read it: {first_line(error)}") from None
        if self.device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        self.graph = program.module()
        self.declare(Metadata.from_json(as_text(config["config.txt"]), path), undeclared((None, None, None, None)))
        self.dtype = torch.float16 if self.metadata.half else torch.float32

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return as_tuple(self.graph(images))


# --- ONNX -------------------------------------------------------------------------------------------------------------


class ONNXRuntime(Runtime):
    """`.onnx`, by ONNX Runtime: on the GPU where its package has CUDA, else on the CPU."""

    packages = ("onnxruntime",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        # an exception of its own for each kind of fault, with no base in common
        faults = tuple(v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception))
        wanted = ["CUDAExecutionProvider"] if self.device.type == "cuda" else []
        providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, [*providers, "CPUExecutionProvider"])
        except (RuntimeError, *faults) as error:
            version = onnxruntime.__version__
            raise ValueError(f"{path}: ONNX Runtime {version} cannot read it: {first_line(error)}") from None
        entry, outputs = self.session.get_inputs()[0], self.session.get_outputs()
        if len(entry.shape) != 4:
            raise ValueError(f"{path}: its input must be images (B, C, H, W), found the shape {entry.shape}")
        texts = self.session.get_modelmeta().custom_metadata_map
        self.declare(Metadata.from_texts(texts, path), undeclared(entry.shape, outputs[0].shape[-1]))
        self.input = entry.name
        self.dtype = torch.float16 if entry.type == "tensor(float16)" else torch.float32
        wanted = {self.metadata.nms: 3, self.metadata.train: len(outputs)}.get(True, 1)  # v6.1 has raw maps besides
        self.outputs = [output.name for output in outputs][:wanted]

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.session.run(self.outputs, {self.input: images.cpu().numpy()})
        return tuple(torch.from_numpy(output).to(self.device) for output in outputs)


class OpenCVRuntime(Runtime):
    """`.onnx`, by OpenCV's DNN module (`--dnn`): frames and batches of the size it was made for."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import cv2

        try:
            self.net = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise ValueError(f"{path}: OpenCV {cv2.__version__} cannot read it: {first_line(error)}") from None
        texts, shape = _onnx_head(path)
        metadata = Metadata.from_texts(texts, path)
        self.declare(metadata, undeclared(shape))
        if self.metadata.nms or self.metadata.half:
            raise ValueError(f"{path}: --dnn runs graphs without --nms and --half; leave out --dnn, or export without")

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.net.setInput(images.cpu().numpy())
        return (torch.from_numpy(self.net.forward()).to(self.device),)


def _onnx_head(path: str | Path) -> tuple[dict[str, str], list]:
    """Metadata and input shape of an ONNX file."""
    require("onnx", "--dnn")
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    shape = [d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    return {entry.key: entry.value for entry in model.metadata_props}, shape


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


class OpenVINORuntime(Runtime):
    """A folder `*_openvino_model`, or the `.xml` in it, by OpenVINO on the CPU."""

    packages = ("openvino",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import openvino

        file = only_file(self.path, ".xml")
        try:
            core = openvino.Core()
            model = core.read_model(file)
            shape = [None if d.is_dynamic else d.get_length() for d in model.inputs[0].partial_shape]
            last = model.outputs[0].partial_shape[-1]
            metadata = folder_metadata(file.parent)
            guess = undeclared(shape, None if last.is_dynamic else last.get_length())
            # computed in float32 also where the processor has bfloat16, in which SOCA would lose its digits
            hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            self.compiled = core.compile_model(model, "CPU", hints)
        except RuntimeError as error:
            raise ValueError(f"{path}: OpenVINO {openvino.__version__} cannot read it: {first_line(error)}") from None
        self.declare(metadata, guess)

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self.compiled(images.cpu().numpy())
        return tuple(torch.from_numpy(results[i].copy()).to(self.device) for i in range(len(results)))


# --- TensorRT ---------------------------------------------------------------------------------------------------------


class TensorRTRuntime(Runtime):
    """`.engine`, by TensorRT 10 or later on a CUDA GPU. Images and outputs stay on the GPU."""

    packages = ("tensorrt",)
    gpu = True

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import tensorrt

        if self.device.type != "cuda":
            raise ValueError(f"{path}: TensorRT engines run on a CUDA GPU; use --device 0")
        metadata, engine = split_engine(self.path)
        self.logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self.engine = tensorrt.Runtime(self.logger).deserialize_cuda_engine(engine)
        if self.engine is None:
            raise ValueError(
                f"{path}: TensorRT {tensorrt.__version__} cannot read it; an engine runs with the version and the "
                "kind of GPU that it was made with: export it here"
            )
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = {n for n in names if self.engine.get_tensor_mode(n) == tensorrt.TensorIOMode.INPUT}
        self.input = next(iter(inputs))
        self.outputs = [n for n in names if n not in inputs]
        types = {
            tensorrt.DataType.FLOAT: torch.float32, tensorrt.DataType.HALF: torch.float16,
            tensorrt.DataType.INT32: torch.int32, tensorrt.DataType.INT64: torch.int64,
        }  # fmt: skip
        self.types = {n: types[self.engine.get_tensor_dtype(n)] for n in names}
        self.dtype = self.types[self.input]
        self.declare(metadata, undeclared(tuple(self.engine.get_tensor_shape(self.input))))

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = images.contiguous()
        self.context.set_input_shape(self.input, tuple(images.shape))
        self.context.set_tensor_address(self.input, images.data_ptr())
        outputs = []
        for name in self.outputs:
            shape = tuple(self.context.get_tensor_shape(name))
            outputs.append(torch.empty(shape, dtype=self.types[name], device=self.device))
            self.context.set_tensor_address(name, outputs[-1].data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise ValueError(f"{self.path}: TensorRT could not run the engine on images {tuple(images.shape)}")
        stream.synchronize()  # the images must live until then
        return tuple(outputs)


def join_engine(metadata: Metadata, engine: bytes) -> bytes:
    """An engine's file: the length of the metadata in four bytes, little-endian; the metadata as JSON; the engine."""
    head = metadata.as_json().encode()
    return len(head).to_bytes(4, "little") + head + engine


def split_engine(path: Path) -> tuple[Metadata | None, bytes]:
    """What `join_engine` joined; a file of v6.1, which is an engine alone, has no metadata."""
    content = path.read_bytes()
    length = int.from_bytes(content[:4], "little")
    if content[4:5] == b"{" and length < len(content):
        return Metadata.from_json(content[4 : 4 + length].decode(), path), content[4 + length :]
    return None, content


# --- by the name of the file ------------------------------------------------------------------------------------------

# the longer suffix first where one ends as another does
RUNTIMES: dict[str, Callable[..., Runtime]] = {
    ".torchscript": TorchScriptRuntime,
    ".pt2": ProgramRuntime,
    ".onnx": ONNXRuntime,
    "_openvino_model": OpenVINORuntime,
    ".xml": OpenVINORuntime,
    ".engine": TensorRTRuntime,
    "_saved_model": TensorFlowRuntime,
    ".pb": TensorFlowRuntime,
    "_edgetpu.tflite": EdgeTPURuntime,
    ".tflite": LiteRTRuntime,
    "_web_model": WebModelRuntime,
    "_ncnn_model": NCNNRuntime,
    ".pte": ExecuTorchRuntime,
    ".mlpackage": CoreMLRuntime,
    ".mlmodel": CoreMLRuntime,
}


def runtime_for(path: str | Path) -> Callable[..., Runtime] | None:
    """The class that runs such a file or folder, None where none does."""
    name = os.path.basename(str(path).rstrip("/\\"))
    return next((runtime for suffix, runtime in RUNTIMES.items() if name.endswith(suffix)), None)
