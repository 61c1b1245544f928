"""CoreML packages compute what PyTorch computes, and state what they are."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_world import lively

from utils.export import coreml_model
from utils.export.exporter import Job, write
from utils.export.formats import BY_ARGUMENT, ExportError, ExportOptions
from utils.export.graph import Decoded
from utils.export.proof import prove
from utils.runtimes.base import Metadata, Runtime
from utils.runtimes.coreml_model import CoreMLRuntime

H, W = 64, 96

NAMES = ("red", "weiß")


def random_images(B: int = 1) -> torch.Tensor:
    return torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(2))


class Evaluated(Runtime):
    """A package, its operations computed one by one in torch."""

    def __init__(self, path: Path, metadata: Metadata):
        self.path, self.metadata, self.device, self.dtype = path, metadata, torch.device("cpu"), torch.float32

    def run(self, images):
        from ml_program import evaluate

        return (evaluate(self.path, images),)


def package_of(
    folder: Path, half=False, int8=False, float32: tuple[str, ...] | None = None
) -> tuple[Path, ExportOptions, Job]:
    """The small detector as a package, which modules stay in float32, and the job it was written for."""
    pytest.importorskip("coremltools")
    metadata = Metadata(names=NAMES, stride=32, imgsz=(H, W), half=half, int8=int8)
    detector = lively(nc=2).fuse()
    job = Job(
        detector=detector,
        weights=folder / "best.pt",
        options=ExportOptions(metadata=metadata),
        images=[random_images()],
    )
    options = job.options if float32 is None else replace(job.options, float32=float32)
    write(job, BY_ARGUMENT["coreml"], folder / "best.mlpackage", options, folder)
    return folder / "best.mlpackage", options, job


@pytest.mark.parametrize("precision", [{}, {"half": True}, {"int8": True}], ids=["float32", "float16", "int8"])
def test_a_program_of_coreml(tmp_path, precision):
    path, options, job = package_of(tmp_path, **precision)
    coreml_model.inspect(path, options)
    runtime = Evaluated(path, options.metadata)
    found, expected = runtime.run(random_images())[0], job.reference(random_images())
    assert found.dtype == torch.float32 and found.shape == expected.shape
    if not precision:
        assert torch.allclose(found, expected, rtol=1e-4, atol=2e-3)
    elif "half" in precision:
        assert torch.allclose(found, expected, rtol=2e-2, atol=0.5)
        assert not torch.allclose(found, expected, rtol=1e-5, atol=1e-4)  # it is in another precision
    proof = prove(runtime, job.reference, [random_images()])
    assert not proof.faults and proof.boxes > 3


def test_weights_in_8_bits_but_for_socas(tmp_path):
    path, *_ = package_of(tmp_path, int8=True)
    import coremltools

    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    names = [op.outputs[0].name for op in block.operations if op.type == "constexpr_affine_dequantize"]
    assert len(names) == 5 and all("conv_weight" in name or "model_4_m_" in name for name in names)  # Detect's m.0, m.1
    float32 = [op.outputs[0].name for op in block.operations if op.type == "const"]
    assert sum("conv_du" in name and "weight" in name for name in float32) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stride": 64}, "which should be"),
        ({"imgsz": (W, H)}, "which should be"),
    ],
)
def test_a_package_that_says_something_else(tmp_path, change, says):
    path, options, _ = package_of(tmp_path)
    with pytest.raises(ExportError, match=says):
        coreml_model.inspect(path, replace(options, metadata=replace(options.metadata, **change)))


def test_a_package_whose_ends_are_others(tmp_path):
    path, options, _ = package_of(tmp_path)
    import coremltools

    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    coreml_model._inspect_ends(path, spec.description, options.metadata)
    for change, says in (
        ({"imgsz": (W, H)}, "its input should be image, 96 x 64 with 3 channels"),
        ({"channels": 1}, "its input should be image"),
        ({"names": ("red",)}, "its output should be output, rows of 6 numbers"),
    ):
        with pytest.raises(ExportError, match=says):
            coreml_model._inspect_ends(path, spec.description, replace(options.metadata, **change))


def test_soca_in_float16_is_seen(tmp_path):
    path, options, _ = package_of(tmp_path, half=True, float32=())
    with pytest.raises(ExportError, match="SOCA's matrix products are not in float32"):
        coreml_model.inspect(path, options)


def test_a_format_that_cannot_run_here_is_reported(weights, here, command):
    pytest.importorskip("coremltools")
    if not CoreMLRuntime.obstacle():
        pytest.skip("it runs here")
    code, err = command("export", "--weights", "best.pt", "--include", "coreml", "--imgsz", H, W)
    assert code == 0 and "CoreML: not run here, since it runs on Darwin only; its structure was checked" in err
    code, err = command("detect", "--weights", "best.mlpackage", "--source", "best.pt")
    assert code == 1 and "best.mlpackage runs on Darwin only" in err.splitlines()[-1]


class MLModel:
    """CoreML's interface, behind which PyTorch computes with the image that it is given."""

    detector = None
    metadata: dict | None = None

    def __init__(self, path):
        pass

    def get_spec(self):
        image = SimpleNamespace(height=H, width=W)
        kind = SimpleNamespace(imageType=image, WhichOneof=lambda _: "imageType")
        rows = SimpleNamespace(multiArrayType=SimpleNamespace(shape=[1, 252, 7]))
        unknown = SimpleNamespace(multiArrayType=SimpleNamespace(shape=[]))
        outputs = [SimpleNamespace(name="var_9", type=rows), SimpleNamespace(name="var_1", type=unknown)]
        return SimpleNamespace(
            description=SimpleNamespace(
                input=[SimpleNamespace(name="image", type=kind)], output=outputs,
                metadata=SimpleNamespace(userDefined=self.metadata),
            )
        )  # fmt: skip

    def predict(self, given):
        image = np.asarray(given["image"])
        assert image.dtype == np.uint8 and image.shape == (H, W, 3)
        images = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        return {"var_1": np.zeros((1, 3, 8, 12, 7)), "var_9": self.detector(images).detach().numpy()}


@pytest.mark.parametrize("says", [True, False], ids=["ours", "of v6.1"])
def test_how_coreml_is_asked(monkeypatch, says):
    """As far as it goes off macOS: images in whole numbers, one by one, and the output that has three axes."""
    decoded = Decoded(lively(nc=2).fuse())
    metadata = Metadata(names=NAMES, stride=32, imgsz=(H, W))
    monkeypatch.setattr(MLModel, "detector", decoded)
    monkeypatch.setattr(MLModel, "metadata", metadata.as_texts() if says else {})
    monkeypatch.setattr(CoreMLRuntime, "systems", ())
    monkeypatch.setattr(CoreMLRuntime, "packages", ())
    stand_in = SimpleNamespace(models=SimpleNamespace(MLModel=MLModel), __version__="9.9")
    monkeypatch.setitem(__import__("sys").modules, "coremltools", stand_in)
    runtime = CoreMLRuntime("best.mlmodel")
    assert runtime.declared == says and runtime.metadata.imgsz == (H, W) and len(runtime.metadata.names) == 2
    images = (random_images(2) * 255).round() / 255
    assert torch.allclose(runtime.run(images)[0], decoded(images), atol=1e-4)
