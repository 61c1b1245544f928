"""ncnn: a folder with a network as .ncnn.param and .ncnn.bin, for phones and boards."""

from pathlib import Path

import numpy as np
import torch

from utils.runtimes.base import Runtime, folder_metadata, only_file, silence

NCNN_MAGIC = b"7767517"  # the first line of a .param


class NCNNRuntime(Runtime):
    """A folder `*_ncnn_model`, by ncnn on the CPU: one image at a time."""

    packages = ("ncnn",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        super().__init__(path, device, trust)
        import ncnn

        self.ncnn = ncnn
        param = only_file(self.path, ".ncnn.param")
        weights = param.with_suffix(".bin")
        # checked here, since ncnn ends the process at some files that are not its own
        if param.open("rb").readline().strip() != NCNN_MAGIC or not weights.is_file():
            raise ValueError(f"{path}: ncnn {ncnn.__version__} cannot read it: {param.name} is not a network of ncnn")
        self.net = ncnn.Net()
        # float32 everywhere, also where weights are stored in float16: SOCA would lose its digits
        for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
            setattr(self.net.opt, f"use_{option}", False)
        self.net.opt.num_threads = torch.get_num_threads()
        with silence():
            failed = self.net.load_param(str(param)) or self.net.load_model(str(weights))
        if failed:
            raise ValueError(
                f"{path}: ncnn {ncnn.__version__} cannot read it: {param.name} or {weights.name} is damaged"
            )
        self.declare(folder_metadata(param.parent), (None, None, None, None))

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
