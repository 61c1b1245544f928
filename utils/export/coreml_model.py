"""CoreML: an ML program (`.mlpackage`) for macOS and iOS. Other systems can write and inspect it, but not run it."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.export.formats import ExportError, ExportOptions, toolchain
from utils.runtimes.base import Metadata, silence

if TYPE_CHECKING:
    import coremltools as ct

INPUT, OUTPUT = "image", "output"  # the input is named as in v6.1, whose outputs had no names
IN_FLOAT32 = 1  # marks operations that stay in float32, as coremltools' debug handle
FLOAT16, FLOAT32 = 10, 11  # types in ML programs


def write(source: nn.Module, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Writes the network: from `image`, RGB or grey, 0-255, to `output`, decoded rows (1, N, 5 + nc) in float32.

    For other numbers of channels `image` is an array (1, C, H, W), 0-1.

    half: operations are in float16, except SOCA and the decoding in Detect.
    int8: weights of convolutions are in 8 bits, except SOCA's. Activations are not: CoreML calibrates on macOS only.
    """
    with toolchain("coremltools"), _quietly():
        import coremltools as ct

        graph = source.to(memory_format=torch.contiguous_format)
        with torch.no_grad():
            program = torch.export.export(graph, (sample,)).run_decompositions({})
        _mark(program, options.float32)
        precision = ct.precision.FLOAT32
        if options.half:
            precision = ct.transform.FP16ComputePrecision(op_selector=lambda op: not _is_marked(op))
        model = ct.convert(
            program, convert_to="mlprogram", compute_precision=precision, inputs=[_input(tuple(sample.shape))],
            outputs=[ct.TensorType(name=OUTPUT)], skip_model_load=True,
            minimum_deployment_target=ct.target.iOS16 if options.int8 else ct.target.iOS15,
        )  # fmt: skip
        if options.int8:
            model = _quantise_weights(model, options)
        model.user_defined_metadata.update(options.metadata.as_texts())
        model.save(str(target))
    return target


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside, coremltools shows no progress bars, and no warnings about packages newer than those it knows."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with silence(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _input(shape: tuple[int, ...]) -> "ct.ImageType | ct.TensorType":
    import coremltools as ct

    layouts = {3: ct.colorlayout.RGB, 1: ct.colorlayout.GRAYSCALE}
    if shape[1] not in layouts:
        return ct.TensorType(name=INPUT, shape=shape)
    return ct.ImageType(name=INPUT, shape=shape, scale=1 / 255, color_layout=layouts[shape[1]])


def _mark(program: torch.export.ExportedProgram, float32: tuple[str, ...]) -> None:
    """Marks the operations of these modules of the detector, except convolutions of Detect."""
    for node in program.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())  # (path, class), the innermost last
        inside = any(path == f"detector.{name}" for path, _ in stack for name in float32)
        convolution = stack and stack[-1][1].endswith(".Conv2d") and any(c.endswith(".Detect") for _, c in stack)
        node.meta["debug_handle"] = IN_FLOAT32 if inside and not convolution else 0


def _is_marked(op) -> bool:
    from coremltools.converters.mil.mil.scope import ScopeSource

    return IN_FLOAT32 in (op.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE) or ())


def _quantise_weights(model: "ct.models.MLModel", options: ExportOptions) -> "ct.models.MLModel":
    import coremltools.optimize.coreml as cto

    names = "|".join(re.escape(name.replace(".", "_")) for name in options.float32)
    delicate = re.compile(rf"detector_(?:{names})_(?!m_\d)")  # Detect's convolutions are its m.0, m.1 ...
    weights = cto.get_weights_metadata(model, weight_threshold=0)
    excluded = {name: None for name in weights if delicate.search(name)}
    config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=64)
    return cto.linear_quantize_weights(
        model, cto.OptimizationConfig(op_type_configs={"conv": config}, op_name_configs=excluded)
    )


def inspect(path: Path, options: ExportOptions) -> None:
    """Checks a file without running it; ExportError where it is not what it should be.

    Checked are input, output and metadata; with half that matrix products, which are all SOCA's, are in float32 and
    most convolutions in float16; with int8 that weights are in 8 bits.
    """
    with toolchain("coremltools"), _quietly():
        import coremltools as ct

        spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    metadata = Metadata.from_texts(dict(spec.description.metadata.userDefined), path)
    if metadata != options.metadata:
        raise ExportError(f"{path} states {metadata}, which should be {options.metadata}")
    _inspect_ends(path, spec.description, options.metadata)
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    types: dict[str, list[int]] = {}
    for op in block.operations:
        types.setdefault(op.type, []).append(op.outputs[0].type.tensorType.dataType)
    if set(types.get("matmul", [])) - {FLOAT32}:
        raise ExportError(f"{path}: SOCA's matrix products are not in float32")
    convolutions, in_float16 = len(types["conv"]), types["conv"].count(FLOAT16)
    if options.half and in_float16 < convolutions / 2:
        raise ExportError(f"{path}: only {in_float16} of {convolutions} convolutions are in float16")
    in_8_bits = [op.outputs[0].name for op in block.operations if op.type.startswith("constexpr_")]
    if options.int8 and not in_8_bits:
        raise ExportError(f"{path}: no weights are in 8 bits")


def _inspect_ends(path: Path, description, metadata: Metadata) -> None:
    (entry,), (output,) = description.input, description.output
    H, W = metadata.imgsz
    if metadata.channels in (1, 3):
        image = entry.type.imageType
        kind = {1: image.GRAYSCALE, 3: image.RGB}[metadata.channels]
        right = (image.height, image.width, image.colorSpace) == (H, W, kind)
    else:
        right = list(entry.type.multiArrayType.shape) == [1, metadata.channels, H, W]
    if entry.name != INPUT or not right:
        raise ExportError(f"{path}: its input should be {INPUT}, {H} x {W} with {metadata.channels} channels: {entry}")
    shape = list(output.type.multiArrayType.shape)
    if output.name != OUTPUT or len(shape) != 3 or shape[0] != 1 or shape[2] != 5 + len(metadata.names):
        raise ExportError(f"{path}: its output should be {OUTPUT}, rows of {5 + len(metadata.names)} numbers: {output}")
