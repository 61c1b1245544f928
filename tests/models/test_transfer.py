"""Weights survive an inserted block, a changed class count, and another width."""

import pytest
import torch

from models.transfer import align, transfer
from models.yolo import Model


@pytest.fixture
def plain() -> Model:
    torch.manual_seed(0)
    return Model("yolov5n.yaml", nc=3)


def test_the_same_architecture_carries_everything(plain):
    target = Model("yolov5n.yaml", nc=3)
    assert transfer(plain, target) == len(target.state_dict())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(plain.eval()(image)[0], target.eval()(image)[0])


def test_an_inserted_block_loses_nothing(plain):
    target = Model("SOCA-n.yaml", nc=3)
    new = {name for name in target.state_dict() if name.startswith("model.24.")}
    assert transfer(plain, target) == len(target.state_dict()) - len(new)
    # the block is open: with its gate at 1 the two models are the same
    target.model[24] = torch.nn.Identity()
    target.model[24].i, target.model[24].f = 24, -1
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(plain.eval()(image)[0], target.eval()(image)[0], atol=1e-5)


def test_alignment_around_an_inserted_row(plain):
    target = Model("SOCA-n.yaml", nc=3)
    expected = [(i, i) for i in range(24)] + [(24, 25)]
    assert align(plain.model, target.model) == expected


def test_another_class_count_keeps_all_but_the_last_convolutions(plain):
    target = Model("yolov5n.yaml", nc=7)
    carried = transfer(plain, target)
    left_out = {f"model.24.m.{level}.{kind}" for level in range(3) for kind in ("weight", "bias")}
    assert carried == len(target.state_dict()) - len(left_out)


def test_skipped_words_stay_behind(plain):
    target = Model("yolov5n.yaml", nc=3)
    plain.model[-1].anchors += 1
    transfer(plain, target, skip=("anchor",))
    assert not torch.equal(plain.model[-1].anchors, target.model[-1].anchors)
