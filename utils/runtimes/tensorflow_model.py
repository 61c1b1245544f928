"""TensorFlow's SavedModel and frozen graphs, in another process: its packages contradict torch's.

As in v6.1 images are (B, H, W, C), and boxes are in fractions of the frame instead of pixels.
"""

import contextlib
import json
import subprocess
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch

from utils.files import ROOT
from utils.runtimes.base import Metadata, Runtime, folder_metadata, to_pixels
from utils.runtimes.environments import TENSORFLOW, Environment, last_error


class ServedRuntime(Runtime):
    """A model that another process runs, by the protocol that utils/runtimes/tensorflow_server.py describes."""

    environment: Environment
    server = "utils/runtimes/tensorflow_server.py"

    @classmethod
    def obstacle(cls) -> str | None:
        return cls.environment.obstacle()

    def arguments(self) -> list[str]:
        """Returns what the program of the environment is called with: the server's script, and the model."""
        return [str(ROOT / self.server), str(self.file)]

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        command = self.environment.command()
        if command is None:
            raise ValueError(f"{path}: running it {self.environment.obstacle()}")
        self.log = tempfile.TemporaryFile()
        threads = {"TF_NUM_INTRAOP_THREADS": str(torch.get_num_threads())}
        self.child = subprocess.Popen(
            [*command, *self.arguments()], env={**self.environment.variables(), **threads},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        self.end = weakref.finalize(self, _end, self.child)
        head = self._answer("cannot be read")
        B, H, W, C = head["shape"]
        self.declare(
            folder_metadata(self.file) if self.file.is_dir() else Metadata.from_json(head["metadata"], path),
            (B, C, H, W),
            head["columns"],
        )

    def _answer(self, fault: str) -> dict:
        """Reads a line of JSON from the process; ValueError, with its last error, where it has ended."""
        if line := self.child.stdout.readline():
            return json.loads(line)
        with contextlib.suppress(subprocess.TimeoutExpired):  # its pipe may be closed before its last error is written
            self.child.wait(10)
        self.end()
        self.log.seek(0)
        reason = last_error(self.log.read().decode(errors="replace"))
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
        except BrokenPipeError:  # some bytes were not sent
            pass


class TensorFlowRuntime(ServedRuntime):
    """A folder `*_saved_model`, or a frozen graph `.pb`, by TensorFlow on the CPU."""

    program = "a SavedModel or a GraphDef"
    environment = TENSORFLOW
