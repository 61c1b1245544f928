"""LiteRT, formerly TensorFlow Lite: litert-torch converts the network, ai-edge-quantizer quantises it.

litert-torch pins packages, so it runs in a separate environment: `python -m utils.export.litert_model GRAPH TARGET`.
"""

import re
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from utils.checkpoint import load_own
from utils.export.formats import ExportOptions, toolchain
from utils.export.graph import ChannelsLast, delicate_modules
from utils.export.images import calibration_images
from utils.runtimes.base import silence
from utils.runtimes.environments import LITERT
from utils.runtimes.litert_model import append_metadata

SIGNATURE, INPUT = "serving_default", "args_0"  # litert-torch's names


def write(source: nn.Module, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Writes the network, as v6.1 did, with images (B, H, W, C) and rows whose x, y, w, h are fractions of the frame.

    half: weights of convolutions are stored in float16, and the network computes in float32, as in v6.1.
    int8: weights and activations are integers, calibrated on the images of `--data`, but for `float32_patterns`.
    """
    # litert-torch reads weights in channels-last order as if they were contiguous, and writes garbage
    graph = ChannelsLast(source).to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.pt")
        torch.save((graph, sample.permute(0, 2, 3, 1).contiguous()), path)
        with toolchain("litert-torch"):
            LITERT.call("-m", __name__, path, target)
    if options.int8 or options.half:
        target.write_bytes(quantise(target.read_bytes(), options, float32_patterns(source)))
    append_metadata(target, options.metadata)
    return target


def float32_patterns(detector: nn.Module) -> list[str]:
    """Returns patterns of the names of operations that stay in float32; the names contain the modules they are in.

    They are those in modules whose classes say so (`delicate_modules`), except convolutions in Detect, which are
    modules themselves, and what follows the detector.
    """
    kinds = {type(detector.get_submodule(name)).__name__ for name in delicate_modules(detector)}
    parts = [rf"\.{re.escape(kind)}_" + ("[^/;]*;" if kind == "Detect" else "") for kind in sorted(kinds)]
    return [*parts, r"\.ChannelsLast;", SIGNATURE]


def quantise(model: bytes, options: ExportOptions, float32: list[str]) -> bytes:
    """Returns a float32 model with its convolutions in 8-bit integers, or with their weights in float16.

    float32: patterns of the names of operations that stay as they are, where the others become integers.
    """
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.recipe import AlgorithmName, TFLOperationName

    everything = TFLOperationName.ALL_SUPPORTED
    with toolchain("ai-edge-quantizer", "ai-edge-litert"), silence():
        work = quantizer.Quantizer(model)
        calibration = None
        if options.int8:
            work.add_static_config(".*", everything, activation_num_bits=8, weight_num_bits=8)
            for names in float32:
                work.update_quantization_recipe(names, everything, algorithm_key=AlgorithmName.NO_QUANTIZE)
            images = calibration_images(options.metadata, options.data)
            samples = [{INPUT: image.permute(0, 2, 3, 1).contiguous().numpy()} for image in images]
            calibration = work.calibrate({SIGNATURE: samples}, num_threads=torch.get_num_threads())
        else:
            half = qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(16, dtype=qtyping.TensorDataType.FLOAT),
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            )
            work.update_quantization_recipe(".*", TFLOperationName.CONV_2D, half, AlgorithmName.FLOAT_CASTING)
        return bytes(
            work.quantize(calibration, enable_progress_bar=False, enable_progress_report=False).quantized_model
        )


def _convert(graph: str, target: str) -> None:
    """Converts a saved graph; this runs in the separate environment."""
    import litert_torch

    module, images = load_own(graph)
    litert_torch.convert(module, (images,)).export(target)


if __name__ == "__main__":
    _convert(*sys.argv[1:])
