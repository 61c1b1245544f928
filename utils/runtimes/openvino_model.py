"""OpenVINO: a folder with a network as .xml and .bin."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils.files import below
from utils.runtimes.base import Runtime, folder_metadata, only_file, readable
from utils.runtimes.metadata import Metadata

if TYPE_CHECKING:
    import openvino

LABELS = ["model_info", "labels"]  # in the `rt_info` of a network, where OpenVINO's Model API has the class names


class OpenVINORuntime(Runtime):
    """A folder `*_openvino_model`, or the `.xml` in it, by OpenVINO on the CPU."""

    packages = ("openvino",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        import openvino

        file = only_file(self.path, ".xml")
        # float32 also where the processor has bfloat16, in which SOCA would lose its digits
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        with readable(path, f"OpenVINO {openvino.__version__}", RuntimeError):
            core = openvino.Core()
            model = core.read_model(file, below(file.parent, file.with_suffix(".bin").name))
            if len(model.inputs) != 1 or any(e.partial_shape.rank.is_dynamic for e in (*model.inputs, *model.outputs)):
                raise RuntimeError("it must take one input, images (B, C, H, W), and return rows")
            if len(model.inputs[0].partial_shape) != 4 or not model.outputs or not len(model.outputs[0].partial_shape):
                raise RuntimeError("it must take images (B, C, H, W), and return rows")
            shape = [None if d.is_dynamic else d.get_length() for d in model.inputs[0].partial_shape]
            last = model.outputs[0].partial_shape[-1]
            columns = None if last.is_dynamic else last.get_length()
            self.compiled = core.compile_model(model, "CPU", hints)
        self.declare(folder_metadata(file.parent) or _labels(model, path, shape), shape, columns)

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self.compiled(images.cpu().numpy())
        return tuple(torch.from_numpy(results[i].copy()).to(self.device) for i in range(len(results)))


def _labels(model: "openvino.Model", path: str | Path, shape: Sequence[int | None]) -> Metadata | None:
    """Returns the class names in a network, which other programs write there, by the schema; None where it has none.

    They are one text, with blanks between names and `_` for blanks in them. ValueError where they are not.
    """
    if not model.has_rt_info(LABELS):
        return None
    with readable(path, "OpenVINO", RuntimeError, TypeError):
        text = model.get_rt_info(LABELS).astype(str)
    return Metadata.checked({"names": text.split()}, path, shape)
