"""Trains and measures the arms of an ablation, each run in a process of its own, and writes what is known of them.

The command is tools/ablate.py.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout

import train
import val
from models.attention import Adapter
from models.backend import load_checkpoint
from models.insert import parse_attention
from models.yolo import Model
from tools.ablate_report import Ablation, as_csv, as_figure, as_html, as_markdown
from tools.costs import PairedTimer, inference, machine, peak_bytes, training_step
from tools.explain import explain
from utils import cli
from utils.boxes import check_image_size
from utils.data.dataset_yaml import load_dataset_yaml
from utils.device import select_device
from utils.files import atomic_write, read_yaml, write_yaml
from utils.log import LOGGER

ROUNDS = 9  # of the timing


class Arm(NamedTuple):
    """A network that is compared: the YAML and the attention that train.py is given."""

    name: str
    cfg: str
    attention: str

    def model(self, nc: int | None = None, channels: int = 3) -> Model:
        """Builds the network for nc classes (None: those of the YAML) and images of so many channels."""
        return Model(self.cfg, channels, nc, insert=parse_attention(self.attention))


# --- the arms ---------------------------------------------------------------------------------------------------------


def make_arms(cfg: str, attention: str, out: Path | None) -> list[Arm]:
    """Returns the arms that `attention` names, and the arm of plain layers, whose YAML is written into `out`.

    out: None for no arm of plain layers.
    """
    names = [name.strip() for name in attention.split(",")]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--attention names {twice[0]!r} twice")
    if len(names) < 2 or not all(names):
        raise ValueError(f"--attention must name at least two arms, such as none,SE@P5,SOCA@P5, got {attention!r}")
    arms = [Arm(name, cfg, "" if name == "none" else name) for name in names]
    sizes = {arm: parameters(arm.model()) for arm in arms}  # also finds what is wrong with an arm before work starts
    largest = max(arms, key=sizes.get)
    more = sizes[largest] - parameters(Model(cfg))
    if out and largest.attention:
        if plain := matched_yaml(largest, more):
            name = f"plain={largest.name}"
            write_yaml(out / f"{name}.yaml", plain)
            arms.append(Arm(name, str(out / f"{name}.yaml"), ""))
        else:
            LOGGER.warning(
                f"the arm plain={largest.name} is left out: plain layers have more parameters than the {more} of "
                f"{largest.name}"
            )
    return arms


def parameters(model: Model) -> int:
    """Returns the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def matched_yaml(arm: Arm, more: int) -> dict | None:
    """Returns a plain YAML with `Adapter` blocks in the arm's places that have `more` parameters, up to the rounding of
    a width; None where their biases alone are more.

    A block of C channels and hidden width C / r has C + C / r (2 C + 1) parameters; r is the same for all.
    """
    rows = [{**row, "module": "Adapter"} for row in parse_attention(arm.attention)]
    widths = [layer.up.out_channels for layer in Model(arm.cfg, insert=rows).model if isinstance(layer, Adapter)]
    if more <= sum(widths):
        return None
    reduction = sum(C * (2 * C + 1) for C in widths) / (more - sum(widths))
    return Model(arm.cfg, insert=[{**row, "args": [None, reduction]} for row in rows]).yaml


# --- one run, in a process of its own ---------------------------------------------------------------------------------


def folder_of(out: Path, arm: str, seed: int) -> Path:
    """Returns the folder of a run."""
    return out / "runs" / f"{arm}-seed{seed}"


def do_run(out: Path, arm: Arm, seed: int, data: str, rest: list[str], splits: list[str]) -> None:
    """Trains and measures one run, unless it is done or another process does it; output goes to log.txt in its folder.

    This process holds the lock, so it lasts as long as the training even if the program that started it ends.
    """
    folder = folder_of(out, arm.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(folder / "lock", timeout=0):
        if (folder / "result.json").exists():
            return
        with open(folder / "log.txt", "a") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
        last = folder / "weights/last.pt"
        if not finished(last):
            go_on = ["--resume", str(last)]
            anew = ["--cfg", arm.cfg, "--attention", arm.attention, "--data", data, "--seed", str(seed), *rest]
            anew += ["--project", str(folder.parent), "--name", folder.name, "--exist-ok"]
            cli.run(train.main, train.parse_opt(argv=go_on if last.exists() else anew), "train")
        result = measure_run(folder, data, splits)
        with atomic_write(folder / "result.json", "w") as file:
            json.dump({"arm": arm.name, "seed": seed, **result}, file, indent=1)


def finished(last: Path) -> bool:
    """Returns whether there is a last.pt whose training is complete."""
    return last.exists() and load_checkpoint(last)["training"]["state"]["finished"]


def measure_run(folder: Path, data: str, splits: list[str]) -> dict:
    """Returns P, R, mAP50 and mAP50-95 of the weights after the last epoch for each split, and facts about the run."""
    last = folder / "weights/last.pt"
    opt = read_yaml(folder / "opt.yaml")
    state = load_checkpoint(last)["training"]["state"]
    figures = {}
    for split in splits:
        results, _, _ = val.run(
            data, last, 2 * opt["batch_size"], opt["imgsz"], task=split, device=opt["device"], workers=opt["workers"],
            single_cls=opt["single_cls"], half=False, plots=False, project=folder, name=split, exist_ok=True,
        )  # fmt: skip
        figures[split] = list(map(float, results[:4]))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and opt["device"] != "cpu" else "cpu"
    about = {"epochs": state["epoch"] + 1, "seconds": state["seconds"], "device": device, "torch": torch.__version__}
    return {**figures, **about}


# --- all runs ---------------------------------------------------------------------------------------------------------


def do_runs(opt: argparse.Namespace, arms: list[Arm], splits: list[str]) -> list[str]:
    """Does the runs that no process has done or is doing, seed by seed; returns the names of the failed runs."""
    failed = []
    for seed in range(opt.seeds):
        for arm in arms:
            folder = folder_of(opt.out, arm.name, seed)
            if (folder / "result.json").exists():
                continue
            LOGGER.info(f"{arm.name}, seed {seed}: see {folder / 'log.txt'}")
            work = (opt.out, arm, seed, opt.data, opt.rest, splits)
            process = multiprocessing.get_context("spawn").Process(target=do_run, args=work)
            process.start()
            try:
                process.join()
            finally:  # also when a signal stops this program
                process.terminate()
                process.join()
            if process.exitcode:
                failed.append(folder.name)
                LOGGER.warning(f"{folder.name} ended with status {process.exitcode}: {last_line(folder / 'log.txt')}")
            report(opt, arms, splits)
    return failed


def all_done(opt: argparse.Namespace, arms: list[Arm]) -> bool:
    """Returns whether every run has a result."""
    return all((folder_of(opt.out, arm.name, s) / "result.json").exists() for arm in arms for s in range(opt.seeds))


def last_line(path: Path) -> str:
    """Returns the last line of a log."""
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "no output"


# --- cost and report --------------------------------------------------------------------------------------------------


def sizes(opt: argparse.Namespace, arms: list[Arm]) -> dict[str, dict[str, float]]:
    """Returns the number of parameters and the FLOPs of each arm."""
    nc, channels = _shape(opt)
    found = {}
    for arm in arms:
        model = arm.model(nc, channels)
        lines = explain(model, check_image_size(opt.trained.imgsz, model.image_multiple))
        found[arm.name] = {"parameters": parameters(model), "flops": sum(line.flops for line in lines)}
    return found


def _shape(opt: argparse.Namespace) -> tuple[int, int]:
    data = load_dataset_yaml(opt.data)
    return 1 if opt.trained.single_cls else data["nc"], data["channels"]


def time_arms(opt: argparse.Namespace, arms: list[Arm]) -> dict:
    """Times the arms in turn: fused inference of one image, and a training step with its peak of memory."""
    device, (nc, channels) = select_device(opt.trained.device), _shape(opt)
    size = check_image_size(opt.trained.imgsz, 64)
    timer = PairedTimer(device, ROUNDS, cpu_seconds=device.type == "cpu" and torch.get_num_threads() == 1)
    steps, answers, costs = {}, {}, {}
    for arm in arms:
        torch.manual_seed(0)
        steps[arm.name] = training_step(arm.model(nc, channels), device, max(opt.trained.batch_size, 1), size)
        answers[arm.name] = inference(arm.model(nc, channels), device, size)
        steps[arm.name]()  # the first step creates the state of the optimizer
        costs[arm.name] = {"memory": peak_bytes(steps[arm.name], device)}
    for key, forms, times in (("inference", answers, 5), ("step", steps, 1)):
        for name, seconds in timer(forms, times).items():
            costs[name][key] = seconds
    clock = "CPU seconds" if timer.cpu_seconds else "wall clock"
    about = f"{machine(device)}, medians in turn, {clock}; batch 1 fused, and batch {opt.trained.batch_size}, {size} px"
    return {"machine": about, "costs": costs}


def timed(out: Path, arms: list[Arm]) -> dict | None:
    """Returns the content of costs.json, if it has all the arms."""
    file = out / "costs.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"costs": {}}
    return content if content["costs"].keys() >= {arm.name for arm in arms} else None


def report(opt: argparse.Namespace, arms: list[Arm], splits: list[str]) -> Ablation:
    """Writes CSV, table, figure and page of the runs so far."""
    seeds = list(range(opt.seeds))
    results = {}
    for arm in arms:
        for seed in seeds:
            file = folder_of(opt.out, arm.name, seed) / "result.json"
            if file.exists():
                results[arm.name, seed] = json.loads(file.read_text(encoding="utf-8"))
    names = [arm.name for arm in arms]
    costs, about = sizes(opt, arms), ""
    if times := timed(opt.out, arms):
        costs = {name: {**costs[name], **times["costs"][name]} for name in names}
        about = times["machine"]
    words = ["python", "tools/ablate.py", "--cfg", opt.cfg, "--attention", opt.attention, "--data", opt.data]
    words += ["--seeds", str(opt.seeds), *opt.rest]
    matched = next((name for name in names if name.startswith("plain=")), None)
    title = f"Attention in {Path(opt.cfg).stem} on {Path(opt.data).stem}"
    ablation = Ablation(
        title=title, arms=names, matched=matched, seeds=seeds, splits=splits, results=results, costs=costs,
        machine=about, command=shlex.join(words),
    )  # fmt: skip
    figure = as_figure(ablation)
    for name, content in (
        ("runs.csv", as_csv(ablation)),
        ("table.md", as_markdown(ablation)),
        ("figure.png", figure),
        ("report.html", as_html(ablation, figure)),
    ):
        with atomic_write(opt.out / name) as output:
            output.write(content if isinstance(content, bytes) else content.encode())
    return ablation
