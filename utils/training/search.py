"""Searches for hyper-parameters by training many times (`--evolve`), with Optuna.

The trials are in a database: a search that stopped continues where it was, and processes and machines that name the
same database share one search. After each trial the files in the folder of the run are written anew from it.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml

from utils import cli
from utils.files import atomic_write
from utils.log import LOGGER
from utils.text import redact
from utils.training.hyperparameters import CHOICES
from utils.training.records import COLUMNS

if TYPE_CHECKING:
    import optuna
    import sqlalchemy

# Minimum and maximum of each hyper-parameter that is searched, as in v6.1. The others keep their values.
LIMITS = {
    "lr0": (1e-5, 0.1), "lrf": (0.01, 1.0), "momentum": (0.6, 0.98), "weight_decay": (0.0, 0.001),
    "warmup_epochs": (0.0, 5.0), "warmup_momentum": (0.0, 0.95), "warmup_bias_lr": (0.0, 0.2),
    "box": (0.02, 0.2), "cls": (0.2, 4.0), "cls_pw": (0.5, 2.0), "obj": (0.2, 4.0), "obj_pw": (0.5, 2.0),
    "anchor_t": (2.0, 8.0), "anchors": (2.0, 10.0),
    "hsv_h": (0.0, 0.1), "hsv_s": (0.0, 0.9), "hsv_v": (0.0, 0.9),
    "degrees": (0.0, 45.0), "translate": (0.0, 0.9), "scale": (0.0, 0.9), "shear": (0.0, 10.0),
    "flipud": (0.0, 1.0), "mosaic": (0.0, 1.0), "mixup": (0.0, 1.0), "copy_paste": (0.0, 1.0),
}  # fmt: skip
GAINS = {"momentum": 0.3, "anchors": 2.0}  # how strongly a value mutates; 1 for the others
ANCHORS = 3  # per level, where the hyp file has no value

RESULTS = COLUMNS[4:11]  # precision, recall, mAP50, mAP50-95 and the three losses on the val split

PARENTS = 5  # number of the fittest trials, one of which is the parent of a new one
FAILURES = (FloatingPointError, torch.OutOfMemoryError)  # of one trial; any other error ends the search
UNPRUNED_TRIALS = 5  # number of trials that must be complete before any is stopped early
HEARTBEAT, GRACE = 60, 300  # seconds between two heartbeats of a trial, and after which one without counts as failed

# Trains with these hyper-parameters, calls report(epoch, fitness) after each epoch, and returns the seven RESULTS
Objective = Callable[[dict[str, float], Callable[[int, float], None]], Sequence[float]]


def search(
    objective: Objective,
    hyp: Mapping[str, float],
    generations: int,
    save_dir: str | Path,
    fitness: Callable[[np.ndarray], np.ndarray],
    epochs: int,
    storage: str | None = None,
    study_name: str = "evolve",
    seed: int = 0,
    autoanchor: bool = True,
) -> dict[str, float]:
    """Trains until the study has `generations` trials; returns the hyper-parameters of the fittest.

    The first trial is `hyp` itself, with its values limited to LIMITS; each later one is a mutated copy of one of the
    five fittest, as in v6.1. A value of 0 stays 0: what a hyp file switches off is not searched. A trial whose fitness
    is below the median of the others at the same epoch is stopped early. One that ends in a FloatingPointError or
    without GPU memory is recorded as failed, and the search goes on.

    After each trial it writes evolve.csv (RESULTS and numeric hyper-parameters of all complete trials) and
    hyp_evolve.yaml (the best of them, for --hyp) into save_dir.

    Args:
        objective: trains once. It must not catch what `report` raises.
        fitness: results (n, 7) -> (n,), the higher the better.
        epochs: of one training; in the first third of them no trial is stopped early.
        storage: database URL of Optuna, by default a file evolve.db in save_dir.
        study_name: of the search within that database.
        seed: of the search. With one process the trials are the same again, also if it is stopped between two of them.
        autoanchor: search the anchors per level too, from 3 where `hyp` has no value.

    Raises:
        ValueError: Optuna is missing, the database cannot be used, or its study keeps other hyper-parameters fixed.
        FloatingPointError: no trial is complete.
    """
    cli.require("optuna", "--evolve")
    save_dir = Path(save_dir)
    hyp = {**hyp, "anchors": hyp.get("anchors") or ANCHORS} if autoanchor else dict(hyp)
    genes = [name for name in hyp if name in LIMITS and hyp[name] != 0 and (autoanchor or name != "anchors")]
    start = _starting_point(hyp, genes)
    url = storage or f"sqlite:///{(save_dir / 'evolve.db').resolve()}"
    study = _open_study(url, study_name, _evolution(start, seed), epochs)
    _check_fixed(study, {name: value for name, value in hyp.items() if name not in genes})
    if not any(_counts(trial) or trial.state.name == "WAITING" for trial in study.get_trials(deepcopy=False)):
        study.enqueue_trial(start)

    train_once = partial(_train_once, objective=objective, hyp=hyp, genes=genes, fitness=fitness)
    while _spent(study) < generations:
        study.optimize(train_once, 1, catch=FAILURES, gc_after_trial=True)
        write_results(study, save_dir)
        _log(study)

    write_results(study, save_dir)
    if not _completed(study):
        raise FloatingPointError(f"all {_spent(study)} trials of --evolve failed; the reasons are above")
    LOGGER.info(
        f"{len(_completed(study))} complete trials; the best hyper-parameters are in {save_dir / 'hyp_evolve.yaml'}"
    )
    return study.best_trial.user_attrs["hyp"]


# --- one trial --------------------------------------------------------------------------------------------------------


def _starting_point(hyp: Mapping[str, float], genes: Sequence[str]) -> dict[str, float]:
    """Returns the searched values of `hyp`, limited to LIMITS, with a warning for each that was changed."""
    start = {name: _limit(name, hyp[name]) for name in genes}
    for name in genes:
        if start[name] != hyp[name]:
            low, high = LIMITS[name]
            LOGGER.warning(
                f"--evolve searches {name} from {low:g} to {high:g}; it starts with {start[name]:g}, not {hyp[name]:g}"
            )
    return start


def _propose(trial: "optuna.Trial", hyp: Mapping[str, float], genes: Sequence[str]) -> dict[str, float]:
    """Returns the hyper-parameters of a trial, in the order of `hyp`, to the five digits that evolve.csv shows."""
    drawn = {name: trial.suggest_float(name, *LIMITS[name]) for name in genes}
    return {name: float(f"{drawn[name]:.5g}") if name in drawn else value for name, value in hyp.items()}


def _train_once(trial: "optuna.Trial", objective: Objective, hyp, genes, fitness) -> float:
    """Trains with the hyper-parameters of a trial, and returns its fitness."""
    import optuna

    values = _propose(trial, hyp, genes)
    trial.set_user_attr("hyp", values)
    LOGGER.info(f"\ntrial {trial.number}: " + ", ".join(f"{name}={values[name]:g}" for name in genes))

    def report(epoch: int, value: float) -> None:
        trial.report(value, epoch)
        if trial.should_prune():
            LOGGER.info(f"trial {trial.number} is below the median of the others and is stopped in epoch {epoch}")
            raise optuna.TrialPruned

    try:
        results = [float(value) for value in objective(dict(values), report)]
        assert len(results) == len(RESULTS)
        value = float(fitness(np.array([results]))[0])
        if not math.isfinite(value):
            raise FloatingPointError(f"the fitness is {value}")
    except FAILURES as error:
        LOGGER.warning(f"trial {trial.number} failed: {error}")
        trial.set_user_attr("error", str(error))
        raise
    trial.set_user_attr("results", results)
    return value


# --- the study --------------------------------------------------------------------------------------------------------


def _open_study(url: str, name: str, sampler: "optuna.samplers.BaseSampler", epochs: int) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the search logs what happens
    return optuna.create_study(
        storage=_open_storage(url),
        study_name=name,
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(UNPRUNED_TRIALS, epochs // 3),
        direction="maximize",
        load_if_exists=True,
    )


def _open_storage(url: str, attempts: int = 2) -> "optuna.storages.RDBStorage":
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    waiting = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}  # while another process writes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(url, waiting, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    except (ImportError, SQLAlchemyError) as error:  # ImportError: the driver of that kind of database
        if attempts > 1:  # if processes start at once only one can make the tables; the others try again
            time.sleep(1)
            return _open_storage(url, attempts - 1)
        raise ValueError(
            f"--evolve-storage: the database {redact(url)} cannot be opened: {redact(str(error), [url])}"
        ) from None
    if waiting:
        _lock_before_reading(storage.engine)
    return storage


def _lock_before_reading(engine: "sqlalchemy.Engine") -> None:
    """Makes each transaction of SQLite lock the database when it begins, by the recipe of SQLAlchemy's manual.

    Otherwise two processes that look for a waiting trial at the same moment would both take it.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def stop_automatic_begin(connection, _) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before


def _evolution(start: dict[str, float], seed: int) -> "optuna.samplers.BaseSampler":
    """Returns v6.1's evolution as a sampler: each trial is a mutated copy of one of the fittest.

    From a good hyp file it improves more in tens or a few hundred trials than Optuna's own samplers, which first search
    the whole space. Seeded by (seed, number of the trial), so that no two processes draw the same.
    """
    import optuna

    class Evolution(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study, trial):
            return {name: optuna.distributions.FloatDistribution(*LIMITS[name]) for name in start}

        def sample_relative(self, study, trial, space):
            rng = np.random.default_rng((seed, trial.number))
            parents = sorted(_completed(study), key=lambda t: t.value, reverse=True)[:PARENTS]
            return mutate(draw_parent([(t.params, t.value) for t in parents], rng) if parents else start, rng)

        def sample_independent(self, study, trial, name, distribution):
            raise AssertionError(f"{name} is not in the search space")

    return Evolution()


def draw_parent(parents: Sequence[tuple[dict[str, float], float]], rng: np.random.Generator) -> dict[str, float]:
    """Draws the values of one of these (values, fitness), in proportion to its fitness above the minimum."""
    weights = np.array([fitness for _, fitness in parents])
    weights = weights - weights.min() + 1e-6
    return parents[rng.choice(len(parents), p=weights / weights.sum())][0]


def mutate(values: Mapping[str, float], rng: np.random.Generator) -> dict[str, float]:
    """Multiplies most values by a random factor of 0.3-3, mostly near 1, and limits them; some factor is not 1."""
    gains = np.array([GAINS.get(name, 1.0) for name in values])
    factors = np.ones(len(values))
    while len(values) and (factors == 1).all():
        chosen = rng.random(len(values)) < 0.8
        factors = (gains * chosen * rng.standard_normal(len(values)) * rng.random() * 0.2 + 1).clip(0.3, 3.0)
    return {name: _limit(name, value * factor) for (name, value), factor in zip(values.items(), factors.tolist())}


def _limit(name: str, value: float) -> float:
    low, high = LIMITS[name]
    return min(max(value, low), high)


def _check_fixed(study: "optuna.Study", fixed: dict[str, float]) -> None:
    """Raises ValueError unless this process searches the same space, with the same fixed values, as the study."""
    known = study.user_attrs.get("fixed", fixed)
    if known != fixed:
        names = sorted(name for name in {**known, **fixed} if known.get(name) != fixed.get(name))
        raise ValueError(
            f"--evolve: the study '{study.study_name}' keeps other values of {', '.join(names)} than the hyp file; "
            "give the hyp file that it began with, or begin another study"
        )
    study.set_user_attr("fixed", fixed)


def _counts(trial: "optuna.trial.FrozenTrial") -> bool:
    """Returns whether a trial counts: one that runs, is complete, was stopped early or failed with a known error.

    One that was interrupted does not count, so another takes its place.
    """
    return trial.state.name in ("RUNNING", "COMPLETE", "PRUNED") or "error" in trial.user_attrs


def _spent(study: "optuna.Study") -> int:
    """Returns the number of trials that count, after those of dead processes are marked as failed."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    return sum(map(_counts, study.get_trials(deepcopy=False)))


def _completed(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]


# --- what is written --------------------------------------------------------------------------------------------------


def write_results(study: "optuna.Study", save_dir: Path) -> None:
    """Writes evolve.csv and hyp_evolve.yaml from the complete trials; nothing while there are none."""
    written = 0
    while len(trials := _completed(study)) > written:  # again if another process has added one meanwhile
        _write_csv(trials, save_dir / "evolve.csv")
        _write_best(trials, save_dir / "hyp_evolve.yaml")
        written = len(trials)


def _write_csv(trials: Sequence["optuna.trial.FrozenTrial"], file: Path) -> None:
    """Writes a table of numbers: results and hyper-parameters without the words and switches of CHOICES."""
    names = [name for name in trials[0].user_attrs["hyp"] if name not in CHOICES]
    titles = [*RESULTS, *names]
    rows = [[*trial.user_attrs["results"], *(trial.user_attrs["hyp"][name] for name in names)] for trial in trials]
    with atomic_write(file, "w") as f:
        f.write(",".join(f"{title:>20}" for title in titles) + "\n")
        f.writelines(",".join(f"{value:>20.5g}" for value in row) + "\n" for row in rows)


def _write_best(trials: Sequence["optuna.trial.FrozenTrial"], file: Path) -> None:
    best = max(range(len(trials)), key=lambda i: trials[i].value)
    with atomic_write(file, "w") as f:
        f.write(f"# The best hyper-parameters that --evolve found, fitness {trials[best].value:.5g}\n")
        f.write(f"# Best generation: {best}\n# Last generation: {len(trials) - 1}\n")
        f.write("# " + ",".join(f"{title:>20}" for title in RESULTS) + "\n")
        f.write("# " + ",".join(f"{value:>20.5g}" for value in trials[best].user_attrs["results"]) + "\n\n")
        yaml.safe_dump(trials[best].user_attrs["hyp"], f, sort_keys=False)


def _log(study: "optuna.Study") -> None:
    states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
    counts = ", ".join(f"{states.count(state)} {state.lower()}" for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING"))
    best = f"; best fitness {study.best_value:.5g}, trial {study.best_trial.number}" if "COMPLETE" in states else ""
    LOGGER.info(f"trials: {counts}{best}")
