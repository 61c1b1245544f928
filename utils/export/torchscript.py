"""TorchScript: a traced graph that torch runs, in Python or C++, without this project's code."""

from pathlib import Path

import torch
from torch import nn

from utils.export.formats import ExportOptions, toolchain
from utils.export.graph import Decoded


def write(source: nn.Module, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Writes the trace, whose output is as v6.1's a tuple: decoded rows (B, N, 5 + nc), and a list of raw maps.

    It has v6.1's extra file config.txt: JSON with shape, stride, names and the other metadata.

    optimize: weights become constants, and what depends on them alone is computed once. The optimiser for phones that
        v6.1 called needs XNNPACK, which torch's packages no longer include.
    """
    with toolchain("torch"), torch.no_grad():
        if isinstance(source, Decoded) and not options.train:
            source = source.detector  # whose output is v6.1's: decoded rows, and the list of raw maps
        graph = torch.jit.trace(source, sample, strict=False)
        if options.optimize:
            graph = torch.jit.freeze(graph)
        config = options.metadata.as_json(shape=list(sample.shape))
        torch.jit.save(graph, str(target), _extra_files={"config.txt": config})
    return target
