"""Three real training steps in double precision: model, loss, optimizer and moving average together."""

import pytest
import torch

from models.yolo import Model
from utils.training.ema import ModelEMA
from utils.training.loss import ComputeLoss
from utils.training.optimizer import build_optimizer, parameter_groups

CONFIGS = {"yolov5n": "models/yolov5n.yaml", "yolov5s-transformer": "models/hub/yolov5s-transformer.yaml"}
CASES = {"yolov5n-3": 0, "yolov5s-transformer-2": 1, "yolov5n-1": 2}


def assert_summary(found, expected, tolerance, indices, name):
    """Compares an array with its recorded sum, mean magnitude and samples, relative to the mean magnitude."""
    assert list(found.shape) == expected["shape"], name
    flat, scale = found.detach().double().flatten(), expected["mean_abs"]
    assert abs(flat.abs().mean() - scale) < tolerance * scale, name
    assert abs(flat.sum() - expected["sum"]) < tolerance * scale * len(flat), name
    samples = flat[indices(len(flat), len(expected["samples"]))]
    assert (samples - torch.tensor(expected["samples"]).double()).abs().max() < tolerance * scale, name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_three_steps_as_recorded(parity, parity_inputs, one_thread, case):
    recorded = parity("loss")["train_steps"]["cases"]
    assert [f"{c['model']}-{c['nc']}" for c in recorded] == list(CASES)
    case = recorded[case]
    model = Model(CONFIGS[case["model"]], nc=case["nc"])
    parity_inputs.fill(model, case["weights"]["key"], case["weights"]["gain"])
    model.double().train()
    image = torch.from_numpy(parity_inputs.build(case["image"])).double()
    targets = torch.tensor(case["targets"]).float().double()

    # recorded with v6.1's groups, which never train attention's in_proj tensors
    settings = {"lr": case["lr"], "momentum": 0.937, "weight_decay": 5e-4, "weight_and_bias_only": True}
    optimizer = build_optimizer(model, case["optimizer"], **settings)
    loss = ComputeLoss(model.model[-1], case["hyp"])
    ema = ModelEMA(model)
    groups = parameter_groups(model, weight_and_bias_only=True)
    parameters = dict(model.named_parameters())

    for step, tolerance in zip(case["steps"], (1e-5, 1e-4, 1e-3), strict=True):
        optimizer.zero_grad()
        total, items = loss(model(image), targets)
        total.backward()
        assert total.item() == pytest.approx(step["total"], rel=tolerance)
        assert items.tolist() == pytest.approx(step["items"], rel=tolerance)
        norms = [torch.stack([p.grad.norm() for p in group.values()]).norm().item() for group in groups]
        assert norms == pytest.approx(step["grad_norm"], rel=tolerance)
        for name, expected in step["grads"].items():
            assert_summary(parameters[name].grad, expected, tolerance, parity_inputs.indices, name)

        optimizer.step()
        ema.update(model)
        for name, expected in step["after"].items():
            assert_summary(parameters[name], expected, tolerance, parity_inputs.indices, name)
        average = ema.model.state_dict()
        for name, expected in step["average_after"].items():
            assert_summary(average[name], expected, tolerance, parity_inputs.indices, name)
        variance = model.state_dict()["model.1.bn.running_var"]
        assert_summary(variance, step["running_var_after"], tolerance, parity_inputs.indices, "model.1.bn.running_var")
