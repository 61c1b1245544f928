"""Loggers beside results.csv, named by `--log`: TensorBoard, W&B, MLflow.

A logger that raises an error is dropped with one warning, and training goes on.
"""

import difflib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import cli
from utils.data.images import read_image
from utils.files import atomic_write
from utils.log import LOGGER
from utils.text import redact

RUN_IDS = "loggers.json"  # in the folder of the run: the run of each tracker, which a resumed training continues
MAX_IDS = 100_000  # bytes of that file
SERVERS = ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL", "WANDB_API_KEY")  # of the environment, which may hold a password
ARTIFACTS = (  # files of a run that go to MLflow, where they are there
    "results.csv", "metrics.json", "per_class.csv", "report.html", "hyp.yaml", "opt.yaml", "weights/best.pt",
)  # fmt: skip
LOGIN_SECONDS = 30  # for which W&B may wait for an answer


def parse_loggers(names: str) -> list[str]:
    """Returns the trackers that a list such as "tensorboard,wandb" names; none for "".

    Raises ValueError for an unknown name, and for a tracker that is not installed. Imports none of them.
    """
    parsed = list(dict.fromkeys(name.strip().lower() for name in names.split(",") if name.strip()))
    for name in parsed:
        if name not in TRACKERS:
            close = difflib.get_close_matches(name, TRACKERS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"--log must name loggers of {', '.join(TRACKERS)}, got {name!r}{hint}")
        cli.require(name, f"--log {name}")
    return parsed


def create_loggers(
    names: str,
    save_dir: str | Path,
    options: Mapping[str, Any],
    hyp: Mapping[str, float],
    resume: bool = False,
) -> "Loggers":
    """Starts the trackers that `names` lists (see `parse_loggers` for errors). To be called in the first process only.

    Args:
        save_dir: folder of the run, which exists.
        options: of the command line. `project` and `name` say where the run appears; all are stored with it.
        hyp: hyper-parameters, stored too.
        resume: continue the runs that the training in this folder began.
    """
    save_dir = Path(save_dir)
    file = save_dir / RUN_IDS
    known = _run_ids(file) if resume and file.exists() else {}
    trackers = [TRACKERS[name](save_dir, dict(options), dict(hyp), known.get(name)) for name in parse_loggers(names)]
    loggers = Loggers(trackers)
    loggers.start()
    ids = {**known, **{tracker.name: tracker.run_id for tracker in loggers.trackers if tracker.run_id}}
    if ids or file.exists():
        with atomic_write(file, "w") as f:
            json.dump(ids, f, indent=1)
    return loggers


def _run_ids(file: Path) -> dict[str, str]:
    """Returns the run of each tracker that an earlier training noted; ValueError for another content of the file."""
    try:
        known = json.loads(file.read_bytes()) if file.stat().st_size < MAX_IDS else None
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict) or not all(
        isinstance(v, str) and re.fullmatch(r"[\w-]{1,64}", v) for v in known.values()
    ):
        raise ValueError(
            f"{file}: must hold the identifier of a run for each tracker; remove the file to begin new ones"
        )
    return known


def project_name(options: Mapping[str, Any]) -> str:
    """Returns the project at a tracker: the last part of --project, or YOLOv5 for the default."""
    project = Path(str(options["project"]))
    return "YOLOv5" if project == Path("runs/train") else project.name


def run_name(options: Mapping[str, Any]) -> str | None:
    """Returns the name of the run at a tracker: --name, or None for the default: the tracker then chooses one."""
    return None if options["name"] == "exp" else str(options["name"])


class Loggers:
    """The trackers of a run. Each call goes to all of them; one that raises an error is dropped."""

    def __init__(self, trackers: Sequence["Tracker"] = ()):
        self.trackers = list(trackers)

    def start(self) -> None:
        """Connects to each tracker."""
        self._each("start")

    def log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs the numbers of one epoch, by the names of results.csv."""
        self._each("log_metrics", dict(values), epoch)

    @property
    def wants_histograms(self) -> bool:
        """Whether any tracker shows histograms."""
        return any(type(tracker).log_histograms is not Tracker.log_histograms for tracker in self.trackers)

    def log_histograms(self, values: Mapping[str, np.ndarray], epoch: int) -> None:
        """Logs many numbers of one epoch under each name, arrays of any shape, to be shown as histograms."""
        self._each("log_histograms", dict(values), epoch)

    def log_images(self, paths: Sequence[str | Path], epoch: int) -> None:
        """Logs image files, each under its name without suffix. Files that do not exist are left out."""
        self._each("log_images", [path for path in map(Path, paths) if path.is_file()], epoch)

    def finish(self, summary: Mapping[str, float]) -> None:
        """Ends the runs with the numbers that sum them up, such as best/epoch and best/mAP_0.5."""
        self._each("finish", dict(summary))

    def _each(self, method: str, *arguments) -> None:
        for tracker in list(self.trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # foreign code and its network must not end hours of training
                servers = [value for name, value in os.environ.items() if name in SERVERS]
                reason = redact(str(error).strip(), servers) or type(error).__name__
                LOGGER.warning(f"--log {tracker.name} failed; training continues without it: {reason}")
                self.trackers.remove(tracker)


# --- the trackers -----------------------------------------------------------------------------------------------------


class Tracker:
    """One run at a tracker. A resumed training needs `run_id` to continue it; None where it needs nothing."""

    name = ""

    def __init__(self, save_dir: Path, options: dict[str, Any], hyp: dict[str, float], run_id: str | None = None):
        self.save_dir = save_dir
        self.options = options
        self.hyp = hyp
        self.run_id = run_id

    def start(self) -> None: ...

    def log_metrics(self, values: dict[str, float], epoch: int) -> None: ...

    def log_histograms(self, values: dict[str, np.ndarray], epoch: int) -> None: ...

    def log_images(self, paths: list[Path], epoch: int) -> None: ...

    def finish(self, summary: dict[str, float]) -> None: ...


class TensorBoard(Tracker):
    """Event files in the folder of the run, shown by `tensorboard --logdir runs/train`."""

    name = "tensorboard"

    def start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open = SummaryWriter
        self.writer = None

    def _writer(self, epoch: int):
        """Returns the writer. Its epochs replace later ones that a stopped training may have left."""
        if self.writer is None:
            self.writer = self.open(str(self.save_dir), purge_step=epoch)
        return self.writer

    def log_metrics(self, values: dict[str, float], epoch: int) -> None:
        writer = self._writer(epoch)
        for name, value in values.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    def log_histograms(self, values: dict[str, np.ndarray], epoch: int) -> None:
        for name, value in values.items():
            self._writer(epoch).add_histogram(name, value, epoch)

    def log_images(self, paths: list[Path], epoch: int) -> None:
        for path in paths:
            self._writer(epoch).add_image(path.stem, read_image(path)[:, :, ::-1], epoch, dataformats="HWC")

    def finish(self, summary: dict[str, float]) -> None:
        if self.writer is not None:
            self.writer.close()


class WandB(Tracker):
    """A run at Weights & Biases. Neither code nor the state of a git repository is sent."""

    name = "wandb"

    def start(self) -> None:
        import wandb

        self.run = wandb.init(
            project=project_name(self.options),
            name=run_name(self.options),
            entity=self.options.get("entity"),
            config={**_plain(self.options), "hyp": self.hyp},
            dir=str(self.save_dir),
            id=self.run_id,
            resume="allow",
            settings=wandb.Settings(
                login_timeout=LOGIN_SECONDS, save_code=False, disable_code=True, disable_git=True, console="off"
            ),
        )
        self.run_id = self.run.id

    def log_metrics(self, values: dict[str, float], epoch: int) -> None:
        self.run.log(values, step=epoch)

    def log_images(self, paths: list[Path], epoch: int) -> None:
        import wandb

        self.run.log({"Results": [wandb.Image(str(path), caption=path.name) for path in paths]}, step=epoch)

    def finish(self, summary: dict[str, float]) -> None:
        self.run.summary.update(summary)
        self.run.finish()


class MLflow(Tracker):
    """A run at the MLflow server that the environment variable MLFLOW_TRACKING_URI names."""

    name = "mlflow"

    def start(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        if self.run_id is not None:
            self.client.update_run(self.run_id, status="RUNNING")
            return
        name = project_name(self.options)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.run_id = self.client.create_run(experiment_id, run_name=run_name(self.options)).info.run_id
        for group in (_plain(self.options), {f"hyp/{name}": value for name, value in self.hyp.items()}):
            self.client.log_batch(self.run_id, params=[Param(_legal(k), str(v)) for k, v in group.items()])

    def log_metrics(self, values: dict[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(_legal(name), float(value), now, epoch) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_images(self, paths: list[Path], epoch: int) -> None:
        for path in paths:
            self.client.log_artifact(self.run_id, str(path))

    def finish(self, summary: dict[str, float]) -> None:
        self.log_metrics(summary, 0)
        for name in ARTIFACTS:
            if (file := self.save_dir / name).is_file():
                self.client.log_artifact(self.run_id, str(file))
        self.client.set_terminated(self.run_id)


TRACKERS = {tracker.name: tracker for tracker in (TensorBoard, WandB, MLflow)}


def _legal(name: str) -> str:
    """Returns a name as MLflow allows it: letters, digits, and _ - . / or space."""
    return re.sub(r"[^\w\-./ ]", "-", name)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options with paths, and all else that trackers cannot store, as text."""
    return {k: v if isinstance(v, int | float | list | None) else str(v) for k, v in options.items()}
