"""Exported detectors of toolchains for phones and boards, run on a computer: ncnn, ExecuTorch, CoreML."""

from pathlib import Path

import numpy as np
import torch

from utils.runtimes.base import (
    Metadata,
    Runtime,
    as_tuple,
    first_line,
    folder_metadata,
    only_file,
    silence,
    undeclared,
)

# --- ncnn -------------------------------------------------------------------------------------------------------------

NCNN_MAGIC = "7767517"  # first line of a .param


class NCNNRuntime(Runtime):
    """A folder `*_ncnn_model`, by ncnn on the CPU: one image at a time."""

    packages = ("ncnn",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import ncnn

        self.ncnn = ncnn
        param = only_file(self.path, ".ncnn.param")
        weights = param.with_suffix(".bin")
        # ncnn ends the process over some files that are not its own
        if param.open("rb").readline().strip() != NCNN_MAGIC.encode() or not weights.is_file():
            raise ValueError(f"{path}: ncnn {ncnn.__version__} cannot read it: {param.name} is no network of ncnn")
        self.net = ncnn.Net()
        # float32 all through, also where weights are stored in float16: SOCA would lose its digits
        for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
            setattr(self.net.opt, f"use_{option}", False)
        self.net.opt.num_threads = torch.get_num_threads()
        with silence():
            failed = self.net.load_param(str(param)) or self.net.load_model(str(weights))
        if failed:
            raise ValueError(
                f"{path}: ncnn {ncnn.__version__} cannot read it: {param.name} or {weights.name} is damaged"
            )
        self.declare(folder_metadata(param.parent), undeclared((1, None, None, None)))

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = []
        for image in images.contiguous().cpu().numpy():
            with self.net.create_extractor() as extractor:
                extractor.input(self.net.input_names()[0], self.ncnn.Mat(image).clone())
                failed, output = extractor.extract(self.net.output_names()[0])
                if failed:
                    raise ValueError(f"{self.path}: ncnn could not run it on an image {tuple(image.shape)}")
                rows.append(torch.from_numpy(np.array(output)))
        return (torch.stack(rows).reshape(len(images), -1, rows[0].shape[-1]).to(self.device),)


# --- ExecuTorch -------------------------------------------------------------------------------------------------------

METADATA_METHOD = "metadata"  # of a program, which gives what it says about itself


class ExecuTorchRuntime(Runtime):
    """`.pte`, by ExecuTorch's runtime on the CPU."""

    packages = ("executorch.runtime",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        from executorch.runtime import Runtime as Loader

        try:
            with silence():
                self.program = Loader.get().load_program(str(path))
                self.method = self.program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: ExecuTorch cannot read it: {first_line(error)}") from None
        entry = self.method.metadata.input_tensor_meta(0)
        output = self.method.metadata.output_tensor_meta(0)
        metadata = None
        if METADATA_METHOD in self.program.method_names:
            (text,) = self.program.load_method(METADATA_METHOD).execute([])
            metadata = Metadata.from_json(bytes(text.tolist()).decode(), path)
        self.declare(metadata, undeclared(tuple(entry.sizes()), tuple(output.sizes())[-1]))

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.method.execute([images.contiguous().cpu()])
        return tuple(output.clone().to(self.device) for output in as_tuple(outputs))  # its memory is used again


# --- CoreML -----------------------------------------------------------------------------------------------------------


class CoreMLRuntime(Runtime):
    """`.mlpackage`, and v6.1's `.mlmodel`, by CoreML on macOS: one picture at a time, in whole numbers 0-255."""

    packages = ("coremltools",)
    systems = ("Darwin",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import coremltools

        try:
            self.model = coremltools.models.MLModel(str(path))
        except Exception as error:  # of many kinds, by what is wrong with the file
            version = coremltools.__version__
            raise ValueError(f"{path}: coremltools {version} cannot read it: {first_line(error)}") from None
        description = self.model.get_spec().description
        entry = description.input[0]
        # v6.1's files give raw maps (1, na, ny, nx, 5 + nc) besides, and do not say which shapes they have
        self.input = entry.name
        self.pictures = entry.type.WhichOneof("Type") == "imageType"
        if self.pictures:
            image = entry.type.imageType
            shape = (1, None, image.height, image.width)
        else:
            shape = tuple(entry.type.multiArrayType.shape)
        shapes = [tuple(output.type.multiArrayType.shape) for output in description.output]
        columns = next((shape[-1] for shape in shapes if len(shape) == 3), None)
        metadata = Metadata.from_texts(dict(description.metadata.userDefined), path)
        self.declare(metadata, undeclared(shape, columns))

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = []
        for image in images.cpu():
            value = image[None].numpy() if not self.pictures else _as_picture(image)
            outputs = self.model.predict({self.input: value}).values()
            rows += [torch.from_numpy(np.asarray(output)) for output in outputs if np.ndim(output) == 3]
        return (torch.cat(rows).float().to(self.device),)


def _as_picture(image: torch.Tensor):
    """(C, H, W), 0-1, C 1 or 3 -> what PIL calls an image."""
    from PIL import Image

    values = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
