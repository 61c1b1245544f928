"""What one run does from step to step: steps that overflow, and the same numbers each time."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_world import SMALLEST, write_boxes, write_yaml

import train
from engine import training as loop
from engine.run import State
from engine.training import random_scale
from models.backend import load_checkpoint
from models.yolo import Model
from utils.training.ema import ModelEMA
from utils.training.loss import ComputeLoss
from utils.training.optimizer import build_optimizer
from utils.training.schedule import Schedule

pytestmark = pytest.mark.usefixtures("here", "no_plots")
ROOT = Path(train.__file__).parent


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> list:
    """Arguments with which training works."""
    root = tmp_path_factory.mktemp("data")
    data = write_yaml(root / "boxes.yaml", write_boxes(root / "boxes"))
    cfg = write_yaml(root / "smallest.yaml", SMALLEST)
    return ["--weights", "", "--data", data, "--cfg", cfg, "--imgsz", 64, "--epochs", 2, "--batch-size", 2,
            "--device", "cpu", "--workers", 0, "--project", "out"]  # fmt: skip


# --- gradients that overflow in half precision ------------------------------------------------------------------------


class FakeScaler:
    """A gradient scaler on which the steps of these numbers (from 0) overflow: it skips them and halves its scale."""

    def __init__(self, *overflows: int):
        self.value, self.overflows, self.calls = 1024.0, overflows, 0

    def get_scale(self) -> float:
        return self.value

    def scale(self, loss):
        return loss

    def step(self, optimizer) -> None:
        if self.calls not in self.overflows:
            optimizer.step()

    def update(self) -> None:
        self.value *= 0.5 if self.calls in self.overflows else 1
        self.calls += 1

    def state_dict(self) -> dict:
        return {}


def small_run(*overflows: int) -> SimpleNamespace:
    """As much of a run as a step needs: one weight of 1, whose gradient is 1, with a learning rate of 0.5."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    model.weight.grad = torch.ones(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return SimpleNamespace(
        model=model, optimizer=optimizer, ema=ModelEMA(model), scaler=FakeScaler(*overflows), state=State(last_step=4)
    )


def test_a_step_moves_the_weights_and_their_average():
    run = small_run()
    loop.step(run, 7)
    assert run.model.weight.item() == 0.5 and run.model.weight.grad is None
    assert run.ema.updates == 1 and run.ema.model.weight.item() != 1
    assert (run.state.last_step, run.state.skipped) == (7, 0)


def test_a_step_that_overflows_moves_nothing_and_its_iterations_are_counted():
    run = small_run(0, 1)
    loop.step(run, 7)
    assert run.model.weight.item() == 1 and run.model.weight.grad is None
    assert run.ema.updates == 0 and run.ema.model.weight.item() == 1
    assert (run.state.last_step, run.state.skipped) == (7, 3)
    loop.step(run, 9)
    assert (run.state.last_step, run.state.skipped) == (9, 5)
    run.model.weight.grad = torch.ones(1, 1)
    loop.step(run, 10)
    assert (run.state.last_step, run.state.skipped, run.ema.updates) == (10, 5, 1)
    assert run.model.weight.item() == 0.5


def test_a_scale_that_grows_is_no_overflow():
    run = small_run()
    run.scaler.update = lambda: setattr(run.scaler, "value", 2048.0)
    loop.step(run, 5)
    assert run.ema.updates == 1 and run.state.skipped == 0


def test_only_the_first_process_keeps_an_average(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = small_run(1)
    loop.step(run, 5)
    assert run.ema.updates == 0 and run.model.weight.item() == 0.5 and run.state.skipped == 0
    loop.step(run, 8)
    assert (run.state.last_step, run.state.skipped) == (8, 3)


def test_the_schedule_waits_for_steps_that_overflowed(command, usual, monkeypatch):
    """The second and third step of six do; the learning rates go on from where they were."""
    asked, real = [], loop.prepare

    class Recorded(Schedule):
        def at(self, iteration):
            asked.append(iteration)
            return super().at(iteration)._replace(accumulate=1)

    def prepare(*arguments):
        run = real(*arguments)
        old = replace(run.schedule)
        run.schedule = Recorded(old.hyp, old.epochs, old.batches, old.batch_size, old.cosine)
        run.scaler = FakeScaler(1, 2)
        return run

    monkeypatch.setattr(loop, "prepare", prepare)
    code, err = command("train", *usual)
    assert code == 0, err
    assert asked == [0, 1, 1, 1, 2, 3]
    training = load_checkpoint(Path("out/exp/weights/last.pt"))["training"]
    assert training["state"]["skipped"] == 2 and training["state"]["last_step"] == 5
    assert training["ema"]["updates"] == 4


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_the_same_weights_whatever_the_number_of_processes_that_read(command, usual):
    found = []
    for workers in (0, 1, 2):
        code, err = command("train", *usual, "--workers", workers, "--name", workers, "--multi-scale")
        assert code == 0, err
        found.append(load_checkpoint(Path("out", str(workers), "weights/last.pt"))["training"])
    first = found[0]
    for other in found[1:]:
        assert all(torch.equal(other["model"][name], tensor) for name, tensor in first["model"].items())
        average = first["ema"]["model"]
        assert all(torch.equal(other["ema"]["model"][name], tensor) for name, tensor in average.items())
        assert torch.equal(other["random"]["cpu"], first["random"]["cpu"])
    tables = {Path("out", str(workers), "results.csv").read_bytes() for workers in (0, 1, 2)}
    assert len(tables) == 1


def test_histograms_of_gates_change_no_number(command, usual):
    """TensorBoard gets the average's gates from each validation: one per channel (32) and image of val (4)."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for name, flags in (("with", ["--log", "tensorboard"]), ("without", [])):
        code, err = command("train", *usual, "--name", name, *flags)
        assert code == 0, err
    watched, plain = (load_checkpoint(Path("out", name, "weights/last.pt"))["training"] for name in ("with", "without"))
    for one, other in ((watched["model"], plain["model"]), (watched["ema"]["model"], plain["ema"]["model"])):
        assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    assert Path("out/with/results.csv").read_bytes() == Path("out/without/results.csv").read_bytes()
    assert torch.equal(watched["random"]["cpu"], plain["random"]["cpu"])

    events = accumulator.EventAccumulator("out/with", {"histograms": 0}).Reload()
    assert events.Tags()["histograms"] == ["gate/3-SOCA"]
    first, second = events.Histograms("gate/3-SOCA")
    assert (first.step, second.step) == (0, 1)
    assert first.histogram_value.num == second.histogram_value.num == 4 * 32
    assert 0 < second.histogram_value.min < second.histogram_value.max < 1


def test_another_seed_is_another_run(command, usual):
    tables = set()
    for seed in (0, 1):
        assert command("train", *usual, "--seed", seed, "--name", seed, "--epochs", 1)[0] == 0
        tables.add(Path("out", str(seed), "results.csv").read_text())
    assert len(tables) == 2


@pytest.fixture
def only_deterministic():
    """torch refuses every operation whose result may differ from one time to the next."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=False)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


HYP = {"box": 0.05, "cls": 0.5, "cls_pw": 1.0, "obj": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0}
TARGETS = torch.tensor([[0, 0, 0.3, 0.3, 0.2, 0.3], [0, 1, 0.7, 0.6, 0.3, 0.2], [1, 1, 0.5, 0.5, 0.8, 0.7]])


def one_step() -> dict[str, torch.Tensor]:
    """The gradients, weights and statistics of SOCA-n after one step."""
    torch.manual_seed(0)
    model = Model(ROOT / "models/SOCA-n.yaml", nc=2).train()
    optimizer = build_optimizer(model, "SGD", 0.01, 0.937, 5e-4)
    loss, _ = ComputeLoss(model.model[-1], HYP)(model(torch.rand(2, 3, 96, 64)), TARGETS)
    loss.backward()
    gradients = {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    return {**gradients, **model.state_dict()}


def test_a_step_of_soca_is_deterministic(only_deterministic):
    first, second = one_step(), one_step()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert all(tensor.isfinite().all() for tensor in first.values())


def test_one_image_alone_is_not_scaled_to_one_cell():
    """Batch norm refuses one value per channel; batches of several images are scaled as in v6.1."""

    def sides(count):
        return {random_scale(torch.zeros(count, 3, 64, 64), 64, 32, (0, k)).shape[2] for k in range(50)}

    assert sides(1) == {64, 96}
    assert sides(2) == {32, 64, 96}
