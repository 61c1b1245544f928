import hashlib

import pytest
import torch
from torch import nn

from utils.training.optimizer import build_optimizer, parameter_groups


class Mixed(nn.Module):
    """One of everything that a rule about names and types could get wrong."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm1 = nn.BatchNorm1d(4)
        self.norm2 = nn.BatchNorm2d(4)
        self.ln = nn.LayerNorm(4)
        self.gn = nn.GroupNorm(2, 4)
        self.lin = nn.Linear(4, 4, bias=False)
        self.prelu = nn.PReLU()
        self.noaff = nn.BatchNorm2d(4)


def make_soca(channels=16):
    gate = nn.Sequential(nn.Conv2d(channels, channels // 8, 1), nn.ReLU(), nn.Conv2d(channels // 8, channels, 1))
    return nn.ModuleDict({"conv_du": gate})


def test_groups_by_hand():
    groups = parameter_groups(Mixed())
    assert list(groups.norms) == ["scale", "norm2.weight", "noaff.weight"]
    # v6.1 decays the weights of norm layers other than 2-d batch norm
    assert list(groups.weights) == [f"{n}.weight" for n in ("conv", "norm1", "ln", "gn", "lin", "prelu")]
    assert list(groups.biases) == [f"{n}.bias" for n in ("conv", "norm1", "norm2", "ln", "gn", "noaff")]


def test_attention_projections_are_trained():
    groups = parameter_groups(nn.ModuleDict({"ma": nn.MultiheadAttention(8, 2, kdim=4, vdim=4, add_bias_kv=True)}))
    assert list(groups.norms) == []
    assert list(groups.weights) == [f"ma.{n}_weight" for n in ("q_proj", "k_proj", "v_proj")] + ["ma.out_proj.weight"]
    assert list(groups.biases) == ["ma.in_proj_bias", "ma.bias_k", "ma.bias_v", "ma.out_proj.bias"]


def test_each_parameter_is_in_one_group_once():
    model = nn.ModuleList([Mixed(), nn.MultiheadAttention(8, 2), nn.LSTM(4, 4), nn.Bilinear(2, 2, 2)])
    model[0].conv.weight.requires_grad_(False)  # a frozen one too
    model[3].weight = model[0].lin.weight  # shared
    optimizer = build_optimizer(model)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters()}


def test_synchronised_batch_norm_counts_as_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [list(g) for g in parameter_groups(converted)] == [["1.weight"], ["0.weight"], ["0.bias", "1.bias"]]


def test_groups_as_recorded(parity, one_thread):
    Model = pytest.importorskip("models.yolo").Model
    builders = {
        "yolov5n": lambda: Model("models/yolov5n.yaml"),
        "yolov5s-transformer": lambda: Model("models/hub/yolov5s-transformer.yaml"),
        "soca channels=16": make_soca,
        "mixed": Mixed,
    }
    cases = parity("schedule")["groups"]["cases"]
    assert {case["model"] for case in cases} == set(builders)
    for case in cases:
        model = builders[case["model"]]()
        v61 = parameter_groups(model, weight_and_bias_only=True)
        assert [len(group) for group in v61] == case["sizes"]
        assert [list(group) for group in v61] == [case["norm"], case["weight"], case["bias"]]
        assert [hashlib.sha256("\n".join(g).encode()).hexdigest() for g in v61] == case["sha256"]
        # ours holds what v6.1 leaves out as well, and the rest in the same order
        ours = parameter_groups(model)
        left_out = set(case["left_out"])
        assert [[n for n in group if n not in left_out] for group in ours] == [list(group) for group in v61]
        assert {n for group in ours for n in group} - {n for group in v61 for n in group} == left_out


def test_settings_as_recorded(parity):
    for case in parity("schedule")["optimizers"]["cases"]:
        optimizer = build_optimizer(Mixed(), case["optimizer"], lr=0.01, momentum=0.937, weight_decay=0.0005)
        for group, expected in zip(optimizer.param_groups, case["groups"], strict=True):
            found = {key: list(v) if isinstance(v := group[key], tuple) else v for key in expected}
            assert found == expected


@pytest.mark.parametrize(
    "name, other_decay, decays",
    [
        ("SGD", None, [0.0, 0.002, 0.0]),
        ("Adam", None, [0.0, 0.002, 0.0]),
        ("AdamW", None, [0.01, 0.002, 0.01]),  # v6.1 leaves torch's default there
        ("AdamW", 0.0, [0.0, 0.002, 0.0]),
    ],
)
def test_decays(name, other_decay, decays):
    optimizer = build_optimizer(Mixed(), name, weight_decay=0.002, other_decay=other_decay)
    assert [group["weight_decay"] for group in optimizer.param_groups] == decays


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_model_without_batch_norm_trains(name):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = build_optimizer(model, name, lr=0.1)
    assert len(optimizer.param_groups[0]["params"]) == 0
    x = torch.randn(32, 3)
    losses = []
    for _ in range(20):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    build_optimizer(model, name).load_state_dict(optimizer.state_dict())  # an empty group is saved and read


def test_no_momentum_is_plain_sgd():
    assert not build_optimizer(nn.Linear(2, 2), momentum=0.0).param_groups[0]["nesterov"]


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="SGD, Adam or AdamW, got 'Lion'"):
        build_optimizer(nn.Linear(2, 2), "Lion")
