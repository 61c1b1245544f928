"""What runs for each batch of training and validation states the device of every tensor that it makes."""

import sys
from pathlib import Path

import networks
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors  # of torch.device as a context: what can be given a device

from engine.training import random_scale
from utils.evaluation.evaluator import EvaluationSettings, evaluate
from utils.files import ROOT, read_yaml
from utils.training.ema import ModelEMA
from utils.training.guard import first_not_finite, weights_not_finite
from utils.training.loss import ComputeLoss
from utils.training.optimizer import build_optimizer

HYP = read_yaml(ROOT / "data/hyps/hyp.scratch-low.yaml") | {"label_smoothing": 0.1}
TARGETS = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.3], [1, 2, 0.2, 0.3, 0.1, 0.2]])
OURS = tuple(str(ROOT / room) for room in ("models", "utils", "engine"))


class Noted(TorchFunctionMode):
    """Notes where the project makes a tensor without saying on which device."""

    def __init__(self):
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        caller = sys._getframe(1)
        if function in _device_constructors() and (kwargs or {}).get("device") is None:
            if caller.f_code.co_filename.startswith(OURS):
                self.places.append(f"{Path(caller.f_code.co_filename).relative_to(ROOT)}, line {caller.f_lineno}")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_training_step(name, sort):
    model = networks.narrow_model(networks.narrow_yamls()["SOCA-l"])
    optimizer, average = build_optimizer(model, name), ModelEMA(model)
    compute_loss = ComputeLoss(model.model[-1], HYP)
    compute_loss.sort_obj_iou = sort
    with Noted() as noted:
        for targets in (TARGETS, TARGETS[:0]):  # and a batch without objects
            image = random_scale(torch.rand(2, 3, 64, 64, device="cpu"), 96, 32, (0, 1))
            compute_loss(model(image), targets)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
        first_not_finite(model, image, None)
        weights_not_finite(model)
    assert noted.places == []


@pytest.mark.parametrize("settings", [{}, {"hybrid": True, "single_cls": True}, {"augment": True}], ids=str)
def test_a_validation_batch(settings):
    model = networks.narrow_model(networks.narrow_yamls()["SOCA-l"]).eval()
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)
    shapes = [((64, 96), ((1.0, 1.0), (0.0, 0.0)))] * 2
    loader = [(images, TARGETS, ["a", "b"], shapes)]
    settings = EvaluationSettings(**{"conf_thres": 0.0001, **settings})
    compute_loss = None if settings.augment else ComputeLoss(model.model[-1], HYP)
    with Noted() as noted:
        evaluation = evaluate(
            model, loader, ["0", "1", "2"], torch.device("cpu"), torch.float32, settings, compute_loss
        )
    assert len(evaluation.boxes.predictions)
    assert noted.places == []


@pytest.mark.parametrize("name", networks.NAMES)
def test_every_block(name):
    block, x = networks.block(name), networks.inputs(name, 2, 8, 12)
    with Noted() as noted:
        y = block(x)
        if y.requires_grad:
            y.sum().backward()
    assert noted.places == []


def test_a_tensor_without_a_device_is_noticed():
    """Here three of five lack it: zeros_like takes that of its model."""
    with Noted() as noted:
        code = "torch.zeros(3); torch.tensor([1.0]); torch.arange(3, device='cpu'); torch.zeros_like(torch.rand(2))"
        exec(compile(code, str(ROOT / "models/yolo.py"), "exec"), {"torch": torch})
    assert noted.places == ["models/yolo.py, line 1"] * 3
