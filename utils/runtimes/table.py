"""Which runtime opens an exported file, by the end of its name. A runtime is imported where a file needs it."""

import importlib
import os
from pathlib import Path

from utils.runtimes.base import Runtime

# suffix -> module of this folder and class in it; a suffix comes before those that it ends with
RUNTIMES = {
    ".torchscript": ("torchscript", "TorchScriptRuntime"),
    ".pt2": ("program", "ProgramRuntime"),
    ".onnx": ("onnx_file", "ONNXRuntime"),
    "_openvino_model": ("openvino_model", "OpenVINORuntime"),
    ".xml": ("openvino_model", "OpenVINORuntime"),
    ".engine": ("tensorrt_engine", "TensorRTRuntime"),
    "_saved_model": ("tensorflow_model", "TensorFlowRuntime"),
    ".pb": ("tensorflow_model", "TensorFlowRuntime"),
    "_edgetpu.tflite": ("litert_model", "EdgeTPURuntime"),
    ".tflite": ("litert_model", "LiteRTRuntime"),
    "_web_model": ("web_model", "WebModelRuntime"),
    "_ncnn_model": ("ncnn_model", "NCNNRuntime"),
    ".pte": ("executorch_program", "ExecuTorchRuntime"),
    ".mlpackage": ("coreml_model", "CoreMLRuntime"),
    ".mlmodel": ("coreml_model", "CoreMLRuntime"),
}


def runtime_for(path: str | Path) -> type[Runtime] | None:
    """Returns the class that runs such a file or folder; None where none does."""
    name = os.path.basename(str(path).rstrip("/\\"))
    for suffix, (module, runtime) in RUNTIMES.items():
        if name.endswith(suffix):
            return getattr(importlib.import_module(f".{module}", __package__), runtime)
    return None
