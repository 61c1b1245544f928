"""torch.export: a program `.pt2`, as torch's compilers take it."""

from pathlib import Path

import torch
from torch import nn

from utils.export.formats import ExportOptions, toolchain


def write(source: nn.Module, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Writes the exported program, with the extra file config.txt, as in TorchScript files.

    A dynamic one is traced with two images, since torch treats a batch of one as a constant.
    """
    shapes = None
    if options.dynamic:
        free = torch.export.Dim.DYNAMIC
        shapes = ({0: free, 2: free, 3: free},)
        sample = sample if len(sample) > 1 else torch.cat((sample, sample))
    with toolchain("torch"), torch.no_grad():
        program = torch.export.export(source, (sample,), dynamic_shapes=shapes)
        config = options.metadata.as_json(shape=list(sample.shape))
        torch.export.save(program, str(target), extra_files={"config.txt": config})
    return target
