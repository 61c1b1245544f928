"""TensorFlow's formats. As in v6.1 their images are (B, H, W, C), and places are shares of the frame instead of pixels.

SavedModel, frozen graphs and TensorFlow.js run in another process, which has packages that contradict torch's.
"""

import json
import platform
import subprocess
import tempfile
import weakref
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from utils.files import ROOT
from utils.runtimes.base import (
    METADATA_FILE,
    Metadata,
    Runtime,
    first_line,
    folder_metadata,
    silence,
    undeclared,
)
from utils.runtimes.environments import TENSORFLOW, TFJS, Environment, last_words


def to_pixels(outputs: Sequence[np.ndarray], size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Outputs of which the first has places as shares of a frame (height, width): as tensors, with places in pixels."""
    height, width = size
    first = torch.tensor(outputs[0], dtype=torch.float32, device=device)
    first[..., :4] *= torch.tensor([width, height, width, height], device=device)
    return first, *(torch.tensor(output, device=device) for output in outputs[1:])


# --- LiteRT, formerly TensorFlow Lite ---------------------------------------------------------------------------------


class LiteRTRuntime(Runtime):
    """`.tflite` in float32, with weights in float16, or in 8-bit integers; its metadata in a ZIP archive at its end."""

    packages = ("ai_edge_litert",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        from ai_edge_litert.interpreter import Interpreter

        try:
            with silence():
                self.interpreter = Interpreter(
                    str(path), num_threads=torch.get_num_threads(), experimental_delegates=self.delegates()
                )
                self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: LiteRT cannot read it: {first_line(error)}") from None
        (self.input,) = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()
        B, H, W, C = (int(side) for side in self.input["shape"])
        columns = int(self.outputs[0]["shape"][-1])
        self.declare(appended_metadata(self.path), undeclared((B, C, H, W), columns))

    def delegates(self) -> list | None:
        """What computes instead of the processor."""
        return None

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.interpreter.set_tensor(self.input["index"], quantised(values, self.input))
        self.interpreter.invoke()
        outputs = [dequantised(self.interpreter.get_tensor(entry["index"]), entry) for entry in self.outputs]
        return to_pixels(outputs, images.shape[2:], self.device)


def quantised(values: np.ndarray, entry: dict) -> np.ndarray:
    """Real numbers as the tensor that a LiteRT entry describes has them."""
    if entry["dtype"] == np.float32:
        return values
    scale, zero = entry["quantization"]
    limits = np.iinfo(entry["dtype"])
    return np.clip(np.rint(values / scale + zero), limits.min, limits.max).astype(entry["dtype"])


def dequantised(values: np.ndarray, entry: dict) -> np.ndarray:
    """The real numbers that a tensor of a LiteRT entry stands for."""
    scale, zero = entry["quantization"]
    return values if entry["dtype"] == np.float32 or not scale else (values.astype(np.float32) - zero) * scale


def append_metadata(path: Path, metadata: Metadata) -> None:
    """Puts metadata behind a file whose own readers stop at the end of what is theirs, as LiteRT files have them."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA_FILE, metadata.as_json())


def appended_metadata(path: Path) -> Metadata | None:
    """What `append_metadata` wrote."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if METADATA_FILE not in archive.namelist():
            return None
        return Metadata.from_json(archive.read(METADATA_FILE).decode(), path)


class EdgeTPURuntime(LiteRTRuntime):
    """`_edgetpu.tflite`, on a Coral Edge TPU."""

    @classmethod
    def obstacle(cls) -> str | None:
        return super().obstacle() or (None if _edge_tpu() else "runs on a Coral Edge TPU, none of which is found here")

    def delegates(self) -> list | None:
        return [_edge_tpu()]


EDGE_TPU = {"Linux": "libedgetpu.so.1", "Darwin": "libedgetpu.1.dylib", "Windows": "edgetpu.dll"}  # its library


@lru_cache
def _edge_tpu():
    """The delegate that has an Edge TPU compute, None where there is none."""
    from ai_edge_litert.interpreter import load_delegate

    try:
        return load_delegate(EDGE_TPU.get(platform.system(), "libedgetpu"))
    except (OSError, ValueError):
        return None


# --- in another process -----------------------------------------------------------------------------------------------


class ServedRuntime(Runtime):
    """A model that another process runs, which speaks as utils/runtimes/tensorflow_server.py says."""

    environment: Environment

    @classmethod
    def obstacle(cls) -> str | None:
        return cls.environment.obstacle()

    def arguments(self) -> list[str]:
        """Of the program: its script, and the model."""
        return [str(ROOT / "utils/runtimes/tensorflow_server.py"), str(self.path)]

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        command = self.environment.command()
        if command is None:
            raise ValueError(f"{path}: running it {self.environment.obstacle()}")
        self.said = tempfile.TemporaryFile()
        threads = {"TF_NUM_INTRAOP_THREADS": str(torch.get_num_threads())}
        self.child = subprocess.Popen(
            [*command, *self.arguments()], env={**self.environment.variables(), **threads},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said,
        )  # fmt: skip
        self.end = weakref.finalize(self, _end, self.child)
        head = self._answer("cannot be read")
        B, H, W, C = head["shape"]
        self.declare(
            folder_metadata(self.path) if self.path.is_dir() else Metadata.from_json(head["metadata"], path),
            undeclared((B, C, H, W), head["columns"]),
        )

    def _answer(self, fault: str) -> dict:
        """A line of JSON of the child; ValueError, with what it said last, where there is none."""
        if line := self.child.stdout.readline():
            return json.loads(line)
        self.end()
        self.said.seek(0)
        reason = last_words(self.said.read().decode(errors="replace"))
        raise ValueError(f"{self.path} {fault} by {' and '.join(self.environment.packages)}: {reason}")

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        fault = f"cannot be run on images {tuple(images.shape)}"
        try:
            self.child.stdin.write(json.dumps({"shape": values.shape}).encode() + b"\n" + values.tobytes())
            self.child.stdin.flush()
        except BrokenPipeError:
            self._answer(fault)
        shapes = self._answer(fault)["shapes"]
        outputs = [
            np.frombuffer(self.child.stdout.read(4 * int(np.prod(shape))), np.float32).reshape(shape)
            for shape in shapes
        ]
        return to_pixels(outputs, images.shape[2:], self.device)


def _end(child: subprocess.Popen) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        try:
            pipe.close()
        except BrokenPipeError:  # what was not sent
            pass


class TensorFlowRuntime(ServedRuntime):
    """A folder `*_saved_model`, or a frozen graph `.pb`, by TensorFlow on the CPU."""

    environment = TENSORFLOW


class WebModelRuntime(ServedRuntime):
    """A folder `*_web_model`, by TensorFlow.js in Node: its own arithmetic in JavaScript, which is slow."""

    environment = TFJS

    def arguments(self) -> list[str]:
        script = ROOT / "utils/runtimes/tfjs_server.mjs"
        return [str(script), str(self.path), str(self.environment.folder / "node_modules")]
