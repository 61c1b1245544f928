"""tools/ablate.py: intervals against tables and pairs by hand, the size of the plain arm, and runs that are killed."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import yaml
from filelock import FileLock
from small_world import NAMES, TINY, write_boxes, write_yaml

import train
from models.attention import Adapter
from models.backend import load_checkpoint
from tools import ablate, ablate_runs
from tools.ablate_report import (
    Ablation,
    as_csv,
    as_figure,
    as_html,
    as_markdown,
    classes_as_csv,
    compared,
    draw,
    power_line,
    verdicts,
)
from tools.ablate_statistics import detectable
from utils.files import ROOT

# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ablation() -> Ablation:
    """Two seeds, of which the last arm's second run is not done; <b> would be markup in a page."""
    about = {"epochs": 3, "seconds": 61.4, "device": "cpu", "torch": "2"}
    results = {
        (arm, seed): {"val": [0.5, 0.5, 0.6, value + seed / 10], **about}
        for arm, value, seeds in (("none", 0.30, 2), ("SE@P5", 0.35, 2), ("plain=SE@P5", 0.31, 1))
        for seed in range(seeds)
    }
    costs = {arm: {"parameters": 1000, "flops": 2e9} for arm in ("none", "SE@P5", "plain=SE@P5")}
    costs["SE@P5"]["parameters"] = 1100
    return Ablation(
        title="a <b> c", arms=list(costs), controls=["plain=SE@P5"], seeds=[0, 1], splits=["val"], results=results,
        costs=costs, command="python it", looks=0,
    )  # fmt: skip


@pytest.fixture
def complete() -> Ablation:
    """Three seeds, val and test, two blocks and two controls; SE is ahead on val, SOCA on test."""
    means = {"none": (0.30, 0.30), "SE@P5": (0.35, 0.31), "SOCA@P5": (0.33, 0.36), "plain=SOCA@P5": (0.31, 0.30),
             "Scale@P5": (0.32, 0.31)}  # fmt: skip
    wobble = {"none": (0, 0, 0), "SE@P5": (0.001, -0.001, 0), "SOCA@P5": (0.01, -0.01, 0.02),
              "plain=SOCA@P5": (0, 0.03, -0.03), "Scale@P5": (0.02, 0, -0.01)}  # fmt: skip
    results = {}
    for arm, (val, test) in means.items():
        for seed, w in enumerate(wobble[arm]):
            split = {"val": [0.5, 0.5, 0.6, val + w], "test": [0.5, 0.5, 0.6, test + w]}
            classes = {"val": {"cat": val + w + 0.1, "dog": val + w - 0.1}}
            results[arm, seed] = {
                **split,
                "classes": classes,
                "epochs": 3,
                "seconds": 600,
                "device": "cpu",
                "torch": "2",
            }
    return Ablation(
        title="t", arms=list(means), controls=["plain=SOCA@P5", "Scale@P5"], seeds=[0, 1, 2], splits=["val", "test"],
        results=results, command="python it", looks=1,
    )  # fmt: skip


def test_every_run_is_in_the_csv(ablation):
    rows = list(csv.DictReader(as_csv(ablation).splitlines()))
    assert [(row["arm"], row["seed"], row["status"]) for row in rows] == [
        ("none", "0", "done"), ("SE@P5", "0", "done"), ("plain=SE@P5", "0", "done"),
        ("none", "1", "done"), ("SE@P5", "1", "done"), ("plain=SE@P5", "1", "not done"),
    ]  # fmt: skip
    assert [row["val/mAP50-95"] for row in rows] == ["0.30000", "0.35000", "0.31000", "0.40000", "0.45000", ""]


def test_markdown(ablation):
    text = as_markdown(ablation)
    assert "5 of 6 runs are done: 3 arms, 2 seeds. The others take one process about 1 min." in text
    assert "| SE@P5 | 2 | 0.6000 +- 0.0000 | 0.4000 +- 0.0707 |" in text  # 0.35 and 0.45
    assert "| SE@P5 | +0.0500 [+0.0500, +0.0500] p < 0.001 *better* |" in text.replace(
        "+0.0000 [+0.0000, +0.0000] p 1.00 | ", ""
    )
    assert "| SE@P5 | 1,100 (1.100) | 2.000 (1.000) | - | - | - |" in text
    assert any("plain=SE@P5 against none" in line and "one pair: no interval" in line for line in verdicts(ablation))
    assert "test is measured in every run, and shown when all runs are done." in text


def test_holm_counts_the_arms_of_a_column(complete):
    """By hand: p of four arms against none, and of three against a control, where none itself is left out."""
    val = compared(complete, "none", "val", "mAP50-95")
    ps = {arm: c.difference.p for arm, c in val.items()}
    assert list(ps) == ["SE@P5", "SOCA@P5", "plain=SOCA@P5", "Scale@P5"]
    ranked = sorted(ps, key=ps.get)
    assert ranked[0] == "SE@P5" and val["SE@P5"].p == pytest.approx(4 * ps["SE@P5"])
    assert val[ranked[1]].p == pytest.approx(max(4 * ps["SE@P5"], 3 * ps[ranked[1]]))
    assert list(compared(complete, "Scale@P5", "val", "mAP50-95")) == ["SE@P5", "SOCA@P5", "plain=SOCA@P5"]
    assert val["SE@P5"].verdict == "better" and val["Scale@P5"].verdict == "no difference shown"


def test_val_chooses_and_test_is_said_of_that_arm(complete):
    chosen = next(line for line in verdicts(complete) if line.startswith("val chooses"))
    assert "SE@P5: its mean mAP50-95 there, 0.3500" in chosen
    assert "On test, for this one arm" in chosen and "against none +0.0100 [" in chosen
    assert "against plain=SOCA@P5 +0.0100" in chosen and "against Scale@P5 -0.0033" in chosen
    assert "test was looked at once." in verdicts(complete)
    hidden = replace(complete, splits=["val"], looks=2)
    assert not any("On test" in line or ", test " in line for line in verdicts(hidden))
    assert "(it was looked at 2 times before, with other arms or seeds)" in as_markdown(hidden)


def test_classes(complete):
    text = as_markdown(complete)
    assert "| class | none | SE@P5 |" in text
    assert "| cat | 0.4000 | +0.0500 [" in text and "| dog | 0.2000 | +0.0500 [" in text
    rows = list(csv.DictReader(classes_as_csv(complete).splitlines()))
    assert len(rows) == 5 * 3 * 2
    assert {"arm": "SOCA@P5", "seed": "2", "split": "val", "class": "dog", "mAP50-95": "0.25000"} in rows


def test_names_of_classes_are_no_formulas(complete):
    for result in complete.results.values():
        values = result["classes"]["val"].values()
        result["classes"] = {"val": dict(zip(["=1+1", "@SUM(A1)"], values))}
    rows = list(csv.DictReader(classes_as_csv(complete).splitlines()))
    assert {row["class"] for row in rows} == {"'=1+1", "'@SUM(A1)"} and len(rows) == 5 * 3 * 2


def test_power_line(complete):
    """The spread is that of the differences, and the arms are those that Holm's first step counts."""
    found = compared(complete, "none", "val", "mAP50-95")
    spread = math.sqrt(sum(c.difference.deviation**2 for c in found.values()) / 4)
    said = power_line(complete, "none")
    assert f"standard deviation of {spread:.4f}" in said and "with 3 seeds" in said
    assert f"difference of {detectable(3, spread, 4):.4f} is shown with a chance of 80%" in said
    assert f"({detectable(3, spread):.4f} for a single arm)" in said


def test_page_and_figure(ablation):
    image = as_figure(ablation)
    assert image.startswith(b"\x89PNG")
    page = as_html(ablation, image)
    assert "a &lt;b&gt; c" in page
    assert "<b>" not in page
    assert "src='data:image/png;base64," in page
    assert "http" not in page


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.03, 0.01])
def test_tick_labels_of_the_figure_do_not_touch(complete, scale):
    """-0.015 and -0.010 ran into each other. Drawn, and the labels of each panel compared, also with long names."""
    results = {
        (arm.replace("SOCA", "SOCA[8,own,half,0.1]"), seed): {**r, "val": [v * scale for v in r["val"]]}
        for (arm, seed), r in complete.results.items()
    }
    arms = list(dict.fromkeys(arm for arm, _ in results))
    costs = {arm: {"parameters": 1e6 + k * scale * 1e5, "flops": 1e9 + k * 1e7} for k, arm in enumerate(arms)}
    figure = draw(replace(complete, arms=arms, controls=[], results=results, costs=costs))
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        shown = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
        boxes = [label.get_window_extent() for label in shown]
        assert len(boxes) >= 3
        assert all(a.x1 + 4 < b.x0 for a, b in pairwise(boxes))


# --- arms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["SOCA@P3+P4+P5", "SE@P5", "CBAM@P4+P5", "LSRAG@P5"])
def test_the_plain_arm_is_as_large(arm, tmp_path):
    """As large to the last parameter where widths divide, else to the nearest hidden width of one block."""
    arms = ablate_runs.make_arms("yolov5n.yaml", f"none,SimAM@P5,{arm}", tmp_path)
    assert [made.name for made in arms] == ["none", "SimAM@P5", arm, f"plain={arm}", f"Scale@{arm.partition('@')[2]}"]
    named, plain = (ablate_runs.parameters(made.model()) for made in arms[2:4])
    blocks = [layer for layer in arms[3].model().model if isinstance(layer, Adapter)]
    assert len(blocks) == arm.count("P")
    assert abs(plain - named) <= (0 if arm.startswith("S") else sum(2 * block.up.out_channels + 1 for block in blocks))


def test_the_plain_arm_changes_nothing_at_first():
    torch.manual_seed(0)
    x = torch.randn(2, 24, 5, 5)
    block = Adapter(24, 6.5)
    assert block.down.out_channels == 4  # 24 / 6.5 = 3.7
    assert torch.equal(block(x), x)


def test_no_plain_arm_without_parameters(tmp_path):
    arms = ablate_runs.make_arms("yolov5n.yaml", "none,SimAM@P5", tmp_path)
    assert [arm.name for arm in arms] == ["none", "SimAM@P5", "Scale@P5"]
    assert not any(tmp_path.iterdir())


def test_controls_that_are_named_are_not_added(tmp_path):
    """Each stands where it was named, and the plain one is as large as the arm that it names, not as the largest."""
    named = "none, plain=SE[8]@P5, Scale@P4+P5, SE[8]@P5, SOCA@P3+P4+P5"
    arms = ablate_runs.make_arms("yolov5n.yaml", named, tmp_path)
    assert [arm.name for arm in arms] == named.replace(" ", "").split(",")
    _, plain, scale, se, _ = arms
    assert ablate_runs.parameters(plain.model()) == ablate_runs.parameters(se.model())
    assert ablate_runs.is_constant(scale) and not ablate_runs.is_constant(se) and not ablate_runs.is_constant(plain)
    assert ablate_runs.make_arms("yolov5n.yaml", "none,SE@P5", tmp_path, controls=False)[1:] == [
        ablate_runs.Arm("SE@P5", "yolov5n.yaml", "SE@P5")
    ]


def test_an_arm_may_be_any_insertion(tmp_path):
    arms = ablate_runs.make_arms("yolov5n.yaml", "none,SE[4]@P3&SOCA@P5,RLNL[2, 4]@P5", tmp_path)
    assert [arm.name for arm in arms] == [
        "none", "SE[4]@P3&SOCA@P5", "RLNL[2,4]@P5", "plain=RLNL[2,4]@P5", "Scale@P5",
    ]  # fmt: skip
    names = [layer.type.rpartition(".")[2] for layer in arms[1].model().model]
    assert [name for name in names if name in ("SE", "SOCA")] == ["SE", "SOCA"]
    assert next(m for m in arms[2].model().modules() if hasattr(m, "theta")).theta.out_channels == 64  # of 256


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attention", "none"], "at least two arms"),
        (["--attention", "none,SE@P5,SE@P5"], "'SE@P5' twice"),
        (["--attention", "none,SOKA@P5"], "did you mean 'SOCA'"),
        (["--attention", "none,SE@P9"], "no map of stride 512"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--seed", "3"], "--seed cannot be passed on to train.py"),
        (["--epochs", "-1"], "--epochs must be at least 0"),
        (["--attention", "none,plain=SimAM@P5"], "have more parameters than that arm adds"),
        (["--attention", "none,plain=none"], "plain=none: plain layers"),
        (["--attention", "none,SE[8@P5"], r"attention must be MODULE@PLACE"),
    ],
)
def test_refused_before_anything_is_trained(flags, message, tmp_path):
    data = write_yaml(tmp_path / "boxes.yaml", write_boxes(tmp_path / "boxes", 1, 1))
    usual = ["--cfg", "yolov5n.yaml", "--attention", "none,SE@P5", "--data", str(data), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=message):
        ablate.main(ablate.parse_options([*usual, *flags]))
    assert not (tmp_path / "out/runs").exists()


@pytest.fixture
def words(tmp_path) -> list[str]:
    """A command line of two arms and one seed, on data with a test split."""
    data = write_boxes(tmp_path / "boxes", 1, 1)
    file = write_yaml(tmp_path / "boxes.yaml", {**data, "test": data["val"]})
    cfg = write_yaml(tmp_path / "tiny.yaml", TINY)
    return ["--cfg", str(cfg), "--attention", "none,SE@P4", "--no-matched", "--data", str(file), "--seeds", "1",
            "--out", str(tmp_path / "out"), "--weights", "", "--imgsz", "64"]  # fmt: skip


def test_arms_must_see_the_same_images(words):
    """A pooling after the coarsest map, of stride 16, makes it one of 64: 96 pixels would be 128 for that arm alone."""
    words[words.index("none,SE@P4")] = "none,nn.MaxPool2d[4,4]@SPPF"
    words[-1] = "96"
    with pytest.raises(ValueError, match=r"96 pixels for the arm none and 128 for nn.Max.*; give a multiple of 64, so"):
        ablate.main(ablate.parse_options(words))
    words[-1] = "64"
    assert ablate.check(ablate.parse_options(words)).size == 64


def test_an_arm_that_begins_behind_is_said_to(words, caplog):
    words[words.index("none,SE@P4")] = "none,SE@P4,SimAM@P4"
    said = "the arm SimAM@P4: SimAM has no start_as_identity()"
    ablate.check(ablate.parse_options(words))
    assert said not in caplog.text  # from scratch all begin alike
    words[words.index("--weights") + 1] = "some.pt"
    ablate.check(ablate.parse_options([*words, "--out", f"{words[words.index('--out') + 1]}2"]))
    assert said in caplog.text and "SE has no" not in caplog.text


def test_looks_at_test_are_counted(words, tmp_path, monkeypatch):
    """Results of test are shown when every run is done; the same runs count once, others are another look."""
    monkeypatch.setattr(ablate_runs, "as_figure", lambda ablation: b"\x89PNG")  # takes a second, and is tested above
    out = tmp_path / "out"

    def report(*flags: str) -> dict[tuple[str, str], str]:
        ablate.main(ablate.parse_options([*words, "--report", *flags]))
        rows = csv.DictReader((out / "runs.csv").read_text().splitlines())
        return {(row["arm"], row["seed"]): row.get("test/mAP50-95", "hidden") for row in rows}

    def looks() -> list[dict]:
        return json.loads((out / "looks.json").read_text()) if (out / "looks.json").exists() else []

    about = {"val": [0.1] * 4, "test": [0.2] * 4, "epochs": 1, "seconds": 1, "device": "cpu", "torch": "2"}
    report()
    for arm, seed in (("none", 0), ("SE@P4", 0), ("none", 1), ("SE@P4", 1)):
        (out / "results").mkdir(exist_ok=True)
        (out / f"results/{arm}-seed{seed}.json").write_text(json.dumps(about))
        shown = report()
        assert set(shown.values()) == ({"hidden"} if (arm, seed) == ("none", 0) else {"0.20000"})
    assert looks() == [{"arms": ["none", "SE@P4"], "seeds": 1}]
    report("--seeds", "2")
    assert [look["seeds"] for look in looks()] == [1, 2]
    assert "test was looked at 2 times" in (out / "table.md").read_text()
    assert set(report("--seeds", "3").values()) == {"hidden"} and len(looks()) == 2
    assert "it was looked at 2 times before" in (out / "table.md").read_text()


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_started_again(tmp_path, no_plots, monkeypatch):
    """The run that was killed ends as one that nothing disturbed, bit for bit, and what is done is not done again."""
    hyp = yaml.safe_load((ROOT / "data/hyps/hyp.short.yaml").read_text(encoding="utf-8"))
    data = write_yaml(tmp_path / "boxes.yaml", write_boxes(tmp_path / "boxes", 8, 2))
    cfg = write_yaml(tmp_path / "tiny.yaml", TINY)
    recipe = ["--weights", "", "--imgsz", "64", "--batch-size", "4", "--epochs", "6", "--workers", "0"]
    recipe += ["--hyp", str(write_yaml(tmp_path / "hyp.yaml", hyp)), "--device", "cpu", "--noval"]
    out = tmp_path / "out"
    words = ["--cfg", str(cfg), "--attention", "none,SOCA@P4", "--no-matched", "--data", str(data), "--seeds", "1"]
    words += ["--out", str(out), *recipe]
    command = [sys.executable, str(ROOT / "tools/ablate.py"), *words]

    done = out / "runs/SOCA@P4-seed0/result.json"  # where earlier versions wrote it
    done.parent.mkdir(parents=True)
    about = {"epochs": 6, "seconds": 1, "device": "cpu", "torch": "2"}
    done.write_text(json.dumps({"val": [0.1, 0.2, 0.3, 0.4], **about}))

    results = out / "runs/none-seed0/results.csv"
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if results.exists() and results.read_text().count("\n") > 2:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert results.read_text().count("\n") < 7  # or nothing was interrupted

    ablate.main(ablate.parse_options(words))
    assert "resume=" in (out / "runs/none-seed0/log.txt").read_text()
    opt = train.parse_opt(argv=["--cfg", str(cfg), "--data", str(data), *recipe, "--project", str(tmp_path / "alone")])
    train.main(opt)
    undisturbed, resumed = (
        load_checkpoint(folder / "weights/last.pt")["model"].state_dict()
        for folder in (tmp_path / "alone/exp", out / "runs/none-seed0")
    )
    assert all(torch.equal(undisturbed[key], value) for key, value in resumed.items())

    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert [(row["arm"], row["status"], row["epochs"]) for row in rows] == [
        ("none", "done", "6"), ("SOCA@P4", "done", "6"),
    ]  # fmt: skip
    assert rows[1]["val/mAP50-95"] == "0.40000"  # what was done stays
    costs = json.loads((out / "costs.json").read_text())["costs"]
    assert all(costs[arm][key] > 0 for arm in ("none", "SOCA@P4") for key in ("memory", "step", "inference"))

    result = json.loads((out / "results/none-seed0.json").read_text())
    assert result["seed"] == 0 and result["settings"]["imgsz"] == 64 and result["hyp"] == hyp
    assert set(result["classes"]["val"]) == set(NAMES)
    assert str(tmp_path) not in json.dumps(result) and str(tmp_path) not in (out / "recipe.yaml").read_text()

    monkeypatch.setattr(ablate_runs, "do_run", None)  # which would fail
    shutil.rmtree(out / "runs")  # what is left goes to another place
    out = out.rename(tmp_path / "moved")
    words[words.index("--out") + 1] = str(out)
    ablate.main(ablate.parse_options(words))
    assert f"--out {out}" in (out / "table.md").read_text()
    with pytest.raises(ValueError, match="runs of another recipe"):
        ablate.main(ablate.parse_options([*words, "--fraction", "0.5"]))


def test_a_run_that_another_process_has_is_left_to_it(tmp_path):
    folder = tmp_path / "runs/none-seed0"
    folder.mkdir(parents=True)
    plan = ablate_runs.Plan(Namespace(out=tmp_path, data="no such file", rest=[]), [], ["val"], 64, 2, 3, NAMES)
    with FileLock(folder / "lock"):
        ablate_runs.do_run(plan, ablate_runs.Arm("none", "no such file", ""), 0)
    assert sorted(file.name for file in folder.iterdir()) == ["lock"]


def test_the_page_opens(ablation, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("needs Chromium")
    (tmp_path / "page.html").write_text(as_html(ablation, as_figure(ablation)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    page = subprocess.run([browser, *flags, f"file://{tmp_path / 'page.html'}"], capture_output=True, timeout=120)
    assert b"Every run" in page.stdout
