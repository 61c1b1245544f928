"""TensorRT: an engine for the GPU that it is built on, by the interface of TensorRT 10 and 11.

Its calls were tested against a stand-in for TensorRT only.
"""

from pathlib import Path

import torch

from utils.export.formats import ExportError, ExportOptions, toolchain
from utils.runtimes.tensorrt_engine import join_engine


def write(source: Path, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Builds an engine from an ONNX file and writes it after its metadata.

    The network is strongly typed: each layer computes in the type that the ONNX graph states for it, so that a graph in
    float16 keeps SOCA in float32. A builder that chooses the types itself would not.

    dynamic: one profile, from one image of half the sides to the batch and size of the sample.
    """
    import tensorrt as trt

    with toolchain("tensorrt"):
        logger = trt.Logger(trt.Logger.VERBOSE if options.verbose else trt.Logger.WARNING)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(source.read_bytes()):
            faults = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise ExportError(f"tensorrt {trt.__version__} cannot read the ONNX graph: {faults}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 30)
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32, for SOCA above all
        if options.dynamic:
            config.add_optimization_profile(_profile(builder, network.get_input(0).name, sample, options))
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise ExportError(f"tensorrt {trt.__version__} built no engine; --verbose shows its log")
        target.write_bytes(join_engine(options.metadata, bytes(engine)))
    return target


def _profile(builder, name: str, sample: torch.Tensor, options: ExportOptions):
    B, C, H, W = sample.shape
    stride = options.metadata.stride
    smallest = (1, C, max(H // 2 // stride, 1) * stride, max(W // 2 // stride, 1) * stride)
    profile = builder.create_optimization_profile()
    profile.set_shape(name, smallest, (B, C, H, W), (B, C, H, W))
    return profile
