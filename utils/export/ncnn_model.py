"""ncnn, by pnnx: a folder with a network as .ncnn.param and .ncnn.bin, and its metadata."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import nn

from utils.export.formats import ExportError, ExportOptions, toolchain, version
from utils.runtimes.base import write_metadata
from utils.runtimes.environments import last_error


def write(source: nn.Module, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Traces the network and has pnnx write it: input in0 (C, H, W), output out0 (N, 5 + nc).

    half: weights are stored in float16, and the network computes in float32.
    """
    graph = source.to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as folder:  # pnnx leaves files beside its input and in its working folder
        with toolchain("torch"), torch.no_grad():
            torch.jit.trace(graph, sample, strict=False).save(f"{folder}/model.pt")
        shape = ",".join(map(str, sample.shape))
        _run_pnnx(folder, f"inputshape=[{shape}]", f"fp16={int(options.half)}")
        target.mkdir()
        for suffix in (".ncnn.param", ".ncnn.bin"):
            made = Path(folder, f"model{suffix}")
            if not made.is_file():
                raise ExportError(f"{version('pnnx')} wrote no {made.name}")
            shutil.move(made, target / f"model{suffix}")
    write_metadata(target, options.metadata)
    return target


def _run_pnnx(folder: str, *arguments: str) -> None:
    import pnnx

    program = Path(pnnx.EXEC_PATH)
    done = subprocess.run(
        [str(program), "model.pt", *arguments], cwd=folder, capture_output=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise ExportError(
            f"{version('pnnx')} ended with status {done.returncode}: {last_error(done.stdout + done.stderr)}"
        )
