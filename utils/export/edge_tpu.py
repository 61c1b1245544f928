"""Edge TPU: an integer LiteRT file, compiled by Google's edgetpu_compiler for Coral devices."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from utils.export.formats import ExportError, Options
from utils.runtimes.tensorflow_runtimes import append_metadata

COMPILER = "edgetpu_compiler"
CUSTOM_OPERATION = b"edgetpu-custom-op"  # which stands for all that the compiler took


def write(source: Path, sample: torch.Tensor, target: Path, options: Options) -> Path:
    """Compiles what the Edge TPU can take of the file; the rest, such as SOCA in float32, stays with the processor."""
    with tempfile.TemporaryDirectory() as folder:
        command = [COMPILER, "-s", "-d", "-a", "-o", folder, str(source)]  # -a: also where a part cannot be taken
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        made = list(Path(folder).glob("*_edgetpu.tflite"))
        if done.returncode or not made:
            lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
            raise ExportError(f"{COMPILER} failed with status {done.returncode}: {lines[-1]}")
        shutil.copyfile(made[0], target)
    append_metadata(target, options.metadata)
    return target


def inspect(path: Path, options: Options) -> None:
    """ExportError where nothing in the file is for the Edge TPU."""
    if CUSTOM_OPERATION not in path.read_bytes():
        raise ExportError(f"{path}: {COMPILER} left everything to the processor")
