"""OpenVINO: a folder with the network as .xml and .bin, and its metadata."""

from pathlib import Path

import torch

from utils.export.formats import Options, toolchain
from utils.runtimes.base import METADATA_FILE


def write(source: Path, sample: torch.Tensor, target: Path, options: Options) -> Path:
    """Converts an ONNX file in float32.

    half: weights are stored in float16, and computed with in float32.
    int8: quantised by NNCF on the images of `--data`, SOCA left in float32.
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
    (target / METADATA_FILE).write_text(options.metadata.as_json(), encoding="utf-8")
    return target
