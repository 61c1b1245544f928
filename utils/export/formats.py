"""The table of formats that a detector can be exported to, and what the modules that write them share.

A toolchain is a module of this folder with

    write(source, sample, target, options) -> Path

source:  the graph to write (an nn.Module of graph.py), or the file of another format where `Format.source` names one.
sample:  images (B, C, H, W) of the type that the graph takes.
target:  path to write, with no other files left beside it; the caller verifies it and moves it to its final name.

Importing this module loads neither torch nor a toolchain.
"""

import importlib
import importlib.metadata
import platform
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import installed
from utils.log import LOGGER
from utils.runtimes.environments import ENVIRONMENTS

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from utils.runtimes.base import Metadata

GRAPH = "graph"  # the source of formats that are made from the network itself
OPSETS = 11, 20  # oldest and newest operator set of ONNX that torch's exporter writes a detector in
OPTIONS = ("half", "int8", "nms", "dynamic")  # that a format may ignore


class ExportError(ValueError):
    """A format whose file could not be written, or differs from what it should be."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A row of the table.

    name, argument, suffix: as `export_formats` prints them; the argument is what --include takes.
    source:   GRAPH, or the argument of the format whose file it is made from.
    module:   of utils/export, which has `write`.
    packages: that must be importable to write it.
    extra:    the group of optional dependencies in pyproject.toml that contains them; "" where none is needed.
    int8_packages: further packages for --int8.
    environments: of utils/runtimes/environments.py in which it is written and run; empty for this interpreter alone.
    program:  a program that must also be installed, by the name of its command.
    half, int8, dynamic, nms, train: whether it honours --half, --int8, --dynamic, --nms and --train.
    systems:  of `platform.system()` on which it can be written; empty for all.
    gpu:      whether writing and running it needs a CUDA GPU.
    any_size: whether it takes images of any size and number also without --dynamic.
    integers: whether it is in 8-bit integers also without --int8.
    single:   whether it takes one image at a time.
    typed:    whether --half makes it from a graph or file in float16, whose types it keeps; otherwise its toolchain
              converts one in float32.
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
        """Returns the path of the export of these weights: `best.onnx`, `best_openvino_model`, `best-fp16.tflite`."""
        stem = weights.with_suffix("").name
        if self.suffix.endswith(".tflite"):  # v6.1's names
            stem += "-int8" if int8 or self.integers else "-fp16" if half else "-fp32"
        return weights.with_name(stem + self.suffix)

    def writer(self) -> Callable:
        """Returns the function `write`; imports its module, but not the toolchain."""
        return importlib.import_module(f".{self.module}", __package__).write

    def inspector(self) -> Callable | None:
        """Returns the function `inspect(path, options)`, which checks a file without running it; None without one."""
        return getattr(importlib.import_module(f".{self.module}", __package__), "inspect", None)

    def obstacle(self, int8: bool = False, train: bool = False, batch: int = 1, calibrated: bool = True) -> str | None:
        """Returns why it cannot be written here with these options, as the end of a sentence; None where it can.

        batch:      number of images per call.
        calibrated: whether there are images to calibrate integers on.
        """
        if self.integers and not calibrated:
            return "is in 8-bit integers, which are calibrated on your images: give --data"
        if self.single and batch > 1:
            return "takes one image at a time: use --batch-size 1"
        if train and not self.train:
            return "has decoded boxes only: leave out --train"
        if self.systems and platform.system() not in self.systems:
            return f"can be written on {' and '.join(self.systems)} only"
        packages = self.packages + (self.int8_packages if int8 else ())
        if missing := [package for package in packages if not installed(package)]:
            return f"needs {', '.join(missing)}: pip install '.[{self.extra}]'"
        if self.program and not shutil.which(self.program):
            return f"needs the program {self.program}, which is not installed here"
        for environment in self.environments:
            if reason := ENVIRONMENTS[environment].obstacle():
                return reason
        if self.gpu:
            import torch

            if not torch.cuda.is_available():
                return "is built on the CUDA GPU that will run it, and torch sees none here"
        return None


# v6.1's formats in its order, then the new ones
FORMATS = (
    Format(
        name="TorchScript", argument="torchscript", suffix=".torchscript",
        module="torchscript",
        half=True, dynamic=True, nms=True, train=True, any_size=True, typed=True,
    ),
    Format(
        name="ONNX", argument="onnx", suffix=".onnx",
        module="onnx_file", packages=("onnx", "onnxruntime"), extra="onnx",
        half=True, dynamic=True, nms=True, train=True, typed=True,
    ),
    Format(
        name="OpenVINO", argument="openvino", suffix="_openvino_model",
        source="onnx", module="openvino_model", packages=("onnx", "openvino"), extra="openvino",
        int8_packages=("nncf",),
        half=True, int8=True, dynamic=True, nms=True, train=True,
    ),
    Format(
        name="TensorRT", argument="engine", suffix=".engine",
        source="onnx", module="tensorrt_engine", packages=("onnx", "tensorrt"), extra="tensorrt",
        half=True, dynamic=True, nms=True, train=True, gpu=True, typed=True,
    ),
    Format(
        name="CoreML", argument="coreml", suffix=".mlpackage",
        module="coreml_model", packages=("coremltools",), extra="coreml",
        half=True, int8=True,
    ),
    Format(
        name="TensorFlow SavedModel", argument="saved_model", suffix="_saved_model",
        source="onnx", module="saved_model", packages=("onnx", "onnxslim"), extra="onnx",
        environments=("tensorflow",),
        nms=True,
    ),
    Format(
        name="TensorFlow GraphDef", argument="pb", suffix=".pb",
        source="saved_model", module="graph_def", packages=("onnx", "onnxslim"), extra="onnx",
        environments=("tensorflow",),
        nms=True,
    ),
    Format(
        name="TensorFlow Lite", argument="tflite", suffix=".tflite",
        module="litert_model", packages=("ai_edge_litert", "ai_edge_quantizer"), extra="tflite",
        environments=("litert",),
        half=True, int8=True,
    ),
    Format(
        name="TensorFlow Edge TPU", argument="edgetpu", suffix="_edgetpu.tflite",
        source="tflite", module="edge_tpu", packages=("ai_edge_litert", "ai_edge_quantizer"), extra="tflite",
        environments=("litert",), program="edgetpu_compiler", systems=("Linux",),
        int8=True, integers=True,
    ),
    Format(
        name="TensorFlow.js", argument="tfjs", suffix="_web_model",
        source="saved_model", module="web_model", packages=("onnx", "onnxslim"), extra="onnx",
        environments=("tensorflow", "tfjs"),
        nms=True,
    ),
    Format(
        name="torch.export", argument="pt2", suffix=".pt2",
        module="program",
        half=True, dynamic=True, nms=True, train=True, typed=True,
    ),
    Format(
        name="ncnn", argument="ncnn", suffix="_ncnn_model",
        module="ncnn_model", packages=("pnnx", "ncnn"), extra="ncnn",
        half=True, single=True,
    ),
    Format(
        name="ExecuTorch", argument="executorch", suffix=".pte",
        module="executorch_program", packages=("executorch.exir",), extra="executorch",
    ),
)  # fmt: skip

BY_ARGUMENT = {kind.argument: kind for kind in FORMATS}


def export_formats() -> "pd.DataFrame":
    """Returns v6.1's table of columns Format, Argument and Suffix, with the new formats after its own."""
    import pandas as pd

    rows = [("PyTorch", "-", ".pt"), *((f.name, f.argument, f.suffix) for f in FORMATS)]
    return pd.DataFrame(rows, columns=["Format", "Argument", "Suffix"])


# --- the formats of a run ---------------------------------------------------------------------------------------------


def choose_formats(
    include: Iterable[str], *, calibrated: bool = False, batch_size: int = 1, train: bool = False,
    half: bool = False, int8: bool = False, nms: bool = False, dynamic: bool = False,
) -> list[Format]:  # fmt: skip
    """Returns the formats that --include names, in the order in which they are written.

    include:    arguments of formats; `all` stands for those that can be written here.
    calibrated: whether the user gave --data, whose images calibrate integers.
    The others are the options of the same names. An option that some of the formats ignore is a warning.

    Raises ValueError for an unknown format, a format that cannot be written here, and an option that all of the formats
    ignore.
    """
    arguments = _known(include)
    reasons = {f.argument: f.obstacle(int8 and f.int8, train, batch_size, calibrated) for f in FORMATS}
    if "all" in arguments:
        for argument, reason in reasons.items():
            if reason:
                LOGGER.warning(f"--include all leaves out {argument}, which {reason}")
        arguments += [argument for argument, reason in reasons.items() if not reason]
    formats = [f for f in FORMATS if f.argument in arguments]
    for kind in formats:
        if reason := reasons[kind.argument]:
            raise ValueError(f"--include {kind.argument}: {kind.name} {reason}")
    for option, given in zip(OPTIONS, (half, int8, nms, dynamic)):
        ignoring = [f.argument for f in formats if not getattr(f, option)]
        if given and len(ignoring) == len(formats):
            raise ValueError(f"--{option} has no effect on {', '.join(ignoring)}; leave it out")
        if given and ignoring:
            LOGGER.warning(f"--{option} has no effect on {', '.join(ignoring)}")
    first = {"torchscript": 0, "engine": 1}  # as in v6.1
    return sorted(formats, key=lambda f: first.get(f.argument, 2))


def make_environments(include: Iterable[str]) -> None:
    """Makes the separate environments that the formats of --include need; ValueError where an installer fails."""
    arguments = _known(include)
    names = [name for f in FORMATS if {f.argument, "all"} & set(arguments) for name in f.environments]
    for name in dict.fromkeys(names):
        try:
            ENVIRONMENTS[name].make()
        except (RuntimeError, OSError) as error:
            raise ValueError(f"--make-env: {name} in {ENVIRONMENTS[name].folder}: {error}") from None


def _known(include: Iterable[str]) -> list[str]:
    arguments = [str(argument).lower() for argument in include]
    if unknown := [argument for argument in arguments if argument not in BY_ARGUMENT and argument != "all"]:
        raise ValueError(f"--include: unknown format {', '.join(unknown)}; known are all, {', '.join(BY_ARGUMENT)}")
    return arguments


# --- what the modules that write a format share -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """The suppression that `--nms` adds to the network, per image: at most topk_all boxes, topk_per_class of a class.

    conf_thres, iou_thres: 0-1, as options of these names.
    agnostic: whether boxes of different classes suppress each other.
    """

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    agnostic: bool = False
    topk_per_class: int = 100
    topk_all: int = 100


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of a run that the writers need, checked.

    metadata: stored in the file; its half, int8, dynamic and train say what to write.
    nms:      the suppression that the graph contains, or the file that is the source; None without.
    data:     the data set YAML for calibration; None where the user gave none.
    fixed_head: whether an ONNX file for one shape has sizes as constants; files that others are made from have not.
    float32:  names of the detector's modules that stay in float32: SOCA, and Detect but for its convolutions.
    The others are the options of the same names.
    """

    metadata: "Metadata"
    device: "torch.device | str" = "cpu"
    optimize: bool = False
    simplify: bool = False
    fixed_head: bool = True
    opset: int = 12
    verbose: bool = False
    workspace: int = 4
    nms: Suppression | None = None
    data: str | None = None
    float32: tuple[str, ...] = ()

    @property
    def half(self) -> bool:
        return self.metadata.half

    @property
    def int8(self) -> bool:
        return self.metadata.int8

    @property
    def dynamic(self) -> bool:
        return self.metadata.dynamic

    @property
    def train(self) -> bool:
        return self.metadata.train


def version(package: str) -> str:
    """Returns the name and the installed version of a package, such as `onnx 1.23.2`."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


@contextmanager
def toolchain(*packages: str) -> Iterator[None]:
    """Inside, an exception of these packages becomes an ExportError that names their versions.

    Their warnings, about deprecations and about what a trace may miss, are not shown: the file is verified afterwards.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ExportError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # each toolchain has its own types; the message keeps them
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
        raise ExportError(f"{' and '.join(map(version, packages))} failed: {type(error).__name__}: {reason}") from error
