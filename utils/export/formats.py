"""The formats that a detector can be exported to: one row each, and what is shared by the files that write them.

A toolchain is a module of this room with

    write(source, sample, target, options) -> Path

source:  the graph to write (an nn.Module of graph.py), or the file of another format where `Format.source` names one.
sample:  images (B, C, H, W) of the type that the graph takes.
target:  path to write, beside which nothing is left; the caller moves it to its final name once it is proven.

Nothing heavy is imported here.
"""

import importlib
import importlib.metadata
import platform
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import installed
from utils.runtimes.environments import ENVIRONMENTS

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from utils.runtimes.base import Metadata

GRAPH = "graph"  # the source of formats that are made from the network itself


class ExportError(ValueError):
    """A file could not be written, or is not what it should be."""


@dataclass(frozen=True)
class Format:
    """A row of the table.

    name, argument, suffix: as `export_formats` prints them; the argument is what --include takes.
    source:   GRAPH, or the argument of the format whose file it is made from.
    module:   of utils/export, which has `write`.
    packages: that have to be importable to write it.
    extra:    the group of optional dependencies in pyproject.toml that holds them; "" where none is needed.
    int8_packages: that --int8 takes besides.
    environments: of utils/runtimes/environments.py, in which it is written and run, where that is not this one.
    program:  that has to be installed besides, of the same name in the shell.
    half, int8, dynamic, nms, train: whether it honours --half, --int8, --dynamic, --nms and --train.
    systems:  of `platform.system()` on which it can be written; empty for all.
    gpu:      whether writing and running it takes a CUDA GPU.
    any_size: whether it takes every frame and number of images even without --dynamic.
    integers: whether it is in 8-bit integers also without --int8.
    single:   whether it takes one image at a time.
    typed:    whether --half makes it from a graph or file in float16, whose types it keeps; else from one in float32,
              of which its toolchain makes float16.
    """

    name: str
    argument: str
    suffix: str
    source: str = GRAPH
    module: str = ""
    packages: tuple[str, ...] = ()
    extra: str = ""
    int8_packages: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    program: str = ""
    half: bool = False
    int8: bool = False
    dynamic: bool = False
    nms: bool = False
    train: bool = False
    systems: tuple[str, ...] = ()
    gpu: bool = False
    any_size: bool = False
    integers: bool = False
    single: bool = False
    typed: bool = False

    def target(self, weights: Path, int8: bool = False, half: bool = False) -> Path:
        """Where the export of these weights goes: `best.onnx`, `best_openvino_model`, `best-fp16.tflite`."""
        stem = weights.with_suffix("").name
        if self.suffix.endswith(".tflite"):  # v6.1's names
            stem += "-int8" if int8 or self.integers else "-fp16" if half else "-fp32"
        return weights.with_name(stem + self.suffix)

    def writer(self):
        """The function `write`; imports its toolchain's module, not the toolchain."""
        return importlib.import_module(f"utils.export.{self.module}").write

    def inspector(self):
        """The function `inspect(path, options)` of its module, which looks at a file without running it, or None."""
        return getattr(importlib.import_module(f"utils.export.{self.module}"), "inspect", None)

    def obstacle(self, int8: bool = False, train: bool = False, batch: int = 1, calibrated: bool = True) -> str | None:
        """Why it cannot be written here, in integers, in training mode or for so many images; None where it can.

        calibrated: whether there are pictures to calibrate integers on.
        """
        if self.integers and not calibrated:
            return "is in 8-bit integers, calibrated on pictures of yours: give --data"
        if self.single and batch > 1:
            return "takes one image at a time: --batch-size 1"
        if train and not self.train:
            return "gives decoded boxes only: leave out --train"
        if self.systems and platform.system() not in self.systems:
            return f"can be written on {' and '.join(self.systems)} only"
        packages = self.packages + (self.int8_packages if int8 else ())
        if missing := [package for package in packages if not installed(package)]:
            return f"needs {', '.join(missing)}: pip install '.[{self.extra}]'"
        if self.program and not shutil.which(self.program):
            return f"needs the program {self.program}, which is not found here"
        for environment in self.environments:
            if reason := ENVIRONMENTS[environment].obstacle():
                return reason
        if self.gpu:
            import torch

            if not torch.cuda.is_available():
                return "is written on the CUDA GPU that will run it, and torch sees none here"
        return None


# v6.1's order, then what is new
FORMATS = (
    Format(
        "TorchScript", "torchscript", ".torchscript", module="torchscript",
        half=True, dynamic=True, nms=True, train=True, any_size=True, typed=True,
    ),
    Format(
        "ONNX", "onnx", ".onnx", module="onnx_file", packages=("onnx", "onnxruntime"), extra="onnx",
        half=True, dynamic=True, nms=True, train=True, typed=True,
    ),
    Format(
        "OpenVINO", "openvino", "_openvino_model", source="onnx", module="openvino_model",
        packages=("onnx", "openvino"), extra="openvino", int8_packages=("nncf",),
        half=True, int8=True, dynamic=True, nms=True, train=True,
    ),
    Format(
        "TensorRT", "engine", ".engine", source="onnx", module="tensorrt_engine", packages=("onnx", "tensorrt"),
        extra="tensorrt", half=True, dynamic=True, nms=True, train=True, gpu=True,
        typed=True,
    ),
    Format(
        "CoreML", "coreml", ".mlpackage", module="coreml_model", packages=("coremltools",), extra="coreml",
        half=True, int8=True,
    ),
    Format(
        "TensorFlow SavedModel", "saved_model", "_saved_model", source="onnx", module="saved_model",
        packages=("onnx", "onnxslim"), extra="onnx", environments=("tensorflow",), nms=True,
    ),
    Format(
        "TensorFlow GraphDef", "pb", ".pb", source="saved_model", module="graph_def",
        packages=("onnx", "onnxslim"), extra="onnx", environments=("tensorflow",), nms=True,
    ),
    Format(
        "TensorFlow Lite", "tflite", ".tflite", module="litert_model",
        packages=("ai_edge_litert", "ai_edge_quantizer"), extra="tflite", environments=("litert",),
        half=True, int8=True,
    ),
    Format(
        "TensorFlow Edge TPU", "edgetpu", "_edgetpu.tflite", source="tflite", module="edge_tpu",
        packages=("ai_edge_litert", "ai_edge_quantizer"), extra="tflite", environments=("litert",),
        program="edgetpu_compiler", int8=True, integers=True, systems=("Linux",),
    ),
    Format(
        "TensorFlow.js", "tfjs", "_web_model", source="saved_model", module="web_model",
        packages=("onnx", "onnxslim"), extra="onnx", environments=("tensorflow", "tfjs"), nms=True,
    ),
    Format(
        "torch.export", "pt2", ".pt2", module="program", half=True, dynamic=True, nms=True, train=True, typed=True,
    ),
    Format(
        "ncnn", "ncnn", "_ncnn_model", module="ncnn_model", packages=("pnnx", "ncnn"), extra="ncnn", half=True,
        single=True,
    ),
    Format(
        "ExecuTorch", "executorch", ".pte", module="executorch_program", packages=("executorch.exir",),
        extra="executorch",
    ),
)  # fmt: skip

BY_ARGUMENT = {kind.argument: kind for kind in FORMATS}


def export_formats() -> "pd.DataFrame":
    """v6.1's table: Format, Argument, Suffix; the new formats below its own."""
    import pandas as pd

    rows = [("PyTorch", "-", ".pt"), *((f.name, f.argument, f.suffix) for f in FORMATS)]
    return pd.DataFrame(rows, columns=["Format", "Argument", "Suffix"])


@dataclass(frozen=True)
class Suppression:
    """What `--nms` puts behind the network, per image: at most topk_all boxes, of each class topk_per_class."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    agnostic: bool = False
    topk_per_class: int = 100
    topk_all: int = 100


@dataclass(frozen=True)
class Options:
    """What writers need of the command line, checked.

    metadata: to be stored in the file.
    nms:      the suppression that is in the graph, or in the file that is the source; None without.
    data:     the data set YAML for calibration; None where the user gave none.
    float32:  modules of the detector that no format may compute in integers: SOCA, and the decoding in Detect.
    """

    metadata: "Metadata"
    device: "torch.device | str" = "cpu"
    half: bool = False
    int8: bool = False
    dynamic: bool = False
    train: bool = False
    optimize: bool = False
    simplify: bool = False
    opset: int = 12
    verbose: bool = False
    workspace: int = 4
    nms: Suppression | None = None
    data: str | None = None
    float32: tuple[str, ...] = ()


def version(package: str) -> str:
    """`onnx 1.23.2`."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


@contextmanager
def toolchain(*packages: str) -> Iterator[None]:
    """Inside, whatever these packages raise becomes an ExportError that names their versions.

    Their warnings, of deprecations and of what a trace may miss, are not shown: what was written is proven afterwards.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ExportError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # each toolchain has exceptions of its own; none is lost, all go on as this one
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
        raise ExportError(f"{' and '.join(map(version, packages))} failed: {type(error).__name__}: {reason}") from error
