"""The forms of a gate: each against the formula of the paper's form with the numbers that it stands for, its start, its
rate against SGD at that rate, and the way from one form to another.
"""

import copy

import pytest
import torch
from test_registry import small, with_row
from test_second_order import coupled, make, near
from torch import nn

from models.backend import load_checkpoint
from models.common import SE, SOCA
from models.gates import MOMENTUM, convert_gate, gate_network
from models.second_order import second_order_statistic
from models.transfer import transfer
from models.yolo import Model
from utils import checkpoint

FORMS = [
    (unit, start, rate) for unit in ("means", "sums", "own") for start in ("open", "half") for rate in (1.0, 0.25, 9)
]


def soca(unit: str = "means", start: str = "open", rate: float = 1.0, channels: int = 24) -> SOCA:
    """A SOCA of a form in float64 and eval mode, whose weights make gates far from constant."""
    torch.manual_seed(0)
    block = SOCA(channels, 4, unit, start, rate).double().eval()
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(0, 0.5)
        if unit == "own":
            block.size.fill_(0.37)
    return block


def by_hand(block: SOCA, x: torch.Tensor, k: float, rate: float, doubled: float) -> torch.Tensor:
    """The gate (N, C), from the state dict, the paper's statistic and what a form says of itself."""
    w1, b1, w2, b2 = (block.state_dict()[f"conv_du.{key}"] for key in ("0.weight", "0.bias", "2.weight", "2.bias"))
    hidden = (rate**0.5 * (k * coupled(x) @ w1[:, :, 0, 0].T + b1)).clamp(min=0)
    return doubled / (1 + torch.exp(-(rate**0.5) * (hidden @ w2[:, :, 0, 0].T + b2)))


@pytest.mark.parametrize(("unit", "start", "rate"), FORMS)
def test_forms_by_hand(unit, start, rate):
    block, x = soca(unit, start, rate), make("correlated", (2, 24, 6, 7)).double()
    expected = by_hand(block, x, {"means": 1, "sums": 24, "own": 24 / 0.37}[unit], rate, 1 + (start == "half"))
    assert near(block.gate(x).flatten(1), expected, 1e-7)
    assert expected.std(1).min() > 0.05
    assert torch.equal(block(x), block.gate(x) * x)


@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("form", [("means", "open", 1.0), ("own", "half", 0.25)])
def test_every_form_becomes_every_other(form, to):
    """The same function up to a factor of 1/2, 1 or 2, for maps of any size."""
    block, other, x = soca(*form), soca(*to), make("correlated", (2, 24, 6, 7)).double()
    k = other.take(block)
    assert k == {("open", "open"): 1, ("half", "half"): 1, ("half", "open"): 2, ("open", "half"): 0.5}[form[1], to[1]]
    for scale in (1e-3, 1, 100):
        assert near(k * other.gate(scale * x), block.gate(scale * x), 1e-12)
    back = soca(*form)
    assert back.take(other) == 1 / k
    assert near(back.gate(x), block.gate(x), 1e-12)


def test_the_layer_that_reads_takes_the_factor():
    block, other, reader, x = soca("sums", "half"), soca(), nn.Conv2d(24, 5, 1).double(), make("white", (2, 24, 6, 7))
    before = reader(block(x.double()))
    with torch.no_grad():
        reader.weight *= other.take(block)
    assert near(reader(other(x.double())), before, 1e-12)


def test_powers_of_two_convert_to_the_last_bit():
    """In float32, where the unit is a power of two: no weight is rounded."""
    block = soca("sums", channels=32).float()
    other = soca(channels=32).float()
    other.take(block)
    assert torch.equal(other.conv_du[0].weight, 32 * block.conv_du[0].weight)
    again = soca("sums", channels=32).float()
    again.take(other)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), block.parameters(), strict=True))


@pytest.mark.parametrize("kind", [SOCA, SE])
def test_half_starts_at_exactly_one_and_learns_at_once(kind):
    block, x = kind(24, 4, start="half"), make("correlated", (2, 24, 6, 7))
    block.start_as_identity()
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    first, _, second, _ = block.conv_du
    slope = 2 * x.square().sum((2, 3))  # of the loss by the gate; the gate's by z is 1/2
    assert near(second.bias.grad, (slope / 2).sum(0), 1e-5)
    assert second.weight.grad.abs().max() > 0 and not first.weight.grad.any()
    torch.optim.SGD(block.parameters(), 1e-3).step()
    block.zero_grad()
    block(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in block.parameters())


@pytest.mark.parametrize("rate", [0.25, 4])
def test_the_rate_is_that_of_sgd(rate):
    """A gate of this rate stays the gate of rate 1 that learns at `rate` times the learning rate."""
    x, target = make("correlated", (4, 24, 6, 7)).double(), make("white", (4, 24, 6, 7)).double()
    plain, rated = soca("sums", rate=1.0), soca("sums", rate=rate)
    rated.take(plain)
    for block, lr in ((plain, 0.01 * rate), (rated, 0.01)):
        optimizer = torch.optim.SGD(block.parameters(), lr, momentum=0.9, nesterov=True)
        start = block.gate(x).detach()
        for _ in range(5):
            optimizer.zero_grad()
            (block(x) - target).square().mean().backward()
            optimizer.step()
        assert (block.gate(x) - start).abs().max() > 1e-3
    assert near(rated.gate(x), plain.gate(x), 1e-10)


@pytest.mark.parametrize("start", ["open", "half"])
def test_a_fresh_gate_is_the_same_at_any_rate(start):
    networks = []
    for rate in (1.0, 0.09):
        torch.manual_seed(0)
        networks.append(gate_network(24, 4, start, rate))
    s = torch.rand(2, 24, 1, 1)
    assert near(networks[1](s), networks[0](s), 1e-6)
    assert convert_gate(*networks) == 1


# --- the running size -------------------------------------------------------------------------------------------------


def test_the_size_follows_the_training_batches_and_nothing_else():
    block = SOCA(24, unit="own")
    batches = [make("correlated", (2, 24, 6, 7)) * k for k in (1, 5, 0, 2)]
    size = 1.0
    for x in batches:
        block.train()(x).sum().backward()
        size += MOMENTUM * (24 * second_order_statistic(x).square().mean().sqrt().item() - size)
        assert block.size.item() == pytest.approx(size, rel=1e-5)
    block.eval()(batches[1])
    assert block.size.item() == pytest.approx(size, rel=1e-5)


def test_after_a_while_the_statistic_is_of_order_one():
    block, x = SOCA(24, unit="own").train(), 1e-3 * make("correlated", (2, 24, 6, 7))
    for _ in range(400):
        s = block.statistic(x)
    assert s.square().mean().sqrt().item() == pytest.approx(1, rel=1e-2)


def test_a_batch_that_overflows_does_not_spoil_the_size():
    block = SOCA(24, unit="own").train()
    block(torch.full((1, 24, 4, 4), torch.inf))
    assert block.size.isfinite().all()
    assert block.eval()(torch.zeros(1, 24, 4, 4)).isfinite().all()


def test_several_passes_before_one_step():
    """A batch changes the size, but not the gradient of the batches before it."""
    block, xs = SOCA(24, unit="own").train(), [make("white", (1, 24, 6, 7)), make("correlated", (1, 24, 6, 7))]
    sum(block(x).square().sum() for x in xs).backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("unit", ["sums", "own"])
def test_small_means_keep_their_digits_in_half_precision(unit):
    """The means themselves are below float16's smallest normal number here."""
    block, x = soca(unit, channels=64).float(), (1e-3 * make("white", (1, 64, 6, 7))).half()
    assert second_order_statistic(x).max() < torch.finfo(torch.float16).tiny
    assert near(copy.deepcopy(block).half().statistic(x).float(), block.statistic(x.float()), 2e-3)


# --- in files and models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [SOCA(24), SOCA(24, 8, "means", "open", 1), SE(24)])
def test_the_papers_form_has_nothing_of_its_own(block):
    """Neither in its state dict nor among the attributes that a checkpoint pickles."""
    assert list(block.state_dict()) == ["conv_du.0.weight", "conv_du.0.bias", "conv_du.2.weight", "conv_du.2.bias"]
    assert {k for k in vars(block) if not k.startswith("_")} == {"training"}
    assert [type(m) for m in block.conv_du] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.Sigmoid]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "sum"}, "the unit of SOCA's statistic must be means, sums or own, got 'sum'"),
        ({"start": "closed"}, "the start of a gate must be open or half, got 'closed'"),
        ({"rate": 0}, "the rate of a gate must be a number above 0, up to 1e6, got 0"),
        ({"rate": "half"}, "got 'half'"),
        ({"unit": ["sums"]}, r"got \['sums'\]"),
    ],
)
def test_a_form_that_does_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        SOCA(24, **arguments)


def test_rows_name_the_forms(tmp_path):
    """In a YAML, through a checkpoint, and in the YAML inside it."""
    model = Model(with_row([-1, 1, "SOCA", [96, 8, "own", "half", 0.5]])).eval()
    with torch.no_grad():
        model.model[4].size.fill_(0.25)
        nn.init.normal_(model.model[4].conv_du[2].weight, std=3)
    checkpoint.save(tmp_path / "own.pt", {"model": model, "ema": None})
    loaded, x = load_checkpoint(tmp_path / "own.pt")["model"], torch.rand(1, 3, 64, 64)
    assert loaded.model[4].unit == "own" and loaded.model[4].size == 0.25
    with torch.no_grad():
        assert torch.equal(loaded(x)[0], model(x)[0])
    assert Model(loaded.yaml).load_state_dict(model.state_dict())


def test_a_row_that_names_no_form():
    with pytest.raises(ValueError, match=r"backbone row 4 .*SOCA.*must be means, sums or own, got 'sum'"):
        Model(with_row([-1, 1, "SOCA", [96, 8, "sum"]]))


@pytest.mark.parametrize("arguments", [[8, "sums"], [8, "own", "open", 0.25], []])
def test_weights_go_into_another_form(arguments, capsys):
    """The network with the block in another unit and of another rate begins as the same function."""
    insert = lambda args: Model(small(insert=[{"after": 3, "module": "SOCA", "args": [None, *args]}])).eval()  # noqa: E731
    source, target, x = insert([8, "sums", "open", 4]), insert(arguments), torch.rand(1, 3, 64, 64)
    nn.init.normal_(source.model[4].conv_du[2].weight, std=3)
    transfer(source, target)
    assert "left out" not in capsys.readouterr().err
    with torch.no_grad():
        assert near(target(x)[0], source(x)[0], 1e-5)


def test_weights_do_not_go_into_another_start(capsys):
    source, target = (
        Model(small(insert=[{"after": 3, "module": "SOCA", "args": a}])) for a in ([], [96, 8, "sums", "half"])
    )
    transfer(source, target)
    assert (
        "left out: the gate of layer 4 of the weights has another start, starts as identity" in capsys.readouterr().err
    )
    x = make("white", (1, 48, 5, 5))
    assert torch.equal(target.model[4](x), x)
