"""LiteRT, formerly TensorFlow Lite: a file for phones and boards, also compiled for an Edge TPU.

As in v6.1 images are (B, H, W, C), and boxes are in fractions of the frame instead of pixels.
"""

import platform
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.runtimes.base import Runtime, readable, silence, to_pixels
from utils.runtimes.metadata import METADATA_FILE, TEXT_LENGTH, Metadata

LATER_FILES = ("temp_meta.txt", "meta.txt")  # of YOLOv5 v7.0: a Python mapping of names and stride
ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


class LiteRTRuntime(Runtime):
    """A file `.tflite`, by LiteRT on the CPU: in float32, with weights in float16, or in 8-bit integers."""

    packages = ("ai_edge_litert",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        from ai_edge_litert.interpreter import Interpreter

        with readable(path, "LiteRT", ValueError, RuntimeError), silence():
            self.interpreter = Interpreter(
                str(path), num_threads=torch.get_num_threads(), experimental_delegates=self.delegates()
            )
            self.interpreter.allocate_tensors()
        (self.input,) = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()
        B, H, W, C = (int(side) for side in self.input["shape"])
        columns = int(self.outputs[0]["shape"][-1])
        self.declare(appended_metadata(self.path), (B, C, H, W), columns)

    def delegates(self) -> list | None:
        """Returns the delegates that compute instead of the CPU; None for none."""
        return None

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.interpreter.set_tensor(self.input["index"], quantised(values, self.input))
        self.interpreter.invoke()
        outputs = [dequantised(self.interpreter.get_tensor(entry["index"]), entry) for entry in self.outputs]
        return to_pixels(outputs, images.shape[2:], self.device)


def quantised(values: np.ndarray, entry: dict) -> np.ndarray:
    """Returns real numbers in the type of the tensor that a LiteRT entry describes."""
    if entry["dtype"] == np.float32:
        return values
    scale, zero = entry["quantization"]
    limits = np.iinfo(entry["dtype"])
    return np.clip(np.rint(values / scale + zero), limits.min, limits.max).astype(entry["dtype"])


def dequantised(values: np.ndarray, entry: dict) -> np.ndarray:
    """Returns the real numbers that a tensor of a LiteRT entry stands for."""
    scale, zero = entry["quantization"]
    return values if entry["dtype"] == np.float32 or not scale else (values.astype(np.float32) - zero) * scale


def append_metadata(path: Path, metadata: Metadata) -> None:
    """Appends metadata to a LiteRT file as a ZIP archive, which programs that read the network ignore."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA_FILE, metadata.as_json())


def appended_metadata(path: Path) -> Metadata | None:
    """Reads what `append_metadata` or YOLOv5 v7.0 wrote; None where there is none."""
    if not zipfile.is_zipfile(path):
        return None
    with readable(path, "the archive at its end", *ZIP_FAULTS), zipfile.ZipFile(path) as archive:
        name = next((name for name in (METADATA_FILE, *LATER_FILES) if name in archive.namelist()), None)
        if name is None:
            return None
        with archive.open(name) as file:
            text = file.read(TEXT_LENGTH + 1)  # a few bytes can stand for any number
    return Metadata.from_json(text, path)


class EdgeTPURuntime(LiteRTRuntime):
    """A file `*_edgetpu.tflite`, on a Coral Edge TPU."""

    @classmethod
    def obstacle(cls) -> str | None:
        return super().obstacle() or (None if _edge_tpu() else "runs on a Coral Edge TPU, and none is found here")

    def delegates(self) -> list | None:
        return [_edge_tpu()]


EDGE_TPU = {"Linux": "libedgetpu.so.1", "Darwin": "libedgetpu.1.dylib", "Windows": "edgetpu.dll"}  # its library


@lru_cache
def _edge_tpu() -> Any:
    """Returns the delegate that computes on an Edge TPU; None where there is no Edge TPU."""
    from ai_edge_litert.interpreter import load_delegate

    try:
        return load_delegate(EDGE_TPU.get(platform.system(), "libedgetpu"))
    except (OSError, ValueError):
        return None
