"""v6.1's helpers around torch; each number is worked out by hand or by torch itself."""

import os
from datetime import date

import pytest
import torch
from small_world import lively
from torch import nn

from utils import torch_utils
from utils.torch_utils import (
    EarlyStopping,
    ModelEMA,
    copy_attr,
    date_modified,
    de_parallel,
    fuse_conv_and_bn,
    git_describe,
    initialize_weights,
    is_parallel,
    load_classifier,
    model_info,
    prune,
    scale_img,
    select_device,
    smart_inference_mode,
    sparsity,
    time_sync,
    time_synchronized,
    torch_distributed_zero_first,
)


def test_select_device_takes_v61s_arguments():
    assert select_device("cpu", batch_size=16, newline=False) == torch.device("cpu")
    assert select_device(torch.device("cpu"), None) == torch.device("cpu")
    assert time_synchronized is time_sync and 0 <= time_sync() - time_sync() + 1 <= 1
    with torch_distributed_zero_first(-1):
        pass


def test_the_average_has_v61s_names():
    model = lively()
    ema = ModelEMA(model, decay=0.5, tau=1e-9)
    for p in model.parameters():
        p.data += 1
    ema.update(model)
    assert ema.ema is ema.model and ema.updates == 1
    before = lively().state_dict()
    key = "model.0.conv.weight"
    torch.testing.assert_close(ema.ema.state_dict()[key], before[key] + 0.5)
    model.names, model.reducer = ["x"], 1
    ema.update_attr(model, include=["names"])
    assert ema.ema.names == ["x"] and not hasattr(ema.ema, "reducer")


def test_attributes_are_copied_as_asked():
    a, b = type("A", (), {})(), type("B", (), {})()
    b.x, b.y, b._z = 1, 2, 3
    copy_attr(a, b, exclude=["y"])
    assert vars(a) == {"x": 1}


def test_a_fused_convolution_equals_the_two():
    conv, bn = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
    bn(torch.randn(8, 4, 5, 5) * 3 + 1)
    fused = fuse_conv_and_bn(conv, bn)
    assert conv.training and bn.training and not fused.weight.requires_grad
    x = torch.randn(1, 3, 9, 9)
    torch.testing.assert_close(fused(x), bn.eval()(conv(x)))


def test_pruning_sets_the_smallest_weights_to_zero():
    model = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.Linear(1, 6, bias=False))
    model[0].weight.data[:] = torch.tensor([1.0, -2, 3, -4]).view(1, 1, 2, 2)
    model[1].weight.data[:] = 1
    assert sparsity(model) == 0
    prune(model, amount=0.5)
    assert model[0].weight.flatten().tolist() == [0, 0, 3, -4] and sparsity(model) == 0.2
    assert list(model.state_dict()) == ["0.weight", "1.weight"]


def test_models_are_described_and_set_up(monkeypatch):
    said = []
    monkeypatch.setattr(torch_utils.LOGGER, "info", said.append)
    model_info(lively(), verbose=True, img_size=[64, 96])
    assert "GFLOPs at 96" in said[-1] and any("model.0.conv.weight" in line for line in said)
    layers = nn.Sequential(nn.BatchNorm2d(1), nn.SiLU())
    initialize_weights(layers)
    assert (layers[0].eps, layers[0].momentum, layers[1].inplace) == (1e-3, 0.03, True)
    wrapped = nn.DataParallel(layers)
    assert is_parallel(wrapped) and not is_parallel(layers) and de_parallel(wrapped) is layers is de_parallel(layers)


def test_images_are_scaled_and_padded():
    image = torch.full((1, 3, 64, 64), 0.5)
    small = scale_img(image, ratio=0.67, gs=32)
    assert small.shape == (1, 3, 64, 64) and small[0, 0, 41, 41] == 0.5
    assert small[0, 0, 60, 60] == pytest.approx(0.447)
    assert scale_img(image, 1) is image and scale_img(image, 0.5, same_shape=True).shape == image.shape


def test_the_second_classifier_downloads_nothing(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    model = load_classifier("resnet18", n=5)
    assert model.fc.out_features == 5 and not model.fc.weight.any() and not model.fc.bias.any()


def test_functions_run_without_gradients():
    @smart_inference_mode()
    def run():
        return (torch.ones(1, requires_grad=True) * 2).requires_grad

    assert run() is False


def test_files_and_versions(tmp_path):
    file = tmp_path / "a"
    file.touch()
    today = date.fromtimestamp(os.path.getmtime(file))
    assert date_modified(file) == f"{today.year}-{today.month}-{today.day}"
    assert git_describe(tmp_path) == ""
    stopper = EarlyStopping(patience=2)
    assert [stopper(epoch, fitness) for epoch, fitness in enumerate([0.5, 0.4, 0.3])] == [False, False, True]
