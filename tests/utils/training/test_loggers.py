"""TensorBoard is read back as it was written; the other two are stood in for by modules that remember every call."""

import json
import logging

import cv2
import numpy as np
import pytest

from utils.training.loggers import create_loggers, parse_loggers, project_name, run_name

OPTIONS = {"project": "runs/train", "name": "exp", "epochs": 3, "freeze": [0]}
HYP = {"lr0": 0.01, "mosaic": 1.0}
VALUES = {"train/box_loss": 0.5, "metrics/mAP_0.5:0.95": 0.25}

FAKES = {
    "wandb": """
calls = []
class Settings(dict):
    def __init__(self, **options): super().__init__(options)
def Image(path, caption): return path, caption
class Run:
    def __init__(self, id): self.id, self.summary = id or "new-id", {}
    def log(self, values, step):
        if values.get("fail"): raise ConnectionError("no network")
        calls.append(("log", values, step))
    def finish(self): calls.append(("finish", dict(self.summary)))
def init(**options):
    calls.append(("init", options))
    return Run(options["id"])
def login(*_, **__): raise AssertionError("nobody asked to log in")
""",
    "mlflow/__init__": """
from types import SimpleNamespace
calls, experiments = [], {}
class MlflowClient:
    def __getattr__(self, act): return lambda *values, **named: calls.append((act, *values, named))
    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=experiments[name]) if name in experiments else None
    def create_experiment(self, name): return experiments.setdefault(name, f"number {len(experiments)}")
    def create_run(self, experiment, run_name):
        calls.append(("create_run", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="fresh"))
    def log_batch(self, run, metrics=(), params=()): calls.append(("log_batch", run, list(metrics), list(params)))
""",
    "mlflow/entities": """
from collections import namedtuple
Param = namedtuple("Param", "key value")
Metric = namedtuple("Metric", "key value timestamp step")
""",
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake("wandb")`: a module of that name that only remembers what it was asked."""

    def install(name):
        for module, text in FAKES.items():
            if module.split("/")[0] == name:
                file = tmp_path / "fakes" / f"{module}.py"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
                monkeypatch.delitem(__import__("sys").modules, module.removesuffix("/__init__"), raising=False)
        monkeypatch.syspath_prepend(tmp_path / "fakes")
        return __import__(name)

    return install


@pytest.fixture
def log(caplog):
    """Messages of the project's logger, which does not pass them on."""
    logger = logging.getLogger("yolov5")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def image(tmp_path):
    """A red image file."""
    path = tmp_path / "PR_curve.png"
    cv2.imwrite(str(path), np.full((4, 6, 3), (0, 0, 255), np.uint8))
    return path


# --- names ------------------------------------------------------------------------------------------------------------


def test_names(fake):
    fake("wandb")
    fake("mlflow")
    assert parse_loggers("") == []
    assert parse_loggers(" WandB, mlflow,wandb,") == ["wandb", "mlflow"]
    with pytest.raises(
        ValueError, match=r"--log must name loggers of tensorboard, wandb, mlflow, got 'wanbd'; did you mean 'wandb'\?$"
    ):
        parse_loggers("wanbd")


def test_a_tracker_that_is_not_installed_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    with pytest.raises(ValueError, match=r"--log wandb needs .*: pip install wandb"):
        parse_loggers("wandb")
    (tmp_path / "wandb").mkdir()  # where W&B keeps its runs; Python would import it
    with pytest.raises(ValueError, match="pip install wandb"):
        create_loggers("wandb", tmp_path, OPTIONS, HYP)


@pytest.mark.parametrize(
    "project, name, expected",
    [
        ("runs/train", "exp", ("YOLOv5", None)),
        ("runs/birds", "large", ("birds", "large")),
    ],
)
def test_where_a_run_appears(project, name, expected):
    options = {"project": project, "name": name}
    assert (project_name(options), run_name(options)) == expected


def test_no_loggers_do_nothing(tmp_path):
    loggers = create_loggers("", tmp_path, OPTIONS, HYP)
    loggers.log_metrics(VALUES, 0)
    loggers.finish({})
    assert not list(tmp_path.iterdir())


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def read_events(folder):
    """Scalars by name as (step, value), and images by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return scalars, {name: events.Images(name)[0] for name in events.Tags()["images"]}


def test_tensorboard_reads_back(tmp_path, image):
    pytest.importorskip("tensorboard")
    loggers = create_loggers("tensorboard", tmp_path, OPTIONS, HYP)
    for epoch in range(2):
        loggers.log_metrics({"train/box_loss": 0.5 - epoch / 4, "metrics/mAP_0.5:0.95": 0.25}, epoch)
    loggers.log_images([image, tmp_path / "not_there.png"], 1)
    loggers.finish({"best/epoch": 1})
    assert [tracker.name for tracker in loggers.trackers] == ["tensorboard"]
    scalars, images = read_events(tmp_path)
    assert scalars == {"train/box_loss": [(0, 0.5), (1, 0.25)], "metrics/mAP_0.5:0.95": [(0, 0.25), (1, 0.25)]}
    assert list(images) == ["PR_curve"] and images["PR_curve"].step == 1
    pixels = cv2.imdecode(np.frombuffer(images["PR_curve"].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(pixels, cv2.imread(str(image)))


def test_tensorboard_of_a_resumed_run_shows_each_epoch_once(tmp_path):
    pytest.importorskip("tensorboard")
    for epochs in ([0, 1, 2], [2, 3]):  # stopped after epoch 2 was logged and before it was saved
        loggers = create_loggers("tensorboard", tmp_path, OPTIONS, HYP, resume=epochs[0] > 0)
        for epoch in epochs:
            loggers.log_metrics({"x": 10 * len(epochs) + epoch}, epoch)
        loggers.finish({})
    assert read_events(tmp_path)[0]["x"] == [(0, 30), (1, 31), (2, 22), (3, 23)]


def test_histograms_go_to_those_who_want_them(tmp_path, fake):
    fake("wandb")
    assert not create_loggers("", tmp_path, OPTIONS, HYP).wants_histograms
    assert not create_loggers("wandb", tmp_path, OPTIONS, HYP).wants_histograms
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = create_loggers("wandb,tensorboard", tmp_path, OPTIONS, HYP)
    assert loggers.wants_histograms
    loggers.log_histograms({"gate/3-SOCA": np.float32([[0.25, 0.5], [0.5, 1]])}, 4)
    loggers.finish({})
    (found,) = accumulator.EventAccumulator(str(tmp_path)).Reload().Histograms("gate/3-SOCA")
    value = found.histogram_value
    assert (found.step, value.num, value.min, value.max, value.sum) == (4, 4, 0.25, 1, 2.25)


# --- W&B --------------------------------------------------------------------------------------------------------------


def test_wandb_gets_the_entity(tmp_path, fake):
    wandb = fake("wandb")
    create_loggers("wandb", tmp_path, {**OPTIONS, "entity": "my team"}, HYP)
    assert wandb.calls[0][1]["entity"] == "my team"


def test_wandb_gets_configuration_numbers_images_and_summary(tmp_path, fake, image):
    wandb = fake("wandb")
    loggers = create_loggers("wandb", tmp_path, OPTIONS, HYP)
    loggers.log_metrics(VALUES, 0)
    loggers.log_images([image], 0)
    loggers.finish({"best/epoch": 0})
    (_, init), *rest = wandb.calls
    assert (init["project"], init["name"], init["id"], init["dir"]) == ("YOLOv5", None, None, str(tmp_path))
    assert init["config"] == {**OPTIONS, "hyp": HYP} and init["entity"] is None
    assert init["settings"]["save_code"] is False and init["settings"]["disable_git"] is True
    assert rest == [
        ("log", VALUES, 0),
        ("log", {"Results": [(str(image), "PR_curve.png")]}, 0),
        ("finish", {"best/epoch": 0}),
    ]


def test_a_resumed_training_continues_its_runs(tmp_path, fake):
    wandb, mlflow = fake("wandb"), fake("mlflow")
    create_loggers("wandb,mlflow", tmp_path, OPTIONS, HYP)
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"wandb": "new-id", "mlflow": "fresh"}
    mlflow.calls.clear()

    create_loggers("wandb,mlflow", tmp_path, OPTIONS, HYP, resume=True)
    assert wandb.calls[-1][1]["id"] == "new-id" and wandb.calls[-1][1]["resume"] == "allow"
    assert mlflow.calls == [("update_run", "fresh", {"status": "RUNNING"})]  # parameters may be written only once

    create_loggers("wandb", tmp_path, OPTIONS, HYP)  # a new training in an old folder
    assert wandb.calls[-1][1]["id"] is None


# --- MLflow -----------------------------------------------------------------------------------------------------------


def test_mlflow_gets_parameters_metrics_and_files(tmp_path, fake, image):
    mlflow = fake("mlflow")
    for name in ("results.csv", "report.html"):
        (tmp_path / name).write_text("epoch\n")
    loggers = create_loggers("mlflow", tmp_path, {**OPTIONS, "name": "large"}, HYP)
    loggers.log_metrics(VALUES, 4)
    loggers.log_images([image], 4)
    loggers.finish({"best/epoch": 4})
    assert mlflow.experiments == {"YOLOv5": "number 0"}
    run, options, hyp, metrics, *files, summary, results, page, end = mlflow.calls
    assert run == ("create_run", "number 0", "large")
    assert ("epochs", "3") in options[3] and ("hyp/lr0", "0.01") in hyp[3]
    assert [(*tuple(m)[:2], m.step) for m in metrics[2]] == [
        ("train/box_loss", 0.5, 4),
        ("metrics/mAP_0.5-0.95", 0.25, 4),  # a colon is not allowed
    ]
    assert files == [("log_artifact", "fresh", str(image), {})]
    assert summary[2][0].key == "best/epoch" and summary[2][0].value == 4
    assert results == ("log_artifact", "fresh", str(tmp_path / "results.csv"), {})
    assert page == ("log_artifact", "fresh", str(tmp_path / "report.html"), {})
    assert end == ("set_terminated", "fresh", {})


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failing_tracker_is_dropped_with_one_warning(tmp_path, fake, log):
    wandb, mlflow = fake("wandb"), fake("mlflow")
    loggers = create_loggers("wandb,mlflow", tmp_path, OPTIONS, HYP)
    for epoch in range(3):
        loggers.log_metrics({"fail": 1.0}, epoch)
    assert [tracker.name for tracker in loggers.trackers] == ["mlflow"]
    assert [r.message for r in log.records] == ["--log wandb failed; training continues without it: no network"]
    assert sum(call[0] == "log_batch" and bool(call[2]) for call in mlflow.calls) == 3
    assert all(call[0] == "init" for call in wandb.calls)


def test_a_tracker_that_cannot_start_is_dropped(tmp_path, fake, log, monkeypatch):
    wandb = fake("wandb")
    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    loggers = create_loggers("wandb", tmp_path, OPTIONS, HYP)
    assert loggers.trackers == [] and "--log wandb failed" in log.text
    assert not (tmp_path / "loggers.json").exists()


@pytest.mark.parametrize("text", ["[]", "{", "[" * 9999, '{"wandb": 5}', '{"wandb": "../other"}', '{"wandb": "a b"}'])
def test_a_note_of_runs_from_elsewhere_is_checked(tmp_path, fake, text):
    (tmp_path / "loggers.json").write_text(text)
    with pytest.raises(ValueError, match=r"loggers.json: must hold the identifier of a run"):
        create_loggers("wandb", tmp_path, OPTIONS, HYP, resume=True)


def test_a_failing_tracker_does_not_tell_a_password(tmp_path, fake, log, monkeypatch):
    fake("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:S3CRETword@host/mlflow")
    loggers = create_loggers("mlflow", tmp_path, OPTIONS, HYP)

    def fail(*_):
        raise RuntimeError("401 for me:S3CRETword at https://me:S3CRETword@host/mlflow")

    loggers.trackers[0].log_metrics = fail
    loggers.log_metrics({"a": 1.0}, 0)
    assert "401 for ***" in log.text and "S3CRET" not in log.text
