"""ONNX, by torch's exporter that is based on TorchScript.

It writes every opset from 11 to 20 and takes a second. The one based on torch.export writes opset 18 or later, takes a
minute, and its graph runs no faster (benchmarks/README.md).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.cli import installed
from utils.export.formats import ExportError, ExportOptions, toolchain
from utils.export.graph import Decoded, EndToEnd, fix_shape
from utils.export.onnx_nms import append_nms
from utils.log import LOGGER

if TYPE_CHECKING:
    import onnx

OUTPUTS = "boxes", "scores", "classes"  # of a graph with suppression


def write(source: nn.Module, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Writes and checks the file: input `images`; output `output`, or with suppression boxes, scores and classes.

    A training graph has one output per level, `output` first. The metadata is in metadata_props, as JSON texts.
    """
    import onnx

    decoded = source.decoded if isinstance(source, EndToEnd) else source
    assert isinstance(decoded, Decoded)
    levels = len(decoded.detector.model[-1].m) if options.train else 1
    names = ["output", *(f"output{i}" for i in range(1, levels))]
    with toolchain("torch", "onnx"):
        if options.fixed_head and not (options.dynamic or options.train):
            fix_shape(decoded, sample)
        _trace(decoded, sample, target, names, options)
        model = onnx.load(str(target))
        if options.nms:
            model = append_nms(model, len(options.metadata.names) + 5, options.nms, OUTPUTS)
        if options.simplify and not installed("onnxslim"):
            LOGGER.warning("ONNX: not simplified, since onnxslim is not installed; old OpenCV may not read the file")
        elif options.simplify:
            model = simplified(model)
        for key, value in options.metadata.as_texts().items():
            model.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(target))
    return target


def _trace(decoded: nn.Module, sample: torch.Tensor, target: Path, names: list[str], options: ExportOptions) -> None:
    axes = {}
    if options.dynamic:
        axes = {"images": {0: "batch", 2: "height", 3: "width"}}
        maps = {0: "batch", 2: "rows", 3: "columns"}
        axes |= {name: maps if options.train else {0: "batch", 1: "anchors"} for name in names}
    mode = torch.onnx.TrainingMode.TRAINING if options.train else torch.onnx.TrainingMode.EVAL
    with torch.no_grad():
        torch.onnx.export(
            decoded, (sample,), str(target), input_names=["images"], output_names=names, dynamic_axes=axes,
            opset_version=options.opset, training=mode, do_constant_folding=not options.train, dynamo=False,
        )  # fmt: skip


def simplified(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Returns the model after simplification by onnxslim."""
    import onnxslim

    before = len(model.graph.node)
    # an Unsqueeze of two dimensions, into which it would join those of one each, is one that OpenCV 4 does not read
    slim = onnxslim.slim(model, skip_fusion_patterns=["EliminationUnsqueeze"])
    if slim is None:
        raise ExportError(f"onnxslim {onnxslim.__version__} returned no model")
    LOGGER.info(f"onnxslim {onnxslim.__version__}: {before} nodes became {len(slim.graph.node)}")
    return slim
