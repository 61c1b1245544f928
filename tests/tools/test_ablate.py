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

import pytest
import torch
import yaml
from filelock import FileLock
from small_world import TINY, write_boxes, write_yaml

import train
from models.attention import Adapter
from models.backend import load_checkpoint
from tools import ablate, ablate_runs
from tools.ablate_report import Ablation, as_csv, as_figure, as_html, as_markdown, paired, t_quantile, verdicts
from utils.files import ROOT

# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("df", "level", "t"),  # from printed tables
    [
        (1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (9, 0.95, 2.262), (30, 0.95, 2.042),
        (120, 0.95, 1.980), (1, 0.90, 6.314), (5, 0.99, 4.032), (10, 0.99, 3.169),
    ],
)  # fmt: skip
def test_t_quantile(df, level, t):
    assert t_quantile(df, level) == pytest.approx(t, abs=6e-4)


def test_t_quantile_needs_a_degree_of_freedom():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        t_quantile(0)


def test_paired_by_hand():
    """Differences 0.01, 0.02, 0.03 of the seeds that both have: mean 0.02, deviation 0.01, t 4.3027."""
    d = paired({0: 0.51, 1: 0.62, 2: 0.73, 9: 1.0}, {0: 0.5, 1: 0.6, 2: 0.7, 5: 0.0})
    assert d.pairs == 3
    assert d.mean == pytest.approx(0.02)
    assert d.reach == pytest.approx(4.30265 * 0.01 / math.sqrt(3), rel=1e-5)
    assert d.verdict == "no difference shown: the interval contains zero"
    assert str(d) == "+0.0200 [-0.0048, +0.0448]"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.03, 0.031, 0.029], "better"),
        ([-0.03, -0.031, -0.029], "worse"),
        ([0.03, -0.01, 0.02], "no difference shown: the interval contains zero"),
        ([0.0, 0.0], "no difference shown: the interval contains zero"),
        ([0.2], "one pair: no interval"),
    ],
)
def test_verdict(differences, verdict):
    zeros = dict.fromkeys(range(len(differences)), 0.0)
    assert paired(dict(enumerate(differences)), zeros).verdict == verdict


def test_no_pairs():
    assert paired({0: 0.5}, {1: 0.5}) is None


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
        title="a <b> c", arms=list(costs), matched="plain=SE@P5", seeds=[0, 1], splits=["val"], results=results,
        costs=costs, command="python it",
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
    assert "5 of 6 runs are done" in text
    assert "| SE@P5 | 2 | 0.6000 +- 0.0000 | 0.4000 +- 0.0707 |" in text  # 0.35 and 0.45
    assert "| SE@P5 | +0.0000 [+0.0000, +0.0000] | +0.0500 [+0.0500, +0.0500] *better* |" in text
    assert "| SE@P5 | 1,100 (1.100) | 2.000 (1.000) | - | - | - |" in text
    assert any("plain=SE@P5 against none" in line and "one pair: no interval" in line for line in verdicts(ablation))


def test_page_and_figure(ablation):
    image = as_figure(ablation)
    assert image.startswith(b"\x89PNG")
    page = as_html(ablation, image)
    assert "a &lt;b&gt; c" in page
    assert "<b>" not in page
    assert "src='data:image/png;base64," in page
    assert "http" not in page


# --- arms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["SOCA@P3+P4+P5", "SE@P5", "CBAM@P4+P5", "LSRAG@P5"])
def test_the_plain_arm_is_as_large(arm, tmp_path):
    """As large to the last parameter where widths divide, else to the nearest hidden width of one block."""
    arms = ablate_runs.make_arms("yolov5n.yaml", f"none,SimAM@P5,{arm}", tmp_path)
    assert [made.name for made in arms] == ["none", "SimAM@P5", arm, f"plain={arm}"]
    named, plain = (ablate_runs.parameters(made.model()) for made in arms[2:])
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
    assert [arm.name for arm in arms] == ["none", "SimAM@P5"]


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
    ],
)
def test_refused_before_anything_is_trained(flags, message, tmp_path):
    data = write_yaml(tmp_path / "boxes.yaml", write_boxes(tmp_path / "boxes", 1, 1))
    usual = ["--cfg", "yolov5n.yaml", "--attention", "none,SE@P5", "--data", str(data), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=message):
        ablate.main(ablate.parse_options([*usual, *flags]))
    assert not (tmp_path / "out/runs").exists()


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

    done = out / "runs/SOCA@P4-seed0/result.json"
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

    monkeypatch.setattr(ablate_runs, "do_run", None)  # which would fail
    ablate.main(ablate.parse_options(words))
    with pytest.raises(ValueError, match="runs of another recipe"):
        ablate.main(ablate.parse_options([*words, "--fraction", "0.5"]))


def test_a_run_that_another_process_has_is_left_to_it(tmp_path):
    folder = tmp_path / "runs/none-seed0"
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        ablate_runs.do_run(tmp_path, ablate_runs.Arm("none", "no such file", ""), 0, "no such file", [], ["val"])
    assert sorted(file.name for file in folder.iterdir()) == ["lock"]


def test_the_page_opens(ablation, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("needs Chromium")
    (tmp_path / "page.html").write_text(as_html(ablation, as_figure(ablation)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    page = subprocess.run([browser, *flags, f"file://{tmp_path / 'page.html'}"], capture_output=True, timeout=120)
    assert b"Every run" in page.stdout
