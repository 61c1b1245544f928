"""ExecuTorch: a program for phones and boards (`.pte`), with the operators of XNNPACK."""

from pathlib import Path

import torch
from torch import nn

from utils.export.formats import ExportOptions, toolchain
from utils.runtimes.executorch_program import METADATA_METHOD


def write(source: nn.Module, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Lowers the exported program to XNNPACK. Its method `metadata` returns the metadata: JSON in UTF-8, uint8."""
    with toolchain("executorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        graph = source.to(memory_format=torch.contiguous_format)  # it takes no weights in channels-last order
        with torch.no_grad():
            program = torch.export.export(graph, (sample,))
        text = torch.frombuffer(bytearray(options.metadata.as_json().encode()), dtype=torch.uint8)
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_METHOD: text}
        )
        with target.open("wb") as file:
            lowered.to_executorch().write_to_file(file)
    return target
