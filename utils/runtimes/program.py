"""torch.export: a program `.pt2`, as torch's compilers take it."""

import zipfile
from pathlib import Path

import torch

from utils.runtimes.base import Metadata, Runtime, as_tuple, readable


class ProgramRuntime(Runtime):
    """A file `.pt2`, on the CPU or a GPU."""

    program = "a .pt2 file"

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        import torchvision  # noqa: F401  its operators, which a graph with suppression calls

        extra = {"config.txt": ""}
        with readable(path, f"torch {torch.__version__}", RuntimeError, ValueError, KeyError, zipfile.BadZipFile):
            program = torch.export.load(str(self.file), extra_files=extra)
        if self.device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        self.graph = program.module()
        self.declare(Metadata.from_json(extra["config.txt"], path))
        self.dtype = torch.float16 if self.metadata.half else torch.float32

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return as_tuple(self.graph(images))
