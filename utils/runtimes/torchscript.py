"""TorchScript: a traced graph that torch runs without this project's code."""

import warnings
from pathlib import Path

import torch

from utils.runtimes.base import Metadata, Runtime, as_tuple, readable


class TorchScriptRuntime(Runtime):
    """A file `.torchscript`, on the CPU or a GPU."""

    program = "a TorchScript file"

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        import torchvision  # noqa: F401  its operators, which a graph with suppression calls

        extra = {"config.txt": ""}
        with readable(path, f"torch {torch.__version__}", RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch recommends to compile instead
            self.graph = torch.jit.load(str(self.file), map_location=self.device, _extra_files=extra).eval()
        self.declare(Metadata.from_json(extra["config.txt"], path))
        self.dtype = torch.float16 if self.metadata.half else torch.float32

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = as_tuple(self.graph(images))
        return outputs if self.metadata.nms or self.metadata.train else outputs[:1]  # v6.1 adds the raw maps
