"""Weights survive an inserted block, a changed class count, and another width."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from models.backend import load_checkpoint
from models.common import SE, SOCA
from models.transfer import align, transfer
from models.yolo import Model

NAMES = ["red", "white", "plate"]
TINY = {
    "nc": 3,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[8, 8, 16, 12], [24, 24, 40, 40]],
    "backbone": [[-1, 1, "Conv", [8, 6, 4, 2]], [-1, 1, "Conv", [24, 3, 2]], [-1, 2, "C3", [24]]],
    "head": [[-1, 1, "Conv", [24, 3, 2]], [-1, 1, "C3", [24]], [[2, 4], 1, "Detect", ["nc", "anchors"]]],
}


def build(*attention: tuple[int, str], nc: int = 3, **changes) -> Model:
    """The tiny model with attention blocks after these of its rows, in ascending order."""
    cfg = deepcopy({**TINY, **changes})
    rows, number = [*cfg["backbone"], *cfg["head"]], {}
    built = []
    for k, (f, n, name, args) in enumerate(rows):
        built.append([f if isinstance(f, int) else [number[j] for j in f], n, name, args])
        built += [[-1, 1, kind, []] for row, kind in attention if row == k]
        number[k] = len(built) - 1
    return Model({**cfg, "backbone": built[:3], "head": built[3:]}, nc=nc)


def trained(seed: int = 0) -> Model:
    """A tiny model in which every number is different, so that a wrong one is noticed."""
    torch.manual_seed(seed)
    model = build()
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*model.parameters(), *(b for name, b in model.named_buffers() if "running" in name)]:
        tensor.data *= 1 + 0.1 * torch.rand(tensor.shape, generator=generator)
    model.names = NAMES
    return model.eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain() -> Model:
    torch.manual_seed(0)
    return Model("yolov5n.yaml", nc=3)


def report_of(err: str) -> dict[str, str]:
    """The lines of the report: layer numbers -> the rest."""
    lines = err.partition("layer by layer:\n")[2].splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line[:1] == " ")


def blocks(model: Model) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, SOCA | SE)]


# --- what is carried --------------------------------------------------------------------------------------------------


def test_the_same_architecture_carries_everything(plain):
    target = Model("yolov5n.yaml", nc=3)
    assert transfer(plain, target) == len(target.state_dict())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(plain.eval()(image)[0], target.eval()(image)[0])


def test_an_inserted_block_loses_nothing(plain, capsys):
    target = Model("SOCA-n.yaml", nc=3)
    new = {name for name in target.state_dict() if name.startswith("model.24.")}
    capsys.readouterr()
    assert transfer(plain, target) == len(target.state_dict()) - len(new)
    report = report_of(capsys.readouterr().err)
    assert [(key, *text.split(maxsplit=1)[1:]) for key, text in report.items() if key != "0-23"] == [
        ("24", "new, starts as identity"),
        ("25", "carried from 24"),
    ]
    assert report["0-23"].endswith("carried from 0-23")


def test_alignment_around_an_inserted_row(plain):
    target = Model("SOCA-n.yaml", nc=3)
    expected = [(i, i) for i in range(24)] + [(24, 25)]
    assert align(plain.model, target.model) == expected
    assert align(target.model, plain.model) == [(j, i) for i, j in expected]


def test_alignment_keeps_the_order_where_shapes_repeat():
    # rows 1 and 3 could both give their convolution to either place; only one way carries all of it
    shallow = build()
    rows = [*TINY["head"][:2], *TINY["head"][:2], [[2, 6], 1, "Detect", ["nc", "anchors"]]]
    deep = Model({**TINY, "head": rows})
    pairs = align(shallow.model, deep.model)
    assert pairs == sorted(pairs) and len(pairs) == len(shallow.model)
    assert all(type(shallow.model[i]) is type(deep.model[j]) for i, j in pairs)
    assert transfer(shallow, deep) == len(shallow.state_dict())


@pytest.mark.parametrize(
    "attention", [[(4, "SOCA")], [(0, "SOCA")], [(1, "SE")], [(0, "SE"), (2, "SOCA"), (4, "SOCA")]]
)
def test_the_model_begins_as_good_as_its_weights(attention, image):
    source, target = trained(), build(*attention)
    transfer(source, target, own_anchors=True, names=NAMES)
    assert len(blocks(target)) == len(attention)
    expected, raw = source(image)[1], target.eval()(image)[1]
    closed = build(*attention)  # carried over in the same way, with the gates as built
    closed.load_state_dict({**target.state_dict(), **{k: v for k, v in closed.state_dict().items() if "conv_du" in k}})
    far = closed.eval()(image)[1]
    for a, b, c in zip(expected, raw, far):
        assert (a - b).abs().mean() < 0.1 * (a - c).abs().mean() or torch.equal(a, b)
    for block in blocks(target):  # with every gate at exactly 1 the two models are the same
        block.forward = lambda x: x
    for a, b in zip(expected, target(image)[1]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [SOCA, SE])
def test_an_opened_block_still_learns(kind):
    torch.manual_seed(0)
    block = kind(32, 4)
    block.start_as_identity()
    x = torch.randn(2, 32, 6, 6) @ torch.randn(6, 6)
    y = block(x)
    assert (y / x).min() > 0.97 and (y / x).max() < 0.99
    (y * torch.randn_like(y)).sum().backward()
    for name, p in block.named_parameters():
        assert p.grad.abs().max() > 0, name
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    optimizer = torch.optim.SGD(block.parameters(), lr=1.0)
    optimizer.step()
    assert all((p - before[name]).abs().max() > 0 for name, p in block.named_parameters())


def test_a_block_that_the_weights_have_is_carried_not_opened():
    source, target = build((2, "SOCA")), build((2, "SOCA"), (4, "SOCA"))
    transfer(source, target)
    kept, new = blocks(target)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), blocks(source)[0].parameters()))
    assert (new.conv_du[2].bias == 4).all()


def test_from_scratch_gates_stay_as_built():
    source, target = build(), build((4, "SOCA"), width_multiple=2.0)
    before = {name: t.clone() for name, t in target.state_dict().items()}
    assert transfer(source, target) == 0
    assert all(torch.equal(t, before[name]) for name, t in target.state_dict().items())


# --- the detection head -----------------------------------------------------------------------------------------------


def test_another_class_count_keeps_all_but_the_last_convolutions(plain):
    target = Model("yolov5n.yaml", nc=7)
    carried = transfer(plain, target)
    left_out = {f"model.24.m.{level}.{kind}" for level in range(3) for kind in ("weight", "bias")}
    assert carried == len(target.state_dict()) - len(left_out)


@pytest.mark.parametrize(
    "names, pairs",
    [
        (["Plate", "cat", "red", "dog"], {0: 2, 2: 0}),  # new class -> class of the weights
        (["red"], {0: 0}),
        (["cat", "dog"], {}),
        (["white", "red", "cat"], {0: 1, 1: 0}),  # as many classes, some of them known: by name
        (["a", "b", "c"], {0: 0, 1: 1, 2: 2}),  # as many and none known: by position
    ],
)
def test_head_rows_by_slow_loop(names, pairs, image):
    source, target = trained(), build(nc=len(names))
    fresh = [conv.weight.clone() for conv in target.model[-1].m]
    transfer(source, target, names=names)
    nc = len(names)
    for old, new, start in zip(source.model[-1].m, target.model[-1].m, fresh):
        for anchor in range(2):
            for k in range(5):
                assert torch.equal(new.weight[anchor * (5 + nc) + k], old.weight[anchor * 8 + k])
                assert new.bias[anchor * (5 + nc) + k] == old.bias[anchor * 8 + k]
            for c in range(nc):
                row = anchor * (5 + nc) + 5 + c
                expected = old.weight[anchor * 8 + 5 + pairs[c]] if c in pairs else start[row]
                assert torch.equal(new.weight[row], expected)
    boxes, expected = target.eval()(image)[0][..., :5], source(image)[0][..., :5]
    torch.testing.assert_close(boxes, expected)


def test_other_anchors_leave_the_head_out_and_say_so(capsys):
    source, other = trained(), [[8, 8, 16, 12], [24, 24, 40, 60]]
    target = build(anchors=other)
    before = [p.clone() for p in target.model[-1].parameters()]
    capsys.readouterr()
    transfer(source, target, own_anchors=True)
    assert "left out: its anchors differ" in report_of(capsys.readouterr().err)["5"]
    assert all(torch.equal(a, b) for a, b in zip(before, target.model[-1].parameters()))
    assert target.model[-1].anchors[1, 1, 1] * target.model[-1].stride[1] == 60

    transfer(source, target)  # without anchors of its own it takes those of the weights, and the head with them
    assert torch.equal(source.model[-1].anchors, target.model[-1].anchors)
    assert torch.equal(source.model[-1].m[0].weight, target.model[-1].m[0].weight)


def test_anchors_rounded_to_half_precision_are_the_same():
    source, target = trained(), build()
    source.model[-1].anchors.copy_(source.model[-1].anchors.half())
    assert transfer(source, target, own_anchors=True) == len(target.state_dict()) - 1


def test_another_number_of_anchors_or_levels(capsys):
    target = build(anchors=[[8, 8], [24, 24]])
    capsys.readouterr()
    transfer(trained(), target)
    assert (
        "left out: it has 2 levels of 1 anchors, and the weights have 2 of 2" in report_of(capsys.readouterr().err)["5"]
    )


# --- the report -------------------------------------------------------------------------------------------------------


def test_a_block_without_a_start_is_said_to_lack_it(capsys):
    transfer(trained(), build((1, "SimAM")), names=["red", "x", "y", "z"])
    lines = {key: " ".join(text.split()) for key, text in report_of(capsys.readouterr().err).items()}
    assert lines["2"] == "SimAM new; it has no start_as_identity(), so it changes what later layers know"


def test_every_layer_is_accounted_for(capsys):
    target = build((1, "SOCA"), nc=4)
    target.model[5] = nn.Identity()  # where C3 was
    target.model[5].type = "torch.nn.modules.linear.Identity"
    capsys.readouterr()
    transfer(trained(), target, names=["red", "x", "y", "z"])
    err = capsys.readouterr().err
    lines = {key: " ".join(text.split()) for key, text in report_of(err).items()}
    assert lines == {
        "0-1": "Conv to Conv carried from 0-1",
        "2": "SOCA new, starts as identity",
        "3-4": "C3 to Conv carried from 2-3",
        "5": "Identity new",
        "6": "Detect partly carried from 5: boxes, objectness and 1 of 4 classes",
    }
    assert "layers of the weights that are not used: 4 C3\n" in err


def test_a_longer_stage_is_carried_in_part(capsys):
    source, target = trained(), build(backbone=[*TINY["backbone"][:2], [-1, 3, "C3", [24]]])
    capsys.readouterr()
    transfer(source, target)
    fit, total = len(source.model[2].state_dict()), len(target.model[2].state_dict())
    assert f"partly carried from 2: {fit} of {total} tensors fit" in report_of(capsys.readouterr().err)["2"]


# --- the official weights ---------------------------------------------------------------------------------------------


def test_official_weights_with_a_block_inserted(official_weights):
    """Raw maps of the official nano model and of SOCA-n with its weights; mAP is quoted in benchmarks/README.md."""
    source = load_checkpoint(official_weights)["model"].float().eval()
    torch.manual_seed(0)
    target = Model("SOCA-n.yaml")
    transfer(source, target, own_anchors=True, names=source.names)
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded, expected = target.eval()(image)[0], source(image)[0]
    fine = 3 * (32**2 + 16**2)  # the two levels before the block
    torch.testing.assert_close(decoded[:, :fine], expected[:, :fine], rtol=1e-4, atol=1e-4)
    assert (decoded[..., 4:] - expected[..., 4:]).abs().max() < 0.02
