"""TensorRT: an engine for the kind of GPU that it was built on."""

from pathlib import Path

import torch

from utils.runtimes.base import Metadata, Runtime


class TensorRTRuntime(Runtime):
    """A file `.engine`, by TensorRT 10 or later on a CUDA GPU. Images and outputs stay on the GPU."""

    program = "a TensorRT engine"
    packages = ("tensorrt",)
    gpu = True

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        import tensorrt

        if self.device.type != "cuda":
            raise ValueError(f"{path}: TensorRT engines run on a CUDA GPU; use --device 0")
        metadata, engine = split_engine(self.file)
        self.logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self.engine = tensorrt.Runtime(self.logger).deserialize_cuda_engine(engine)
        if self.engine is None:
            raise ValueError(
                f"{path}: TensorRT {tensorrt.__version__} cannot read it; an engine needs the version of TensorRT and "
                "the kind of GPU that it was built with: export it again on this machine"
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
        self.declare(metadata, tuple(self.engine.get_tensor_shape(self.input)))

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
    """Returns an engine's file: the length of the metadata in four bytes, little-endian; its JSON; the engine."""
    head = metadata.as_json().encode()
    return len(head).to_bytes(4, "little") + head + engine


def split_engine(path: Path) -> tuple[Metadata | None, bytes]:
    """Returns the parts that `join_engine` joined; a file of v6.1 is an engine alone, without metadata."""
    content = path.read_bytes()
    length = int.from_bytes(content[:4], "little")
    if content[4:5] == b"{" and length < len(content):
        return Metadata.from_json(content[4 : 4 + length], path), content[4 + length :]
    return None, content
