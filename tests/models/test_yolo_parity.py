"""Every model YAML against the numbers recorded from release 6.1: structure, weights' names, outputs."""

import hashlib

import pytest
import torch

from models import common, experimental
from models.yolo import Detect, Model, scale_image
from utils import activations

STRUCTURES = (
    [f"yolov5{size}{level}" for level in ("", "6") for size in "nsmlx"]
    + [f"yolov5-{head}" for head in ("p2", "p34", "p6", "p7", "bifpn", "fpn", "panet")]
    + ["yolov5s-ghost", "yolov5s-transformer", "yolov3", "yolov3-spp", "yolov3-tiny"]
    + ["yolov5n nc=3", "yolov5n ch=1", "yolov5n anchors=4", "yolov5s nc=1"]
)
FORWARDS = range(12)
BLOCKS = range(43)


def shapes_of(state: dict) -> list[str]:
    """The sorted lines `name shape` of a state dict."""
    return sorted(f"{k} {'x'.join(map(str, t.shape)) or 'scalar'}" for k, t in state.items())


def hash_of(state: dict) -> str:
    """sha256 over these lines."""
    return hashlib.sha256("\n".join(shapes_of(state)).encode()).hexdigest()


def close(value: torch.Tensor, summary: dict, inputs, tolerance: float) -> None:
    """Samples of a tensor against a recorded summary, relative to max(1, |reference|)."""
    assert list(value.shape) == summary["shape"]
    flat = value.detach().double().flatten()
    indices = inputs.indices(flat.numel(), len(summary["samples"]))
    reference = torch.tensor(summary["samples"], dtype=torch.float64)
    error = (flat[indices] - reference).abs() / reference.abs().clamp(min=1)
    assert error.max() <= tolerance
    assert flat.abs().mean().item() == pytest.approx(summary["mean_abs"], rel=tolerance)


def build(name: str, overrides: dict) -> Model:
    return Model(f"{name.split()[0]}.yaml", **overrides)


def test_no_recorded_case_is_left_out(parity):
    assert sorted(STRUCTURES) == sorted(parity("models")["models"])
    assert len(parity("forward")["cases"]) == len(FORWARDS)
    assert len(parity("forward")["blocks"]["cases"]) == len(BLOCKS)


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name, parity):
    reference = parity("models")["models"][name]
    model = build(name, reference["overrides"])
    head = model.model[-1]
    assert sum(p.numel() for p in model.parameters()) == reference["parameters"]
    assert len(model.state_dict()) == reference["keys"]
    assert hash_of(model.state_dict()) == reference["sha256"]
    assert len(list(model.modules())) == reference["summary"]["modules"]
    assert model.stride.tolist() == reference["strides"]
    assert head.anchors.tolist() == reference["anchors"]
    assert model.save == reference["save"]
    assert [head.nc, head.no, head.na, head.nl] == [reference[k] for k in ("nc", "no", "na", "nl")]
    norms = {(m.eps, m.momentum) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert sorted(map(list, norms)) == sorted(reference["bn"])
    assert shapes_of(model.state_dict()) == reference.get("key_shapes", shapes_of(model.state_dict()))
    for layer, (index, source, _, parameters, block, _, _) in zip(model.model, reference["layers"]):
        assert (layer.i, layer.f, layer.np, layer.type.split(".")[-1]) == (index, source, parameters, block)
    if "gflops" in reference["summary"]:
        # thop also counts norms and activations, so its figure is up to 4 % higher
        assert 0.96 < model.gflops() / reference["summary"]["gflops"] < 1.02
    assert all(b.isfinite().all() for b in model.buffers())


def test_prior_biases(parity):
    for case in parity("models")["bias_init"]["cases"]:
        model = Model(f"{case['model']}.yaml", nc=case["nc"])
        head = model.model[-1]
        for conv in head.m:
            torch.nn.init.zeros_(conv.bias)
        head.initialise_biases(torch.tensor(case["class_counts"]).float() if case["class_counts"] else None)
        for conv, reference in zip(head.m, case["first_anchor_bias"]):
            biases = conv.bias.detach().view(head.na, -1)
            assert biases[0, : len(reference)].tolist() == pytest.approx(reference, abs=1e-5)
            assert (biases == biases[0]).all()


@pytest.mark.parametrize("number", FORWARDS)
def test_forward(number, parity, parity_inputs):
    case = parity("forward")["cases"][number]
    model = build(case["model"], case["overrides"])
    parity_inputs.fill(model, case["weights"]["key"], case["weights"]["gain"])
    image = torch.from_numpy(parity_inputs.build(case["image"]))
    with torch.no_grad():
        decoded, raw = model.eval()(image)
        close(decoded, case["eval"], parity_inputs, 2e-4)
        for level, reference in zip(raw, case["raw"]):
            close(level, reference, parity_inputs, 2e-4)
        if "tta" in case:
            close(model(image, augment=True)[0], case["tta"], parity_inputs, 2e-4)
            for ratio, reference in zip((1, 0.83, 0.67), case["tta_scaled_inputs"]):  # recorded before the mirroring
                close(scale_image(image, ratio, int(model.stride.max())), reference, parity_inputs, 1e-5)
        if "eval_f64" in case:
            double = model.double()
            decoded, raw = double(image.double())
            close(decoded, case["eval_f64"], parity_inputs, 1e-7)
            for level, reference in zip(raw, case["raw_f64"]):
                close(level, reference, parity_inputs, 1e-7)
            state = {k: v.clone() for k, v in double.state_dict().items()}
            for level, reference in zip(double.train()(image.double()), case["train_f64"]):
                close(level, reference, parity_inputs, 1e-7)
            double.load_state_dict(state)
            model = double.float().eval()
        for level, reference in zip(model.train()(image), case["train"]):
            close(level, reference, parity_inputs, 2e-3)
        first_norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        for name, reference in case["bn_after"].items():  # the first 16 channels
            recorded = torch.tensor(reference)
            value = getattr(first_norm, name).flatten()[: recorded.numel()]
            assert torch.allclose(value.double(), recorded.double().flatten(), atol=2e-4)
        parity_inputs.fill(model, case["weights"]["key"], case["weights"]["gain"])
        fused = model.eval().fuse()
        close(fused(image)[0], case["fused"], parity_inputs, 2e-4)
        assert len(fused.state_dict()) == case["fused_keys"]
        assert hash_of(fused.state_dict()) == case["fused_sha256"]


def test_decoding(parity, parity_inputs):
    for case in parity("forward")["decode"]["cases"]:
        head = Detect(case["nc"], case["anchors_px"], [1] * len(case["strides"]))
        head.stride = torch.tensor(case["strides"]).float()
        head.anchors /= head.stride.view(-1, 1, 1)
        maps = []
        for recipe in case["maps"]:
            x = torch.from_numpy(parity_inputs.build(recipe))
            B, _, ny, nx = x.shape
            maps.append(x.view(B, head.na, head.no, ny, nx).permute(0, 1, 3, 4, 2))
        close(head.decode(maps), case["decoded"], parity_inputs, 2e-4)


def test_scaled_images(parity, parity_inputs):
    for case in parity("forward")["scale_img"]:
        image = torch.from_numpy(parity_inputs.build(case["image"]))
        scaled = scale_image(image, case["ratio"], case["multiple"], case["keep_shape"])
        close(scaled, case["out"], parity_inputs, 1e-5)


@pytest.mark.parametrize("number", BLOCKS)
def test_block(number, parity, parity_inputs):
    case = parity("forward")["blocks"]["cases"][number]
    name = "Mish" if case["block"] == "MemoryEfficientMish" else case["block"]  # the same function
    for room in (common, experimental, activations, torch.nn):
        if hasattr(room, name):
            block = getattr(room, name)(*case["args"])
            break
    for m in block.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eps = 1e-3
    assert shapes_of(block.state_dict()) == case["keys"]
    for key, value in case.get("initial_state", {}).items():
        assert block.state_dict()[key].tolist() == value
    if isinstance(case["weights"], dict):
        parity_inputs.fill(block, case["weights"]["key"], case["weights"]["gain"])
    inputs = [torch.from_numpy(parity_inputs.build(x)) for x in case["inputs"]]
    with torch.no_grad():
        out = block.eval()(inputs[0] if len(inputs) == 1 else inputs)
    close(out, case["out"], parity_inputs, 1e-4)
