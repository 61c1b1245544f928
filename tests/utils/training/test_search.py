"""The search against a training whose outcome is a formula: fitness is highest where lr0 is 0.02 and box 0.04."""

import csv
import importlib.util
import math
import subprocess
import sys
import textwrap
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import yaml

from utils.evaluation.charts import plot_evolution
from utils.evaluation.metrics import fitness
from utils.training.hyperparameters import CHOICES, load_hyp
from utils.training.search import GAINS, LIMITS, RESULTS, _open_storage, draw_parent, mutate, search

ROOT = Path(__file__).resolve().parents[3]
HYP = load_hyp(ROOT / "data/hyps/hyp.scratch-low.yaml")
EPOCHS = 6


def score(hyp):
    return 0.9 - math.log(hyp["lr0"] / 0.02) ** 2 / 10 - math.log(hyp["box"] / 0.04) ** 2 / 10


class Training:
    """An objective that remembers what it was asked to train."""

    def __init__(self, outcome=score):
        self.asked = []
        self.outcome = outcome
        self.epochs = []

    def __call__(self, hyp, report):
        self.asked.append(hyp)
        self.epochs.append(0)
        value = self.outcome(hyp)
        for epoch in range(EPOCHS):
            self.epochs[-1] += 1
            report(epoch, value * (epoch + 1) / EPOCHS)
        return 0.5, 0.25, value, value, 0.1, 0.2, 0.3


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    """Neither waits until the disk has each row nor collects garbage after each trial: most of the time here."""
    if not importlib.util.find_spec("optuna"):
        yield
        return
    from sqlalchemy import Engine, event

    def unsafe(connection, _):
        connection.execute("PRAGMA synchronous=OFF")

    monkeypatch.setattr("optuna.study._optimize.gc.collect", lambda *_: 0)
    event.listen(Engine, "connect", unsafe)
    yield
    event.remove(Engine, "connect", unsafe)


def run(training, generations, folder, **options):
    pytest.importorskip("optuna")
    return search(training, HYP, generations, folder, fitness, EPOCHS, **options)


def rows_of(folder):
    with open(folder / "evolve.csv", newline="") as file:
        titles, *rows = csv.reader(file, skipinitialspace=True)
    return titles, [dict(zip(titles, map(float, row))) for row in rows]


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_mutations():
    values = {name: (low + high) / 2 for name, (low, high) in LIMITS.items()}
    children = [mutate(values, np.random.default_rng(seed)) for seed in range(300)]
    factors = np.array([[child[name] / values[name] for name in values] for child in children])
    assert list(children[0]) == list(values) and (factors >= 0.3).all() and (factors <= 3).all()
    assert (factors != 1).any(1).all()
    assert (factors == 1).mean() == pytest.approx(0.2, abs=0.02)
    # standard deviation of chosen * normal * uniform * 0.2: the root of 0.8 * 1 * 1/3, times 0.2, times the gain
    spread = dict(zip(values, factors.std(0)))
    assert spread["scale"] == pytest.approx(0.2 * math.sqrt(0.8 / 3), abs=0.015)
    assert spread["momentum"] == pytest.approx(GAINS["momentum"] * 0.2 * math.sqrt(0.8 / 3), abs=0.005)
    for name, (low, high) in LIMITS.items():
        edge = [mutate({name: high}, np.random.default_rng(seed))[name] for seed in range(50)]
        assert low <= min(edge) < max(edge) == high


def test_fitter_parents_have_more_children():
    parents = [({"lr0": 3.0}, 0.7), ({"lr0": 2.0}, 0.5), ({"lr0": 1.0}, 0.4)]
    drawn = [draw_parent(parents, np.random.default_rng(seed))["lr0"] for seed in range(2000)]
    # above the lowest by 0.3, 0.1 and 0
    assert [drawn.count(v) / 2000 for v in (3.0, 2.0, 1.0)] == pytest.approx([0.75, 0.25, 0], abs=0.03)
    assert draw_parent([({"lr0": 1.0}, 0.0)], np.random.default_rng(0)) == {"lr0": 1.0}


# --- the search -------------------------------------------------------------------------------------------------------


def test_search_begins_with_the_file_keeps_the_limits_and_gains(tmp_path):
    training = Training()
    best = run(training, 20, tmp_path)
    assert training.asked[0] == {**HYP, "anchors": 3}
    assert len(training.asked) == 20
    for hyp in training.asked:
        assert list(hyp) == [*HYP, "anchors"]
        for name, value in hyp.items():
            if name in LIMITS and HYP.get(name, 3) != 0:
                assert LIMITS[name][0] <= value <= LIMITS[name][1]
            else:  # not searched, or switched off in the file
                assert value == HYP[name]
    assert len({tuple(hyp.values()) for hyp in training.asked}) == 20
    completed = [hyp for hyp, epochs in zip(training.asked, training.epochs) if epochs == EPOCHS]
    assert best == max(completed, key=score) and score(best) > score(HYP)


def test_what_is_written(tmp_path):
    training = Training()
    best = run(training, 4, tmp_path)
    lines = (tmp_path / "evolve.csv").read_text().splitlines()
    assert {len(line) for line in lines} == {21 * (7 + 29) - 1} and len(lines) == 5  # 29 parameters, 20 characters each
    titles, rows = rows_of(tmp_path)
    assert titles == [*RESULTS, *HYP, "anchors"]
    for row, hyp in zip(rows, training.asked):
        assert {name: row[name] for name in hyp} == hyp  # to the last digit
        assert [row[name] for name in RESULTS[:2]] == [0.5, 0.25]

    text = (tmp_path / "hyp_evolve.yaml").read_text()
    assert yaml.safe_load(text) == best == load_hyp(tmp_path / "hyp_evolve.yaml")
    comments, mapping = text.split("\n\n")
    assert all(line.startswith("# ") for line in comments.splitlines()) and mapping.startswith("lr0:")
    assert f"Best generation: {training.asked.index(best)}" in comments and "Last generation: 3" in comments
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".part"]

    assert plot_evolution(tmp_path / "evolve.csv") == tmp_path / "evolve.png"
    assert (tmp_path / "evolve.png").stat().st_size > 10_000


@pytest.mark.parametrize("recipe", sorted((ROOT / "data/hyps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_searched(tmp_path, monkeypatch, recipe):
    """Also one with words and switches, which are in no column of the table of numbers but in the best recipe."""
    hyp = load_hyp(recipe)
    monkeypatch.setitem(globals(), "HYP", hyp)
    best = run(Training(), 2, tmp_path, seed=1)
    titles, rows = rows_of(tmp_path)
    words = {name: value for name, value in hyp.items() if name in CHOICES}
    assert len(rows) == 2 and titles == [*RESULTS, *(name for name in best if name not in words)]
    written = load_hyp(tmp_path / "hyp_evolve.yaml")
    assert written == best and words.items() <= written.items()
    assert not words or plot_evolution(tmp_path / "evolve.csv").is_file()


def test_without_autoanchor_anchors_stay(tmp_path):
    training = Training()
    run(training, 3, tmp_path, autoanchor=False)
    assert all("anchors" not in hyp for hyp in training.asked)


def test_a_stopped_search_goes_on_as_if_never_stopped(tmp_path):
    for name in ("whole", "parts", "other"):
        (tmp_path / name).mkdir()
    run(Training(), 5, tmp_path / "whole")
    parts = [Training(), Training(), Training()]
    for training, generations in zip(parts, (3, 5, 5)):
        run(training, generations, tmp_path / "parts")
    assert [len(training.asked) for training in parts] == [3, 2, 0]
    whole, continued = ((tmp_path / name / "evolve.csv").read_text() for name in ("whole", "parts"))
    assert whole == continued
    run(Training(), 5, tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "evolve.csv").read_text() != whole


def test_an_interrupted_trial_is_made_up_for(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Training(interrupt), 3, tmp_path)
    training = Training()
    run(training, 3, tmp_path)
    assert len(training.asked) == 3 and training.asked[0] == {**HYP, "anchors": 3}


def test_a_trial_that_falls_behind_is_cut_short(tmp_path):
    number = iter(range(100))
    training = Training(lambda _: 0.1 if next(number) == 6 else 0.5)
    run(training, 8, tmp_path)
    assert training.epochs == [EPOCHS] * 6 + [EPOCHS // 3 + 1] + [EPOCHS]  # the first third is always trained
    assert len(rows_of(tmp_path)[1]) == 7


def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(tmp_path):
    import optuna

    number = iter(range(100))

    def outcome(_):
        match next(number):
            case 1:
                raise FloatingPointError("the loss is nan")
            case 2:
                return math.nan  # of every metric
        return 0.5

    training = Training(outcome)
    run(training, 5, tmp_path)
    assert len(training.asked) == 5 and len(rows_of(tmp_path)[1]) == 3
    trials = optuna.load_study(study_name="evolve", storage=f"sqlite:///{tmp_path / 'evolve.db'}").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].user_attrs["error"] == "the loss is nan"


def test_a_search_of_failures_says_so(tmp_path):
    def diverge(_):
        raise FloatingPointError("the loss is nan")

    with pytest.raises(FloatingPointError, match="all 2 trials of --evolve failed"):
        run(Training(diverge), 2, tmp_path)
    assert not (tmp_path / "evolve.csv").exists()


def test_other_errors_end_the_search(tmp_path):
    def wrong(_):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(Training(wrong), 2, tmp_path)


def test_a_waiting_trial_is_taken_once(tmp_path):
    optuna = pytest.importorskip("optuna")
    url = f"sqlite:///{tmp_path}/shared.db"
    studies = [optuna.create_study(storage=_open_storage(url), study_name="s", load_if_exists=True) for _ in range(4)]
    for k in range(20):
        studies[0].enqueue_trial({"x": k})
    with ThreadPool(4) as pool:
        taken = pool.map(lambda study: [study.ask().number for _ in range(5)], studies)
    assert sorted(number for numbers in taken for number in numbers) == list(range(20))


def test_processes_share_a_search(tmp_path):
    pytest.importorskip("optuna")
    code = f"""
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from utils.evaluation.metrics import fitness
        from utils.training.hyperparameters import CHOICES, load_hyp
        from utils.training.search import search
        asked = []
        def train(hyp, report):
            asked.append(hyp)
            time.sleep(0.3)
            return (0.5,) * 7
        url = "sqlite:///{tmp_path}/shared.db"
        hyp = load_hyp({str(ROOT / "data/hyps/hyp.scratch-low.yaml")!r})
        search(train, hyp, 12, {str(tmp_path)!r}, fitness, 1, url)
        print(len(asked))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    trained = [int(process.communicate()[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert min(trained) >= 1 and 12 <= sum(trained) <= 13  # both may begin the last one at the same moment
    _, rows = rows_of(tmp_path)
    assert len(rows) == sum(trained)
    assert len({tuple(row.values()) for row in rows}) >= len(rows) - 1  # and the first one


# --- what a user can cause --------------------------------------------------------------------------------------------


def test_values_beyond_the_limits_are_moved(tmp_path):
    pytest.importorskip("optuna")
    training = Training()
    search(training, {**HYP, "cls": 10.0}, 1, tmp_path, fitness, EPOCHS)
    assert training.asked[0]["cls"] == LIMITS["cls"][1]


def test_a_study_with_other_fixed_values_is_refused(tmp_path):
    run(Training(), 1, tmp_path)
    with pytest.raises(ValueError, match="keeps other values of fliplr, mixup than the hyp file"):
        search(Training(), {**HYP, "fliplr": 0.0, "mixup": 0.2}, 2, tmp_path, fitness, EPOCHS)


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////no/such/folder/evolve.db", "mysql://u:S3CRET@host/db"])
def test_a_database_that_cannot_be_opened(tmp_path, url):
    with pytest.raises(ValueError, match="cannot be opened") as error:
        run(Training(), 1, tmp_path, storage=url)
    assert "S3CRET" not in str(error.value)


def test_optuna_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--evolve needs the package optuna.*pip install optuna"):
        search(Training(), HYP, 1, tmp_path, fitness, EPOCHS)
