import pytest
import torch

from utils.training.schedule import (
    EarlyStopping,
    Schedule,
    Settings,
    apply_settings,
    factor_epoch,
    lr_factor,
    warmup,
    warmup_iterations,
)

HYP = {
    "lr0": 0.01,
    "lrf": 0.01,
    "momentum": 0.937,
    "warmup_epochs": 3.0,
    "warmup_momentum": 0.8,
    "warmup_bias_lr": 0.1,
}


@pytest.mark.parametrize(
    "epoch, linear, cosine",
    [
        (0, 1, 1),
        (1, 0.901, 0.975773),
        (5, 0.505, 0.505),
        (9, 0.109, 0.034227),
        (10, 0.01, 0.01),  # the end, which training stops short of
    ],
)
def test_learning_rate_by_hand(epoch, linear, cosine):
    assert lr_factor(epoch, 10, 0.01) == pytest.approx(linear, abs=1e-6)
    assert lr_factor(epoch, 10, 0.01, cosine=True) == pytest.approx(cosine, abs=1e-6)


def test_learning_rate_as_recorded(parity):
    for case in parity("schedule")["lr_factor"]["cases"]:
        found = [lr_factor(epoch, case["epochs"], case["lrf"], case["cosine"]) for epoch in case["epoch"]]
        assert found == pytest.approx(case["factor"], rel=1e-8)


def test_one_cycle_as_recorded(parity):
    # a cosine between any two values, which lr_factor is for 1 and lrf; recorded at about eight points
    for case in parity("schedule")["one_cycle"]:
        y1, y2, steps = case["y1"], case["y2"], case["steps"]
        epochs = range(0, steps + 1, steps // 8)
        found = [y2 + (y1 - y2) * lr_factor(epoch, steps, 0.0, cosine=True) for epoch in epochs]
        assert found == pytest.approx(case["values"], rel=1e-8)


@pytest.mark.parametrize(
    "epochs, batches, floor, expected",
    [
        (3, 30, 1000, 1000),  # a small set still warms up for 1000 iterations
        (3, 400, 1000, 1200),
        (0, 400, 1000, 1000),  # even when none was asked for
        (0, 400, 0, 0),
        (2.5, 3, 0, 8),  # 7.5 rounds to even
    ],
)
def test_warmup_length(epochs, batches, floor, expected):
    assert warmup_iterations({"warmup_epochs": epochs}, batches, floor) == expected


@pytest.mark.parametrize(
    "iteration, accumulate, bias, other, momentum",
    [
        (0, 1, 0.1, 0, 0.8),
        (100, 1, 0.091, 0.001, 0.8137),
        (500, 2, 0.055, 0.005, 0.8685),  # 2.5 batches round to even
        (1000, 4, 0.01, 0.01, 0.937),
        (5000, 4, 0.01, 0.01, 0.937),
    ],
)
def test_warmup_by_hand(iteration, accumulate, bias, other, momentum):
    settings = warmup(iteration, 1000, 1.0, HYP, batch_size=16)
    assert settings.learning_rates == pytest.approx((other, other, bias))
    assert settings.momentum == pytest.approx(momentum)
    assert settings.accumulate == accumulate


def test_no_warmup_at_all():
    assert warmup(0, 0, 0.5, HYP, batch_size=24) == Settings((0.005, 0.005, 0.005), 0.937, 3)


@pytest.mark.parametrize(
    "epoch, expected",
    [
        (0, 0),
        (9, 9),  # warm-up until iteration 1000 in epochs of 100
        (10, 10),  # its last iteration is the first of epoch 10
        (11, 10),  # one behind from here on
        (20, 19),
    ],
)
def test_factor_epoch(epoch, expected):
    assert factor_epoch(epoch, 100, 1000) == expected


def test_the_schedule_of_a_run_by_hand():
    schedule = Schedule(HYP, epochs=20, batches=100, batch_size=64)
    factors = {500: 0.5 * 0.7525, 1000: 0.505, 1050: 0.505, 1100: 0.505, 1250: 0.4555}  # 1 - 0.99 epoch / 20
    for iteration, factor in factors.items():
        assert schedule.at(iteration).learning_rates[1] == pytest.approx(0.01 * factor), iteration
    without_warmup = Schedule({**HYP, "warmup_epochs": 0, "warmup_floor": 0}, 20, 100, 64)
    assert without_warmup.at(0) == Settings((0.01, 0.01, 0.01), 0.937, 1)


def test_training_loop_as_recorded(parity):
    for case in parity("schedule")["warmup"]["cases"]:
        hyp, batches = case["hyp"], case["batches_per_epoch"]
        assert warmup_iterations(hyp, batches) == case["warmup_iterations"]
        schedule = Schedule(hyp, case["epochs"], batches, case["batch_size"], case["cosine"])
        settings = [schedule.at(iteration) for iteration in range(batches * case["epochs"])]
        for iteration, _, *rates_and_momentum, accumulate in case["rows"]:
            found = settings[iteration]
            assert [*found.learning_rates, found.momentum] == pytest.approx(rates_and_momentum, rel=1e-8, abs=1e-12)
            assert found.accumulate == accumulate
        ends = [list(settings[batches * (epoch + 1) - 1].learning_rates) for epoch in range(case["epochs"])]
        assert ends == [pytest.approx(rates, rel=1e-8) for rates in case["logged_lr"]]

        steps, last = [], -1
        for iteration, now in enumerate(settings):
            if iteration - last >= now.accumulate:
                steps.append(iteration)
                last = iteration
        assert steps[:60] == case["first_steps"]
        assert (len(steps), sum(steps)) == (case["optimizer_steps"], case["step_sum"])


@pytest.mark.parametrize("optimizer_class, momentum", [(torch.optim.SGD, 0.8), (torch.optim.Adam, None)])
def test_settings_reach_the_optimizer(optimizer_class, momentum):
    groups = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(3)]
    optimizer = optimizer_class(groups, lr=0.5)
    apply_settings(optimizer, Settings((0.1, 0.2, 0.3), 0.8, 4))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.3]
    assert [group.get("momentum") for group in optimizer.param_groups] == [momentum] * 3


def test_early_stopping_as_recorded(parity):
    for case in parity("schedule")["early_stop"]["cases"]:
        stopper = EarlyStopping(case["patience"])
        stops, may_stop_next = [], []
        for epoch, fitness in enumerate(case["fitness"]):
            stops.append(stopper(epoch, fitness))
            may_stop_next.append(stopper.possible_stop)
        assert (stops, may_stop_next) == (case["stop"], case["may_stop_next"])
        assert (stopper.best_epoch, stopper.best_fitness) == (case["best_epoch"], case["best"])


def test_early_stopping_goes_on_after_a_resume():
    fitness = [0.1, 0.3, 0.2, 0.2, 0.2, 0.2]
    whole = EarlyStopping(3)
    expected = [whole(epoch, f) for epoch, f in enumerate(fitness)]
    for cut in range(len(fitness)):
        first, second = EarlyStopping(3), EarlyStopping(3)
        found = [first(epoch, fitness[epoch]) for epoch in range(cut)]
        second.load_state_dict(first.state_dict())
        found += [second(epoch, fitness[epoch]) for epoch in range(cut, len(fitness))]
        assert found == expected


def test_early_stopping_ignores_a_fitness_that_is_no_number():
    stopper = EarlyStopping(2)
    assert [stopper(epoch, f) for epoch, f in enumerate([0.5, float("nan"), float("nan")])] == [False, False, True]
    assert stopper.best_fitness == 0.5
