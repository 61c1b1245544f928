"""Edge TPU: a LiteRT file in integers, compiled by Google's edgetpu_compiler for Coral devices."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from utils.export.formats import ExportError, ExportOptions
from utils.runtimes.environments import last_error
from utils.runtimes.litert_model import append_metadata

COMPILER = "edgetpu_compiler"
CUSTOM_OPERATION = b"edgetpu-custom-op"  # one, for everything that the compiler put on the Edge TPU


def write(source: Path, sample: torch.Tensor, target: Path, options: ExportOptions) -> Path:
    """Compiles the operations that the Edge TPU can run; the others, such as SOCA in float32, stay on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        # -a: also where some operations cannot be compiled
        command = [COMPILER, "-s", "-d", "-a", "-o", folder, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        made = list(Path(folder).glob("*_edgetpu.tflite"))
        if done.returncode or not made:
            reason = last_error(done.stdout + done.stderr)
            raise ExportError(f"{COMPILER} ended with status {done.returncode}: {reason}")
        shutil.copyfile(made[0], target)
    append_metadata(target, options.metadata)
    return target


def inspect(path: Path, options: ExportOptions) -> None:
    """Raises ExportError where no operation of the file runs on the Edge TPU."""
    if CUSTOM_OPERATION not in path.read_bytes():
        raise ExportError(f"{path}: {COMPILER} left all operations on the CPU")
