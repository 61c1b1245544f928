"""ExecuTorch: a program for phones and boards."""

from pathlib import Path

import torch

from utils.runtimes.base import Metadata, Runtime, as_tuple, readable, silence

METADATA_METHOD = "metadata"  # of a program: it returns what the file states about itself


class ExecuTorchRuntime(Runtime):
    """A file `.pte`, by ExecuTorch's runtime on the CPU."""

    program = "a .pte file"
    packages = ("executorch.runtime",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        from executorch.runtime import Runtime as Loader

        with readable(path, "ExecuTorch", RuntimeError, ValueError), silence():
            self.program = Loader.get().load_program(str(self.file))
            self.method = self.program.load_method("forward")
        entry = self.method.metadata.input_tensor_meta(0)
        output = self.method.metadata.output_tensor_meta(0)
        metadata = None
        if METADATA_METHOD in self.program.method_names:
            (text,) = self.program.load_method(METADATA_METHOD).execute([])
            metadata = Metadata.from_json(text.to(torch.uint8).numpy().tobytes(), path)
        self.declare(metadata, tuple(entry.sizes()), tuple(output.sizes())[-1])

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.method.execute([images.contiguous().cpu()])
        return tuple(output.clone().to(self.device) for output in as_tuple(outputs))  # the next run reuses its memory
