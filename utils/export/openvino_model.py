"""OpenVINO: a folder with a network as .xml and .bin, and its metadata."""

from pathlib import Path

import torch

from utils.export.formats import ExportOptions, toolchain
from utils.runtimes.base import write_metadata


def write(source: Path, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Converts an ONNX file in float32.

    half: weights are stored in float16, and the network computes in float32.
    int8: quantised by NNCF on the images of `--data`; SOCA stays in float32.
    """
    import openvino

    with toolchain("openvino"):
        model = openvino.Core().read_model(source)
    if options.int8:
        from utils.export.quantise import quantise_openvino

        model = quantise_openvino(model, options)
    target.mkdir()
    with toolchain("openvino"):
        openvino.save_model(model, target / f"{source.stem}.xml", compress_to_fp16=options.half)
    write_metadata(target, options.metadata)
    return target
