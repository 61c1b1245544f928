"""CoreML: an ML program for macOS and iOS."""

from pathlib import Path

import numpy as np
import torch

from utils.runtimes.base import Metadata, Runtime, readable


class CoreMLRuntime(Runtime):
    """A `.mlpackage`, or v6.1's `.mlmodel`, by CoreML on macOS: one image at a time, in whole numbers 0-255."""

    packages = ("coremltools",)
    systems = ("Darwin",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        import coremltools

        # its exceptions are of many types, which depend on what is wrong with the file
        with readable(path, f"coremltools {coremltools.__version__}", Exception):
            self.model = coremltools.models.MLModel(str(path))
        description = self.model.get_spec().description
        entry = description.input[0]
        self.input = entry.name
        self.takes_images = entry.type.WhichOneof("Type") == "imageType"  # else an array
        if self.takes_images:
            image = entry.type.imageType
            shape = (None, None, image.height, image.width)
        else:
            shape = (None, *tuple(entry.type.multiArrayType.shape)[1:])  # images are run one by one
        # v6.1's files return raw maps (1, na, ny, nx, 5 + nc) too, and do not state their shapes
        shapes = [tuple(output.type.multiArrayType.shape) for output in description.output]
        columns = next((shape[-1] for shape in shapes if len(shape) == 3), None)
        self.declare(Metadata.from_texts(dict(description.metadata.userDefined), path, shape), shape, columns)

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = []
        for image in images.cpu():
            value = _as_pil(image) if self.takes_images else image[None].numpy()
            outputs = self.model.predict({self.input: value}).values()
            rows += [torch.from_numpy(np.asarray(output)) for output in outputs if np.ndim(output) == 3]
        return (torch.cat(rows).float().to(self.device),)


def _as_pil(image: torch.Tensor):
    """Turns (C, H, W), 0-1, C 1 or 3, into an image of Pillow."""
    from PIL import Image

    values = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
