"""Everything before the first epoch: the recipe, the model, the weights it starts from, what is frozen."""

from pathlib import Path

import pytest
import torch
import yaml
from small_world import (
    TINY,
    write_yaml,
)

import train
from engine.setup import build_model, freeze, load_recipe
from models.backend import load_checkpoint
from models.transfer import transfer
from models.yolo import Model
from utils import cli

ROOT = Path(train.__file__).parent

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize(
    ("what", "layers", "names"),
    [
        ([0], [], []),
        ([3], [0, 1, 2], []),
        ([3, 5], [3, 5], []),
        ([0, "model.7.m.1"], [0], ["model.7.m.1.weight", "model.7.m.1.bias"]),
        (["model.1."], [1], []),
        (["model.2.cv1", 6, "model.0.conv"], [6], ["model.0.conv.weight", *(f"model.2.cv1.{n}" for n in (
            "conv.weight", "bn.weight", "bn.bias"))]),
    ],
)  # fmt: skip
def test_what_is_frozen(what, layers, names, capsys):
    model = Model(TINY)
    next(model.parameters()).requires_grad = False  # as in a checkpoint that was stripped
    freeze(model, what)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != (int(name.split(".")[1]) in layers or name in names), name
    err = capsys.readouterr().err
    assert (", by --freeze " + " ".join(map(str, what)) in err) == bool(layers or names)


def build(weights, cfg, nc=2, hyp=None, download=False, attention="") -> Model:
    """The model that a training would begin with; weights None are not given."""
    values = {"weights": weights, "cfg": cfg, "attention": attention, "download": download, "imgsz": 64}
    options = cli.options(train.make_parser(), values)
    return build_model(options, hyp or {}, nc)


def carried(err: str) -> tuple[int, int]:
    """The two numbers of `carried 10 of 12 tensors over from the weights`."""
    words = err.partition("carried ")[2].split()
    return int(words[0]), int(words[2])


def test_weights_are_carried_where_they_fit_and_that_is_said(world, capsys):
    source = load_checkpoint(world.best)["model"].float().state_dict()
    same = build(world.best, "")
    assert carried(capsys.readouterr().err) == (len(source), len(source))
    assert all(torch.equal(tensor, source[name]) for name, tensor in same.state_dict().items())

    build(world.best, "", nc=5)  # the head has other classes: its 2 levels of weight and bias stay new
    assert carried(capsys.readouterr().err) == (len(source) - 4, len(source))

    model = yaml.safe_load(yaml.safe_dump(TINY))
    model["head"].insert(1, [-1, 1, "SOCA", []])
    model["head"][-1][0] = [4, 7]
    larger = build(world.best, write_yaml(Path("with SOCA.yaml"), model))
    err = capsys.readouterr().err
    assert carried(err) == (len(source) - 1, len(larger.state_dict()))  # all but the anchors, which --cfg brings
    assert "no layer of the weights fits" not in err


def test_attention_put_into_trained_weights(world, capsys):
    source = load_checkpoint(world.best)["model"].float().state_dict()
    larger = build(world.best, "", attention="SOCA@backbone")
    err = capsys.readouterr().err
    assert carried(err) == (len(source), len(larger.state_dict()))
    assert "starts as identity" in err
    assert larger.yaml["backbone"][-1] == [-1, 1, "SOCA", []]
    from_scratch = build("", world.cfg, attention="SOCA@backbone")
    assert from_scratch.yaml_file == "tiny model.yaml"
    assert list(from_scratch.state_dict()) == list(larger.state_dict())


def test_weights_of_which_nothing_fits(world, capsys):
    build(world.best, write_yaml(Path("wide.yaml"), {**TINY, "width_multiple": 0.75}), nc=7)
    err = capsys.readouterr().err
    assert "no layer of the weights fits this architecture: training starts from scratch" in err
    fresh, other = Model({**TINY, "width_multiple": 0.5}), Model({**TINY, "width_multiple": 0.75}, nc=7)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    transfer(fresh, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items() if tensor.ndim)


def test_default_weights_are_not_there_for_training(world, capsys):
    model = build(None, world.cfg)
    assert "there is no file yolov5s.pt, so training starts from scratch" in capsys.readouterr().err
    assert model.yaml_file == "tiny model.yaml"
    model = build(None, "")
    assert "there is no file yolov5s.pt, so training starts from scratch" in capsys.readouterr().err
    assert model.yaml_file == "yolov5s.yaml"


def test_default_weights_that_are_there_are_used(world, here, capsys):
    (here / "yolov5s.pt").write_bytes(world.best.read_bytes())
    build(None, "")
    assert "carried " in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, file, optimizer, cosine",
    [
        ({"epochs": 2}, "short", "AdamW", True),  # 2 x 2 iterations
        ({"epochs": 1500}, "scratch-low", "SGD", False),  # 3000
        ({"epochs": 1500, "optimizer": "AdamW", "cos_lr": True}, "scratch-low", "AdamW", True),
        ({"epochs": 2, "cos_lr": False}, "short", "AdamW", False),  # the command line over the file
        ({"epochs": 2, "optimizer": "SGD"}, "scratch-low", "SGD", False),
        ({"epochs": 2, "hyp": "hyp.scratch-low.yaml"}, "scratch-low", "SGD", False),
        ({"epochs": 1500, "hyp": "hyp.short.yaml", "optimizer": "Adam"}, "short", "Adam", True),
    ],
)
def test_the_recipe_of_a_run(world, options, file, optimizer, cosine):
    opt = cli.options(train.make_parser(), {"data": world.data, "batch_size": 4, **options})
    hyp = load_recipe(opt)
    assert hyp == yaml.safe_load((ROOT / f"data/hyps/hyp.{file}.yaml").read_text(encoding="utf-8"))
    assert (opt.optimizer, opt.cos_lr) == (optimizer, cosine)
