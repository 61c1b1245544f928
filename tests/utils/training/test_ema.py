import math

import pytest
import torch
from torch import nn

from utils.training.ema import ModelEMA, ema_decay, ema_tau, unwrap


def make_model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    "updates, decay", [(1, 0.00049983), (100, 0.04876570), (2000, 0.63205735), (10000, 0.99316273)]
)
def test_decay_by_hand(updates, decay):
    assert ema_decay(updates) == pytest.approx(decay, abs=1e-8)


def test_decay_as_recorded(parity):
    recorded = parity("schedule")["ema"]
    for key, final in (("decay", 0.9999), ("decay_999", 0.999)):
        for updates, decay in recorded[key]:
            assert ema_decay(updates, final) == pytest.approx(decay, rel=1e-8)


@pytest.mark.parametrize(
    "hyp, steps, tau",
    [
        ({}, 195, 2000),  # v6.1, whatever the length
        ({}, 550_000, 2000),
        ({"ema_share": 0.25}, 195, 48.75),
        ({"ema_share": 0.25}, 8000, 2000),
        ({"ema_share": 0.25}, 550_000, 2000),
        ({"ema_share": 0.25}, 0, 0.25),
    ],
)
def test_tau_of_a_run(hyp, steps, tau):
    assert ema_tau(hyp, steps) == pytest.approx(tau)


def test_how_many_steps_a_short_run_averages_over():
    steps, tau = 195, ema_tau({"ema_share": 0.25}, 195)
    assert 1 / (1 - ema_decay(steps, tau=tau)) == pytest.approx(math.exp(4), rel=0.01)
    assert 1 / (1 - ema_decay(steps)) < 1.2  # v6.1: the last step, and little else


def test_trace_as_recorded(parity, parity_inputs):
    recorded = parity("schedule")["ema"]
    model = parity_inputs.fill(make_model(), recorded["start"])
    ema = ModelEMA(model)
    for step in recorded["trace"]:
        ema.update(parity_inputs.fill(model, step["weights"]))
        state = ema.model.state_dict()
        assert ema.updates == step["update"]
        assert state["1.num_batches_tracked"].item() == step["tracked"]
        for name in ("0.weight", "1.running_var"):
            torch.testing.assert_close(state[name], torch.tensor(step[name]), rtol=1e-8, atol=0)


def test_equals_the_closed_formula():
    """average_n = sum_k (1 - d_k) (prod_{j > k} d_j) model_k, with the start as model_0 and d_0 = 0."""
    model = make_model().double()
    values = torch.randn(21, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model[0].weight.data = values[0].clone()
    ema = ModelEMA(model, decay=0.9, tau=5)
    for value in values[1:]:
        model[0].weight.data = value.clone()
        ema.update(model)
    decays = [0.0] + [0.9 * (1 - math.exp(-k / 5)) for k in range(1, 21)]
    shares = [(1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(21)]
    assert sum(shares) == pytest.approx(1)
    torch.testing.assert_close(ema.model[0].weight, sum(s * v for s, v in zip(shares, values)), rtol=1e-12, atol=1e-12)


def test_integers_stay_and_batch_statistics_move():
    model = make_model().train()
    ema = ModelEMA(model)
    model(torch.randn(8, 3) + 5)
    ema.update(model)
    assert model[1].num_batches_tracked == 1 and ema.model[1].num_batches_tracked == 0
    assert not torch.equal(ema.model[1].running_mean, torch.zeros(4))


def test_the_average_is_apart_from_the_model():
    model = make_model().train()
    ema = ModelEMA(model)
    assert not ema.model.training and model.training
    assert not any(p.requires_grad for p in ema.model.parameters()) and all(p.requires_grad for p in model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ema.model[0].weight.zero_()
    ema.update(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_half_precision_model_is_averaged_in_float32():
    model = make_model().half()
    ema = ModelEMA(model, updates=100_000)  # d = 0.9999: the step is below half precision's resolution
    start = ema.model[0].weight.clone()
    assert start.dtype == torch.float32
    model[0].weight.data += 1
    ema.update(model)
    torch.testing.assert_close(ema.model[0].weight - start, torch.full((4, 3), 1e-4), rtol=1e-2, atol=0)


def test_a_restored_average_continues_as_if_never_stopped():
    weights = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(0))

    def train(ema, model, part):
        for value in part:
            model[0].weight.data = value.clone()
            ema.update(model)
        return ema

    torch.manual_seed(0)
    model = make_model()
    whole = ModelEMA(model)
    first, second = ModelEMA(model), ModelEMA(make_model())
    train(whole, model, weights)
    train(first, model, weights[:4])
    second.load_state_dict(first.state_dict())
    train(second, model, weights[4:])
    assert second.updates == whole.updates == 10
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values()))


def test_attributes_follow_the_model():
    model = make_model()
    ema = ModelEMA(model)
    model.names, model.nc, model.other = ["cat"], 1, "not copied"
    ema.copy_attributes(model)
    assert ema.model.names == ["cat"] and ema.model.nc == 1 and not hasattr(ema.model, "other")


def test_wrapped_models():
    model = make_model()
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model
    assert unwrap(model) is model
    ema = ModelEMA(nn.DataParallel(model))
    ema.update(nn.DataParallel(model))
    assert list(ema.model.state_dict()) == list(model.state_dict())
